"""trainer.data.decode against files written by Pillow and simplejpeg, whole and damaged."""

import io
import struct
import zlib

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageOps

from benchmarks.support.image_files import photo as grain
from trainer.data.dataset import DecodeError
from trainer.data.decode import decode, open_image

SHAPE = (24, 32, 3)
MANY = 100_000_000


def photo(width: int = 160, height: int = 120) -> Image.Image:
    """Smooth, colored, and different at every corner and edge."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    pixels = np.stack([40 + 200 * x, 220 - 180 * y, 128 + 100 * np.sin(5 * x + 3 * y)], axis=-1)
    return Image.fromarray(pixels.astype(np.uint8))


def encoded(image: Image.Image, form: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def expected(image: Image.Image, shape=SHAPE) -> np.ndarray:
    return np.asarray(image.convert("RGB").resize((shape[1], shape[0]), Image.Resampling.BILINEAR)).astype(int)


def difference(data: bytes, image: Image.Image, shape=SHAPE) -> int:
    pixels = decode(data, shape, MANY)
    assert pixels.shape == shape
    assert pixels.dtype == np.uint8
    return int(np.abs(pixels - expected(image, shape)).max())


@pytest.mark.parametrize(
    ("form", "options", "bound"),
    [
        ("JPEG", {"quality": 95}, 4),
        ("JPEG", {"quality": 95, "progressive": True}, 4),
        ("PNG", {}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("TIFF", {}, 0),
        ("TIFF", {"compression": "tiff_lzw"}, 0),
        ("BMP", {}, 0),
        ("GIF", {}, 40),
    ],
)
def test_every_format_looks_like_the_original(form, options, bound):
    """Images of one format would train with other colors, or not at all."""
    assert difference(encoded(photo(), form, **options), photo()) <= bound


@pytest.mark.parametrize("size", [(300, 200), (1600, 1200)])
def test_the_format_does_not_show_in_the_pixels(size):
    """A class whose images are all JPEGs would be recognized by how its decoder shrinks, and the accuracy would mean nothing."""
    generator = np.random.default_rng(0)
    coarse = Image.fromarray(generator.integers(0, 256, (size[1] // 8, size[0] // 8, 3), np.uint8))
    data = encoded(coarse.resize(size, Image.Resampling.BICUBIC), "JPEG", quality=90)
    with Image.open(io.BytesIO(data)) as opened:
        others = [encoded(opened.convert("RGB"), form) for form in ("PNG", "BMP", "TIFF")]
    by_jpeg = decode(data, (64, 64, 3), MANY).astype(int)
    for other in others:
        assert np.abs(decode(other, (64, 64, 3), MANY) - by_jpeg).mean() < 0.05


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (9, 7), (3000, 2000)])
def test_any_legal_size(size):
    """A valid image of a single pixel, or a huge one, would stop a job of days."""
    for form in ("JPEG", "PNG"):
        assert decode(encoded(Image.new("RGB", size, (10, 200, 30)), form), SHAPE, MANY).std(axis=(0, 1)).max() == 0


def test_the_aspect_ratio_is_stretched_not_cropped():
    """The edges of an image, where a splice may show, would be lost."""
    pixels = decode(encoded(photo(400, 50), "PNG"), (64, 64, 3), MANY)
    assert np.abs(pixels - expected(photo(400, 50), (64, 64, 3))).max() <= 1


def test_the_same_bytes_give_the_same_pixels():
    """Two packs of one data set would differ, and a run could not be repeated."""
    for form in ("JPEG", "PNG", "WEBP"):
        data = encoded(photo(), form)
        assert np.array_equal(decode(data, SHAPE, MANY), decode(bytes(bytearray(data)), SHAPE, MANY))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(form, orientation):
    """Photographs taken upright would lie on their side."""
    image = photo()
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(form, {})
    data = encoded(image, form, exif=exif, **options)
    with Image.open(io.BytesIO(data)) as opened:
        upright = ImageOps.exif_transpose(opened).convert("RGB")
    assert (upright.width > upright.height) == (orientation < 5)
    assert difference(data, upright) <= 4


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff"])
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.filterwarnings("error")
def test_broken_exif_does_not_cost_the_image(form, exif):
    """Readable photographs would be lost to an editor's broken metadata, or each one would print a warning."""
    options = {"lossless": True} if form == "WEBP" else {}
    assert difference(encoded(photo(), form, exif=exif, **options), photo()) <= 8


