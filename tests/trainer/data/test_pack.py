"""trainer.data.pack without Ray: how a task decodes its images, and what an existing pack saves."""

import hashlib
import io
import json
import re
import shutil
import threading
from dataclasses import asdict, replace

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from tests.support import jobs
from trainer.config import S3, Data, load
from trainer.data import pack as packing
from trainer.data.dataset import Pack, Quarantined, Shard
from trainer.data.index import build_manifest
from trainer.data.pack import _decode_block, _listed, images_of, load_pack, pack
from trainer.data.shards import PackError
from trainer.data.sources import Sources, open_sources
from trainer.storage import StoreError
from trainer.storage.folder import FolderStore

SHAPE = (8, 10, 3)
DATA = Data(source="unused", classes={"authentic": "Au/", "fake": "Tp/"}, image_size=SHAPE[:2], group_by="(p[0-9])")
DIGEST = "0123456789abcdef" * 4


def png(color: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (30, 20), (color, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def source(tmp_path) -> FolderStore:
    for i in range(6):
        path = tmp_path / "source" / f"{'Au' if i % 2 else 'Tp'}/p{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(40 * i))
    return FolderStore(tmp_path / "source")


def only(source: FolderStore) -> Sources:
    return Sources({"source": source})


def decoded(source: FolderStore, change=None) -> pa.Table:
    images = build_manifest(only(source), DATA).images
    if change:
        change(source.root)
    return _decode_block(_listed(images), {"source": source}, SHAPE, DATA.max_pixels)


def test_a_block_keeps_keys_labels_groups_and_pixels_together(source):
    """The labels of the data set would be shuffled."""
    rows = decoded(source).to_pylist()
    assert [(row["key"], row["label"], row["group"]) for row in rows] == [
        ("Au/p1.png", 0, "p1"),
        ("Au/p3.png", 0, "p3"),
        ("Au/p5.png", 0, "p5"),
        ("Tp/p0.png", 1, "p0"),
        ("Tp/p2.png", 1, "p2"),
        ("Tp/p4.png", 1, "p4"),
    ]
    for row, number in zip(rows, (1, 3, 5, 0, 2, 4), strict=True):
        pixels = np.frombuffer(row["image"], np.uint8).reshape(SHAPE)
        assert np.unique(pixels[..., 0]).tolist() == [40 * number]
        assert row["content"] == hashlib.blake2b(png(40 * number), digest_size=16).hexdigest()
        assert row["reason"] is None


def test_a_bad_image_costs_only_itself(source):
    """One broken, deleted or overwritten image among a million would end the job."""

    def change(root):
        (root / "Au/p1.png").unlink()
        (root / "Au/p3.png").write_bytes(b"shorter now")
        (root / "Tp/p4.png").write_bytes(png(160)[:60] + bytes(len(png(160)) - 60))

    rows = {row["key"]: row for row in decoded(source, change).to_pylist()}
    assert rows["Au/p1.png"]["reason"].startswith("was listed but is gone (seen from machine ")
    assert rows["Au/p3.png"]["reason"] == f"changed after it was listed ({len(png(120))} bytes then, 11 now)"
    assert rows["Tp/p4.png"]["reason"].startswith("is damaged: ")
    assert all(rows[key]["image"] is None and rows[key]["content"] is None for key in ("Au/p1.png", "Au/p3.png", "Tp/p4.png"))
    assert all(rows[key]["reason"] is None for key in ("Au/p5.png", "Tp/p0.png", "Tp/p2.png"))


def test_a_failing_store_ends_the_job(source):
    """An outage of the storage would quarantine intact images."""

    def change(root):
        (root / "Au/p3.png").unlink()
        (root / "Au/p3.png").symlink_to(root / "Au/p3.png")

    (row,) = decoded(source, change).to_pylist()
    assert "Au/p3.png: Too many levels of symbolic links" in row["failure"]
    assert row["transient"] is False


def test_an_outage_while_packing_is_transient(source):
    """An outage while a Job packs its images would end it for good instead of retrying it."""

    class Away(FolderStore):
        def get(self, *_):
            raise StoreError("storage does not answer", transient=True)

    images = build_manifest(only(source), DATA).images
    (row,) = _decode_block(_listed(images), {"source": Away(source.root / ".." / "source")}, SHAPE, DATA.max_pixels).to_pylist()
    assert row == {"failure": "storage does not answer", "transient": True}


@pytest.mark.parametrize("change", [shutil.rmtree, lambda root: [path.unlink() for path in root.rglob("*.png")]])
def test_a_machine_without_the_data_folder_ends_the_job(source, change):
    """Its images would be quarantined as missing, in a pack that every later run uses."""
    (row,) = decoded(source, change).to_pylist()
    assert re.search(r"is empty or missing on machine .*\. Fix: mount data\.source on every machine", row["failure"])


def test_objects_too_large_for_an_image_are_not_read(source):
    """A film among the images would take all memory of a worker."""
    images = build_manifest(only(source), DATA).images
    images = (replace(images[0], size=10**12), *images[1:])
    rows = _decode_block(_listed(images), {"source": source}, SHAPE, DATA.max_pixels).to_pylist()
    assert rows[0]["reason"] == "has 1000000000000 bytes, too many for an image within data.max_pixels = 100000000"
    assert [(row["reason"], row["max_pixels"]) for row in rows[1:]] == [(None, None)] * 5
    assert rows[0]["max_pixels"] == DATA.max_pixels


def test_a_resumed_run_whose_images_have_changed_is_refused(tmp_path):
    """It would continue on other training images, and its losses would be of other validation images."""
    jobs.put_images(str(tmp_path), images=40)
    settings = load(jobs.write_config(tmp_path, str(tmp_path)))
    source, storage, data = open_sources(settings.data, settings.s3), FolderStore(settings.run.storage), settings.data
    manifest = images_of("first", source, storage, data, None)
    assert images_of("first", source, storage, data, {"manifest": manifest.digest}) == manifest
    jobs.put_images(str(tmp_path), images=42)
    with pytest.raises(PackError, match=r"Run first began with images other than .* Fix: restore the source"):
        images_of("first", source, storage, data, {"manifest": manifest.digest})
    assert images_of("first", source, storage, data, None).digest != manifest.digest


# Existing packs


def committed(storage: FolderStore, digest: str, images: int = 6, *quarantined: Quarantined) -> Pack:
    key = f"shards/{digest[:16]}-8x10x3/part-00000-{'0' * 16}.arrow"
    shards = (Shard(key, images, 300 * images, "0" * 64),) if images else ()
    made = Pack(digest, ("authentic", "fake"), SHAPE, shards, images, quarantined)
    document = {
        "digest": made.digest,
        "classes": ["authentic", "fake"],
        "image_shape": [8, 10, 3],
        "shards": [asdict(shard) for shard in shards],
        "images": images,
        "quarantined": [asdict(image) for image in quarantined],
    }
    storage.put(f"shards/{digest[:16]}-8x10x3/pack.json", json.dumps(document).encode())
    return made


def test_an_existing_pack_is_used_as_it_is(source, tmp_path):
    """Every start of a job would decode all images again, or start Ray to find that it need not."""
    manifest = build_manifest(only(source), DATA)
    storage = FolderStore(tmp_path / "storage")
    made = committed(storage, manifest.digest)
    gone = FolderStore(tmp_path / "gone")
    assert pack(manifest, only(gone), storage, DATA, progress=lambda *_: pytest.fail("something was done")) == made
    assert gone.requests.total() == 0
    assert storage.requests["get"] == 1


def test_no_pack_yet(tmp_path):
    """A dry run could not say that the images are not packed yet."""
    storage = FolderStore(tmp_path / "storage")
    assert load_pack(storage, DIGEST, SHAPE) is None
    made = committed(storage, DIGEST)
    assert load_pack(storage, DIGEST, SHAPE) == load_pack(storage, DIGEST, SHAPE[:2]) == made
    assert load_pack(storage, DIGEST, (9, 10, 3)) is None
    assert load_pack(storage, "f" * 64, SHAPE) is None


def test_a_pack_of_an_earlier_version_is_read(tmp_path):
    """After an update every data set would have to be packed again."""
    storage = FolderStore(tmp_path / "storage")
    committed(storage, DIGEST, 6, Quarantined("Au/1.jpg", "is empty (0 bytes)"))
    key = f"shards/{DIGEST[:16]}-8x10x3/pack.json"
    document = json.loads(storage.get(key))
    del document["quarantined"][0]["max_pixels"]
    storage.put(key, json.dumps(document).encode())
    assert load_pack(storage, DIGEST, SHAPE).quarantined == (Quarantined("Au/1.jpg", "is empty (0 bytes)", None),)


@pytest.mark.parametrize("text", [b"", b"{}", b"[1]", b'{"digest": 1, "classes": 3}', b"\xff"])
def test_a_damaged_commit_object(tmp_path, text):
    """A pack.json edited by hand would cause a traceback."""
    storage = FolderStore(tmp_path / "storage")
    storage.put(f"shards/{DIGEST[:16]}-8x10x3/pack.json", text)
    with pytest.raises(PackError, match=r"pack.json is damaged \(.*\)\. Fix: delete it to pack the images again"):
        load_pack(storage, DIGEST, SHAPE)


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("digest", "../../../outside"),
        ("digest", "f" * 64),
        ("image_shape", [8, 8, 3]),
        ("image_shape", ["/../x/", "/../", 3]),
        ("classes", []),
        ("classes", ["a", "a"]),
        ("classes", [1, 2]),
        ("classes", ["a\x1b[2J", "b"]),
        ("classes", ["a\nerror: all is lost", "b"]),
        ("images", 7),
        ("images", True),
        ("shards.key", "evil/cronjob"),
        ("shards.key", f"shards/{DIGEST[:16]}-8x10x3/../../part-00000-{'0' * 16}.arrow"),
        ("shards.rows", -6),
        ("shards.rows", 10**30),
        ("shards.size", 5),
        ("shards.sha256", "0"),
        ("quarantined", [{"key": 3, "reason": "x"}]),
    ],
)
def test_a_pack_that_is_not_the_one_asked_for(tmp_path, where, value):
    """Anyone with write access to the bucket could name files outside the cache, which would be overwritten or deleted."""
    storage = FolderStore(tmp_path / "storage")
    committed(storage, DIGEST)
    key = f"shards/{DIGEST[:16]}-8x10x3/pack.json"
    document = json.loads(storage.get(key))
    name, _, part = where.partition(".")
    if part:
        document[name][0][part] = value
    else:
        document[name] = value
    storage.put(key, json.dumps(document).encode())
    with pytest.raises(PackError, match=r"pack.json is damaged \(.*\)\. Fix: delete it") as error:
        load_pack(storage, DIGEST, SHAPE)
    assert "\n" not in str(error.value)


