"""trainer.storage.open_store."""

from pathlib import Path

import pytest

from trainer.config import S3
from trainer.storage import StoreError, open_store


def test_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A documented form of URL would not work."""
    monkeypatch.chdir(tmp_path)
    assert open_store("s3://bucket-1", S3()).url == "s3://bucket-1"
    assert open_store("s3://bucket-1/a/b/", S3()).url == "s3://bucket-1/a/b"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_store("~/images", S3()).url == str(tmp_path / "images")
    assert open_store("~no-such-user/images", S3()).url == str(tmp_path / "~no-such-user/images")
    assert open_store("data/images", S3()).url == str(tmp_path / "data/images")
    assert open_store(f"file://{tmp_path}/with%20blank", S3()).url == f"{tmp_path}/with blank"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "  ",
        "s3:/bucket",
        "s3:bucket",
        "s3://",
        "s3:///prefix",
        "s3://b",
        "s3://a b/c",
        "gs://bucket",
        "file://relative",
        "http://x/y",
    ],
)
def test_malformed_urls(url: str) -> None:
    """A typing error would create a folder of that name, or end in a traceback."""
    with pytest.raises(StoreError, match="write s3://bucket/prefix") as error:
        open_store(url, S3())
    assert "\n" not in str(error.value)
