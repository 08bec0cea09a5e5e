"""trainer.data.duplicates on crops of photographs and their edited copies."""

import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from tests.trainer.report.runs import photographs
from trainer.data import duplicates
from trainer.data.decode import decode
from trainer.data.duplicates import chained, find_copies, fingerprints, similar, united

SHAPE = (64, 64, 3)


@pytest.fixture(scope="module")
def crops() -> np.ndarray:
    """uint8 [36, 64, 64, 3], of six photographs."""
    return np.stack(photographs())


def saved(pixels: np.ndarray, form: str = "JPEG", **options) -> np.ndarray:
    """The pixels as they are packed after they were saved."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, **options)
    return decode(buffer.getvalue(), SHAPE, 10**8)


def edited(change) -> "np.ndarray":
    return np.stack([np.asarray(change(Image.fromarray(image)).convert("RGB")) for image in photographs()])


def test_equal_pixels_are_copies_whatever_the_file(crops):
    """A picture saved as PNG and as BMP, or with another comment, would be on both sides of the split."""
    exif = Image.Exif()
    exif[0x010E] = "uploaded again"
    one, other = saved(crops[0], quality=90), saved(crops[0], quality=90, exif=exif)
    images = np.stack([saved(crops[1], "PNG"), one, saved(crops[2], "PNG"), other, saved(crops[1], "BMP")])
    copies = find_copies([images[:2], images[2:]])
    assert copies.pixels.tolist() == [0, 1, 2, 1, 0]
    assert copies.near.tolist() == []
    assert copies.complete


@pytest.mark.parametrize(
    "change",
    [
        lambda image: Image.fromarray(saved(np.asarray(image), quality=50)),
        lambda image: image.resize((32, 32)).resize((64, 64)),
        lambda image: ImageEnhance.Brightness(image).enhance(0.8),
        lambda image: ImageEnhance.Contrast(image).enhance(1.2),
        lambda image: image.convert("L"),
    ],
    ids=["re-encoded", "resized", "darker", "contrast", "gray"],
)
def test_edited_copies_are_near_copies(crops, change):
    """The model would be validated on images that it has seen, and the report would not say so."""
    near = find_copies([crops, edited(change)]).near
    found = {tuple(pair) for pair in near.tolist()}
    assert {(i, i + len(crops)) for i in range(len(crops))} <= found
    assert all((b - a) % len(crops) == 0 for a, b in found)


def test_other_images_are_no_near_copies(crops):
    """Images would be called copies, and left out of training, because they show a similar scene."""
    mirrored = crops[:, :, ::-1]
    assert find_copies([crops, mirrored]).near.tolist() == []


def test_flat_images_are_not_compared():
    """All black frames of a data set, which differ in noise only, would be near copies of each other."""
    noise = np.random.default_rng(0).integers(10, 14, (20, *SHAPE), np.uint8)
    assert not fingerprints(noise).any()
    assert find_copies([noise]).near.tolist() == []


def test_any_image_size_has_fingerprints():
    """A run with images of 8x8, 50x33 or 224x224 pixels would end in a traceback, or find nothing."""
    for shape in ((8, 8), (33, 50), (224, 100)):
        smooth = np.random.default_rng(1).integers(0, 256, (12, 4, 4, 3), np.uint8)
        images = np.stack([np.asarray(Image.fromarray(one).resize(shape[::-1])) for one in smooth])
        darker = (images * 0.8).astype(np.uint8)
        assert find_copies([images, darker]).near.tolist() == [[i, i + 12] for i in range(12)], shape


def test_the_search_finds_what_comparing_all_pairs_finds(monkeypatch):
    """The shortcuts of the search would miss copies."""
    monkeypatch.setattr(duplicates, "BLOCK", 64)
    random = np.random.default_rng(0)
    centres = random.normal(size=(40, 256)) * np.linspace(4, 0.1, 256)
    prints = np.repeat(centres, 12, axis=0) + random.normal(0, 0.5, (480, 256))
    prints = (prints / np.linalg.norm(prints, axis=1, keepdims=True)).astype(np.float32)
    expected = np.argwhere(np.triu(prints @ prints.T >= duplicates.SIMILAR, 1))
    pairs, complete = similar(prints)
    assert 100 < len(expected) < 480 * 11 / 2
    assert pairs.tolist() == expected.tolist()
    assert complete


def test_the_search_is_bounded(crops, monkeypatch):
    """The frames of a film would fill the driver's memory with pairs."""
    monkeypatch.setattr(duplicates, "MAX_PAIRS", 10)
    copies = find_copies([np.stack([np.clip(crops[0].astype(int) + i, 0, 255).astype(np.uint8) for i in range(20)])])
    assert len(copies.near) == 10
    assert not copies.complete


def test_links_are_united():
    """Copies of copies would be torn apart."""
    assert united(6, [np.array([[4, 1], [4, 5]]), np.array([[2, 5]])]).tolist() == [0, 1, 1, 3, 1, 1]
    assert united(3, []).tolist() == [0, 1, 2]
    order = np.random.default_rng(0).permutation(500)
    assert set(united(500, [np.stack([order[:-1], order[1:]], 1)]).tolist()) == {0}
    assert chained(np.array([7, 3, 7, 7])).tolist() == [[0, 2], [2, 3]]