def test_the_reasons_in_a_pack_stay_on_their_line(tmp_path):
    """Anyone with write access to the bucket could write lines of their own into the log."""
    storage = FolderStore(tmp_path / "storage")
    committed(storage, DIGEST, 6, Quarantined("Au/1.jpg", "is empty\nerror:  all is lost"))
    assert load_pack(storage, DIGEST, SHAPE).quarantined == (Quarantined("Au/1.jpg", "is empty error: all is lost"),)


def test_one_wrong_answer_for_the_pack(tmp_path):
    """All images would be decoded again, or the job would end, for one error page of a proxy."""

    class Once(FolderStore):
        asked = 0

        def get(self, key):
            self.asked += 1
            return b"<html>" if self.asked == 1 else super().get(key)

    made = committed(FolderStore(tmp_path / "storage"), DIGEST)
    assert load_pack(Once(tmp_path / "storage"), DIGEST, SHAPE) == made


def test_too_many_unusable_images(source, tmp_path):
    """A data set of error pages would be trained on, and the user would not learn what to repair."""
    manifest = build_manifest(only(source), DATA)
    storage = FolderStore(tmp_path / "storage")
    committed(storage, manifest.digest, 96, *(Quarantined(f"Au/{i}\n.jpg", "is empty (0 bytes)") for i in range(4)))
    with pytest.raises(PackError) as error:
        pack(manifest, only(source), storage, DATA)
    message = str(error.value)
    assert len(message.splitlines()) == 1
    assert "4 of 100 images (4.00%) cannot be used, above data.max_quarantined = 1.00%" in message
    assert message.count("is empty (0 bytes)") == 3
    assert r"'Au/0\n.jpg' is empty" in message
    assert "quarantine.json lists all), or raise data.max_quarantined" in message
    assert pack(manifest, only(source), storage, DATA.model_copy(update={"max_quarantined": 0.04})).images == 96


