"""The two errors with a meaning across processes."""


class UserError(Exception):
    """A mistake the user can mend; shown as one line, never as a traceback, with exit code 2."""


class ProtocolError(Exception):
    """A message that is malformed, or not the one agreed on; its text is the reason given to the sender."""