def test_grayscale():
    """A gray image would have one channel, and the rows of a shard different lengths."""
    gray = photo().convert("L")
    for form, bound in (("JPEG", 4), ("PNG", 0), ("TIFF", 0), ("BMP", 0)):
        assert difference(encoded(gray, form), gray) <= bound
    assert difference(encoded(photo().convert("1"), "PNG"), photo().convert("1")) == 0


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF"])
def test_transparency_becomes_white(form):
    """The colors that an editor left under transparent pixels would leak into training."""
    pixels = np.full((60, 60, 4), (200, 0, 0, 255), np.uint8)
    pixels[:, 20:40, 3] = 128
    pixels[:, 40:] = (1, 2, 3, 0)
    options = {"WEBP": {"lossless": True, "exact": True}}.get(form, {})
    row = decode(encoded(Image.fromarray(pixels), form, **options), (60, 60, 3), MANY)[30].astype(int)
    assert row[10].tolist() == [200, 0, 0]
    assert np.abs(row[30] - (227, 127, 127)).max() <= 1
    assert row[50].tolist() == [255, 255, 255]


def test_transparency_of_gray_palette_and_single_colors():
    """The less common ways to store transparency would show their hidden colors."""
    gray = np.full((60, 60, 2), (90, 255), np.uint8)
    gray[:, 30:, 1] = 0
    palette = Image.new("P", (60, 60), 0)
    palette.putpalette([10, 20, 30, 200, 100, 0])
    palette.paste(1, (30, 0, 60, 60))
    plain = Image.new("RGB", (60, 60), (10, 20, 30))
    plain.paste((1, 2, 3), (30, 0, 60, 60))
    for data, left in (
        (encoded(Image.fromarray(gray), "PNG"), [90, 90, 90]),
        (encoded(palette, "PNG", transparency=1), [10, 20, 30]),
        (encoded(palette, "PNG", transparency=b"\xff\x00"), [10, 20, 30]),
        (encoded(palette, "GIF", transparency=1), [10, 20, 30]),
        (encoded(plain, "PNG", transparency=(1, 2, 3)), [10, 20, 30]),
    ):
        row = decode(data, (60, 60, 3), MANY)[30]
        assert row[10].tolist() == left
        assert row[50].tolist() == [255, 255, 255]


def test_palette_without_transparency():
    """Palette indices would be averaged as if they were colors."""
    image = photo().quantize(32)
    assert difference(encoded(image, "PNG"), image) == 0


def test_cmyk():
    """JPEGs that Photoshop wrote for print would come out as negatives."""
    image = photo().convert("CMYK")
    assert difference(encoded(image, "JPEG", quality=95), image) <= 6
    assert difference(encoded(image, "TIFF"), image) == 0


def test_ycck_jpeg():
    """Photoshop's other CMYK, stored as luminance, chroma and black, would have wrong colors."""
    cmyk = np.asarray(photo().convert("CMYK"))
    ycc = np.asarray(Image.fromarray(cmyk[..., :3]).convert("YCbCr"))
    as_stored = np.dstack([ycc, 255 - cmyk[..., 3]])
    data = encoded(Image.fromarray(255 - as_stored, "CMYK"), "JPEG", quality=100)  # Pillow inverts CMYK while it writes
    marker = data.index(b"\xff\xee")
    data = data[: marker + 15] + b"\x02" + data[marker + 16 :]
    with Image.open(io.BytesIO(data)) as opened:
        assert opened.info["adobe_transform"] == 2
        assert np.abs(np.asarray(opened.convert("RGB")).astype(int) - photo()).max() <= 8  # the file itself is right
    assert difference(data, photo()) <= 6


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_sixteen_bit_grayscale_is_scaled_not_clipped(form):
    """Every sample above 255 of 65535 would be white, and a scientific image blank."""
    levels = np.repeat(np.linspace(0, 65535, 32).round().astype(np.uint16)[None], 24, axis=0)
    pixels = decode(encoded(Image.fromarray(levels), form), SHAPE, MANY)
    assert np.array_equal(pixels[0, :, 0], np.rint(levels[0] / 257).astype(np.uint8))
    assert np.array_equal(pixels[..., 0], pixels[..., 2])