def test_no_usable_image_at_all(source, tmp_path):
    """A run that allows every image to be bad would start with nothing to train on."""
    manifest = build_manifest(only(source), DATA)
    storage = FolderStore(tmp_path / "storage")
    committed(storage, manifest.digest, 0, Quarantined("Au/1.jpg", "is empty (0 bytes)"))
    with pytest.raises(PackError, match=r"1 of 1 images \(100.00%\)"):
        pack(manifest, only(source), storage, DATA.model_copy(update={"max_quarantined": 1.0}))


def test_a_raised_bound_on_pixels_needs_a_new_pack(source, tmp_path):
    """Raising data.max_pixels, as the quarantine list suggests, would silently change nothing."""
    manifest = build_manifest(only(source), DATA)
    storage = FolderStore(tmp_path / "storage")
    reason = "has 20000 x 20000 pixels, above data.max_pixels = 100000000"
    committed(storage, manifest.digest, 1000, Quarantined("Au/1.jpg", reason, 100_000_000))
    assert pack(manifest, only(source), storage, DATA).images == 1000
    with pytest.raises(PackError, match=rf"'Au/1.jpg' {reason}, the bound when .* Fix: delete the folder .*-8x10x3 .* = 500000000"):
        pack(manifest, only(source), storage, DATA.model_copy(update={"max_pixels": 500_000_000}))


