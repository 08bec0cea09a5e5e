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
        ("s3://AKIAFAKE:wJal/K7MD/bPx@bucket/prefix is closed", "s3://***@bucket/prefix is closed"),
        ("'s3://AKIAFAKE:12/bPx@bucket/a' and 's3://b/c@d'", "'s3://***@bucket/a' and 's3://b/c@d'"),
        ("s3:AKIAFAKE:wJal/K7MD@bucket", "s3:***@bucket"),
        ("S3:/AKIAFAKE:wJal@bucket", "S3:/***@bucket"),
        ("http://jane:p/w@host:8333/x", "http://***@host:8333/x"),
        ("http://jane:p@w?#@host/x", "http://***@host/x"),
        (
            "https://h/k?aws_access_key_id=AKIAFAKE&aws_secret_access_key=wJal/K7",
            "https://h/k?aws_access_key_id=***&aws_secret_access_key=***",
        ),
        ("https://h/k?secret=a&client-secret=b&secretKey=c&x=d", "https://h/k?secret=***&client-secret=***&secretKey=***&x=d"),
    ],
)
def test_credentials_in_urls_are_masked(text, shown):
    """A secret key would stand in a log, a ticket or a report."""
    assert masked(text) == printable(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/a@2x.png",
        "s3://bucket/a:b@c.jpg",
        "s3://bucket/jane@example.org/1:2@3.jpg",
        "s3://bucket: no object a@2x.png",
        "arn:aws:s3:eu-west-1:123456789012:accesspoint/a/object/a@2x.png",
        "http://host:8333/photos/jane@example.org.jpg",
        "http://[::1]:8333/a@2x.png",
        "http://host:8333?prefix=a@b",
        "file:///data/a:b@c.jpg",
        "https://h/k?key=a&name=jane@example.org",
        "Au/jane@example.org: a label",
        r"class_pattern = '^(?P<class>[^/@]+)/'",
    ],
)
def test_names_with_signs_of_credentials_stay_readable(text):
    """A configuration that names such an image would be refused, and a log would hide which object is damaged."""
    assert masked(text) == text


def test_log_records_are_printable():
    """A warning about a hostile key would reach the terminal as it is."""
    record = logging.LogRecord("x", logging.WARNING, "", 0, "%s", ("a\x1b]0;title\x07",), None)
    assert LogFormatter("warning: %(message)s").format(record) == "warning: a\\x1b]0;title\\x07"
