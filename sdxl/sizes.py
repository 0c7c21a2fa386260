"""Which size is worked at: numbers only, `canvas.py` does the same to pictures."""

from __future__ import annotations

import math

from errors import InputError

Size = tuple[int, int]

SMALLEST, LARGEST = 64, 2048

# The buckets SDXL was trained on that have a name (arXiv 2307.01952, appendix I), at its native size.
TRAINED_AT = 1024
ASPECT_RATIOS: dict[str, Size] = {
    "1:1": (1024, 1024),
    "5:4": (1088, 896),
    "4:5": (896, 1088),
    "4:3": (1152, 896),
    "3:4": (896, 1152),
    "3:2": (1216, 832),
    "2:3": (832, 1216),
    "5:3": (1280, 768),
    "3:5": (768, 1280),
    "16:9": (1344, 768),
    "9:16": (768, 1344),
    "2:1": (1408, 704),
    "1:2": (704, 1408),
    "21:9": (1536, 640),
    "9:21": (640, 1536),
    "3:1": (1728, 576),
    "1:3": (576, 1728),
    "4:1": (2048, 512),
    "1:4": (512, 2048),
}


def aspect_size(name: str, native: int) -> Size:
    """Width and height of a row of ASPECT_RATIOS for a model whose own square has side `native`."""
    if name not in ASPECT_RATIOS:
        known = ", ".join(("custom", "match_input_image", *ASPECT_RATIOS))
        raise InputError(f"aspect_ratio={name!r} is not known; choose one of {known}")
    width, height = (round(side * native / TRAINED_AT / 8) * 8 for side in ASPECT_RATIOS[name])
    return width, height


def asked_size(
    native: int, width: int | None, height: int | None, aspect_ratio: str, image: Size | None
) -> Size | None:
    """The size that was asked for; None is the image's own, or the model's. A side left blank follows from the other
    by the shape of `image`; without one it is the model's own."""
    sides = {name: side for name, side in (("width", width), ("height", height)) if side is not None}
    for name, side in sides.items():
        if aspect_ratio != "custom":
            raise InputError(
                f"aspect_ratio={aspect_ratio!r} and {name}={side} exclude each other; send only one of them"
            )
        if not SMALLEST <= side <= LARGEST:
            raise InputError(f"{name}={side} is out of range; give a number from {SMALLEST} to {LARGEST}")
    if sides and image is not None:
        wide, high = image
        return width or _side((height or high) * wide / high), height or _side((width or wide) * high / wide)
    if sides:
        return width or native, height or native
    return None if aspect_ratio in ("custom", "match_input_image") else aspect_size(aspect_ratio, native)


def _side(length: float) -> int:
    return min(LARGEST, max(SMALLEST, round(length)))


def own_size(size: Size, native: int) -> Size:
    """The size to work at when none was asked: the image's, or the native area if it has over twice that."""
    if min(size) < SMALLEST:
        raise InputError(
            f"image: {size[0]}x{size[1]} pixels are fewer than {SMALLEST} on a side; "
            "send width and height to have it scaled and cropped"
        )
    area = size[0] * size[1]
    return scaled(size, native**2 if area > 2 * native**2 else area)


def scaled(size: Size, pixels: int) -> Size:
    """The same shape at another area, or as near as sides from SMALLEST to LARGEST allow."""
    scale = max(math.sqrt(pixels / (size[0] * size[1])), SMALLEST / min(size))
    scale = min(scale, LARGEST / max(size))
    width, height = round(size[0] * scale), round(size[1] * scale)
    if min(width, height) < SMALLEST:
        shape = f"{size[0]}x{size[1]} pixels to work on"
        raise InputError(f"image: {shape} are over {LARGEST // SMALLEST} times as long as wide; crop it")
    return width, height
