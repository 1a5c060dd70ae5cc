"""An actor in a process of Ray's, on whatever node that is; Ray imports this there."""

import importlib
import os
import socket
import traceback
from contextlib import suppress

from protocol.errors import UserError
from protocol.keys import ActorKey
from protocol.lifeline import FAILURE, SUCCESS, USER_ERROR
from protocol.threads import use_one_thread


class ActorHost:
    """One actor."""

    def node(self) -> str:
        """The id of the node."""
        return importlib.import_module("ray").get_runtime_context().get_node_id()

    def run(self, index: int, number: int, address: str, key: ActorKey, folder: str) -> tuple[int, str]:
        """Act until the run is over; returns the exit code, and what there is to say about it."""
        with suppress(OSError):  # where a relative path of the user's means what it does there
            os.chdir(folder)
        use_one_thread(os.environ)
        try:
            from actors.actor import Actor  # which loads NumPy: not before that is set

            Actor(str(index), address, key, pid=number).run()
        except UserError as error:
            return USER_ERROR, f"actor {index}: {error} (on {socket.gethostname()})"
        except Exception:
            return FAILURE, traceback.format_exc().strip()
        return SUCCESS, ""
