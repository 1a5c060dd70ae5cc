"""The findings of a run's witness in words."""

from typing import Any


def in_words(counts: dict[str, Any]) -> str:
    """The `witness` of a summary as one line."""
    rollouts, elsewhere, updates = (counts.get(name, 0) for name in ("rollouts", "in_other_processes", "updates"))
    different = counts.get("differences", 0) + counts.get("update_differences", 0)
    return (
        f"{_count(rollouts, 'rollout')} ({elsewhere} in another process), {_count(updates, 'update')}:"
        f" {f'{different} differed' if different else 'all equal'}"
    )


def compared(counts: dict[str, Any]) -> bool:
    """Whether anything was computed a second time."""
    return bool(counts.get("rollouts") or counts.get("updates"))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
