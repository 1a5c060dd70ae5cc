"""An actor in one of Ray's processes. Ray imports this module on the node where it places the actor."""

import importlib
import os
import socket
import sys
import traceback
from contextlib import suppress

from protocol.errors import UserError
from protocol.keys import ActorKey
from protocol.lifeline import FAILURE, SUCCESS, USER_ERROR
from protocol.offspring import end_offspring
from protocol.process import HASH_SEED, ONE_THREAD, hash_seed_is_fixed


class ActorHost:
    """One actor."""

    def node(self) -> str:
        """The id of the node on which this actor runs."""
        return importlib.import_module("ray").get_runtime_context().get_node_id()

    def run(self, name: str, number: int, address: str, key: ActorKey, folder: str, path: list[str]) -> tuple[int, str]:
        """Act until the run is over. Returns the exit code and a text that explains it, which may be empty."""
        if "numpy" in sys.modules and not ONE_THREAD.items() <= os.environ.items():
            limited = " ".join(f"{each}={value}" for each, value in ONE_THREAD.items())
            return (
                USER_ERROR,
                f"actor {name}: Ray loads NumPy before an actor can limit its threads: {limited} ray start",
            )
        if not hash_seed_is_fixed():
            seed = " ".join(f"{each}={value}" for each, value in HASH_SEED.items())
            return USER_ERROR, f"actor {name}: Ray's processes have random hash seeds: {seed} ray start"
        os.environ |= ONE_THREAD
        sys.path += [part for part in path if part not in sys.path]  # These include the folders of the user's modules.
        with suppress(OSError):  # A user's relative paths begin there.
            os.chdir(folder)
        try:
            from actors.actor import Actor

            Actor(name, address, key, life=number).run()
        except UserError as error:
            return USER_ERROR, f"actor {name}: {error} (on {socket.gethostname()})"
        except Exception:
            return FAILURE, traceback.format_exc().strip()
        finally:
            end_offspring()
        return SUCCESS, ""
