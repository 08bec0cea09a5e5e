"""trainer.storage.store: what S3 and a folder do alike, and what only a folder does. S3 is SeaweedFS."""

import os
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from trainer.config import S3
from trainer.storage import Exists, NotFound, Store, StoreError, open_store
from trainer.storage.folder import FolderStore
from trainer.storage.s3 import S3Store
from trainer.storage.store import PART

HOSTILE = [
    "line\nbreak",
    "tab\tand \x01control",
    "ünïcode ☃ 🎉.png",
    "space plus+percent%41 ?q=1&r#f;",
    "quote\"'<xml>&amp;",
    "dots../..hidden/e.",
    "a!",
    "a-b",
    "a/1",
    "ä" * 100,
]


@pytest.fixture(params=[pytest.param("s3", marks=pytest.mark.integration), "folder"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    url = request.getfixturevalue("bucket") if request.param == "s3" else str(tmp_path / "store")
    return open_store(url, S3())


class TestBothStores:
    def test_what_was_put_comes_back(self, store: Store, tmp_path: Path) -> None:
        """Training would read something else than what was stored."""
        store.put("a/b.bin", b"first")
        store.put("a/b.bin", b"second", content_type="application/octet-stream")
        store.put("empty", b"")
        for key, data in [("a/b.bin", b"second"), ("empty", b"")]:
            assert store.get(key) == data
            store.download(key, tmp_path / "copy")
            assert (tmp_path / "copy").read_bytes() == data
        found = list(store.list())
        assert [(entry.key, entry.size) for entry in found] == [("a/b.bin", 6), ("empty", 0)]
        assert all(entry.etag and '"' not in entry.etag and entry.modified > 1.7e9 for entry in found)

    def test_ranges_are_slices(self, store: Store) -> None:
        """A reader of one row of a shard would get its neighbour's bytes."""
        data = bytes(range(100))
        store.put("key", data)
        for start, stop in [
            (0, 10),
            (10, 20),
            (90, None),
            (None, 5),
            (95, 200),
            (100, None),
            (200, 300),
            (7, 7),
            (9, 3),
            (None, None),
        ]:
            assert store.get("key", start, stop) == data[start:stop], (start, stop)

    def test_missing_objects_are_told_apart(self, store: Store, tmp_path: Path) -> None:
        """A run that has not been packed yet would look like broken storage."""
        store.put("a/b", b"")
        for key in ["c", "a", "a/b/c"]:
            with pytest.raises(NotFound, match="no such") as error:
                store.get(key)
            assert key in str(error.value)
            with pytest.raises(NotFound):
                store.download(key, tmp_path / "copy")
        assert not (tmp_path / "copy").exists()
        assert list(store.list("nothing/here")) == []
        assert store.errors == 0

    def test_a_prefix_need_not_end_with_a_part(self, store: Store) -> None:
        """A class whose prefix is `Au_` would be empty."""
        for key in ["Au_1/x", "Au_2", "Tp_1", "sub/Au_3", "sub/b/c"]:
            store.put(key, b"")
        assert [entry.key for entry in store.list("Au_")] == ["Au_1/x", "Au_2"]
        assert [entry.key for entry in store.list("sub/b")] == ["sub/b/c"]

    def test_hostile_keys(self, store: Store) -> None:
        """Images whose names hold blanks, line breaks or umlauts would be lost, or listed in another order each time."""
        for key in HOSTILE:
            store.put(key, key.encode())
        assert [entry.key for entry in store.list()] == sorted(HOSTILE)
        assert list(store.get_many(HOSTILE)) == [(key, key.encode()) for key in HOSTILE]
        store.delete(HOSTILE)
        assert list(store.list()) == []

    def test_conditional_put(self, store: Store) -> None:
        """Two live runs could take the same name."""
        store.put("lease", b"mine", if_absent=True)
        with pytest.raises(Exists, match="lease: exists already"):
            store.put("lease", b"theirs", if_absent=True)
        with pytest.raises(Exists):
            store.put("lease", b"mine", if_absent=True)
        assert store.get("lease") == b"mine"

    def test_one_of_many_wins_a_conditional_put(self, store: Store) -> None:
        """Two drivers started at the same time would both believe that the run is theirs."""
        barrier = threading.Barrier(8)

        def compete(number: int) -> int | None:
            barrier.wait()
            try:
                store.put("lease", b"%d" % number, if_absent=True)
            except Exists:
                return None
            return number

        with ThreadPoolExecutor(8) as pool:
            winners = [number for number in pool.map(compete, range(8)) if number is not None]
        assert [store.get("lease")] == [b"%d" % winner for winner in winners]

    def test_get_many_keeps_the_order_and_goes_on_after_a_missing_object(self, store: Store) -> None:
        """Labels would be given to other images, or one missing image would end the packing of all."""
        names = [f"{number:03d}" for number in range(60)]
        for name in names[:30] + names[31:]:
            store.put(name, name.encode())
        results = list(store.get_many(names, threads=4))
        assert [key for key, _ in results] == names
        assert isinstance(results[30][1], NotFound)
        assert [data for _, data in results[:30] + results[31:]] == [name.encode() for name in names[:30] + names[31:]]

    def test_get_many_reads_no_further_than_asked(self, store: Store) -> None:
        """Reading a large bucket would fill the memory when its consumer is slow or stops early."""
        store.put("key", b"")
        results = store.get_many(["key"] * 1000, threads=2)
        next(results)
        results.close()  # type: ignore[attr-defined]
        assert store.requests.total() < 20

    def test_large_objects(self, store: Store, tmp_path: Path) -> None:
        """Shards would arrive damaged, or half of one could be taken for the whole."""
        data = os.urandom(2 * PART + 12345)
        (tmp_path / "large").write_bytes(data)
        store.upload("large", tmp_path / "large", content_type="application/octet-stream")
        store.download("large", tmp_path / "new folder/copy")
        assert (tmp_path / "new folder/copy").read_bytes() == data
        assert [path.name for path in (tmp_path / "new folder").iterdir()] == ["copy"]
        assert store.get("large", PART - 5, PART + 5) == data[PART - 5 : PART + 5]
        if isinstance(store, S3Store):
            assert store.requests["UploadPart"] == 3
            assert store.requests["GetObject"] == 4

    def test_upload_of_a_missing_file(self, store: Store, tmp_path: Path) -> None:
        """The user would see a traceback, or a complaint about the bucket instead of the file."""
        with pytest.raises(StoreError, match=r"No such file or directory.*gone") as error:
            store.upload("key", tmp_path / "gone")
        assert not isinstance(error.value, NotFound)

    def test_delete_is_repeatable(self, store: Store) -> None:
        """Cleaning up after a crash in the middle of cleaning up would fail."""
        for key in ["a/1", "a/2", "b"]:
            store.put(key, b"")
        store.delete(["a/1", "never/was", "b"])
        store.delete(iter(["a/1", "b/c"]))
        assert [entry.key for entry in store.list()] == ["a/2"]

    def test_pickled_stores_work(self, store: Store) -> None:
        """Ray, which pickles what it hands to its workers, could not hand them a store."""
        store.put("key", b"data")
        assert pickle.loads(pickle.dumps(store)).get("key") == b"data"


class TestFolder:
    @pytest.mark.parametrize("key", ["../escape", "a/../../escape", "/etc/passwd", "a//b", ".", "", "a/", "nul\0"])
    def test_keys_stay_inside(self, tmp_path: Path, key: str) -> None:
        """A key from a foreign manifest could overwrite or delete files outside of the store."""
        store = FolderStore(tmp_path / "store")
        for use in (lambda: store.put(key, b""), lambda: store.get(key), lambda: store.delete([key])):
            with pytest.raises(StoreError, match="cannot be a file in a folder"):
                use()
        assert list(tmp_path.iterdir()) == []

    def test_a_missing_folder_is_said_to_be_missing(self, tmp_path: Path) -> None:
        """A misspelled data folder would look like one without images."""
        with pytest.raises(NotFound, match="gone: no such folder"):
            list(FolderStore(tmp_path / "gone").list())

    def test_unfinished_files_and_empty_folders_do_not_show(self, tmp_path: Path) -> None:
        """Half a shard would be read after a crash while it was written; deleted checkpoints would pile up as empty folders."""
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

    def test_links_are_followed_but_not_in_circles(self, tmp_path: Path) -> None:
        """A data set linked into the folder would be empty, or listed forty times."""
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere/x").write_bytes(b"x")
        (tmp_path / "store").mkdir()
        (tmp_path / "store/linked").symlink_to(tmp_path / "elsewhere")
        (tmp_path / "store/circle").symlink_to(tmp_path / "store")
        (tmp_path / "store/dangling").symlink_to(tmp_path / "nowhere")
        assert [entry.key for entry in FolderStore(tmp_path / "store").list()] == ["linked/x"]

    def test_names_that_are_not_utf8(self, tmp_path: Path) -> None:
        """The manifest's digest would end in a traceback."""
        (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes(b"")
        with pytest.raises(StoreError, match=r"caf\\xe9\.png' is not UTF-8: rename it"):
            list(FolderStore(tmp_path).list())

    def test_etag_changes_with_the_content(self, tmp_path: Path) -> None:
        """Changed data would be trained from an old pack."""
        store = FolderStore(tmp_path)
        store.put("key", b"old")
        (before,) = store.list()
        store.put("key", b"new")
        (after,) = store.list()
        assert before.etag != after.etag

    def test_a_file_where_a_folder_should_be(self, tmp_path: Path) -> None:
        """The user would see a traceback."""
        store = FolderStore(tmp_path)
        store.put("a", b"")
        for key in ["a/b", "a/b/c"]:
            with pytest.raises(StoreError, match=r"a/b.*(File exists|Not a directory)") as error:
                store.put(key, b"")
            assert not isinstance(error.value, NotFound | Exists)
