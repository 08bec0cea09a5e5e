"""trainer.data.index on real folders."""

from dataclasses import replace

import pytest

from trainer.config import S3, Data
from trainer.data import index
from trainer.data.dataset import DataError, Image
from trainer.data.index import build_manifest
from trainer.data.sources import Sources, open_sources
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
    store = folder(tmp_path, "Tp/2.jpg", "Au/1.jpg", "Tp/a/b/3.jpg", "other.jpg", "Tpx/4.jpg")
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


# Sources and labels of one's own


def write(root, *keys: str) -> str:
    for key in keys:
        path = root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(key.encode())
    return str(root)


def configured(tmp_path, source=("Au/1", "Tp/2"), validation=(), test=(), labels="", **more) -> Data:
    """Folders with these objects, and their configuration."""
    given = {"source": write(tmp_path / "source", *source)}
    given |= {name: write(tmp_path / name, *keys) for name, keys in (("validation", validation), ("test", test)) if keys}
    if labels:
        (tmp_path / "labels.csv").write_text(labels)
        given["labels"] = str(tmp_path / "labels.csv")
    elif "class_pattern" not in more:
        given["classes"] = PREFIXES
    return Data(**given | more)


def manifest_of(data: Data):
    return build_manifest(open_sources(data, S3()), data)


def test_each_source_has_its_side(tmp_path):
    """A validation set of one's own would be trained on, or its images be mistaken for others of the same name."""
    data = configured(tmp_path, validation=("Au/1", "Tp/9", "notes"), test=("Au/7", "Tp/2"), group_by=r"/(\d)")
    manifest = manifest_of(data)
    assert [(image.name, image.label, image.group, image.side) for image in manifest.images] == [
        ("Au/1", 0, "1", "training"),
        ("Tp/2", 1, "2", "training"),
        ("validation:Au/1", 0, "validation:1", "validation"),
        ("validation:Tp/9", 1, "validation:9", "validation"),
        ("test:Au/7", 0, "test:7", "test"),
        ("test:Tp/2", 1, "test:2", "test"),
    ]
    assert manifest.ignored == 1


def test_with_a_test_set_alone_the_rest_is_split(tmp_path):
    """There would be nothing to validate on."""
    manifest = manifest_of(configured(tmp_path, test=("Au/7", "Tp/2")))
    assert [image.side for image in manifest.images] == ["", "", "test", "test"]


def test_the_digest_covers_side_and_source(tmp_path):
    """A resumed run would continue with validation images among its training images."""
    plain = manifest_of(configured(tmp_path))
    tested = manifest_of(configured(tmp_path, test=("Au/7", "Tp/2")))
    validated = manifest_of(configured(tmp_path, validation=("Au/7", "Tp/2")))
    both = manifest_of(configured(tmp_path, validation=("Au/7", "Tp/2"), test=("Au/8", "Tp/3")))
    assert len({manifest.digest for manifest in (plain, tested, validated, both)}) == 4


def test_the_digest_of_a_data_set_changes_with_the_version_of_its_pixels_only(monkeypatch):
    """Every data set would be packed again after an update, or images of an older decoder would be trained on beside new ones."""
    images = (Image("Au/1", 4, "e", 0, ""), Image("Tp/2", 4, "f", 1, "g"))
    assert index._digest(("a", "b"), images) == "316cffd242d94285253367ac5b95217582aaeb51b87e30a982bd8485c67bc5c8"
    monkeypatch.setattr(index, "PIXELS_VERSION", 3)
    assert index._digest(("a", "b"), images) != "316cffd242d94285253367ac5b95217582aaeb51b87e30a982bd8485c67bc5c8"


LABELS = "key,label,group,split\nAu/1,real,a,train\nAu/2,real,b,val\nTp/3,fake,a,train\nTp/4,fake,c,val\n"
FOUR = ("Au/1", "Au/2", "Tp/3", "Tp/4")


