"""The base class of every error that a user can correct."""


class UserError(ValueError):
    """An error the user can correct. The message is one line: the problem with its value and bound, then "Fix: what to do"."""

    def __init__(self, message: str, *, transient: bool = False) -> None:
        """`transient`: the same call may succeed later, for example when storage did not answer."""
        super().__init__(message)
        self.transient = transient
