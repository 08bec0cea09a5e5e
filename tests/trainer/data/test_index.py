"""trainer.data.index on real folders."""

import pytest

from trainer.config import Data
from trainer.data.dataset import DataError
from trainer.data.index import build_manifest
from trainer.data.sources import Sources
from trainer.storage import NotFound
from trainer.storage.folder import FolderStore

PREFIXES = {"authentic": "Au/", "fake": "Tp/"}


def folder(tmp_path, *keys: str) -> Sources:
    for key in keys:
        path = tmp_path / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(key.encode())
    return Sources({"source": FolderStore(tmp_path)})


def by_prefix(**more) -> Data:
    return Data(source="unused", classes=PREFIXES, **more)


def test_prefixes_label_images_in_the_order_of_the_config(tmp_path):
    """The network would learn the classes the wrong way round."""
    store = folder(tmp_path, "Tp/2.jpg", "Au/1.jpg", "Tp/a/b/3.jpg", "readme.txt", "Tpx/4.jpg")
    manifest = build_manifest(store, by_prefix())
    assert manifest.classes == ("authentic", "fake")
    assert [(image.key, image.label, image.group) for image in manifest.images] == [
        ("Au/1.jpg", 0, ""),
        ("Tp/2.jpg", 1, ""),
        ("Tp/a/b/3.jpg", 1, ""),
    ]
    assert manifest.images[0].size == len("Au/1.jpg")
    assert manifest.ignored == 2
    other_way = build_manifest(store, Data(source="unused", classes={"fake": "Tp/", "authentic": "Au/"}))
    assert [image.label for image in other_way.images] == [1, 0, 0]


def test_a_pattern_finds_classes_and_numbers_them_by_name(tmp_path):
    """A data set with its classes in the file names could not be trained on."""
    store = folder(tmp_path, "x_real.jpg", "a_fake.jpg", "b_real.jpg", "c_.jpg", "notes")
    manifest = build_manifest(store, Data(source="unused", class_pattern=r"_(?P<class>[a-z]*)\.jpg$"))
    assert manifest.classes == ("fake", "real")
    assert [(image.key, image.label) for image in manifest.images] == [("a_fake.jpg", 0), ("b_real.jpg", 1), ("x_real.jpg", 1)]
    assert manifest.ignored == 2


def test_groups_come_from_the_key(tmp_path):
    """Edits of one photograph would be on both sides of the split."""
    store = folder(tmp_path, "Au/p17.jpg", "Tp/p17_edit1.jpg", "Tp/p17_edit2.jpg", "Tp/other.jpg")
    manifest = build_manifest(store, by_prefix(group_by=r"/(p\d+)|unused"))
    assert {image.key: image.group for image in manifest.images} == {
        "Au/p17.jpg": "p17",
        "Tp/p17_edit1.jpg": "p17",
        "Tp/p17_edit2.jpg": "p17",
        "Tp/other.jpg": "",
    }


def test_hostile_names_are_ordinary_keys(tmp_path):
    """One odd file name would stop a job or move to another class."""
    keys = ["Au/..b.jpg", "Au/line\nbreak.jpg", "Au/ü 写真 \U0001f600.jpg", "Au/\"quote'.jpg", "Tp/-rf.jpg", "Tp/%2e%2e.jpg"]
    manifest = build_manifest(folder(tmp_path, *keys), by_prefix())
    assert [image.key for image in manifest.images] == sorted(keys)


def test_the_digest_names_the_data_set(tmp_path):
    """A changed data set would be trained from old shards, or an unchanged one decoded again."""
    store = folder(tmp_path / "one", "Au/1.jpg", "Tp/2.jpg")
    digest = build_manifest(store, by_prefix()).digest
    assert len(digest) == 64
    assert build_manifest(store, by_prefix(image_size=(8, 8), validation_fraction=0.5)).digest == digest
    (tmp_path / "one" / "readme.txt").write_bytes(b"of no class")
    assert build_manifest(store, by_prefix()).digest == digest
    assert build_manifest(store, by_prefix(group_by=r"(\d)")).digest != digest
    assert build_manifest(store, Data(source="unused", classes={"real": "Au/", "fake": "Tp/"})).digest != digest
    (tmp_path / "one" / "Au" / "1.jpg").write_bytes(b"changed")
    changed = build_manifest(store, by_prefix()).digest
    assert changed != digest
    (tmp_path / "one" / "Au" / "3.jpg").write_bytes(b"added")
    assert build_manifest(store, by_prefix()).digest not in (digest, changed)


@pytest.mark.parametrize(
    ("keys", "data", "words"),
    [
        ([], by_prefix(), ["data.source = ", "holds no objects", "upload"]),
        (
            ["Au/1", "Tq/2", "Tq/3"],
            by_prefix(),
            ["Class 'fake'", "starts with 'Tp/'", "(found: 'Tq/' (2), 'Au/' (1))", "Fix: correct data.classes.fake"],
        ),
        (["x/Au/1", "x/Tp/1"], Data(source="s", classes={"a": "x/Au/", "b": "x/T/"}), ["'x/T/'", "'x/Au/' (1)", "'x/Tp/' (1)"]),
        (["Au/1", "Au/2"], Data(source="s", class_pattern="^(?P<class>Au)"), ["only the class 'Au' (2 images)", "at least two"]),
        (["Au/1", "Tp/2"], Data(source="s", class_pattern="(?P<class>cat|dog)"), ["none of the 2 keys", "'Au/1'", "'Tp/' (1)"]),
        ([f"d{i}/x" for i in range(30)], by_prefix(), ["Class 'authentic'", "and 22 more"]),
    ],
)
def test_unusable_data_is_refused_with_one_line(tmp_path, keys, data, words):
    """A mistyped prefix would show up hours later, as a class without images."""
    with pytest.raises(DataError) as error:
        build_manifest(folder(tmp_path, *keys), data)
    message = str(error.value)
    assert len(message.splitlines()) == 1
    for word in words:
        assert word in message


def test_a_missing_folder(tmp_path):
    """A mistyped data.source would cause a traceback."""
    with pytest.raises(NotFound, match="no such folder"):
        build_manifest(Sources({"source": FolderStore(tmp_path / "missing")}), by_prefix())
