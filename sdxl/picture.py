"""Files from outside as pictures: what is refused, and what odd kinds mean as image and as mask."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from errors import InputError

MAX_BYTES = 100 * 2**20
MAX_PIXELS = 64 * 2**20
MAX_SIDE = 16_383  # what WebP can hold, since an inpainted picture goes back at its full size
# Plugins that only parse; Pillow's others start Ghostscript, read neighbouring files or open the network.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "I;16", "I;16L", "I;16B"}

ORIENTATION = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_image(path: Path, what: str) -> Image.Image:
    """The picture in a file, upright, as L, RGB or RGBA, eight bits; of an animation the first frame.

    `what` names the input in messages. Sizes are checked before a pixel is decoded.
    """
    name = f"{what}: {path.name!r}"
    if not path.is_file():
        raise InputError(f"{name} is not a file; send a PNG, JPEG or WebP")
    if (size := path.stat().st_size) > MAX_BYTES:
        raise InputError(f"{name} has {size / 2**20:.0f} MiB; send at most {MAX_BYTES // 2**20} MiB")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow talks about odd metadata; the picture is what counts
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(path, formats=FORMATS) as file:
                _check_header(file, name)
                file.load()
                turn = _turn(file)
                return eight_bit(file if turn is None else file.transpose(turn))
        except InputError:
            raise
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise InputError(f"{name} is too large; {_size_limit()}") from error
        except Exception as error:  # decoders meet hostile bytes and raise nearly anything
            raise InputError(f"{name} is not a picture Pillow can read; send a PNG, JPEG or WebP") from error


def eight_bit(image: Image.Image) -> Image.Image:
    """A copy as L, RGB or RGBA: 16-bit grey over 257, palette and CMYK as RGB, transparency as RGBA."""
    if image.mode.startswith("I;16"):
        wide = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((wide + 128) // 257).astype(np.uint8))
    if image.has_transparency_data:
        return image.convert("RGBA")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB; transparent pixels show white, not whatever colour lies under them."""
    image = eight_bit(image)
    return _over(image, "white").convert("RGB") if image.mode == "RGBA" else image.convert("RGB")


def to_mask(image: Image.Image) -> Image.Image:
    """L, 255 where the picture is to be repainted, grey in between.

    A mask drawn in the alpha channel is honoured: if all that is visible has one colour, what is opaque is
    repainted. Otherwise brightness counts, and what is transparent counts as black.
    """
    image = eight_bit(image)
    if image.mode != "RGBA":
        return image.convert("L")
    pixels = np.asarray(image)
    alpha = pixels[..., 3]
    visible = pixels[alpha > 0][:, :3]
    if alpha.min() < alpha.max() and (visible == visible[0]).all():
        return Image.fromarray(alpha)
    return _over(image, "black").convert("L")


def is_binary(mask: Image.Image) -> bool:
    """Whether a mask is only black and white."""
    return not any(mask.histogram()[1:255])


def _over(image: Image.Image, colour: str) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", image.size, colour), image)


def _check_header(file: Image.Image, name: str) -> None:
    width, height = file.size
    if min(width, height) < 1:
        raise InputError(f"{name} has {width}x{height} pixels; send one with at least 1x1")
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise InputError(f"{name} has {width}x{height} pixels; {_size_limit()}")
    if file.mode not in MODES:
        raise InputError(f"{name} has pixels of kind {file.mode!r}; send it as RGB or grey, 8 or 16 bits")


def _turn(file: Image.Image) -> Image.Transpose | None:
    """What turns the picture upright; damaged metadata says nothing."""
    try:
        orientation = file.getexif().get(ORIENTATION)
    except (SyntaxError, ValueError, TypeError, LookupError, OSError, struct.error):
        return None
    return UPRIGHT.get(orientation) if isinstance(orientation, int) else None


def _size_limit() -> str:
    return f"send at most {MAX_PIXELS // 2**20} megapixels and {MAX_SIDE} pixels a side"
