"""What the model works on, and how its picture goes back.

A request's image, mask and sizes become one Canvas: a working picture whose sides are multiples of 8, and
`finish`, which turns what the model made of it into the picture to return. Where the mask is black, that is
the input, byte for byte. Nothing is squeezed, but for rounding a side to whole pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from errors import InputError
from sdxl.picture import is_binary, to_mask, to_rgb
from sdxl.sizes import Size, asked_size, own_size, scaled

Box = tuple[int, int, int, int]

LANCZOS = Image.Resampling.LANCZOS


@dataclass(frozen=True)
class Canvas:
    """`width` and `height` are what the model works at; `image` (RGB) and `mask` (L, 0 or 255) have them."""

    width: int
    height: int
    image: Image.Image | None
    mask: Image.Image | None
    content: Size  # the part of the working picture, from its top left, that is no padding
    original: Image.Image | None  # RGB, at the size to return: what the picture is pasted into
    blend: Image.Image | None  # L, size of `original`: how much of each pixel is replaced
    box: Box  # where in `original` the content belongs

    def finish(self, picture: Image.Image) -> Image.Image:
        """The picture to return: padding cut off and, with a mask, only masked pixels taken."""
        if picture.size != (self.width, self.height):
            raise ValueError(f"the model's picture is {picture.size}, not {(self.width, self.height)}")
        picture = picture.convert("RGB").crop((0, 0, *self.content))
        if self.original is None or self.blend is None:
            return picture
        left, top, right, bottom = self.box
        patch = picture.resize((right - left, bottom - top), LANCZOS)
        whole = self.original.copy()
        whole.paste(patch, (left, top), self.blend.crop(self.box))
        return whole


def make_canvas(
    *,
    native: int,
    image: Image.Image | None,
    mask: Image.Image | None,
    width: int | None,
    height: int | None,
    aspect_ratio: str,
    mask_blur: int,
    mask_padding: int | None,
) -> Canvas:
    """Refuse what does not go together, then lay it out. `native` is the side of the model's own square.

    No image: the size asked. An image alone: its own size; above twice the native area it is worked on at
    the native area, and only a mask brings the full size back. An image and a size: scaled to cover that
    size, cropped around the centre. With `mask_padding` the size is the one worked at, around the mask; the
    image keeps its own.
    """
    if mask_blur < 0 or (mask_padding or 0) < 0:
        raise InputError(f"mask_blur={mask_blur} and mask_padding={mask_padding} must be 0 or more")
    asked = asked_size(native, width, height, aspect_ratio, None if image is None else image.size)
    if image is None:
        _needs_no_image(mask, aspect_ratio)
    if mask is None and mask_padding is not None:
        raise InputError(f"mask_padding={mask_padding} needs a mask; send one or leave mask_padding blank")
    if image is None:
        return _blank(asked or (native, native))
    source = to_rgb(image)
    if mask is None:
        source = _cover(source, asked)
        return _lay(source, content=asked or own_size(source.size, native))
    hole = to_mask(mask)
    hole = hole.resize(source.size, _mask_filter(hole))
    if mask_padding is not None:
        own_shape = aspect_ratio == "match_input_image"
        shape = asked or (scaled(source.size, native**2) if own_shape else (native, native))
        blend, region = _feathered(hole, mask_blur)
        content, box = _around(blend, mask_padding, shape)
        return _lay(source, content=content, box=box, region=region, blend=blend)
    source = _cover(source, asked)
    blend, region = _feathered(_cover(hole, asked), mask_blur)
    return _lay(source, content=asked or own_size(source.size, native), region=region, blend=blend)


def _needs_no_image(mask: Image.Image | None, aspect_ratio: str) -> None:
    if mask is not None:
        raise InputError("mask: there is no image to repaint; send the image too, or leave the mask out")
    if aspect_ratio == "match_input_image":
        raise InputError("aspect_ratio='match_input_image' needs an image; send one, or choose a ratio or 'custom'")


def _cover(image: Image.Image, size: Size | None) -> Image.Image:
    """Scaled to cover `size` and cropped around the centre."""
    return image if size is None else ImageOps.fit(image, size, LANCZOS if image.mode == "RGB" else _mask_filter(image))


def _mask_filter(mask: Image.Image) -> Image.Resampling:
    return Image.Resampling.NEAREST if is_binary(mask) else Image.Resampling.BILINEAR


def _feathered(hole: Image.Image, blur: int) -> tuple[Image.Image, Image.Image]:
    """How much of each pixel is replaced, and the region (0 or 255) that the model has to repaint for it."""
    if not any(hole.histogram()[128:]):
        raise InputError("mask: no pixel is white, so there is nothing to repaint; paint white what is to change")
    if blur == 0:
        return hole, hole.point(lambda value: 255 if value >= 128 else 0)
    blend = hole.filter(ImageFilter.GaussianBlur(blur))
    if blend.getbbox() is None:
        raise InputError(f"mask_blur={blur} leaves nothing of so small a mask; choose a smaller one")
    return blend, blend.point(lambda value: 255 if value else 0)


def _around(blend: Image.Image, padding: int, shape: Size) -> tuple[Size, Box]:
    """The size to work at and the part to work on: `padding` pixels around the mask, formed as `shape`.

    Where the picture is too small for that form, the part takes what there is, at the area of `shape`.
    """
    left, top, right, bottom = blend.getbbox() or (0, 0, *blend.size)
    left, right = max(0, left - padding), min(blend.width, right + padding)
    top, bottom = max(0, top - padding), min(blend.height, bottom + padding)
    width = max(right - left, round((bottom - top) * shape[0] / shape[1]))
    height = max(bottom - top, round((right - left) * shape[1] / shape[0]))
    if width > blend.width or height > blend.height:
        width, height = min(width, blend.width), min(height, blend.height)
        shape = scaled((width, height), shape[0] * shape[1])
    x = min(max(0, (left + right - width) // 2), blend.width - width)
    y = min(max(0, (top + bottom - height) // 2), blend.height - height)
    return shape, (x, y, x + width, y + height)


def _blank(size: Size) -> Canvas:
    width, height = (math.ceil(side / 8) * 8 for side in size)
    return Canvas(width, height, None, None, content=size, original=None, blend=None, box=(0, 0, *size))


def _lay(
    source: Image.Image,
    *,
    content: Size,
    box: Box | None = None,
    region: Image.Image | None = None,
    blend: Image.Image | None = None,
) -> Canvas:
    box = box or (0, 0, *source.size)
    image = _to_eights(source.crop(box).resize(content, LANCZOS))
    mask = None if region is None else _to_eights(_spread(region.crop(box), content))
    original = None if blend is None else source
    return Canvas(*image.size, image, mask, content=content, original=original, blend=blend, box=box)


def _spread(region: Image.Image, size: Size) -> Image.Image:
    """The region at another size: every pixel is white that one of its white pixels touches."""
    pixels = np.asarray(region)
    for axis, new in ((1, size[0]), (0, size[1])):
        edges = np.arange(new + 1) * pixels.shape[axis]
        first, last = edges[:-1] // new, (edges[1:] - 1) // new
        pixels = np.maximum(np.maximum.reduceat(pixels, first, axis=axis), pixels.take(last, axis=axis))
    return Image.fromarray(pixels)


def _to_eights(image: Image.Image) -> Image.Image:
    """The last column and row repeated until the sides are multiples of 8: nothing is resampled."""
    pixels = np.asarray(image)
    pad = [(0, -image.height % 8), (0, -image.width % 8)] + [(0, 0)] * (pixels.ndim - 2)
    return Image.fromarray(np.pad(pixels, pad, mode="edge"))
