"""trainer.data.shards on real files: what is written comes back, and damage is never taken for data."""

import errno
import hashlib
import os
import resource
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from trainer.data import shards
from trainer.data.cache import UNUSED_SECONDS, evict
from trainer.data.dataset import Pack, Shard
from trainer.data.shards import PackError, ShardWriter, open_rows
from trainer.storage import NotFound
from trainer.storage.folder import FolderStore

SHAPE = (8, 10, 3)
DIGEST = "0123456789abcdef" * 4
KEYS = ["a/../b.jpg", "line\nbreak.jpg", "ü 写真.jpg", ""]


def table(n: int, seed: int = 0) -> tuple[pa.Table, np.ndarray]:
    pixels = np.random.default_rng(seed).integers(0, 256, (n, *SHAPE), np.uint8)
    columns = {
        "image": pa.array([image.tobytes() for image in pixels], pa.binary(pixels[0].nbytes)),
        "label": pa.array(np.arange(n) % 2, pa.int32()),
        "key": [f"{KEYS[i % 4]}{i}" for i in range(n)],
        "group": [f"g{i}" if i % 3 else "" for i in range(n)],
        "content": [f"{i:032x}" for i in range(n)],
        "side": ["" if i % 3 else "test" for i in range(n)],
    }
    return pa.table(columns), pixels


def written(storage: FolderStore, rows: pa.Table, block: int = 7) -> Pack:
    with ShardWriter(storage, "shards/x", SHAPE, ("authentic", "fake")) as writer:
        for start in range(0, len(rows), block):
            writer.add(rows.slice(start, block))
        made = tuple(writer.finish())
    return Pack(DIGEST, ("authentic", "fake"), SHAPE, made, len(rows))


@pytest.fixture
def store(tmp_path) -> FolderStore:
    return FolderStore(tmp_path / "storage")


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(shards, "SHARD_BYTES", 10 * int(np.prod(SHAPE)))


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("block", [1, 7, 10, 33])
def test_rows_come_back_in_order_whatever_the_blocks(store, tmp_path, block):
    """Labels and images would get mixed up at the end of a shard."""
    rows, pixels = table(33)
    made = written(store, rows, block)
    assert [shard.rows for shard in made.shards] == [10, 10, 10, 3]
    opened = open_rows(made, store, tmp_path / "cache")
    assert opened.images.shape == (33, *SHAPE)
    assert opened.images.nbytes == pixels.nbytes
    assert np.array_equal(opened.images.take(np.arange(33)), pixels)
    assert opened.labels.dtype == np.int32
    assert opened.labels.tolist() == rows["label"].to_pylist()
    found = (opened.keys, opened.groups, opened.contents, opened.sides)
    assert found == tuple(rows[name].to_pylist() for name in ("key", "group", "content", "side"))


@pytest.mark.usefixtures("small_shards")
def test_shards_do_not_depend_on_the_blocks(store):
    """Two jobs that pack the same data at the same time would store it twice."""
    rows, _ = table(33)
    assert written(store, rows, 4).shards == written(store, rows, 9).shards
    assert len(list(store.list())) == 4


@pytest.mark.usefixtures("small_shards")
def test_take(store, tmp_path):
    """A batch would contain other images than its labels say."""
    rows, pixels = table(33)
    images = open_rows(written(store, rows), store, tmp_path / "cache").images
    order = np.array([32, 0, 9, 10, 10, 31, 19, 20], np.int32)
    taken = images.take(order)
    assert np.array_equal(taken, pixels[order])
    assert taken.flags.owndata
    assert taken.flags.c_contiguous
    assert images.take(np.array([], int)).shape == (0, *SHAPE)
    for wrong in ([-1], [33], [0, 5, 40]):
        with pytest.raises(IndexError, match=r"are not in 0\.\.32"):
            images.take(np.array(wrong))


def test_the_views_are_the_files_themselves(store, tmp_path):
    """Every worker of a machine would hold its own copy of the data set."""
    rows, pixels = table(33)
    (view,) = open_rows(written(store, rows), store, tmp_path / "cache").images.shards
    assert np.array_equal(view, pixels)
    assert not view.flags.writeable
    maps = Path("/proc/self/maps").read_text().splitlines()
    (mapped,) = [line for line in maps if str(tmp_path / "cache") in line]
    start, end = (int(side, 16) for side in mapped.split()[0].split("-"))
    assert start <= view.ctypes.data < end


