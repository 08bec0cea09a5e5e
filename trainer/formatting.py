"""Numbers, errors and other people's names as text for people."""

import logging
import math
import re

from spikewise import describe
from trainer import UserError


def duration(seconds: float | None) -> str:
    """A duration such as 4.1 s, 3m20s or 2h05m; ? if it is unknown."""
    if seconds is None or not math.isfinite(seconds):
        return "?"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest:02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"


def size(count: float) -> str:
    """A number of bytes such as 393 MB, in powers of 1000."""
    units = ["bytes", "kB", "MB", "GB", "TB"]
    while count >= 1000 and len(units) > 1:
        count /= 1000
        units.pop(0)
    return f"{count:.0f} {units[0]}" if count >= 100 or units[0] == "bytes" else f"{count:.1f} {units[0]}"


def plain(error: BaseException) -> str:
    """The error's message on one line of at most 300 characters, without control characters: it may quote a stranger's object."""
    return "".join(letter if letter.isprintable() else "?" for letter in one_line(error))[:300]


def one_line(error: BaseException) -> str:
    """The error's message on one line, printable, without the full stop of other people's errors; for an OSError the system's
    message and the file."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror + (f": {error.filename!r}" if error.filename else "")
    text = printable(" ".join(str(error).split()))
    return text if isinstance(error, UserError) else text.removesuffix(".")


_LOGINS = (
    # Of S3: a secret key may contain slashes, and what people write may lack some of s3://.
    re.compile(r"((?<![\w:])s3:/{0,2})(?:[^/?#\s'\":]+:[^\s'\"]*|[^/?#\s'\"]*)@", re.IGNORECASE),
    # Of servers: digits after the colon are a port, and what follows is a path.
    re.compile(r"(://)(?:[^/?#\s'\":\[]+:(?!\d+(?:[/?#]|$))[^\s'\"]*|[^/?#\s'\"]*)@"),
)
"""The user and password of a URL, up to the last @ that can be theirs; the group is what precedes them."""
_SECRET_PARAMETER = re.compile(
    r"([?&][\w-]*(?:signature|credential|token|password|secret[\w-]*|access[_-]?key[\w-]*)=)[^&\s'\"]+", re.IGNORECASE
)


def masked(text: str) -> str:
    """The text without the credentials of its URLs: user and password, and keys and signatures in a query."""
    for login in _LOGINS:
        text = login.sub(r"\1***@", text)
    return _SECRET_PARAMETER.sub(r"\1***", text)


def printable(text: str) -> str:
    """The text as it may be written to a terminal or a log, whoever chose the names in it: escape sequences and other invisible
    characters except line breaks become visible, and credentials in URLs are masked."""
    return masked("\n".join(describe.printable(line) for line in text.split("\n")))


def is_plain(text: str) -> bool:
    """Whether the text may stand within a line of a terminal or a log as it is."""
    return printable(text) == text and "\n" not in text


class LogFormatter(logging.Formatter):
    """Writes each record through `printable`."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))
