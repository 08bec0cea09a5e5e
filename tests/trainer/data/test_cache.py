"""trainer.data.cache on real folders."""

import fcntl
import os
import time
from pathlib import Path

import pytest

from trainer.data.cache import UNUSED_SECONDS, evict, touch


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


def test_a_pack_that_is_being_fetched_stays(cache: Path) -> None:
    """A download would end because its folder is gone."""
    with (cache / f"{3:016x}-8x8x3/lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        evict(cache, cache / f"{4:016x}-8x8x3", 0)
        assert packs(cache) == [3, 4]


def test_a_cache_that_does_not_exist(tmp_path: Path) -> None:
    """The first run on a machine would end with a traceback."""
    evict(tmp_path / "none", tmp_path / "none/x", 0)