def test_a_shard_describes_itself(store):
    """A shard found in a bucket years later could not be read without this code."""
    written(store, table(3)[0])
    (found,) = store.list()
    batch = pa.ipc.open_file(pa.BufferReader(store.get(found.key))).get_batch(0)
    assert batch.schema.names == ["image", "label", "key", "group", "content", "side"]
    assert batch.schema.field("image").type == pa.binary(240)
    assert batch.schema.metadata == {b"shape": b"[8, 10, 3]", b"classes": b'["authentic", "fake"]'}


@pytest.mark.usefixtures("small_shards")
def test_shards_are_downloaded_once(store, tmp_path):
    """Every restart of a job would download the data set again."""
    made = written(store, table(33)[0])
    open_rows(made, store, tmp_path / "cache")
    assert store.requests["get"] == 4
    open_rows(made, FolderStore(tmp_path / "gone"), tmp_path / "cache")


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("damage", ["cut", "altered", "missing", "altered, same time"])
def test_a_damaged_cache_is_downloaded_again(store, tmp_path, damage):
    """A disk error or a killed download would be trained on as if it were images."""
    rows, pixels = table(33)
    made = written(store, rows)
    open_rows(made, store, tmp_path / "cache")
    victim = sorted((tmp_path / "cache").rglob("*.arrow"))[1]
    content, state = victim.read_bytes(), victim.stat()
    if damage == "missing":
        victim.unlink()
    else:
        victim.write_bytes(content[:-100] if damage == "cut" else content[:500] + bytes([content[500] ^ 1]) + content[501:])
        if damage == "altered, same time":
            os.utime(victim, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert np.array_equal(open_rows(made, store, tmp_path / "cache").images.take(np.arange(33)), pixels)
    assert store.requests["get"] == 5
    assert victim.read_bytes() == content


def test_what_a_killed_download_left_is_removed(store, tmp_path):
    """The disks of the cluster would fill up with partial shards."""
    made = written(store, table(3)[0])
    open_rows(made, store, tmp_path / "cache")
    (file,) = (tmp_path / "cache").rglob("*.arrow")
    (file.parent / ".half").write_bytes(b"half")
    file.unlink()
    open_rows(made, store, tmp_path / "cache")
    assert sorted(path.name for path in file.parent.iterdir()) == sorted([file.name, "lock"])


@pytest.mark.usefixtures("small_shards")
def test_workers_that_start_together_download_once(store, tmp_path):
    """Eight workers of a machine would download eight times, or read each other's partial files."""
    rows, pixels = table(33)
    made = written(store, rows)
    start = threading.Barrier(6)
    found = []

    def work():
        start.wait()
        found.append(open_rows(made, store, tmp_path / "cache").images.take(np.arange(33)))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    assert all(np.array_equal(images, pixels) for images in found)
    assert store.requests["get"] == 4


def test_a_shard_that_differs_from_the_packed_one(store, tmp_path):
    """Other pixels would be trained on under the name of the old pack."""
    made = written(store, table(3)[0])
    store.put(made.shards[0].key, b"something else")
    with pytest.raises(
        PackError, match=r"part-00000-.* differs from the packed shard .* Fix: delete the folder .*shards/x to pack"
    ):
        open_rows(made, store, tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.arrow"))


@pytest.mark.parametrize("damage", ["flipped", "missing"])
def test_one_flipped_bit_in_a_download(store, tmp_path, damage):
    """A job would end for good, and tell the user to delete a pack that is sound and that other runs use."""

    class Once(FolderStore):
        left = 1

        def download(self, key, path):
            self.left -= 1
            if self.left == 0 and damage == "missing":
                raise NotFound("no such object")
            super().download(key, path)
            if self.left == 0:
                content = path.read_bytes()
                path.write_bytes(content[:99] + bytes([content[99] ^ 1]) + content[100:])

    rows, pixels = table(3)
    made = written(store, rows)
    opened = open_rows(made, Once(store.root), tmp_path / "cache")
    assert np.array_equal(opened.images.take(np.arange(3)), pixels)


def test_a_pack_that_is_being_opened_is_not_deleted(store, tmp_path, monkeypatch):
    """While the checksums of a large pack are verified, a second job with another data set would delete it; the first would end
    and tell the user to delete the sound pack in the bucket."""
    rows, pixels = table(3)
    made = written(store, rows)
    open_rows(made, store, tmp_path / "cache")
    (lock,) = (tmp_path / "cache").rglob("lock")
    long_ago = time.time() - 2 * UNUSED_SECONDS
    os.utime(lock, (long_ago, long_ago))
    verify = shards._damaged

    def slow(*arguments):
        found = verify(*arguments)
        evict(tmp_path / "cache", tmp_path / "cache/other", 0)
        return found

    monkeypatch.setattr(shards, "_damaged", slow)
    opened = open_rows(made, FolderStore(tmp_path / "gone"), tmp_path / "cache")
    assert np.array_equal(opened.images.take(np.arange(3)), pixels)
    assert lock.stat().st_mtime > long_ago
    evict(tmp_path / "cache", tmp_path / "cache/other", 0)
    assert not lock.exists()  # later it may be deleted: the job has it mapped


def test_a_local_file_that_vanishes_is_a_local_fault(store, tmp_path, monkeypatch):
    """The user would delete the pack of all runs in the bucket because of one file on this machine."""
    made = written(store, table(3)[0])
    open_rows(made, store, tmp_path / "cache")
    (file,) = (tmp_path / "cache").rglob("*.arrow")
    monkeypatch.setattr(shards, "_damaged", lambda *_: [])
    file.unlink()
    with pytest.raises(PackError) as error:
        open_rows(made, store, tmp_path / "cache")
    assert str(error.value).startswith(f"{file}: cannot be read (No such file or directory). Fix: ")
    assert str(store.root) not in str(error.value).replace(str(file), "")


def test_a_local_file_that_cannot_be_read_back_is_a_local_fault(store, tmp_path, monkeypatch):
    """A failing disk would be reported as a damaged pack in the bucket."""

    def fails(_):
        raise OSError(errno.EIO, "Input/output error")

    made = written(store, table(3)[0])
    monkeypatch.setattr(shards, "_sha256", fails)
    with pytest.raises(PackError, match=r"cache/.*: cannot be written \(Input/output error\)\. Fix: set pipeline\.cache_dir"):
        open_rows(made, store, tmp_path / "cache")


def hostile(rows, **columns):
    """The Arrow file of `rows` with other columns."""
    batch = rows.combine_chunks().to_batches()[0]
    arrays = dict(zip(batch.schema.names, batch.columns, strict=True)) | columns
    batch = pa.record_batch({name: array for name, array in arrays.items() if array is not None})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
    "columns",
    [
        {"label": pa.array([0, 1, 2], pa.int32())},
        {"label": pa.array([0, -1, 0], pa.int32())},
        {"label": pa.array([0, 1, 0], pa.int64())},
        {"label": pa.array([0, 1, None], pa.int32())},
        {"label": None},
        {"image": pa.array([bytes(3)] * 3, pa.binary(3))},
        {"image": pa.array([bytes(240)] * 3, pa.binary())},
        {"key": pa.array(["a", None, "b"])},
        {"key": pa.Array.from_buffers(pa.string(), 3, [None, pa.py_buffer(np.array([0, 9, 2, 3], "i4")), pa.py_buffer(b"abc")])},
        {"content": pa.array([b"\xff", b"", b""], pa.binary())},
        {"more": pa.array([1, 2, 3])},
    ],
)
def test_a_shard_with_other_contents_is_refused(store, tmp_path, columns):
    """Anyone with write access to the bucket could crash the workers, or train a run on labels that do not exist."""
    rows = table(3)[0]
    made = written(store, rows)
    content = hostile(rows, **columns)
    store.put(made.shards[0].key, content)
    shard = replace(made.shards[0], size=len(content), sha256=hashlib.sha256(content).hexdigest())
    with pytest.raises(PackError, match=r"is not a shard of its pack .*Fix: delete the folder") as error:
        open_rows(replace(made, shards=(shard,)), store, tmp_path / "cache")
    assert "\n" not in str(error.value)


def test_the_cache_is_kept_within_its_bounds(store, tmp_path):
    """The disk would fill up with the packs of old data sets."""
    made = written(store, table(3)[0])
    for digit in "012":
        open_rows(replace(made, digest=digit * 64), store, tmp_path / "cache", 2 * made.shards[0].size)
    assert sorted(path.name[:1] for path in (tmp_path / "cache").iterdir()) == ["1", "2"]


def test_a_missing_shard(store, tmp_path):
    """A shard deleted by hand would cause a traceback, or the user would not learn how to recover."""
    made = written(store, table(3)[0])
    store.delete([made.shards[0].key])
    with pytest.raises(NotFound, match=r"although pack\.json lists it\. Fix: delete the folder .*shards/x to pack"):
        open_rows(made, store, tmp_path / "cache")


def test_a_disk_too_small_is_found_before_the_download(store, tmp_path):
    """A node's disk would fill up, and other jobs on it would die."""
    made = written(store, table(3)[0])
    huge = replace(made, shards=(replace(made.shards[0], size=10**18),))
    with pytest.raises(PackError) as error:
        open_rows(huge, store, tmp_path / "cache")
    message = str(error.value)
    assert len(message.splitlines()) == 1
    for word in (str(tmp_path / "cache"), f"{10**18} bytes are needed", " are free", "Fix: ", "set pipeline.cache_dir"):
        assert word in message
    assert store.requests["get"] == 0


LIMITED = """
import resource, sys
from pathlib import Path
from trainer.storage.folder import FolderStore
from trainer.data.dataset import Pack, Shard
from trainer.data.shards import PackError, open_rows
storage, cache, key, size, sha256, limit = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), resource.RLIM_INFINITY))
pack = Pack("0123456789abcdef" * 4, ("a", "b"), (8, 10, 3), (Shard(key, 3, int(size), sha256),), 3)
try:
    print("opened", open_rows(pack, FolderStore(storage), Path(cache)).images.shape)
except PackError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))  # coverage may write its data
"""


def test_a_disk_that_fills_up_during_the_download(store, tmp_path):
    """The user would see a traceback, and half a shard would stay on the full disk."""
    (shard,) = written(store, table(3)[0]).shards

    def run(limit: int) -> str:
        arguments = [str(store.root), str(tmp_path / "cache"), shard.key, str(shard.size), shard.sha256, str(limit)]
        done = subprocess.run([sys.executable, "-c", LIMITED, *arguments], capture_output=True, text=True, check=True)
        assert done.stderr == ""
        return done.stdout

    message = run(shard.size - 1)  # the last byte cannot be written
    assert len(message.splitlines()) == 1
    for word in (str(tmp_path / "cache"), "the disk is full", f"{shard.size} bytes are needed", "pipeline.cache_dir"):
        assert word in message
    assert [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()] == ["lock"]
    assert run(shard.size) == "opened (3, 8, 10, 3)\n"


def test_a_full_disk_while_packing(store, monkeypatch, tmp_path):
    """A small temporary folder would end packing with a traceback of Arrow."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    rows, _ = table(30)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(PackError, match=r"the disk is full \(\d+ bytes are needed, .* set TMPDIR"):
            written(store, rows)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_a_cache_folder_that_cannot_be_created(store, tmp_path):
    """A mistyped pipeline.cache_dir would cause a traceback."""
    made = written(store, table(3)[0])
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(PackError, match=r"cannot be written \(Not a directory\)\. Fix: set pipeline.cache_dir"):
        open_rows(made, store, tmp_path / "file" / "cache")


def test_a_pack_without_sides_is_read(store, tmp_path):
    """After an update every data set would have to be packed again."""
    made = written(store, table(3)[0])
    old = store.root / made.shards[0].key
    batch = pa.ipc.open_file(pa.BufferReader(old.read_bytes())).get_batch(0)
    batch = batch.select([name for name in batch.schema.names if name != "side"])
    with pa.OSFile(str(old), "wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)
    shard = Shard(made.shards[0].key, 3, old.stat().st_size, hashlib.sha256(old.read_bytes()).hexdigest())
    opened = open_rows(replace(made, shards=(shard,)), store, tmp_path / "cache")
    assert opened.sides == ["", "", ""]
