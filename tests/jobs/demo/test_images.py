"""jobs.demo.images and jobs.demo.forgeries: the demo's images, made from the photographs in the installed packages."""

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.demo import images as demo_images
from jobs.demo.forgeries import PHOTOGRAPHS, make_pair, photograph
from trainer import config
from trainer.storage import open_store

SIZE = 64
"""Of images whose content is not tested, in pixels."""
SMALL = 2 * len(PHOTOGRAPHS)


@pytest.fixture(scope="module")
def images() -> dict[str, bytes]:
    """Ten pairs of every photograph, 128x128."""
    return {key: data for index in range(10 * len(PHOTOGRAPHS)) for key, data in make_pair(0, index, 128).items()}


def labels(images: dict[str, bytes]) -> np.ndarray:
    return np.array([key.startswith("fake/") for key in images])


def separation(labels: np.ndarray, values: list[float]) -> float:
    """Chance that a random forgery has the larger value than a random authentic image; 0.5: the value does not separate them."""
    fake, authentic = np.array(values)[labels][:, None], np.array(values)[~labels][None, :]
    return float((fake > authentic).mean() + (fake == authentic).mean() / 2)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run(*arguments: object) -> int:
    return demo_images.main([str(argument) for argument in arguments])


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_every_photograph_is_installed_and_large_enough(name: str) -> None:
    """The demo would fail after an upgrade of a package that no longer contains a photograph."""
    assert min(photograph(name).size) >= 160


def test_same_seed_same_bytes() -> None:
    """Two users who run the demo would see different curves."""
    assert make_pair(3, 5, SIZE) == make_pair(3, 5, SIZE)
    assert set(make_pair(3, 5, SIZE).values()).isdisjoint(make_pair(4, 5, SIZE).values())


def test_classes_and_photographs_are_balanced(images: dict[str, bytes]) -> None:
    """An accuracy of 50 % would not mean chance, or a photograph with one class only would give the class away."""
    places = {label: [key.removeprefix(label) for key in images if key.startswith(label)] for label in ("authentic", "fake")}
    assert places["authentic"] == places["fake"]
    assert len(images) == 2 * len(places["fake"]) == len(set(images.values()))


def test_group_is_the_photograph(images: dict[str, bytes]) -> None:
    """The pattern in jobs/configs/demo.toml would put crops of one photograph on both sides of the split."""
    groups = {re.search(r"^[^/]+/([^/]+)/", key)[1] for key in images}  # type: ignore[index]
    assert groups == set(PHOTOGRAPHS)


def test_files_do_not_tell_the_classes_apart(images: dict[str, bytes]) -> None:
    """A network that learned the file format would seem to detect forgeries."""
    kinds: dict[bool, set[str]] = {False: set(), True: set()}
    for fake, data in zip(labels(images), images.values(), strict=True):
        image = Image.open(io.BytesIO(data))
        kinds[bool(fake)].add(f"{image.size} {image.mode} {sorted(image.info)} {image.quantization}")  # type: ignore[attr-defined]
    assert kinds[False] == kinds[True]
    assert separation(labels(images), [len(data) for data in images.values()]) == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(
    "statistic",
    [np.mean, np.std, np.ptp, lambda pixels: np.ptp(pixels, axis=2).mean(), lambda pixels: np.abs(np.diff(pixels, axis=1)).mean()],
    ids=["brightness", "contrast", "range", "saturation", "sharpness"],
)
def test_no_single_number_tells_the_classes_apart(images: dict[str, bytes], statistic: object) -> None:
    """The demo's task would be trivial: a threshold on one number would classify as well as the network."""
    values = [float(statistic(np.asarray(Image.open(io.BytesIO(data)), float))) for data in images.values()]  # type: ignore[operator]
    assert separation(labels(images), values) == pytest.approx(0.5, abs=0.17)


def test_a_forgery_differs_in_one_piece(images: dict[str, bytes]) -> None:
    """An unchanged "forgery" would have a wrong label; one that is changed everywhere would be no forgery."""
    for key, data in images.items():
        if key.startswith("fake/"):
            pair = [Image.open(io.BytesIO(file)) for file in (data, images[key.replace("fake/", "authentic/")])]
            fake, authentic = (np.asarray(image, float).mean(axis=2) for image in pair)
            changed = np.abs(fake - authentic)
            middle = changed[16:-16, 16:-16].mean()
            corners = np.mean([changed[y, x] for y in (0, -1) for x in (0, -1)])
            assert middle > 3, key
            assert corners < 40, key


