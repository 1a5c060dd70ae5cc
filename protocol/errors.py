"""The errors with a meaning across processes."""


class UserError(Exception):
    """A mistake that the user can correct. It is shown as one line without a traceback, and the exit code is 2."""


class ProtocolError(Exception):
    """A message is malformed, or breaks what the handshake agreed on. The sender gets the text as the reason."""


class EnvironmentFault(Exception):
    """An environment raised an exception or returned an invalid value. The text names the phase and what happened.
    `__cause__` is the environment's exception, or None for an invalid value."""

    def __init__(self, phase: str, text: str) -> None:
        super().__init__(text)
        self.phase = phase  # `constructor`, `reset` or `step`