def test_a_labels_file_gives_label_group_and_side(tmp_path):
    """A data set that is described by a table could not be trained on."""
    manifest = manifest_of(configured(tmp_path, (*FOUR, "unlabelled.jpg"), labels=LABELS))
    assert manifest.classes == ("fake", "real")
    assert [(image.key, image.label, image.group, image.side) for image in manifest.images] == [
        ("Au/1", 1, "a", "training"),
        ("Au/2", 1, "b", "validation"),
        ("Tp/3", 0, "a", "training"),
        ("Tp/4", 0, "c", "validation"),
    ]
    assert manifest.ignored == 1


def test_a_labels_file_covers_all_sources_and_may_lie_among_the_images(tmp_path):
    """The file would count as an image without a label, and images of other sources could not be labelled."""
    root = tmp_path / "source"
    write(root, "1", "2")
    write(tmp_path / "other", "1", "2")
    (root / "labels.csv").write_text("key,label\n1,a\n2,b\nvalidation:1,b\nvalidation:2,a\n")
    manifest = manifest_of(Data(source=str(root), validation=str(tmp_path / "other"), labels=str(root / "labels.csv")))
    assert [(image.name, image.label) for image in manifest.images] == [
        ("1", 0),
        ("2", 1),
        ("validation:1", 1),
        ("validation:2", 0),
    ]
    assert manifest.ignored == 0


def test_empty_cells_of_the_split_column(tmp_path):
    """Images without a side would be validated on although the validation set is given, or never."""
    given = LABELS.replace("Au/1,real,a,train", "Au/1,real,a,")
    assert {image.key: image.side for image in manifest_of(configured(tmp_path, FOUR, labels=given)).images}["Au/1"] == "training"
    only_test = "key,label,split\nAu/1,real,\nAu/2,real,test\nTp/3,fake,\nTp/4,fake,test\n"
    sides = [image.side for image in manifest_of(configured(tmp_path, FOUR, labels=only_test)).images]
    assert sides == ["", "test", "", "test"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            {"validation": ("other",)},
            ["data.validation = ", "no image of class 'authentic' (0 images", "such as 'other'", "Fix: "],
        ),
        ({"validation": ("Au/1", "Au/2")}, ["data.validation = ", "no image of class 'fake' (2 images of other classes"]),
        ({"test": ("Tp/1",)}, ["data.test = ", "no image of class 'authentic'"]),
        (
            {"class_pattern": "^(?P<class>[^/]+)/", "validation": ("Au/1", "Tp/2", "Xy/3", "Xy/4")},
            ["data.validation = ", "has the class 'Xy' (2 images), which data.source does not have. Fix: "],
        ),
        (
            {"source": FOUR, "labels": LABELS + "Au/9,real,d,train\nTp/9,fake,d,train\n"},
            ["labels 2 of 6 keys that do not exist, such as 'Au/9' (an existing key: 'Au/1'). Fix: correct the keys"],
        ),
        ({"source": FOUR, "labels": "key,label\nAu/1,real\nAu/2,real\n"}, ["has only the label 'real' for data.source, but at"]),
        (
            {"source": FOUR, "labels": LABELS.replace("Tp/4,fake,c,val", "Tp/4,fake,c,train")},
            ["gives class 'fake' no validation image, and there are validation images of other classes. Fix: correct the column"],
        ),
        (
            {"source": FOUR, "labels": LABELS.replace("Tp/3,fake,a,train", "Tp/3,fake,a,val")},
            ["gives class 'fake' no training image"],
        ),
        (
            {"source": FOUR, "labels": LABELS.replace("Tp/4,fake,c,val", "Tp/4,fake,c,test")},
            ["gives class 'real' no test image"],
        ),
        (
            {"source": FOUR, "labels": LABELS, "group_by": "(.)"},
            ["has the column 'group', and data.group_by is set too. Fix: remove"],
        ),
        (
            {"source": FOUR, "labels": LABELS + "validation:Au/5,real,e,\n", "validation": ("Au/5",)},
            ["'Au/2' has split = validation, but data.validation is set too. Fix: remove data.validation or leave the split empty"],
        ),
        (
            {"source": FOUR, "labels": LABELS + "test:Au/5,real,e,train\n", "test": ("Au/5",)},
            ["'test:Au/5' is in data.test, but has split = training. Fix: leave its split empty"],
        ),
    ],
)
def test_sources_and_labels_that_do_not_fit_are_refused_in_one_line(tmp_path, given, words):
    """The run would validate on one class, or on other images than the user thinks."""
    data = configured(tmp_path, **given)
    with pytest.raises(DataError) as error:
        manifest_of(data)
    message = str(error.value)
    assert len(message.splitlines()) == 1
    for word in words:
        assert word in message


