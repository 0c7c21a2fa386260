"""Reads a picture back: colours by nearest name in Lab, shapes by the overlap with true outlines."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from miniature.world import COLORS, SHAPES, SUPERSAMPLE, draw_thing

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]

EDGE_DISTANCE = 22.0  # Lab distance from the background at which a pixel belongs to a thing
SMALLEST = 0.008  # share of the picture below which a component is a speck
SHAPE_FIT = 0.88  # least overlap with the true outline for a shape to be named
COLOR_DISTANCE = 30.0  # greatest Lab distance to a colour's name
DARK = 35.0  # Lab lightness below which a line is black
EDGE_MARGIN = 4  # pixels around things that say nothing about the background's noise


@dataclass(frozen=True)
class Seen:
    """A thing: shape ("" if none fits), overlap with the true outline in [0, 1], colour ("" if far from all).

    area is in parts of the picture, radius of the shorter side, x and y of width and height.
    """

    shape: str
    fit: float
    color: str
    area: float
    radius: float
    x: float
    y: float


@dataclass(frozen=True)
class Reading:
    """Things from left to right; noise is the background's mean absolute deviation, 0 to 255."""

    background: str
    things: tuple[Seen, ...]
    noise: float


def read(image: Image.Image, shapes: Sequence[str] = SHAPES) -> Reading:
    """Reads an RGB picture of any size from about 64 pixels, in which these shapes may be."""
    pixels = np.asarray(image.convert("RGB"), np.float32)
    ground = np.median(_border(pixels), axis=0)
    mask = np.linalg.norm(_lab(pixels) - _lab(ground), axis=-1) > EDGE_DISTANCE
    components = [part for part in _components(mask) if part.mean() >= SMALLEST]
    things = sorted((_see(pixels, part, ground, shapes) for part in components), key=lambda seen: seen.x)
    return Reading(name_color(ground), tuple(things), _noise(pixels, mask, ground))


def name_color(rgb: Floats) -> str:
    """The nearest of COLORS in Lab, or "" when none is near. rgb is (3,), 0 to 255."""
    distances = np.linalg.norm(_named_lab() - _lab(rgb), axis=-1)
    return list(COLORS)[int(distances.argmin())] if distances.min() <= COLOR_DISTANCE else ""


def outlined(image: Image.Image) -> float:
    """How far things have a black line around them, 0 to 1: a style that the world's own pictures do not have.

    Mean over the things of the dark share of their edge; a thing that is dark itself counts as having none.
    """
    pixels = np.asarray(image.convert("RGB"), np.float32)
    ground = np.median(_border(pixels), axis=0)
    lab = _lab(pixels)
    mask = np.linalg.norm(lab - _lab(ground), axis=-1) > EDGE_DISTANCE
    components = [part for part in _components(mask) if part.mean() >= SMALLEST]
    return float(np.mean([_lined(lab[..., 0], part) for part in components])) if components else 0.0


def _lined(lightness: Floats, part: Mask) -> float:
    depth = part.astype(np.int32)  # in pixels from the edge
    inner = ~_grow(~part, 1)
    while inner.any():
        depth += inner
        inner = ~_grow(~inner, 1)
    if np.median(lightness[depth >= 0.7 * depth.max()]) < DARK:
        return 0.0
    edge = (depth == 2) | (depth == 3)  # the outermost pixel is half ground
    return float((lightness[edge] < DARK).mean()) if edge.any() else 0.0


def _border(pixels: Floats) -> Floats:
    width = max(2, min(pixels.shape[:2]) // 24)
    sides = (pixels[:width], pixels[-width:], pixels[:, :width], pixels[:, -width:])
    return np.concatenate([side.reshape(-1, 3) for side in sides])


def _lab(rgb: Floats) -> Floats:
    """sRGB 0 to 255 (..., 3) -> CIE Lab, D65."""
    share = np.asarray(rgb, np.float32) / 255
    linear = np.where(share > 0.04045, ((share + 0.055) / 1.055) ** 2.4, share / 12.92)
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]], np.float32)
    xyz = linear @ matrix.T / np.array([0.9505, 1.0, 1.089], np.float32)
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    lab = (116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2]))
    return np.stack(lab, -1).astype(np.float32)


@cache
def _named_lab() -> Floats:
    return _lab(np.array(list(COLORS.values()), np.float32))


def _components(mask: Mask) -> list[Mask]:
    """4-connected parts of a mask, found by spreading the smallest label."""
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), mask.size + 1)
    while True:
        padded = np.pad(labels, 1, constant_values=mask.size + 1)
        spread = np.minimum.reduce([labels, padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]])
        spread = np.where(mask, spread, labels)
        if (spread == labels).all():
            break
        labels = spread
    return [labels == label for label in np.unique(labels[mask])]


def _grow(mask: Mask, times: int) -> Mask:
    for _ in range(times):
        padded = np.pad(mask, 1)
        mask = mask | padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
    return mask


def _see(pixels: Floats, part: Mask, ground: Floats, shapes: Sequence[str]) -> Seen:
    height, width = part.shape
    core = ~_grow(~part, 2)
    ink = np.median(pixels[core if core.sum() >= 12 else part], axis=0)
    axis = ink - ground
    cover = ((pixels - ground) @ axis / max(1.0, float(axis @ axis))).clip(0, 1) * _grow(part, 2)
    mass = float(cover.sum())
    x = float((cover.sum(0) * (np.arange(width) + 0.5)).sum() / mass)
    y = float((cover.sum(1) * (np.arange(height) + 0.5)).sum() / mass)
    fits = {shape: _fit(shape, cover, (x, y), mass) for shape in shapes}
    best = max(fits, key=lambda shape: fits[shape][0])
    fit, radius = fits[best]
    return Seen(
        shape=best if fit >= SHAPE_FIT else "",
        fit=fit,
        color=name_color(ink),
        area=mass / part.size,
        radius=radius / min(part.shape),
        x=x / width,
        y=y / height,
    )


@cache
def _ideal(shape: str) -> tuple[float, float, float]:
    """Area of a shape of radius 1, and its centroid."""
    canvas = Image.new("L", (600, 600))
    draw_thing(ImageDraw.Draw(canvas), shape, (300, 300), 200, 255)
    cover = np.asarray(canvas, np.float64) / 255
    mass, steps = cover.sum(), np.arange(600) + 0.5
    x, y = (cover.sum(0) * steps).sum() / mass, (cover.sum(1) * steps).sum() / mass
    return mass / 200**2, (x - 300) / 200, (y - 300) / 200


def _fit(shape: str, cover: Floats, centroid: tuple[float, float], mass: float) -> tuple[float, float]:
    """Soft overlap (intersection over union) with the true shape of equal area and centroid; its radius."""
    area, x, y = _ideal(shape)
    radius = math.sqrt(mass / area)
    canvas = Image.new("L", (cover.shape[1] * SUPERSAMPLE, cover.shape[0] * SUPERSAMPLE))
    center = ((centroid[0] - x * radius) * SUPERSAMPLE, (centroid[1] - y * radius) * SUPERSAMPLE)
    draw_thing(ImageDraw.Draw(canvas), shape, center, radius * SUPERSAMPLE, 255)
    ideal = np.asarray(canvas.reduce(SUPERSAMPLE), np.float32) / 255
    return float(np.minimum(cover, ideal).sum() / np.maximum(cover, ideal).sum()), radius


def _noise(pixels: Floats, mask: Mask, ground: Floats) -> float:
    flat = ~_grow(mask, EDGE_MARGIN)
    return float(np.abs(pixels[flat] - ground).mean()) if flat.any() else 0.0
