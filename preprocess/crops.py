"""What is cut out of a picture, and what SDXL is told of it: pure geometry. Sizes are (height, width) in pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

Size = tuple[int, int]
Offset = tuple[int, int]  # (top, left)
Box = tuple[float, float, float, float]  # left, top, right, bottom, as Pillow has it

LONGEST = 2.5  # the most that a side may be times the other
STEP = 64  # SDXL's own buckets (arXiv 2307.01952, appendix I); smaller pictures need finer ones
ALIKE = 0.01  # windows that hold all but this of what the best one holds are as good


@dataclass(frozen=True)
class Fit:
    """How a picture comes to its size: resized to `resized`, which covers `size`, then cut."""

    resized: Size
    size: Size

    @property
    def kept(self) -> float:
        """The share of the picture that is inside."""
        return math.prod(self.size) / math.prod(self.resized)


@cache
def buckets(resolution: int) -> tuple[Size, ...]:
    """Sizes of at most resolution² pixels, as large as they can be, the square first."""
    step = STEP if resolution >= 512 else max(8, resolution // 8 // 8 * 8)
    found = {(resolution, resolution): None}
    for side in range(step, resolution, step):
        other = resolution**2 // side // step * step
        if other / side <= LONGEST:
            found |= {(side, other): None, (other, side): None}
    return tuple(found)


def nearest(size: Size, choices: tuple[Size, ...]) -> Size:
    """Of these, the one whose shape is most like that of a picture: the ratio of ratios counts."""
    height, width = size
    return min(choices, key=lambda other: abs(math.log(other[1] / other[0]) - math.log(width / height)))


def fit(original: Size, size: Size) -> Fit:
    """The smallest picture of the original's shape that covers a size."""
    scale = max(size[0] / original[0], size[1] / original[1])
    height, width = (max(least, round(side * scale)) for side, least in zip(original, size, strict=True))
    return Fit((height, width), size)


def crop(fit: Fit, mass: NDArray[np.float32] | None) -> Offset:
    """Where to cut the resized picture: around what counts, or in the middle.

    mass  (h, w) of any size: how much each place counts; what all places have in common does not
    """
    if mass is None:
        mass = np.zeros((1, 1), np.float32)
    above = mass - mass.min()
    top, left = (
        _offset(above.sum(axis=1 - axis, dtype=np.float64), fit.resized[axis], fit.size[axis]) for axis in (0, 1)
    )
    return top, left


def _offset(profile: NDArray[np.float64], length: int, window: int) -> int:
    """Where a window along one side holds most; of those as good, the one with the centre of mass in its middle."""
    total = profile.sum()
    offsets = np.arange(length - window + 1)
    if total <= 0:
        return int(offsets[-1]) // 2
    edges = np.linspace(0, length, len(profile) + 1)
    before = np.concatenate([[0.0], np.cumsum(profile)])
    held = np.interp(offsets + window, edges, before) - np.interp(offsets, edges, before)
    centre = (profile * (edges[:-1] + edges[1:]) / 2).sum() / total
    good = offsets[held >= held.max() - ALIKE * total]
    return int(good[np.abs(good + window / 2 - centre).argmin()])


def source_box(fit: Fit, offset: Offset, shape: Size) -> Box:
    """What is cut out, in pixels of the picture as it lies, of `shape`."""
    down, across = shape[0] / fit.resized[0], shape[1] / fit.resized[1]
    (top, left), (height, width) = offset, fit.size
    return left * across, top * down, (left + width) * across, (top + height) * down