def test_tiff_of_twelve_bits_and_with_white_as_zero():
    """Such images would be nearly black, or negatives."""
    ramp = np.repeat(np.linspace(0, 65535, 32).round().astype(np.uint16)[None], 24, axis=0)
    data = encoded(Image.fromarray(ramp), "TIFF", tiffinfo={262: 0})
    assert np.array_equal(decode(data, SHAPE, MANY)[0, :, 0], np.rint(255 - ramp[0] / 257).astype(np.uint8))
    row = np.linspace(0, 4095, 32).round().astype(int)
    packed = b"".join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in row.reshape(-1, 2)) * 24
    tags = {256: 32, 257: 24, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 24, 279: len(packed)}
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    data = struct.pack("<2sHI", b"II", 42, 8 + len(packed)) + packed + directory + bytes(4)
    assert np.array_equal(decode(data, SHAPE, MANY)[0, :, 0], np.rint(row / 4095 * 255).astype(np.uint8))


def png(width: int, height: int, depth: int, color: int, raw: bytes) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


def test_sixteen_bit_color():
    """16-bit PNGs would be clipped, or refused."""
    rows = np.zeros((24, 32, 3), ">u2")
    rows[..., 0], rows[..., 1] = np.linspace(0, 65535, 32), 30000
    data = png(32, 24, 16, 2, b"".join(b"\0" + row.tobytes() for row in rows))
    assert np.abs(decode(data, SHAPE, MANY) - rows.astype(float) / 257).max() <= 1


