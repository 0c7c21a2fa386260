"""Files from outside: what is refused, and what every kind of picture becomes."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from errors import InputError
from sdxl.picture import is_binary, open_image, to_mask, to_rgb

FORMATS = ("png", "jpg", "webp", "gif", "bmp", "tif", "avif")


def picture(width: int = 48, height: int = 32, mode: str = "RGB", seed: int = 0) -> Image.Image:
    random = np.random.default_rng(seed)
    bands = random.integers(0, 256, (height, width, 4), dtype=np.uint8)
    return Image.fromarray(bands).convert("RGBA" if mode == "RGBA" else "RGB").convert(mode)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes, depth: int = 8, colour: int = 2) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunks) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "is not a picture Pillow can read; send a PNG, JPEG or WebP"),
        (b"a line of text\n" * 9, "is not a picture Pillow can read; send a PNG, JPEG or WebP"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not a picture Pillow can read"),
        (png(9, 9, chunk(b"IDAT", zlib.compress(b"\0" * 50))), "is not a picture Pillow can read"),
        (png(0, 9), "is not a picture Pillow can read"),
        (png(9000, 9000), "has 9000x9000 pixels; send at most 64 megapixels and 16383 pixels a side"),
        (png(12000, 12000), "is too large; send at most 64 megapixels"),
        (png(60000, 60000), "is too large; send at most 64 megapixels"),
        (png(16384, 4), "has 16384x4 pixels; send at most 64 megapixels and 16383 pixels a side"),
        (
            png(9, 9, chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(2**22)))),
            "is not a picture Pillow can read",
        ),
    ],
)
def test_refused(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(InputError) as refusal:
        open_image(path, "mask")
    assert str(refusal.value).startswith(f"mask: 'notes.txt' {complaint}")
    assert str(tmp_path) not in str(refusal.value)


def test_no_file_and_too_many_bytes(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.png", tmp_path):
        with pytest.raises(InputError, match=f"image: '{path.name}' is not a file"):
            open_image(path, "image")
    with (tmp_path / "big.png").open("wb") as file:
        file.truncate(101 * 2**20)
    with pytest.raises(InputError, match=r"image: 'big.png' has 101 MiB; send at most 100 MiB"):
        open_image(tmp_path / "big.png", "image")


@pytest.mark.parametrize("mode", ["F", "I", "LAB"])
def test_pixels_without_a_fixed_range_are_refused(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (9, 9)).save(tmp_path / "a.tif")
    with pytest.raises(InputError, match=f"image: 'a.tif' has pixels of kind '{mode}'; send it as RGB or grey"):
        open_image(tmp_path / "a.tif", "image")


@pytest.mark.parametrize("ending", FORMATS)
def test_every_format_whole_or_refused(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    picture().save(path)
    assert to_rgb(open_image(path, "image")).size == (48, 32)
    whole = path.read_bytes()
    for share in (0.1, 0.5, 0.9):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(InputError, match="is not a picture Pillow can read"):
            open_image(path, "image")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(FORMATS),
    st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_damaged_files_are_read_or_refused(tmp_path: Path, ending: str, changes: list[tuple[float, int]]) -> None:
    path = tmp_path / f"a.{ending}"
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(24, 16).save(buffer, {"jpg": "JPEG", "tif": "TIFF"}.get(ending, ending.upper()), exif=exif)
    content = bytearray(buffer.getvalue())
    for place, value in changes:
        content[int(place * len(content))] = value
    path.write_bytes(content)
    try:
        image = open_image(path, "image")
    except InputError:
        return
    assert image.mode in ("L", "RGB", "RGBA")
    assert to_rgb(image).size == to_mask(image).size == image.size


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright(tmp_path: Path, ending: str, orientation: int) -> None:
    path = tmp_path / f"a.{ending}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture(40, 24).save(path, exif=exif)
    with Image.open(path) as file:
        expected = ImageOps.exif_transpose(file).convert("RGB")
    opened = open_image(path, "image")
    assert opened.size == ((40, 24) if orientation < 5 else (24, 40))
    assert opened.tobytes() == expected.tobytes()


def orientation_block(value: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif.tobytes()


@pytest.mark.parametrize(
    "exif",
    [
        orientation_block(0),
        orientation_block(9),
        b"Exif\0\0",
        b"Exif\0\0nonsense",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        orientation_block(6).replace(b"\x12\x01\x03\0", b"\x12\x01\x02\0"),
        orientation_block(6).replace(b"\x12\x01\x03\0\x01", b"\x12\x01\x03\0\x02"),
        orientation_block(6)[:-9],
    ],
)
def test_senseless_metadata_is_ignored(tmp_path: Path, exif: bytes) -> None:
    for ending in ("jpg", "png", "webp"):
        picture().save(tmp_path / f"a.{ending}", exif=exif)
        assert set(open_image(tmp_path / f"a.{ending}", "image").size) == {48, 32}


@pytest.mark.parametrize("ending", ["png", "gif", "webp"])
def test_an_animation_gives_its_first_frame(tmp_path: Path, ending: str) -> None:
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "blue", "lime")]
    frames[0].save(tmp_path / f"a.{ending}", save_all=True, append_images=frames[1:], lossless=True)
    assert to_rgb(open_image(tmp_path / f"a.{ending}", "image")).tobytes() == frames[0].tobytes()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_png_modes(tmp_path: Path, mode: str) -> None:
    image = picture(mode=mode)
    image.save(tmp_path / "a.png")
    opened = open_image(tmp_path / "a.png", "image")
    kept = "RGBA" if mode.endswith("A") else "L" if mode in "1L" else "RGB"
    assert opened.mode == kept
    assert opened.tobytes() == image.convert(kept).tobytes()


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_sixteen_bit_grey(tmp_path: Path, ending: str) -> None:
    wide = np.array([[0, 128, 129, 257, 32896, 65535]], dtype=np.uint16)
    Image.fromarray(wide).save(tmp_path / f"a.{ending}")
    opened = open_image(tmp_path / f"a.{ending}", "mask")
    assert np.asarray(opened).tolist() == np.asarray(to_mask(opened)).tolist() == [[0, 0, 1, 1, 128, 255]]
    assert np.asarray(to_rgb(opened))[0, :, 1].tolist() == [0, 0, 1, 1, 128, 255]


def test_sixteen_bit_colour_with_a_transparent_colour(tmp_path: Path) -> None:
    """Pillow keeps the 16-bit colour key of such a file beside its 8-bit pixels."""
    pixels = chunk(b"IDAT", zlib.compress(b"\0" + struct.pack(">6H", 65535, 0, 0, 0, 65535, 0)))
    path = tmp_path / "a.png"
    path.write_bytes(png(2, 1, chunk(b"tRNS", struct.pack(">3H", 65535, 0, 0)), pixels, depth=16))
    assert to_rgb(open_image(path, "image")).getpixel((1, 0)) == (0, 255, 0)


def test_cmyk_jpeg(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16), (200, 40, 40)).convert("CMYK").save(tmp_path / "a.jpg", quality=100)
    colour = to_rgb(open_image(tmp_path / "a.jpg", "image")).getpixel((8, 8))
    assert np.abs(np.array(colour) - (200, 40, 40)).max() <= 3


def test_transparent_pixels_show_white_and_opaque_ones_stay() -> None:
    image = Image.fromarray(np.array([[[9, 8, 7, 255], [9, 8, 7, 0], [0, 0, 0, 128]]], dtype=np.uint8))
    assert np.asarray(to_rgb(image)).tolist() == [[[9, 8, 7], [255, 255, 255], [127, 127, 127]]]
    palette = Image.fromarray(np.array([[0, 1]], dtype=np.uint8)).convert("P")
    palette.putpalette([9, 8, 7, 1, 2, 3])
    palette.info["transparency"] = 1
    assert np.asarray(to_rgb(palette)).tolist() == [[[9, 8, 7], [255, 255, 255]]]


def rgba(*pixels: tuple[int, int, int, int]) -> Image.Image:
    return Image.fromarray(np.array([pixels], dtype=np.uint8))


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (Image.fromarray(np.array([[False, True]])), [0, 255]),
        (Image.fromarray(np.array([[0, 77, 255]], dtype=np.uint8)), [0, 77, 255]),
        (Image.fromarray(np.array([[[255] * 3, [0] * 3]], dtype=np.uint8)), [255, 0]),
        (rgba((0, 0, 0, 255), (0, 0, 0, 0), (0, 0, 0, 90)), [255, 0, 90]),
        (rgba((255, 255, 255, 255), (255, 255, 255, 0)), [255, 0]),
        (rgba((255, 0, 0, 255), (1, 2, 3, 0)), [255, 0]),
        (rgba((255, 255, 255, 255), (0, 0, 0, 255)), [255, 0]),
        (rgba((255, 255, 255, 255), (0, 0, 0, 255), (255, 255, 255, 0)), [255, 0, 0]),
        (rgba((255, 255, 255, 255), (255, 255, 255, 255)), [255, 255]),
        (rgba((9, 9, 9, 0), (255, 255, 255, 0)), [0, 0]),
    ],
)
def test_masks(mask: Image.Image, expected: list[int]) -> None:
    assert np.asarray(to_mask(mask))[0].tolist() == expected


def test_is_binary() -> None:
    assert is_binary(Image.fromarray(np.array([[0, 255]], dtype=np.uint8)))
    assert not is_binary(Image.fromarray(np.array([[0, 254]], dtype=np.uint8)))
