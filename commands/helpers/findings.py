"""What `doctor` says: a line each, with what to do about it."""

from typing import NamedTuple


class Finding(NamedTuple):
    """One thing that was looked at."""

    mark: str
    text: str
    remedy: str | None

    @property
    def is_wrong(self) -> bool:
        return self.mark == "WRONG"

    def __str__(self) -> str:
        return f"{self.mark:5}  {self.text}" + (f". To do: {self.remedy}" if self.remedy else "")


def ok(text: str, remedy: str | None = None) -> Finding:
    return Finding("ok", text, remedy)


def note(text: str, remedy: str | None = None) -> Finding:
    """Something that could be better."""
    return Finding("note", text, remedy)


def wrong(text: str, remedy: str | None = None) -> Finding:
    """Something that keeps training from working as it should."""
    return Finding("WRONG", text, remedy)
