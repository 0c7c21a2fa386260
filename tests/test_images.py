"""Every kind of picture, upright and in its colours; what is no picture is said and skipped."""

import io
import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pillow_heif
import pytest
from PIL import Image

from errors import DatasetError
from preprocess.images import Source, read
from tests.preparing import encoded, job, members, picture

# Four quarters, so that every turn shows: wider than high
QUARTERS = {
    "topleft": (220, 30, 30),
    "topright": (30, 160, 60),
    "bottomleft": (40, 60, 220),
    "bottomright": (240, 220, 40),
}


def quarters(width: int = 96, height: int = 64) -> Image.Image:
    image = Image.new("RGB", (width, height))
    for name, color in QUARTERS.items():
        left, top = "right" in name, "bottom" in name
        image.paste(color, (left * width // 2, top * height // 2, (left + 1) * width // 2, (top + 1) * height // 2))
    return image


def heif(image: Image.Image, **more: Any) -> bytes:
    buffer = io.BytesIO()
    pillow_heif.from_pillow(image).save(buffer, quality=95, **more)
    return buffer.getvalue()


def sources(tmp_path: Path, files: dict[str, bytes], **more: Any) -> list[Source]:
    return read(members(tmp_path / "in", files), job(tmp_path / "out", **more))


def shown(source: Source) -> Image.Image:
    with Image.open(source.image) as image:
        assert (image.mode, image.format) == ("RGB", "PNG")
        return image.copy()


def is_quarters(image: Image.Image, near: int = 12) -> bool:
    pixels = np.asarray(image, dtype=int)
    height, width, _ = pixels.shape
    for name, color in QUARTERS.items():
        y, x = height * (1 + 2 * ("bottom" in name)) // 4, width * (1 + 2 * ("right" in name)) // 4
        if np.abs(pixels[y, x] - color).max() > near:
            return False
    return True


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("JPEG", {"quality": 95}),
        ("PNG", {}),
        ("WEBP", {"quality": 95}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("GIF", {}),
        ("AVIF", {"quality": 95}),
    ],
)
def test_every_kind(tmp_path: Path, kind: str, more: dict[str, Any]) -> None:
    (source,) = sources(tmp_path, {f"a.{kind.lower()}": encoded(quarters(), kind, **more)})
    assert is_quarters(shown(source))
    assert (source.original, source.alpha) == ((64, 96), None)


@pytest.mark.parametrize("name", ["IMG_1.heic", "IMG_1.HEIF", "IMG_1.jpg", "IMG_1.png"])
def test_pictures_of_phones_whatever_they_are_called(tmp_path: Path, name: str) -> None:
    (source,) = sources(tmp_path, {name: heif(quarters(128, 64))})
    assert is_quarters(shown(source))
    assert source.original == (64, 128)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "HEIF"])
def test_they_are_upright(tmp_path: Path, orientation: int, kind: str) -> None:
    """As a camera held sideways writes them: turned, with a note that says how."""
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    upright = quarters(128, 96)
    image = upright.transpose(turns[orientation]) if orientation in turns else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    body = encoded(image, "JPEG", quality=95, exif=exif) if kind == "JPEG" else heif(image, exif=exif.tobytes())
    (source,) = sources(tmp_path, {"a.jpg": body})
    assert source.original == (96, 128)
    assert is_quarters(shown(source))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK", "YCbCr", "I;16", "RGBA"])
def test_every_mode(tmp_path: Path, mode: str) -> None:
    grey = Image.linear_gradient("L").resize((64, 64))
    if mode == "I;16":
        image = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    else:
        image = grey.quantize(256) if mode == "P" else grey.convert("RGB").convert(mode)
    kind = "TIFF" if mode in ("CMYK", "YCbCr") else "PNG"
    (source,) = sources(tmp_path, {"a.x": encoded(image, kind)})
    pixels = np.asarray(shown(source), dtype=int)
    expected = np.asarray(grey, dtype=int)[..., None]
    if mode == "1":
        assert set(np.unique(pixels)) == {0, 255}
    else:
        assert np.abs(pixels - expected).max() <= 4
    assert source.alpha is None


