"""`python -m actors.witness`: the actor that collects rollouts a second time, and hosts no lane.

Its code is that of every actor. It has a name of its own so that people can tell it apart in a list of processes.
"""

import runpy

if __name__ == "__main__":
    runpy.run_module("actors", run_name="__main__")
