"""The worker's side of the conversation with a benchmark: a JSON object a line, each way."""

import json
import os
import sys
from collections.abc import Callable
from typing import Any

from protocol.errors import UserError
from protocol.lifeline import USER_ERROR


def serve(prepare: Callable[[], Callable[..., Any]]) -> None:
    """Answer each request with what the function that `prepare` returns makes of its items, until there are no more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not be taken for an answer
    try:
        answer = prepare()
        for line in sys.stdin:
            answers.write(json.dumps(answer(**json.loads(line))) + "\n")
            answers.flush()
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(USER_ERROR)