def test_what_is_transparent_is_white_and_does_not_count(tmp_path: Path) -> None:
    image = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    image.paste((200, 30, 30, 255), (16, 16, 48, 48))
    (source,) = sources(tmp_path, {"a.png": encoded(image)})
    pixels = np.asarray(shown(source))
    assert (pixels[0, 0] == 255).all()
    assert (pixels[32, 32] == (200, 30, 30)).all()
    assert source.alpha is not None
    with Image.open(source.alpha) as alpha:
        assert alpha.mode == "L"
        assert (np.asarray(alpha) == np.asarray(image)[..., 3]).all()


def test_alpha_is_made_smaller_with_its_picture(tmp_path: Path) -> None:
    image = Image.new("RGBA", (256, 128), "red")
    image.putalpha(Image.linear_gradient("L").resize((256, 128)))
    (source,) = sources(tmp_path, {"a.png": encoded(image)}, aspect_ratio_buckets=False)
    assert source.alpha
    with Image.open(source.alpha) as alpha:
        assert alpha.size == shown(source).size == (128, 64)
    assert (source.shape, source.original) == ((64, 128), (128, 256))


def test_one_that_is_small_stays_as_it_came(tmp_path: Path) -> None:
    image = Image.effect_noise((40, 50), 90).convert("RGB")
    (source,) = sources(tmp_path, {"a.png": encoded(image)})
    assert (np.asarray(shown(source)) == np.asarray(image)).all()
    assert source.shape == (50, 40)


def png_of(width: int, height: int) -> bytes:
    """A header that claims a size, and no pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


BAD = {
    "pixel.png": (picture(size=(1, 1)), "has 1x1 pixels; at least 32 a side are needed"),
    "thin.png": (picture(size=(500, 31)), "has 500x31 pixels; at least 32 a side"),
    "text.jpg": (b"this is no picture", "is not a picture Pillow can read"),
    "empty.png": (b"", "is not a picture Pillow can read"),
    "cut.png": (encoded(Image.effect_noise((64, 64), 90))[:900], "is not a picture Pillow can read"),
    "bomb.png": (png_of(60_000, 60_000), "megapixels"),
    "wide.png": (png_of(40_000, 100), "pixels a side"),
    "clear.png": (picture((0, 0, 0, 0), mode="RGBA"), "is transparent everywhere"),
    "float.tiff": (encoded(Image.new("F", (64, 64)), "TIFF"), "has pixels of kind 'F'"),
    "cut.heic": (heif(quarters())[:500], "is not a picture that libheif can read"),
    "drawing.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n", "is not a picture Pillow can read"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_one_is_skipped_with_the_reason(tmp_path: Path, name: str) -> None:
    body, words = BAD[name]
    given = job(tmp_path / "out")
    found = read(members(tmp_path / "in", {name: body, "good.png": picture()}), given)
    assert [source.name for source in found] == ["good.png"]
    ((skipped, why),) = given.skipped
    assert skipped == name
    assert words in why
    assert str(tmp_path) not in why
    assert "00000" not in why.replace("60000", "").replace("40000", "")


def test_none_that_is_good_is_an_error_with_the_first_reasons(tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as caught:
        sources(tmp_path, {name: body for name, (body, _) in BAD.items()})
    said = str(caught.value)
    assert said.startswith("no image of input_images can be used: 'bomb.png' is too large; send at most 64 megapixels")
    assert said.endswith(f"(and {len(BAD) - 3} more)")


def test_one_picture_is_in_memory_at_a_time(tmp_path: Path) -> None:
    body = picture(size=(2000, 1500))

    def peak(count: int) -> int:
        given = members(tmp_path / f"in{count}", {f"{number}.png": body for number in range(count)})
        tracemalloc.start()
        read(given, job(tmp_path / f"out{count}"))
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    peak(1)
    assert peak(6) < 1.2 * peak(1) + (1 << 20)