def test_second_run_does_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`make demo` would write its images again on every run."""
    assert run("--images", SMALL, "--size", SIZE, tmp_path / "set") == 0
    first, times = contents(tmp_path / "set"), {path: path.stat().st_mtime_ns for path in (tmp_path / "set").rglob("*")}
    assert len(first) == SMALL + 1
    assert run("--images", SMALL, "--size", SIZE, tmp_path / "set") == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "set").rglob("*")} == times
    assert "(already there)" in capsys.readouterr().out


def test_an_interrupted_or_damaged_set_is_completed(tmp_path: Path) -> None:
    """After Ctrl-C the demo would train on half of the images; or on fewer if some were deleted."""
    run("--images", SMALL, "--size", SIZE, tmp_path)
    whole = contents(tmp_path)
    (tmp_path / "fake/cat/cat-0001.jpg").unlink()
    run("--images", SMALL, "--size", SIZE, tmp_path)
    assert contents(tmp_path) == whole
    marker = json.loads(whole[demo_images.MARKER])
    (tmp_path / demo_images.MARKER).write_text(json.dumps(marker | {"complete": False}))
    (tmp_path / "fake/cat/cat-0001.jpg").write_bytes(b"half")
    run("--images", SMALL, "--size", SIZE, tmp_path)
    assert contents(tmp_path) == whole


def test_another_set_replaces_the_first_and_nothing_else(tmp_path: Path) -> None:
    """The demo would also train on images of the previous set; or a file of the user beside them would be deleted."""
    run("--images", SMALL + 2, "--size", SIZE, tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    run("--images", SMALL, "--size", SIZE, "--seed", 1, tmp_path)
    (tmp_path / "notes.txt").unlink()
    run("--images", SMALL, "--size", SIZE, "--seed", 1, tmp_path / "fresh")
    assert contents(tmp_path / "fresh") == {key: data for key, data in contents(tmp_path).items() if not key.startswith("fresh/")}


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A mistyped target would mix forgeries into a user's own photographs."""
    (tmp_path / "holiday.jpg").write_bytes(b"mine")
    assert run(tmp_path) == 2
    assert contents(tmp_path) == {"holiday.jpg": b"mine"}
    assert (
        capsys.readouterr().err
        == f"error: {tmp_path} holds 1 other objects, such as holiday.jpg. Fix: name an empty folder or prefix.\n"
    )


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--images", "2"], f"--images 2 is out of range. Fix: use {SMALL} to 100000."),
        (["--images", "101"], "--images 101 is odd, and half of the images are forged. Fix: use an even number."),
        (["--size", "8"], "--size 8 is out of range. Fix: use 32 to 512."),
        (["--seed", "-1"], "--seed -1 is out of range. Fix: use 0 to 2147483647."),
    ],
)
def test_bad_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], line: str) -> None:
    """A user would see a traceback, or get images that cannot be split."""
    assert run(*arguments, tmp_path / "set") == 2
    assert capsys.readouterr().err == f"error: {line}\n"
    assert not (tmp_path / "set").exists()


def test_bad_target(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A user would see a traceback for a mistyped URL, or for a file in place of a folder."""
    (tmp_path / "file").write_text("")
    for target in ("s3:/bucket", tmp_path / "file"):
        assert run(target) == 2
        assert re.fullmatch(r"error: [^\n]+\n", capsys.readouterr().err)


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A user without the packages of the group `demo` would see a traceback."""
    monkeypatch.setitem(PHOTOGRAPHS, "cat", "no_such_package/cat.jpg")
    photograph.cache_clear()
    assert run("--images", SMALL, tmp_path) == 2
    assert (
        "no_such_package, which contains the photograph cat, is not installed. Fix: run `make install`." in capsys.readouterr().err
    )
    assert contents(tmp_path) == {}


@pytest.mark.integration
def test_bucket_holds_the_same_set_as_a_folder(bucket: str, tmp_path: Path) -> None:
    """The demo on S3 would have other images than a folder, or write them again on every run."""
    for target in (tmp_path, bucket, bucket):
        assert run("--images", SMALL, "--size", SIZE, target) == 0
    store = open_store(bucket, config.S3(path_style=True))
    assert {entry.key: store.get(entry.key) for entry in store.list()} == contents(tmp_path)
