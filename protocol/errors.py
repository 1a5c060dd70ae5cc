"""The errors with a meaning across processes."""


class UserError(Exception):
    """A mistake the user can mend; shown as one line, never as a traceback, with exit code 2."""


class ProtocolError(Exception):
    """A message that is malformed, or not the one agreed on; its text is the reason given to the sender."""


class EnvironmentFault(Exception):
    """An environment raised or returned nonsense; the text says in what, and what. Its cause is what was raised, None
    for nonsense."""

    def __init__(self, phase: str, text: str) -> None:
        super().__init__(text)
        self.phase = phase  # `constructor`, `reset` or `step`
