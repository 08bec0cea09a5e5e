"""trainer.data.cache on real folders."""

import fcntl
import os
import shutil
import time
from pathlib import Path
from typing import IO, Any

import pytest

from trainer.data.cache import PROGRAM_BYTES, UNUSED_SECONDS, evict, evict_programs, fetching, touch


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Packs of 100 bytes, opened 1, 2, 3 and 4 hours ago, and other things."""
    for number in range(1, 5):
        folder = tmp_path / f"{number:016x}-8x8x3"
        folder.mkdir()
        (folder / "part-00000.arrow").write_bytes(bytes(100))
        (folder / "lock").touch()
        used = time.time() - 3600 * number
        os.utime(folder / "lock", (used, used))
    (tmp_path / "of the user").mkdir()
    (tmp_path / "of the user/file").write_bytes(bytes(1000))
    (tmp_path / f"{9:016x}-8x8x3").symlink_to(tmp_path / "of the user")
    return tmp_path


def packs(cache: Path) -> list[int]:
    return sorted(int(path.name[:16], 16) for path in cache.iterdir() if path.name.endswith("x3") and not path.is_symlink())


def test_the_least_recently_used_packs_are_deleted(cache: Path) -> None:
    """The disk would fill up with the packs of old data sets, or the pack in use would be deleted."""
    keep = cache / f"{4:016x}-8x8x3"
    evict(cache, keep, 300)
    assert packs(cache) == [1, 2, 3, 4]
    evict(cache, keep, 250)
    assert packs(cache) == [1, 2, 4]
    touch(cache / f"{2:016x}-8x8x3")
    evict(cache, keep, 100)
    assert packs(cache) == [2, 4]
    evict(cache, keep, -1)
    assert packs(cache) == [4]
    assert (cache / "of the user/file").exists()


def test_packs_unused_for_long_are_deleted(cache: Path) -> None:
    """A disk large enough for all packs would keep them for years."""
    used = time.time() - UNUSED_SECONDS - 1
    os.utime(cache / f"{1:016x}-8x8x3/lock", (used, used))
    evict(cache, cache / f"{4:016x}-8x8x3", 10**9)
    assert packs(cache) == [2, 3, 4]


def test_old_compiled_programs_are_deleted(tmp_path: Path) -> None:
    """The disk would fill up with the programs of every network that was ever tried."""
    for name, days, size in (("a", 0, 10), ("b", 1, PROGRAM_BYTES // 2), ("c", 2, PROGRAM_BYTES // 2), ("d", 3, 10), ("e", 31, 10)):
        path = tmp_path / "H100" / name
        path.parent.mkdir(exist_ok=True)
        with path.open("wb") as file:
            file.truncate(size)
        os.utime(path, (time.time() - 86400 * days,) * 2)
    (tmp_path / "of the user").touch()
    evict_programs(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["a", "b", "of the user"]
    os.utime(tmp_path / "H100/a", (time.time() - UNUSED_SECONDS - 1,) * 2)
    evict_programs(tmp_path)
    assert [path.name for path in (tmp_path / "H100").iterdir()] == ["b"]


def test_a_pack_that_is_being_fetched_stays(cache: Path) -> None:
    """A download would end because its folder is gone."""
    with (cache / f"{3:016x}-8x8x3/lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        evict(cache, cache / f"{4:016x}-8x8x3", 0)
        assert packs(cache) == [3, 4]


def test_a_cache_that_does_not_exist(tmp_path: Path) -> None:
    """The first run on a machine would end with a traceback."""
    evict(tmp_path / "none", tmp_path / "none/x", 0)


def test_a_folder_deleted_while_a_job_waits_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that begins to fetch a pack while another deletes it would end with a traceback, or two would fetch it at once."""
    folder, lock, waits = tmp_path / f"{1:016x}-8x8x3", fcntl.flock, []

    def late(file: IO[Any], operation: int) -> None:
        if not waits:
            shutil.rmtree(folder)
        waits.append(operation)
        lock(file, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with fetching(folder):
        (folder / "part-00000.arrow").write_bytes(b"1")
        evict(tmp_path, tmp_path / "other", 0)
        assert sorted(path.name for path in folder.iterdir()) == ["lock", "part-00000.arrow"]
    assert waits[:2] == [fcntl.LOCK_EX] * 2
    evict(tmp_path, tmp_path / "other", 0)
    assert not folder.exists()  # its lock is free again


def test_an_error_while_fetching_ends_the_fetch(tmp_path: Path) -> None:
    """A file that vanishes during a download would end with an error of the lock instead of its own."""
    with pytest.raises(FileNotFoundError, match="gone"), fetching(tmp_path / "pack"):
        raise FileNotFoundError("gone")
