"""trainer.data.image_file and tiff_file through decode: quirks cost nothing, damage of the image data is refused."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from benchmarks.support.image_files import HEIC, bitmap, flip, gradient, photo, saved, seeds
from trainer.data.dataset import DecodeError
from trainer.data.decode import decode
from trainer.data.image_file import png_chunk, read_png, without_exif

SHAPE, MANY = (32, 48, 3), 100_000_000
PNG = saved(photo(), "PNG")
PALETTE = saved(photo().quantize(32), "PNG", transparency=b"\xff\x00")


def pixels(data: bytes, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    return decode(data, shape, MANY)


def with_chunk(data: bytes, chunk: bytes) -> bytes:
    """A PNG with another chunk behind its header."""
    return data[:33] + chunk + data[33:]


def damaged(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]


PNG_QUIRKS = {
    "a large text": with_chunk(PNG, png_chunk(b"zTXt", b"key\0\0" + zlib.compress(bytes(3_000_000)))),
    "a text that cannot be unpacked": with_chunk(PNG, png_chunk(b"zTXt", b"key\0\0nonsense")),
    "a damaged text": with_chunk(PNG, damaged(png_chunk(b"tEXt", b"key\0text"), 14)),
    "a text of a wrong length": with_chunk(PNG, damaged(png_chunk(b"tEXt", b"key\0text" * 9), 3)),
    "a color profile that cannot be read": with_chunk(PNG, png_chunk(b"iCCP", b"profile\0\0nonsense")),
    "damaged EXIF": with_chunk(PNG, damaged(png_chunk(b"eXIf", b"II*\0\x08\0\0\0"), 12)),
    "a chunk of its own": with_chunk(PNG, png_chunk(b"prVt", b"private")),
    "a wrong checksum of sound pixels": damaged(PNG, PNG.index(b"IEND") - 6),
    "no end": PNG[:-12],
    "something after the end": PNG + b"more",
}


@pytest.mark.parametrize("quirk", sorted(PNG_QUIRKS))
def test_quirks_of_png_files_cost_nothing(quirk):
    """Sound images would be quarantined for what editors write beside the pixels."""
    assert np.array_equal(pixels(PNG_QUIRKS[quirk]), pixels(PNG))


@pytest.mark.parametrize("data", [PNG, PALETTE], ids=["color", "palette"])
def test_any_flipped_bit_in_the_image_data_of_a_png_is_refused_or_harmless(data):
    """The network would learn from images that are black or discolored below the damage."""
    random, whole, refused = np.random.default_rng(0), pixels(data), 0
    for _ in range(300):
        changed = bytearray(data)
        flip(changed, int(random.integers(8, len(data))), 0, b"", random)
        try:
            assert np.array_equal(pixels(bytes(changed)), whole)
        except DecodeError:
            refused += 1
    assert refused > 250


def test_a_png_without_one_of_its_pieces_is_refused():
    """A file that lost a block would be filled with black, if each piece has a sound checksum of its own."""
    body = read_png(saved(photo(300, 200), "PNG"), MANY).file()
    packed = zlib.compress(zlib.decompress(body[body.index(b"IDAT") + 4 : -16]))
    parts = [packed[start : start + 5000] for start in range(0, len(packed), 5000)]
    head = body[: body.index(b"IDAT") - 4]
    for lost in range(len(parts)):
        left = b"".join(png_chunk(b"IDAT", part) for number, part in enumerate(parts) if number != lost)
        with pytest.raises(DecodeError):
            pixels(head + left + png_chunk(b"IEND", b""))


def test_an_interlaced_png():
    """The number of bytes of an interlaced image would be miscounted, and each one refused."""
    values = np.asarray(photo(13, 11))
    rows = b""
    for x, y, dx, dy in ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)):
        rows += b"".join(b"\0" + row.tobytes() for row in values[y::dy, x::dx] if len(row))
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 13, 11, 8, 2, 0, 0, 1))
    data = b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    assert np.array_equal(pixels(data, (11, 13, 3)), values)


def test_quirks_of_webp_files_cost_nothing():
    """A broken profile or an incomplete text at the end would cost the image."""
    for options in ({}, {"lossless": True}):
        data = saved(photo(), "WEBP", icc_profile=b"nonsense", exif=b"Exif\0\0nonsense", xmp=b"<nonsense", **options)
        whole = pixels(saved(photo(), "WEBP", **options))
        assert np.array_equal(pixels(data), whole)
        assert np.array_equal(pixels(data[:-3]), whole)


@pytest.mark.parametrize("form", ["GIF", "WEBP"])
def test_only_the_first_image_of_an_animation_counts(form):
    """A film whose end is missing would be refused, although its first image is whole."""
    options = {"lossless": True} if form == "WEBP" else {}
    data = saved(photo(), form, save_all=True, append_images=[photo(seed=1), photo(seed=2)], **options)
    assert np.array_equal(pixels(data[: len(data) * 2 // 3]), pixels(data))


@pytest.mark.parametrize("form", ["AVIF", "HEIC"])
def test_avif_and_heic(form):
    """Photographs of telephones would be refused."""
    found = pixels(saved(gradient(), "AVIF", quality=90) if form == "AVIF" else seeds()["HEIC"]["still"], (64, 64, 3))
    assert np.abs(found.astype(int) - np.asarray(gradient())).mean() < (2 if form == "AVIF" else 6)
    assert len(HEIC) < 1000


def test_an_avif_or_heic_whose_pixels_end_in_zeros_is_refused():
    """The network would learn from the gray that the decoder makes of an interrupted copy's zeros. Zeros elsewhere in the file mean
    nothing, in padded metadata above all."""
    heic = seeds()["HEIC"]["still"]
    at = heic.index(b"iloc")
    assert heic[at + 26 : at + 30] == struct.pack(">I", len(heic) - heic.index(b"mdat") - 4)
    assert np.array_equal(pixels(heic + bytes(9000)), pixels(heic))
    with pytest.raises(DecodeError, match="was never written"):
        pixels(heic[: at + 26] + struct.pack(">I", 9000) + heic[at + 30 :] + bytes(9000))
    exif = saved(photo(), "AVIF", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0" + bytes(9000))
    assert np.array_equal(pixels(exif), pixels(saved(photo(), "AVIF")))
    assert bytes(9000) in exif


@pytest.mark.parametrize("form", ["AVIF", "HEIC"])
def test_a_photograph_of_tiles_that_lacks_some_is_refused(form):
    """libheif leaves tiles blank that are missing or damaged, and telephones and cameras write tiles."""
    data, size = seeds()[form]["tiles"], (128, 128, 3)
    assert np.abs(pixels(data, size)[70:120, 70:120].astype(int) - np.asarray(gradient())[6:56, 6:56]).mean() < 8
    with pytest.raises(DecodeError, match=r"bytes of its image data are missing"):
        pixels(data[:-30], size)
    start = data.index(b"mdat") + 4
    third = start + (len(data) - start) // 2
    with pytest.raises(DecodeError, match="cannot be decoded"):
        pixels(data[:third] + bytes([0x5A]) * 40 + data[third + 40 :], size)


def test_broken_exif_in_an_avif_costs_nothing():
    """A photograph would be refused for its camera's notes."""
    exif = Image.Exif()
    exif[0x010E] = "a description"
    data = saved(photo(), "AVIF", exif=exif)
    assert without_exif(data) != data
    at = data.index(b"a description") - 40
    broken = data[:at] + b"\xff" * 40 + data[at + 40 :]
    assert np.array_equal(pixels(broken), pixels(saved(photo(), "AVIF")))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_an_avif(orientation):
    """Photographs of telephones would lie on their side."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    plain = saved(photo(), "AVIF", quality=95)
    with Image.open(io.BytesIO(plain)) as opened:
        turned = {6: Image.Transpose.ROTATE_270, 3: Image.Transpose.ROTATE_180, 8: Image.Transpose.ROTATE_90}
        expected = opened.transpose(turned[orientation]) if orientation in turned else None
    found = pixels(saved(photo(), "AVIF", quality=95, exif=exif))
    if expected is not None:
        assert np.abs(found.astype(int) - pixels(saved(expected.convert("RGB"), "PNG"))).mean() < 2


def test_a_bitmap_whose_alpha_is_empty_is_the_picture():
    """Screenshots and scans of programs that leave the fourth byte at 0 would be white squares."""
    for alpha, expected in ((Image.new("L", photo().size, 0), PNG), (photo().convert("L"), None)):
        clear = photo()
        clear.putalpha(alpha)
        assert np.array_equal(pixels(bitmap(clear)), pixels(expected or saved(clear, "PNG")))


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits"])
def test_quirks_of_tiff_files_cost_nothing(compression):
    """A broken tag of a scanner, or another page, would cost the image."""
    plain = saved(photo(), "TIFF", compression=compression)
    pages = saved(photo(), "TIFF", compression=compression, save_all=True, append_images=[photo(seed=1)])
    assert np.array_equal(pixels(pages), pixels(plain))
    odd = {34675: b"no profile", 34665: 0x7FFFFFFF, 700: b"<no XMP", 305: "a program" * 99}
    assert np.array_equal(pixels(saved(photo(), "TIFF", compression=compression, tiffinfo=odd)), pixels(plain))


@pytest.mark.parametrize(("compression", "fraction"), [("tiff_adobe_deflate", 1), ("group4", 0.9), ("jpeg", 0.05)])
def test_damage_in_a_tiff_is_refused(compression, fraction):
    """libtiff reports damage only as text, and Pillow decodes on: the network would learn from what is left."""
    image = photo(300, 200).convert("1") if compression == "group4" else photo(300, 200)
    data = saved(image, "TIFF", compression=compression)
    with Image.open(io.BytesIO(data)) as opened:
        start, size = opened.tag_v2[273][0], opened.tag_v2[279][0]
    random, whole, refused, same = np.random.default_rng(0), pixels(data), 0, 0
    for _ in range(60):
        changed = bytearray(data)
        flip(changed, int(random.integers(start, start + size)), 0, b"", random)
        try:
            same += np.array_equal(pixels(bytes(changed)), whole)
        except DecodeError:
            refused += 1
    assert refused >= fraction * (60 - same)
    with pytest.raises(DecodeError):
        pixels(data[: start + size // 2] + bytes(size - size // 2) + data[start + size :])


def test_a_big_tiff():
    """TIFFs of the newer kind would be refused."""
    assert np.array_equal(pixels(saved(photo(), "TIFF", big_tiff=True)), pixels(PNG))


def tiff(parts: list[bytes], **changed: int | tuple[int, ...]) -> bytes:
    """A TIFF of `parts`, its strips. `changed`: tags beside those of an RGB image of 8 bits in one strip."""
    tags: dict[int, tuple[int, ...]] = {256: (96,), 257: (64,), 258: (8, 8, 8), 259: (1,), 262: (2,), 277: (3,), 278: (64,)}
    names = {"bits": 258, "compression": 259, "photometric": 262, "samples": 277, "rows": 278, "planes": 284}
    tags |= {names[name]: value if isinstance(value, tuple) else (value,) for name, value in changed.items()}
    ends = np.cumsum([8, *map(len, parts)]).tolist()
    tags |= {273: tuple(ends[:-1]), 279: tuple(map(len, parts))}
    body = b"II*\0" + struct.pack("<I", ends[-1] + sum(4 * len(value) for value in tags.values())) + b"".join(parts)
    entries = b""
    for tag, value in sorted(tags.items()):
        entries += struct.pack("<HHII", tag, 4, len(value), value[0] if len(value) == 1 else len(body))
        body += struct.pack(f"<{len(value)}I", *value)
    return body + struct.pack("<H", len(tags)) + entries + bytes(4)


RGB = np.asarray(photo())


@pytest.mark.parametrize("compression", [1, 8])
def test_a_tiff_without_some_of_its_strips_is_refused(compression):
    """The strips that a broken writer did not list would be black, and the network would learn them."""
    strips = [RGB[row : row + 10].tobytes() for row in range(0, 64, 10)]
    strips = [zlib.compress(each) for each in strips] if compression == 8 else strips
    assert np.array_equal(pixels(tiff(strips, rows=10, compression=compression)), pixels(PNG))
    with pytest.raises(DecodeError, match="2 of 7 parts of its pixels are missing"):
        pixels(tiff(strips[:5], rows=10, compression=compression))


def test_a_tiff_of_separate_channels():
    """Scanners store one plane for each color. A missing one would be black, and Pillow reads those of 16 bits as noise."""
    planes = [np.ascontiguousarray(RGB[..., channel]) for channel in range(3)]
    deep = [(plane.astype("<u2") * 257).tobytes() for plane in planes]
    assert np.array_equal(pixels(tiff([plane.tobytes() for plane in planes], planes=2)), pixels(PNG))
    packed = tiff([zlib.compress(plane) for plane in deep], planes=2, compression=8, bits=(16, 16, 16))
    assert np.abs(pixels(packed).astype(int) - pixels(PNG)).max() <= 1
    with pytest.raises(DecodeError, match="1 of 3 parts"):
        pixels(tiff([plane.tobytes() for plane in planes[:2]], planes=2))
    with pytest.raises(DecodeError, match="stores its channels separately"):
        pixels(tiff(deep, planes=2, bits=(16, 16, 16)))
    gray = tiff([deep[0]], planes=2, bits=16, samples=1, photometric=1)  # one channel is never separate
    assert np.array_equal(pixels(gray), pixels(saved(Image.fromarray(RGB[..., 0]), "PNG")))


def test_a_tiff_whose_size_has_an_odd_type():
    """A writer that stores the size as signed numbers would lose all its images."""
    data = tiff([RGB.tobytes()])
    for tag in (256, 257):
        data = data.replace(struct.pack("<HHI", tag, 4, 1), struct.pack("<HHI", tag, 9, 1))
    assert np.array_equal(pixels(data), pixels(PNG))


def test_a_fax_without_the_sizes_of_its_strips():
    """Scans of old fax machines would be lost, which leave them out."""
    data = saved(photo().convert("1"), "TIFF", compression="group4")
    with Image.open(io.BytesIO(data)) as opened:
        start, size = opened.tag_v2[273][0], opened.tag_v2[279][0]
    tags = {256: 96, 257: 64, 258: 1, 259: 4, 262: 1, 273: 8, 277: 1, 278: 64}
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    without = b"II*\0" + struct.pack("<I", 8 + size) + data[start : start + size] + directory + bytes(4)
    assert np.array_equal(pixels(without), pixels(data))


def test_an_unreadable_header_has_a_reason_that_does_not_change():
    """quarantine.json would name an address in memory, and differ from run to run."""
    gray_alpha = tiff([RGB[..., :2].tobytes() * 2], bits=(16, 16), samples=2, photometric=1)
    with pytest.raises(DecodeError, match="its header is damaged, or it stores its pixels in a way that is not supported"):
        pixels(gray_alpha)