def test_storage_that_cannot_be_read(source, tmp_path):
    """Storage that is down would count as storage without a pack, and all images would be decoded again."""
    manifest = build_manifest(only(source), DATA)
    storage = FolderStore(tmp_path / "storage")
    path = storage.root / f"shards/{manifest.digest[:16]}-8x10x3/pack.json"
    path.parent.mkdir(parents=True)
    path.symlink_to(path)
    with pytest.raises(StoreError, match="Too many levels"):
        pack(manifest, only(source), storage, DATA)


def test_each_image_is_read_from_its_own_source(tmp_path):
    """A validation image would be replaced by the training image of the same key, or be listed under that key."""
    data = {"source": tmp_path / "a", "validation": tmp_path / "b"}
    for color, root in enumerate(data.values()):
        for key in ("Au/1.png", "Tp/2.png"):
            FolderStore(root).put(key, png(100 * color))
    FolderStore(data["validation"]).put("Au/3.png", b"")
    settings = Data(**{name: str(root) for name, root in data.items()}, classes=DATA.classes, image_size=SHAPE[:2])
    sources = open_sources(settings, S3())
    images = build_manifest(sources, settings).images
    rows = _decode_block(_listed(images[2:]), sources.images, SHAPE, 10**8).to_pylist()
    assert [(row["key"], row["side"]) for row in rows] == [
        ("validation:Au/1.png", "validation"),
        ("validation:Au/3.png", "validation"),
        ("validation:Tp/2.png", "validation"),
    ]
    assert np.frombuffer(rows[0]["image"], np.uint8).reshape(SHAPE)[..., 0].max() == 100
    assert rows[1]["reason"] == "is empty (0 bytes)"
    shutil.rmtree(data["validation"])
    (row,) = _decode_block(_listed(images[2:]), sources.images, SHAPE, 10**8).to_pylist()
    assert "Fix: mount data.validation on every machine" in row["failure"]


def test_packing_that_waits_for_a_block_can_be_stopped(monkeypatch):
    """SIGTERM would have no effect while one task hangs, and the pod would be killed at the end of its grace period."""
    monkeypatch.setattr(packing, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(packing, "CLOSE_SECONDS", 0.1)
    hangs = threading.Event()

    def blocks():
        yield pa.table({"number": [1]})
        hangs.wait()

    polled = packing._polled(blocks())
    assert next(polled)["number"].to_pylist() == [1]
    assert next(polled) is None
    assert next(polled) is None
    polled.close()
    hangs.set()


def test_blocks_and_errors_arrive_in_order(monkeypatch):
    """Images would be lost, or an error while decoding would leave an incomplete pack."""
    monkeypatch.setattr(packing, "POLL_SECONDS", 0.01)

    def blocks():
        yield from range(5)
        raise PackError("lost")

    found = []

    def read():
        for block in packing._polled(blocks()):
            if block is not None:
                found.append(block)  # noqa: PERF401 - an error must keep what came before

    with pytest.raises(PackError, match="lost"):
        read()
    assert found == [0, 1, 2, 3, 4]
