"""Descriptions of a process's end, and delays before a process that keeps ending is started again."""

import signal

import pytest

from supervisor.crashes import Crashes, end_of, when


def test_the_first_start_is_at_once_and_the_others_wait_longer_and_longer_until_there_is_none() -> None:
    crashes = Crashes()
    assert [crashes.next_backoff() for _ in range(5)] == [0.0, 0.5, 1.0, 2.0, None]


def test_it_is_said_when() -> None:
    assert (when(0.0), when(0.5)) == ("at once", "in 0.5 s")


@pytest.mark.parametrize(
    ("code", "said", "told"),
    [
        (-9, "[Powered by Stella]", "was killed by SIGKILL"),
        (-int(signal.SIGSEGV), "", "was killed by SIGSEGV"),
        (-40, "", "was killed by signal 40"),
        (3, "no licence", "ended with exit code 3: no licence"),
        (0, "", "ended with exit code 0"),
    ],
)
def test_a_process_is_described_by_what_ended_it(code: int, said: str, told: str) -> None:
    assert end_of(code, said) == told
