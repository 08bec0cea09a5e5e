"""trainer.data.junk, and what the listing makes of it."""

import pytest

from trainer.config import Data
from trainer.data.dataset import DataError
from trainer.data.index import build_manifest
from trainer.data.junk import is_junk, prefix_of
from trainer.data.sources import Sources
from trainer.storage.folder import FolderStore
from trainer.storage.s3 import S3Store

DATA = Data(source="unused", classes={"authentic": "Au/", "fake": "Tp/"})
BY_FOLDER = Data(source="unused", class_pattern="^(?P<class>[^/]+)/")
PATTERN = Data(source="unused", class_pattern=r"(?P<class>[^/]+)/[^/]+$")


@pytest.mark.parametrize(
    "key",
    [
        ".DS_Store",
        "Au/.DS_Store",
        "Au/._1.jpg",
        "__MACOSX/Au/._1.jpg",
        "__MACOSX/Au/1.jpg",
        "Au/Thumbs.db",
        "Au/THUMBS.DB",
        "Tp/desktop.ini",
        "Tp/.ipynb_checkpoints/1-checkpoint.jpg",
        "Tp/@eaDir/1.jpg/SYNOPHOTO_THUMB_M.jpg",
        "Tp/Icon\r",
        "$RECYCLE.BIN/S-1-5/1.jpg",
        "Tp_$folder$",
        "Tp/",
        "_SUCCESS",
        "Au/README",
        "Au/annotations.xml",
        "Au/1.json",
        "Au/1.jpg.part",
        "Au/1.jpg.crdownload",
        "Au/1.jpg~",
        "Au/Thumbs.db:encryptable",
        "SHA1SUMS",
        "Au/labels.xlsx",
        "split.py",
        "Tp/IMG_1.AAE",
        "Tp/IMG_1.MOV",
        "Tp/#recycle/1.jpg",
        "all.tar.gz",
    ],
)
def test_files_of_operating_systems_are_junk(key):
    """A data set that was copied from a Mac or unzipped would be refused for the files that came along."""
    assert is_junk(key)


@pytest.mark.parametrize(
    "key",
    [
        "Au/1.jpg",
        "Au/..b.jpg",
        "Au/a.b/1.jpg",
        "MACOSX/1.jpg",
        "Au/thumbs.db.jpg",
        "runs/1.jpg",
        "1",
        "Au/1.txt.png",
        "Au/readme/1.jpg",
    ],
)
def test_other_files_are_not(key):
    """Images would silently be left out."""
    assert not is_junk(key)


def put(store: FolderStore, *keys: str) -> None:
    for key in keys:
        store.put(key, key.encode())


def test_junk_is_neither_labelled_nor_counted_with_the_rest(tmp_path):
    """Each .DS_Store would be quarantined, and a few of them per class would end the job."""
    store = FolderStore(tmp_path)
    put(store, "Au/1.jpg", "Au/.DS_Store", "Tp/2.jpg", "Tp/._2.jpg", "Tp/Thumbs.db", "__MACOSX/Au/._1.jpg", "readme.txt")
    manifest = build_manifest(Sources({"source": store}), DATA)
    assert [image.key for image in manifest.images] == ["Au/1.jpg", "Tp/2.jpg"]
    assert (manifest.ignored, manifest.junk) == (0, 5)
    digest = manifest.digest
    (tmp_path / "Tp/Thumbs.db").unlink()
    assert build_manifest(Sources({"source": store}), DATA).digest == digest


def test_a_source_of_junk_alone_holds_no_images(tmp_path):
    """The message would speak of a wrong pattern, although the folder is empty but for .DS_Store."""
    store = FolderStore(tmp_path)
    put(store, ".DS_Store")
    with pytest.raises(DataError, match=r"holds no images, only files such as .\.DS_Store"):
        build_manifest(Sources({"source": store}), DATA)


