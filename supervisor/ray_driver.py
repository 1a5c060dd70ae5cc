"""`python -m supervisor.ray_driver`: places actors on the nodes of a Ray cluster and tells how they end.

A child of launch.py, which tells it the run's key and decides when: a line says `start INDEX NUMBER`, `kill NUMBER` or
`restart NUMBER`, where a number is the life of one actor. What becomes of them goes to standard output, one JSON object
a line.
"""

import argparse
import importlib
import os
import queue
import socket
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from protocol.errors import UserError
from protocol.events import ActorExit, Event, Note, to_line
from protocol.keys import ActorKey, actor_key
from protocol.lifeline import FAILURE, KEY, await_line, run_child
from supervisor.ray_actor import ActorHost

CONNECT_SECONDS = 5.0  # Seconds that the head of a cluster has to answer.
OBJECT_STORE = 100 * 2**20  # Bytes, for a cluster of our own: a run puts nothing into the object store.
ANSWER_SECONDS = 1.0  # Seconds that a node has to answer.
AVOID_SECONDS = 60.0  # Seconds for which a silent node is avoided. Ray takes up to 30 s to call it dead.
MAX_REASON = 300  # Most characters that are kept of what Ray says about an actor's end.

Words = queue.SimpleQueue[list[Any]]  # The supervisor's words, and Ray's news of actors, from other threads.


@dataclass
class Placed:
    """An actor that has not ended."""

    name: str
    handle: Any  # Ray's handle of the actor.
    careful: bool  # Whether the actor may run on some nodes only.
    node: str | None = None  # The id of the actor's node, once the actor runs.


class Driver:
    """Starts and ends the actors of one run with Ray."""

    def __init__(self, ray: Any, address: str, key: ActorKey, logs: Path, words: Words, events: int) -> None:
        self._ray = ray
        self._address = address
        self._key = key
        self._logs = logs
        self._words = words
        self._events = events
        self._placed: dict[int, Placed] = {}  # By the actor's number.
        self._avoided: dict[str, float] = {}  # Unreachable nodes, and when this was found (time.monotonic()).
        # There is no `runtime_env`: with one, Ray cannot use its idle workers, and starts each worker twice.
        self._options = {
            "num_cpus": 1,
            "max_restarts": 0,  # The supervisor restarts actors.
            "scheduling_strategy": "SPREAD",
        }
        self._host = ray.remote(ActorHost)

    def serve(self) -> None:
        """Follow the supervisor's words until it says `stop` or is gone."""
        while True:
            match self._words.get():
                case ["start", str(name), number]:
                    self._start(name, int(number))
                case ["kill", number]:
                    self._kill(int(number))
                case ["restart", number]:
                    placed = self._placed.get(int(number))
                    if placed is not None and (placed.node or placed.careful):  # Else it still waits for a CPU.
                        self._kill(int(number))
                case ["runs", int(number), str(node)]:
                    if number in self._placed:
                        self._placed[number].node = node
                case ["ended", int(number), int(code), str(said), bool(answered)]:
                    self._end(number, code, said, answered)
                case _:
                    return

    def report(self, event: Event) -> None:
        os.write(self._events, f"{to_line(event)}\n".encode())

    def _start(self, name: str, number: int) -> None:
        unreachable = self._unreachable_nodes()
        # Ray still counts a node that was just lost as alive, and would let the actor wait for that node.
        avoid = {"label_selector": {"ray.io/node-id": f"!in({','.join(unreachable)})"}} if unreachable else {}
        handle = self._host.options(**self._options, **avoid).remote()
        self._placed[number] = Placed(name, handle, careful=bool(unreachable))
        handle.node.remote().future().add_done_callback(partial(self._note_start, number))
        run = handle.run.remote(name, number, self._address, self._key, str(Path.cwd()), sys.path)
        run.future().add_done_callback(partial(self._note_end, number))

    def _unreachable_nodes(self) -> list[str]:
        now = time.monotonic()
        return [node for node, since in self._avoided.items() if now - since < AVOID_SECONDS]

    def _answers(self, node: str) -> bool:
        """Whether a node answers at the address of its Ray process."""
        known = [each for each in self._ray.nodes() if each["NodeID"] == node]
        try:
            for each in known:
                socket.create_connection((each["NodeManagerAddress"], each["NodeManagerPort"]), ANSWER_SECONDS).close()
        except OSError:
            return False
        return bool(known)

    def _note_start(self, number: int, future: Any) -> None:
        if future.exception() is None:  # Else the actor has ended, and `_note_end` reports that.
            self._words.put(["runs", number, future.result()])

    def _note_end(self, number: int, future: Any) -> None:
        error = future.exception()
        code, said = future.result() if error is None else (FAILURE, " ".join(str(error).split())[:MAX_REASON])
        answered = not isinstance(error, self._ray.exceptions.ActorUnavailableError)
        self._words.put(["ended", number, code, said, answered])

    def _end(self, number: int, code: int, said: str, answered: bool) -> None:
        placed = self._placed.pop(number)
        node = placed.node
        if node is not None and not answered and node not in self._unreachable_nodes() and not self._answers(node):
            self._avoided[node] = time.monotonic()
        self._ray.kill(placed.handle)  # The actor's process may live on without a connection.
        if said:
            with open(self._logs / f"actor-{placed.name}.log", "a") as log:
                log.write(f"{said}\n")
        self.report(ActorExit(placed.name, number, code, said.splitlines()[-1] if said else ""))

    def _kill(self, number: int) -> None:
        if number in self._placed:
            self._ray.kill(self._placed[number].handle)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m supervisor.ray_driver", description=__doc__)
    parser.add_argument("--address", help="of a cluster that runs; without it, one is started")
    parser.add_argument("--port", type=int, required=True, help="where the learner listens on this machine")
    parser.add_argument("--actors", type=int, required=True, help="how many there will be")
    parser.add_argument("--logs", type=Path, required=True, help="directory for what actors say when they end")
    arguments = parser.parse_args()
    key = actor_key(await_line(KEY).split())
    events = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # Ray's own output goes to the log and cuts no event in two.
    words: Words = queue.SimpleQueue()

    def work() -> None:
        ray = _connect(arguments.address, arguments.actors)
        host = ray.util.get_node_ip_address()
        address = f"tcp://[{host}]:{arguments.port}" if ":" in host else f"tcp://{host}:{arguments.port}"
        driver = Driver(ray, address, key, arguments.logs, words, events)
        nodes, cpus = sum(node["Alive"] for node in ray.nodes()), ray.cluster_resources().get("CPU", 0)
        driver.report(Note(f"Ray has {cpus:g} CPUs on {nodes} node{'s' * (nodes > 1)}; the learner is at {address}"))
        if cpus < arguments.actors:
            waiting = arguments.actors - int(cpus)
            driver.report(Note(f"{waiting} of the actors wait until Ray has a CPU for each"))
        driver.serve()
        ray.shutdown()

    run_child("ray", work, on_word=words.put)


def _connect(address: str | None, num_actors: int) -> Any:
    """Ray, connected to the cluster at `address`, or to a new one that has a CPU for each actor."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray = importlib.import_module("ray")
    own = {"num_cpus": num_actors, "object_store_memory": OBJECT_STORE, "include_dashboard": False}
    try:
        if address not in (None, "auto"):
            host, _, port = address.rpartition(":")  # Ray itself would try for minutes.
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
        ray.init(address or "local", log_to_driver=False, **({} if address else own))
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:MAX_REASON]
        raise UserError(f"no Ray cluster can be joined at --address {address}: {reason}") from None
    return ray


if __name__ == "__main__":
    main()
