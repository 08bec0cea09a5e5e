"""Packing on real Ray workers, from real folders and a real S3 server."""

import io
import json
import logging
import resource
import shutil
import threading

import numpy as np
import pytest
from PIL import Image

from trainer.config import S3, Data
from trainer.data import pack as packing
from trainer.data import shards
from trainer.data.decode import decode
from trainer.data.index import build_manifest
from trainer.data.pack import load_pack, pack
from trainer.data.shards import PackError, open_rows
from trainer.data.sources import Sources
from trainer.data.split import split_rows
from trainer.storage import Store, StoreError, open_store
from trainer.storage.folder import FolderStore

pytestmark = pytest.mark.integration
SHAPE = (16, 24, 3)
DATA = Data(
    source="unused",
    classes={"authentic": "Au/", "fake": "Tp/"},
    image_size=SHAPE[:2],
    max_quarantined=0.2,
)
HOSTILE = ["Au/line\nbreak.jpg", "Au/ü 写真 \U0001f600.png", "Tp/..b.jpg", "Tp/%2e%2e.png", "Tp/\"quote'.jpg", "Tp/-rf.png"]


@pytest.fixture(scope="module", autouse=True)
def connected(cluster):
    import ray

    ray.init(cluster, logging_level=logging.ERROR)
    yield
    ray.shutdown()


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Many blocks and shards of few images."""
    monkeypatch.setattr(packing, "BLOCK_IMAGES", 4)
    monkeypatch.setattr(shards, "SHARD_BYTES", 10 * int(np.prod(SHAPE)))


def only(source: Store) -> Sources:
    return Sources({"source": source})


def image(number: int, form: str) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (6, 8, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((80, 60)).save(buffer, form)
    return buffer.getvalue()


def images(count: int = 40) -> dict[str, bytes]:
    """Content by key; a few images are broken."""
    keys = [f"{'Au' if i % 2 else 'Tp'}/{i:03}.{'jpg' if i % 3 else 'png'}" for i in range(count)] + HOSTILE
    found = {key: image(i, "JPEG" if key.endswith("jpg") else "PNG") for i, key in enumerate(keys)}
    found |= {"Tp/empty.jpg": b"", "Tp/text.jpg": b"not an image", "Au/cut.jpg": found["Tp/004.jpg"][:-50]}
    return found


@pytest.fixture
def source(tmp_path) -> FolderStore:
    for key, content in images().items():
        path = tmp_path / "source" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return FolderStore(tmp_path / "source")


def check(opened, contents: dict[str, bytes]) -> None:
    """Asserts that the rows are in the order of the keys and show the images of their keys."""
    good = sorted(key for key in contents if key not in ("Tp/empty.jpg", "Tp/text.jpg", "Au/cut.jpg"))
    assert opened.keys == good
    assert opened.labels.tolist() == [int(key.startswith("Tp/")) for key in good]
    pixels = opened.images.take(np.arange(len(good)))
    for row, key in enumerate(good):
        assert np.array_equal(pixels[row], decode(contents[key], SHAPE, 10**8)), key


def test_a_folder_becomes_shards(source, tmp_path, capfd):
    """Training would see other images than those in storage, or Ray's log would bury the job's output."""
    storage = FolderStore(tmp_path / "storage")
    manifest = build_manifest(only(source), DATA)
    steps = []
    made = pack(manifest, only(source), storage, DATA, progress=lambda done, total: steps.append((done, total)))
    assert made.images == 46
    assert [shard.rows for shard in made.shards] == [10, 10, 10, 10, 6]
    assert made.classes == manifest.classes
    assert {entry.key: entry.reason.split(":")[0] for entry in made.quarantined} == {
        "Au/cut.jpg": "cannot be decoded",
        "Tp/empty.jpg": "is empty (0 bytes)",
        "Tp/text.jpg": "is not a JPEG, PNG, WebP, AVIF, HEIC, TIFF, BMP or GIF image (it starts with b'not an image')",
    }
    folder = f"shards/{manifest.digest[:16]}-16x24x3"
    listed = json.loads(storage.get(f"{folder}/quarantine.json"))
    assert listed == [{"key": entry.key, "reason": entry.reason, "max_pixels": None} for entry in made.quarantined]
    assert [entry.key for entry in storage.list()] == [
        f"{folder}/pack.json",
        *(shard.key for shard in made.shards),
        f"{folder}/quarantine.json",
    ]
    assert list(dict.fromkeys(step for step in steps if step[0])) == [(min(done, 49), 49) for done in range(4, 53, 4)]
    opened = open_rows(made, storage, tmp_path / "cache")
    check(opened, images())
    sides = split_rows(opened, made.classes, DATA.model_copy(update={"validation_fraction": 0.4, "min_validation": 1}))
    assert sorted(sides.training + sides.validation) == list(range(46))
    assert capfd.readouterr() == ("", "")


def test_a_packed_data_set_reads_no_image_again(source, tmp_path):
    """Every run would pay for decoding, and a data set could not be used after its originals are archived."""
    storage = FolderStore(tmp_path / "storage")
    manifest = build_manifest(only(source), DATA)
    made = pack(manifest, only(source), storage, DATA)
    shutil.rmtree(source.root)
    storage.requests.clear()
    assert pack(manifest, only(source), storage, DATA) == load_pack(storage, manifest.digest, SHAPE) == made
    assert dict(storage.requests) == {"get": 2}


def test_packing_again_gives_the_same_bytes(source, tmp_path):
    """After a loss of the storage, the data of a run could not be restored."""
    manifest = build_manifest(only(source), DATA)
    one = pack(manifest, only(source), FolderStore(tmp_path / "one"), DATA)
    assert pack(manifest, only(source), FolderStore(tmp_path / "two"), DATA) == one


def test_a_failing_store_ends_the_job_without_a_pack(source, tmp_path, capfd):
    """An outage would leave half a data set that later runs take for the whole."""
    storage = FolderStore(tmp_path / "storage")
    manifest = build_manifest(only(source), DATA)
    (source.root / "Tp/020.jpg").unlink()
    (source.root / "Tp/020.jpg").symlink_to(source.root / "Tp/020.jpg")
    with pytest.raises(StoreError, match=r"^\S*Tp/020.jpg: Too many levels of symbolic links.*$"):
        pack(manifest, only(source), storage, DATA)
    assert load_pack(storage, manifest.digest, SHAPE) is None
    assert capfd.readouterr() == ("", "")


def test_too_many_broken_images_are_found_once(source, tmp_path):
    """Finding the second broken image would take another hour, and the third yet another."""
    storage = FolderStore(tmp_path / "storage")
    manifest = build_manifest(only(source), DATA)
    strict = DATA.model_copy(update={"max_quarantined": 0.05})
    with pytest.raises(PackError, match=r"3 of 49 images \(6.12%\) cannot be used"):
        pack(manifest, only(source), storage, strict)
    shutil.rmtree(source.root)
    assert pack(manifest, only(source), storage, DATA).images == 46


def test_two_jobs_at_the_same_time(source, tmp_path):
    """Two runs submitted together would overwrite each other's shards."""
    manifest = build_manifest(only(source), DATA)
    made = []

    def job():
        made.append(pack(manifest, only(source), FolderStore(tmp_path / "storage"), DATA))

    threads = [threading.Thread(target=job) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made[0] == made[1]
    storage = FolderStore(tmp_path / "storage")
    assert len(list(storage.list())) == 5 + 2
    check(open_rows(made[0], storage, tmp_path / "cache"), images())


def test_two_jobs_that_see_different_images(source, tmp_path):
    """The job that loses would train on shards that the other one has replaced."""
    storage = FolderStore(tmp_path / "storage")
    manifest = build_manifest(only(source), DATA)
    winner = []

    def overtaken(done: int, total: int) -> None:
        if done == total:
            (source.root / "Au/001.jpg").unlink()
            winner.append(pack(manifest, only(source), FolderStore(tmp_path / "storage"), DATA))

    loser = pack(manifest, only(source), storage, DATA, progress=overtaken)
    assert loser == winner[0]
    assert loser.images == 45
    assert sorted(entry.key for entry in storage.list() if entry.key.endswith(".arrow")) == sorted(s.key for s in loser.shards)
    check(open_rows(loser, storage, tmp_path / "cache"), {key: text for key, text in images().items() if key != "Au/001.jpg"})


def test_packing_can_be_stopped(source, tmp_path):
    """Ctrl-C would wait until the last image is decoded, or leave half a data set."""
    storage = FolderStore(tmp_path / "storage")
    manifest = build_manifest(only(source), DATA)

    def stop(*_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(manifest, only(source), storage, DATA, progress=stop)
    assert load_pack(storage, manifest.digest, SHAPE) is None
    assert pack(manifest, only(source), storage, DATA).images == 46


def test_from_s3_to_s3(bucket, tmp_path):
    """What works on folders would fail on the buckets of a cluster, or a full disk would look like a failing server."""
    contents = images(12)
    source, storage = open_store(f"{bucket}/images", S3()), open_store(f"{bucket}/runs", S3())
    for key, content in contents.items():
        source.put(key, content)
    manifest = build_manifest(only(source), DATA)
    made = pack(manifest, only(source), storage, DATA)
    check(open_rows(made, storage, tmp_path / "cache"), contents)
    assert pack(manifest, only(source), storage, DATA) == made
    assert not source.requests["get"]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(PackError, match=r"full-cache.* the disk is full .* set pipeline.cache_dir"):
            open_rows(made, storage, tmp_path / "full-cache")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in (tmp_path / "full-cache").rglob("*") if path.is_file()] == ["lock"]
