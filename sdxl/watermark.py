"""The invisible watermark of SDXL 1.0: 48 bits, written by the method dwtDct of invisible-watermark 0.2.0.

The library needs OpenCV (162 MB), PyWavelets and torch for linear algebra that fits on this page, and walks
over the blocks in Python. This is the same arithmetic on whole arrays, and the library's decoder reads what
it writes: the U channel of YUV goes through one level of the Haar wavelet; in every 4x4 block of the low
band (8x8 pixels) the largest of the last 15 coefficients is moved to 0.25 (bit 0) or 0.75 (bit 1) of its
step of 36, sign kept; block n carries bit n mod 48. On the way back the library swaps horizontal and
vertical detail, which transposes U inside each 2x2 pixels; that is kept, so that the marked picture is the
one the library would have made.

In grey areas the largest coefficient is decided by the last bit of a float: `_yuv` and `_low_band` round
exactly as OpenCV and PyWavelets do. The library expects BGR (diffusers gave it RGB until its pull request
7013).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

# From Stability-AI/generative-models, scripts/demo/streamlit_helpers.py at 613af104, as diffusers has it.
MESSAGE = 0b101100111110110010010000011110111011000110011110
BITS = np.array([int(bit) for bit in f"{MESSAGE:048b}"], dtype=np.float32)
STEP = 36.0
ROWS = 128  # rows handled at a time, so that the intermediate arrays stay in the processor's cache

Floats = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]


def apply_watermark(image: Image.Image, only: Image.Image | None = None) -> Image.Image:
    """The marked RGB copy of a picture of any size; edges that fill no 8x8 pixels carry no bit.

    Where the mask `only` is black the picture stays as it is.
    """
    image = image.convert("RGB")
    pixels = np.array(image)
    height, width = (side - side % 4 for side in pixels.shape[:2])
    for top in range(0, height, ROWS):
        _mark(pixels[top : min(top + ROWS, height), :width], first=top // 8 * (width // 8))
    marked = Image.fromarray(pixels)
    if only is None:
        return marked
    return Image.composite(marked, image, only.point(lambda value: 255 if value else 0))


def read_watermark(image: Image.Image) -> list[int]:
    """The 48 bits found, each by majority of the blocks that carry it; any picture gives some."""
    pixels = np.asarray(image.convert("RGB"))
    height, width = (side - side % 4 for side in pixels.shape[:2])
    blocks = _blocks(_low_band(_yuv(pixels[:height, :width])[1]))
    flat = blocks.reshape(-1, 16)
    largest = np.abs(np.take_along_axis(flat, _carrier(flat), axis=1)[:, 0])
    votes = largest % np.float32(STEP) > STEP / 2
    bit = np.arange(len(votes)) % len(BITS)
    ones, of = np.bincount(bit[votes], minlength=len(BITS)), np.bincount(bit, minlength=len(BITS))
    return [int(bit) for bit in ones * 255 > of * 127]


def matches(image: Image.Image) -> float:
    """The share of the 48 bits that agree with the message: 1.0 is marked, about 0.5 to 0.7 is not."""
    return float(np.mean(np.array(read_watermark(image)) == BITS))


def _mark(pixels: Pixels, *, first: int) -> None:
    """Write the bits into (H, W, 3) RGB in place, H and W multiples of 4; `first` numbers its first block."""
    y, u = _yuv(pixels)
    flat = _blocks(_low_band(u)).reshape(-1, 16)
    moved = u.copy()
    moved[::2, 1::2], moved[1::2, ::2] = u[1::2, ::2], u[::2, 1::2]
    if len(flat):
        _move(moved, flat, BITS[(first + np.arange(len(flat))) % len(BITS)], pixels.shape[1] // 8)
    moved -= np.float32(0.5)
    red = pixels[..., 0] - y
    red *= np.float32(-0.581 * 0.877)
    green = moved * np.float32(-0.395)
    green += y
    green += red
    blue = moved
    blue *= np.float32(2.032)
    blue += y
    for channel, values in ((1, green), (2, blue)):
        np.rint(values, out=values)
        pixels[..., channel] = np.clip(values, 0, 255, out=values)


def _move(u: Floats, flat: Floats, bits: Floats, columns: int) -> None:
    """Move one coefficient of each block to its bit's place; in the picture that is 2x2 pixels of `u`."""
    place = _carrier(flat)
    value = np.take_along_axis(flat, place, axis=1)[:, 0]
    size = (np.abs(value) // np.float32(STEP) + np.float32(0.25) + np.float32(0.5) * bits) * np.float32(STEP)
    change = (np.where(value >= 0, size, -size) - value) / 2
    block = np.arange(len(flat))
    top = block // columns * 8 + place[:, 0] // 4 * 2
    left = block % columns * 8 + place[:, 0] % 4 * 2
    for down in (0, 1):
        for right in (0, 1):
            u[top + down, left + right] += change


def _carrier(flat: Floats) -> npt.NDArray[np.intp]:
    """(N, 16) -> (N, 1): which coefficient carries the bit, the largest but for the first."""
    places: npt.NDArray[np.intp] = np.argmax(np.abs(flat[:, 1:]), axis=1, keepdims=True) + 1
    return places


def _blocks(band: Floats) -> Floats:
    """(4 M + m, 4 N + n) -> (M, N, 4, 4)"""
    rows, columns = band.shape[0] // 4, band.shape[1] // 4
    whole = band[: rows * 4, : columns * 4]
    return np.ascontiguousarray(whole.reshape(rows, 4, columns, 4).transpose(0, 2, 1, 3))


def _low_band(u: Floats) -> Floats:
    """The low band of one Haar level, (H, W) -> (H/2, W/2), rounded as PyWavelets rounds."""
    root = np.float32(np.sqrt(0.5))
    u = u * root
    halves = u[::2] + u[1::2]
    halves *= root
    band: Floats = halves[:, ::2] + halves[:, 1::2]
    return band


def _yuv(pixels: Pixels) -> tuple[Floats, Floats]:
    """Y and U of (H, W, 3) RGB as OpenCV's float32 BGR2YUV gives them, U around 0.5."""
    red, green, blue = (pixels[..., channel] for channel in range(3))
    y = _fused(green, 0.587, red * np.float32(0.299))
    y = _fused(blue, 0.114, y)
    return y, _fused(blue - y, 0.492, np.float32(0.5))


def _fused(values: Floats | Pixels, factor: float, addend: Floats | np.float32) -> Floats:
    """values * factor + addend, rounded once: float64 holds the product of two float32 exactly."""
    product = np.multiply(values, np.float64(np.float32(factor)), dtype=np.float64)
    product += addend
    return product.astype(np.float32)
