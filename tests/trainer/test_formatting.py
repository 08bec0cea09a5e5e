"""Other people's names and errors as text."""

import logging

import pytest

from trainer.formatting import LogFormatter, masked, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31m\x07.jpg", "a\\x1b[31m\\x07.jpg"),
        ("\x9b2J", "\\x9b2J"),
        ("exe\u202egpj", "exe\\u202egpj"),
        ("bytes \udc80", "bytes \\udc80"),
        ("Gr\u00fc\u00dfe, \u65e5\u672c\nnext", "Gr\u00fc\u00dfe, \u65e5\u672c\nnext"),
    ],
)
def test_names_cannot_steer_a_terminal(text, shown):
    """A key could clear the screen of whoever reads the log, or retitle their terminal; or honest names would be unreadable."""
    assert printable(text) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://key:secret@host:8333/x", "http://***@host:8333/x"),
        ("proxy https://user@proxy:3128 failed", "proxy https://***@proxy:3128 failed"),
        ("https://h/k?X-Amz-Signature=abc&X-Amz-Expires=5", "https://h/k?X-Amz-Signature=***&X-Amz-Expires=5"),
        ("https://h/k?a=1&AWSAccessKeyId=AKIA", "https://h/k?a=1&AWSAccessKeyId=***"),
        ("s3://bucket/a@2x.png", "s3://bucket/a@2x.png"),
    ],
)
def test_credentials_in_urls_are_masked(text, shown):
    """A secret key would stand in a log, a ticket or a report."""
    assert masked(text) == printable(text) == shown


def test_log_records_are_printable():
    """A warning about a hostile key would reach the terminal as it is."""
    record = logging.LogRecord("x", logging.WARNING, "", 0, "%s", ("a\x1b]0;title\x07",), None)
    assert LogFormatter("warning: %(message)s").format(record) == "warning: a\\x1b]0;title\\x07"
