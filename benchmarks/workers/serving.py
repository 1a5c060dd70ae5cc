"""The worker's side of the protocol with a benchmark: one JSON object per line, each way."""

import json
import os
import sys
from collections.abc import Callable
from typing import Any

from protocol.errors import UserError
from protocol.lifeline import USER_ERROR


def serve(prepare: Callable[[], Callable[..., Any]]) -> None:
    """Answer requests until stdin ends: `prepare` returns a function that is called with each request's items."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Text that a library prints to stdout goes to stderr, so it is not mistaken for an answer.
    try:
        answer = prepare()
        for line in sys.stdin:
            answers.write(json.dumps(answer(**json.loads(line))) + "\n")
            answers.flush()
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(USER_ERROR)