def test_overlapping_sources_are_refused(tmp_path):
    """The model would be validated on images that it has seen."""
    root = write(tmp_path / "all", "Au/1", "Tp/2", "val/Au/3", "val/Tp/4")
    data = Data(source=root, validation=f"{root}/val", class_pattern="(?P<class>Au|Tp)/")
    with pytest.raises(
        DataError, match=r"data\.source and data\.validation overlap: 2 images are in both, such as '.*val/Au/3'\. Fix"
    ):
        manifest_of(data)
    apart = Data(source=root, validation=f"{root}/val", class_pattern="^(?P<class>Au|Tp)/")
    assert [image.name for image in manifest_of(apart).images] == ["Au/1", "Tp/2", "validation:Au/3", "validation:Tp/4"]


def test_an_empty_validation_set(tmp_path):
    """A mistyped prefix would be noticed only after packing."""
    (tmp_path / "empty").mkdir()
    data = configured(tmp_path, validation=("x",)).model_copy(update={"validation": str(tmp_path / "empty")})
    with pytest.raises(DataError, match=r"data\.validation = .*/empty holds no objects\. Fix: correct it or upload the images\."):
        manifest_of(data)


def test_a_group_pattern_that_matches_nothing(tmp_path):
    """Every image would be its own group: copies of one source on both sides of the split, and too good a result."""
    store = folder(tmp_path, "Au/p17.jpg", "Tp/p17_edit1.jpg")
    with pytest.raises(DataError, match=r"data.group_by = '/\(q.*' matches none of the 2 keys, such as 'Au/p17.jpg'. Fix: correct"):
        build_manifest(store, by_prefix(group_by=r"/(q\d+)"))


def test_class_names_cannot_steer_a_terminal(tmp_path):
    """A folder's name would retitle the terminal, or write lines of its own into the log."""
    for name in ("a\x1b]0;owned\x07", "b\nerror: all is lost"):
        store = folder(tmp_path / name[0], f"{name}/1.jpg", "c/2.jpg")
        with pytest.raises(DataError, match=r"contains control characters\. Fix: rename it") as error:
            build_manifest(store, Data(source="unused", class_pattern="(?s)^(?P<class>[^/]+)/"))
        assert str(error.value).isprintable()


def test_one_empty_listing_is_asked_for_again(tmp_path):
    """One bad answer would end the job with the advice to upload the images."""

    class Once(FolderStore):
        listings = 0

        def list(self, prefix=""):
            self.listings += 1
            return super().list(prefix) if self.listings > 1 else iter([])

    folder(tmp_path, "Au/1.jpg", "Tp/3.jpg")
    assert len(build_manifest(Sources({"source": Once(tmp_path)}), by_prefix()).images) == 2


def test_archived_images_are_counted(tmp_path):
    """The dry run would promise images that a lifecycle rule has moved to Glacier."""

    class Bucket(FolderStore):
        def list(self, prefix=""):
            return iter([replace(entry, archived="1" in entry.key) for entry in super().list(prefix)])

    folder(tmp_path, "Au/1.jpg", "Au/2.jpg", "Tp/3.jpg", "1.txt")
    manifest = build_manifest(Sources({"source": Bucket(tmp_path)}), by_prefix())
    assert manifest.archived == 1
    assert manifest.digest == build_manifest(Sources({"source": FolderStore(tmp_path)}), by_prefix()).digest