def test_pixels_of_unknown_range_are_refused():
    """The range of floating-point images would be guessed, and their values silently clipped."""
    for mode in ("F", "I"):
        with pytest.raises(DecodeError, match="black and white are unknown"):
            decode(encoded(Image.new(mode, (40, 40), 5), "TIFF"), SHAPE, MANY)


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("WEBP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("BMP", {}),
        ("GIF", {}),
    ],
)
@pytest.mark.parametrize("fraction", [0.02, 0.4, 0.9])
def test_a_truncated_file_is_refused(form, options, fraction):
    """The network would learn from the half-gray images of incomplete uploads."""
    data = encoded(photo(640, 480), form, **options)
    with pytest.raises(DecodeError):
        decode(data[: int(len(data) * fraction)], SHAPE, MANY)


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_a_jpeg_with_a_hole_is_refused(options):
    """A file that lost its middle would be filled with gray, because it ends as it should."""
    data = encoded(photo(640, 480), "JPEG", **options)
    with pytest.raises(DecodeError, match=r"premature end of data segment|scans are missing"):
        decode(data[: len(data) // 2] + data[-2:], SHAPE, MANY)


@pytest.mark.parametrize("written", [0.3, 0.5])
@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("PNG", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("GIF", {}),
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("JPEG", {"optimize": True, "quality": 30}),
        ("WEBP", {"quality": 90}),
        ("WEBP", {"lossless": True}),
        ("AVIF", {}),
    ],
)
def test_a_file_whose_end_was_never_written_is_refused(form, options, written):
    """The network would learn from half-black images: a crash during a copy leaves zeros, at the right size."""
    data = encoded(grain(640, 480), form, **options)
    count = int(len(data) * written)
    with pytest.raises(DecodeError):
        decode(data[:count] + bytes(len(data) - count), SHAPE, MANY)


@pytest.mark.parametrize(
    ("size", "options"), [((640, 480), {"lossless": True, "quality": 0, "method": 0}), ((1600, 1200), {"quality": 10, "method": 0})]
)
def test_a_picture_whose_data_ends_in_zeros_is_read(size, options):
    """Drawings and pictures on a plain ground would be taken for files whose end was never written."""
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    values[size[1] // 2 :] = 255
    image = Image.fromarray(values)
    data = encoded(image, "WEBP", **options)
    assert data.endswith(bytes(5000))
    assert decode(data, SHAPE, MANY)[-1].min() > 250
    for form in ("BMP", "TIFF"):
        assert difference(encoded(ImageOps.invert(image), form), ImageOps.invert(image)) <= 3


def test_a_flipped_bit_in_a_png_is_refused():
    """Everything below a wrong bit would be black, although the format has checksums."""
    data = bytearray(encoded(photo(640, 480), "PNG"))
    data[len(data) // 2] ^= 1
    with pytest.raises(DecodeError, match=r"is damaged: "):
        decode(bytes(data), SHAPE, MANY)


def test_padding_at_the_end_of_a_jpeg_is_harmless():
    """All photographs of some cameras would be quarantined."""
    data = encoded(photo(640, 480), "JPEG", quality=95)
    assert difference(data[:-2] + bytes(200) + data[-2:], photo(640, 480)) <= 4
    assert difference(data + bytes(200), photo(640, 480)) <= 4


def test_a_rare_color_subsampling_is_read_and_its_truncation_found():
    """Valid JPEGs would be lost because the fast decoder does not know their layout."""
    data = bytearray(encoded(Image.new("RGB", (80, 80), (128, 128, 128)), "JPEG", keep_rgb=True))
    frame = data.index(b"\xff\xc0")  # 3 x 100 equal blocks become 30 x (4 x 2 + 1 + 1): color in an eighth of the pixels
    data[frame + 5 : frame + 9] = struct.pack(">HH", 160, 96)
    data[frame + 11] = 0x42
    with pytest.raises(ValueError, match="subsampling"):
        simplejpeg.decode_jpeg(bytes(data))
    assert np.unique(decode(bytes(data), SHAPE, MANY)).tolist() == [128]
    with pytest.raises(DecodeError, match="a part of its pixels is missing"):
        decode(bytes(data[:-20]), SHAPE, MANY)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", r"is empty \(0 bytes\)"),
        (b"<html>\nNot Found</html>", r"is not a JPEG, .* \(it starts with b'<html>\\nNot Found'\)"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not a JPEG"),
        (b"\xff\xd8\xff\xe0", "is damaged: it has no image data"),
        (b"\x89PNG\r\n\x1a\n", "is damaged: its header is incomplete"),
    ],
)
def test_other_files_are_refused_with_one_line(data, reason):
    """The quarantine list would not tell a web server's error page from a broken photograph."""
    with pytest.raises(DecodeError, match=reason) as error:
        decode(data, SHAPE, MANY)
    assert len(str(error.value).splitlines()) == 1


def test_a_decompression_bomb_is_refused_by_its_header():
    """100 kB of PNG would take gigabytes of a worker's memory."""
    bomb = png(50_000, 50_000, 8, 2, b"")  # the pixels are not even there: the size alone decides
    with pytest.raises(DecodeError, match=r"has 50000 x 50000 pixels, above data.max_pixels = 100000000") as error:
        decode(bomb, SHAPE, MANY)
    assert error.value.max_pixels == MANY


def test_the_bound_on_pixels_is_exact_and_ours():
    """Pillow's own limit would contradict data.max_pixels."""
    data = encoded(Image.new("L", (20_000, 10_000), 255), "JPEG")  # above the size that Pillow refuses
    assert open_image(data, 200_000_000).width == 20_000
    with pytest.raises(DecodeError, match="max_pixels = 199999999"):
        open_image(data, 199_999_999)


def test_the_first_frame_of_an_animation():
    """An animated GIF would be refused, or a random frame taken."""
    frames = [Image.new("RGB", (40, 40), color) for color in ("red", "blue", "green")]
    for form, options in (("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {})):
        data = encoded(frames[0], form, save_all=True, append_images=frames[1:], **options)
        assert decode(data, SHAPE, MANY)[5, 5].tolist() == [255, 0, 0]
