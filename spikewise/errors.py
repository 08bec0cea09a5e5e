"""What a user can cause and correct."""


class UserError(ValueError):
    """Something that a user can mend. The message is for them: what was wrong, the value, the bound, the way out."""

    def __init__(self, message: str, *, transient: bool = False) -> None:
        """`transient`: the same may succeed a while later, as with storage that does not answer."""
        super().__init__(message)
        self.transient = transient
