"""When a process that keeps ending is started again."""

from supervisor.crashes import Crashes, when


def test_the_first_start_is_at_once_and_the_others_wait_longer_and_longer_until_there_is_none() -> None:
    crashes = Crashes()
    assert [crashes.next_backoff() for _ in range(5)] == [0.0, 0.5, 1.0, 2.0, None]


def test_it_is_said_when() -> None:
    assert (when(0.0), when(0.5)) == ("at once", "in 0.5 s")
