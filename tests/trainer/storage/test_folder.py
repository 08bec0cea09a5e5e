"""trainer.storage.folder: what only a folder does."""

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from trainer.storage import Exists, NotFound, StoreError
from trainer.storage.folder import FolderStore


@pytest.mark.parametrize("key", ["../escape", "a/../../escape", "/etc/passwd", "a//b", ".", "", "a/", "nul\0"])
def test_keys_stay_inside(tmp_path: Path, key: str) -> None:
    """A key from an untrusted manifest could overwrite or delete files outside the store."""
    store = FolderStore(tmp_path / "store")
    for use in (lambda: store.put(key, b""), lambda: store.get(key), lambda: store.delete([key])):
        with pytest.raises(StoreError, match="not a valid file name"):
            use()
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    """A misspelled data folder would look like a folder without images."""
    with pytest.raises(NotFound, match="gone: no such folder"):
        list(FolderStore(tmp_path / "gone").list())


def test_partial_files_and_empty_folders_are_invisible(tmp_path: Path) -> None:
    """After a crash half a shard would be read; deleted checkpoints would leave empty folders behind."""
    store = FolderStore(tmp_path)

    def crash(_: Any) -> None:
        assert list(store.list()) == []
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        store._write(tmp_path / "a/b/key", crash)
    assert list((tmp_path / "a/b").iterdir()) == []
    store.put("a/b/c/key", b"")
    store.put("a/other", b"")
    store.delete(["a/b/c/key"])
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "other"]


def test_files_are_on_the_disk_before_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a power failure a commit object would vouch for files that are empty."""
    done: list[str] = []

    def fsync(descriptor: int) -> None:
        done.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")

    link, replace = os.link, Path.replace
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "link", lambda *names: (done.append("name"), link(*names)))
    monkeypatch.setattr(Path, "replace", lambda *names: (done.append("name"), replace(*names)))
    store = FolderStore(tmp_path / "store")
    (tmp_path / "local").write_bytes(b"data")
    for write in (
        lambda: store.upload("a", tmp_path / "local"),
        lambda: store.put("c", b"data", if_absent=True),
    ):
        done.clear()
        write()
        assert done == ["file", "name", "folder"]


def test_symbolic_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    """A linked data set would be empty, or a circular link would list it forty times."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/x").write_bytes(b"x")
    (tmp_path / "store").mkdir()
    (tmp_path / "store/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "store/circle").symlink_to(tmp_path / "store")
    (tmp_path / "store/dangling").symlink_to(tmp_path / "nowhere")
    assert [entry.key for entry in FolderStore(tmp_path / "store").list()] == ["linked/x"]


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    """The manifest's digest would fail with a traceback."""
    (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes(b"")
    with pytest.raises(StoreError, match=r"caf\\xe9\.png' is not UTF-8. Fix: rename it"):
        list(FolderStore(tmp_path).list())


def test_etag_changes_with_the_content(tmp_path: Path) -> None:
    """Training would use an old pack after the data changed."""
    store = FolderStore(tmp_path)
    store.put("key", b"old")
    (before,) = store.list()
    store.put("key", b"new")
    (after,) = store.list()
    assert before.etag != after.etag


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    """The user would see a traceback."""
    store = FolderStore(tmp_path)
    store.put("a", b"")
    for key in ["a/b", "a/b/c"]:
        with pytest.raises(StoreError, match=r"a/b.*(File exists|Not a directory)") as error:
            store.put(key, b"")
        assert not isinstance(error.value, NotFound | Exists)