@pytest.mark.parametrize("inside", ["", "storage", "a/b"])
def test_the_files_of_runs_are_no_images(tmp_path, inside):
    """With the storage in the image folder, the first run would add the classes "shards" and "epochs" to the second."""
    source, storage = FolderStore(tmp_path), FolderStore(tmp_path / "x" / ".." / inside)
    (tmp_path / "x").mkdir()
    put(source, "real/1.jpg", "fake/2.jpg")
    digest = build_manifest(Sources({"source": source}), PATTERN, storage).digest
    put(storage, "runs/first/run.json", "runs/first/epochs/0001.npz", "shards/0123/pack.json")
    manifest = build_manifest(Sources({"source": source}), PATTERN, storage)
    assert (manifest.classes, manifest.digest, manifest.junk) == (("fake", "real"), digest, 3)


def test_a_storage_beside_the_source_hides_nothing(tmp_path):
    """Images in a folder that is named like one of a run's would be left out."""
    source = FolderStore(tmp_path / "images")
    put(source, "runs/1.jpg", "shards/2.jpg")
    for storage in (None, FolderStore(tmp_path), FolderStore(tmp_path / "images-too"), FolderStore(tmp_path / "images" / "deeper")):
        manifest = build_manifest(Sources({"source": source}), PATTERN, storage)
        assert [image.key for image in manifest.images] == ["runs/1.jpg", "shards/2.jpg"]


@pytest.mark.parametrize("inside", ["runs", "a/b", "x/../runs"])
def test_the_local_files_of_runs_are_no_images(tmp_path, inside):
    """With its storage in a bucket and the current folder as the source, the second run would learn the loss curve of the first as
    a class of its own, "runs"."""
    source, storage = FolderStore(tmp_path), FolderStore(tmp_path.with_name("elsewhere"))
    (tmp_path / "x").mkdir()
    put(source, "real/1.jpg", "fake/2.jpg")
    local = str(tmp_path / inside)
    digest = build_manifest(Sources({"source": source}), BY_FOLDER, storage, [local]).digest
    put(FolderStore(local), "first/loss.png", "first/report.html")
    manifest = build_manifest(Sources({"source": source}), BY_FOLDER, storage, [local])
    assert (manifest.classes, manifest.digest, manifest.junk) == (("fake", "real"), digest, 2)


@pytest.mark.parametrize("local", [".", "..", "../run", "../images-too"])
def test_local_files_elsewhere_hide_no_images(tmp_path, local):
    """A run that writes its report into or beside the folder of the images would find no images."""
    source = FolderStore(tmp_path / "images")
    put(source, "runs/1.jpg", "shards/2.jpg")
    manifest = build_manifest(Sources({"source": source}), BY_FOLDER, None, [str(tmp_path / "images" / local)])
    assert [image.key for image in manifest.images] == ["runs/1.jpg", "shards/2.jpg"]


def test_a_bucket_within_a_bucket():
    """Runs in the bucket of the images would be listed as images."""
    from trainer.config import S3

    source = S3Store("s3://bucket/images", S3())
    assert prefix_of(S3Store("s3://bucket/images/out", S3()), source) == "out/"
    assert prefix_of(S3Store("s3://bucket/images", S3()), source) == ""
    assert prefix_of(S3Store("s3://bucket/images-too", S3()), source) is None
    assert prefix_of(FolderStore("/images"), source) is None


def test_a_labels_file_may_list_junk(tmp_path):
    """A labels file that a script made of all files in a folder would be refused for its row of .DS_Store."""
    store = FolderStore(tmp_path)
    put(store, "1.jpg", "2.jpg", ".DS_Store")
    store.put("labels.csv", b"key,label\n1.jpg,a\n2.jpg,b\n.DS_Store,a\n")
    manifest = build_manifest(Sources({"source": store}, (store, "labels.csv")), Data(source="unused", labels="unused/labels.csv"))
    assert [image.key for image in manifest.images] == ["1.jpg", "2.jpg"]
