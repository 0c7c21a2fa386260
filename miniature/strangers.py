"""Shapes that the world has no word for: a captioner that meets one says "shape".

Outlines are corners around (0, 0), y down, in units of the radius, as in `world.outline`.
"""

import math
import random
from collections.abc import Callable
from functools import cache

Point = tuple[float, float]

BLOB = "blob"  # "blob 7" is one of endlessly many, always the same one


def _arc(radius: float, begin: float, end: float, x: float = 0.0, y: float = 0.0) -> list[Point]:
    """Points of an arc around (x, y), angles in half turns, clockwise on the screen."""
    turns = [math.pi * (begin + (end - begin) * i / 40) for i in range(41)]
    return [(x + radius * math.cos(turn), y + radius * math.sin(turn)) for turn in turns]


def _regular(corners: int) -> list[Point]:
    turns = [2 * math.pi * (i / corners - 0.25) for i in range(corners)]
    return [(math.cos(turn), math.sin(turn)) for turn in turns]


def _crescent() -> list[Point]:
    return _arc(1.0, 0.25, 1.75, x=0.2) + _arc(0.8, 1.65, 0.35, x=0.62)


def _drop() -> list[Point]:
    turns = [2 * math.pi * i / 60 for i in range(60)]
    return [(0.95 * math.sin(turn) * math.sin(turn / 2) ** 1.5, -math.cos(turn)) for turn in turns]


def _leaf() -> list[Point]:
    return _arc(1.1, -0.3, 0.3, x=-0.65) + _arc(1.1, 0.7, 1.3, x=0.65)


def _trefoil() -> list[Point]:
    turns = [2 * math.pi * i / 120 for i in range(120)]
    radii = [0.68 - 0.38 * math.sin(3 * turn) for turn in turns]
    return [(r * math.cos(turn), r * math.sin(turn)) for r, turn in zip(radii, turns, strict=True)]


STRANGERS: dict[str, Callable[[], list[Point]]] = {
    "crescent": _crescent,
    "drop": _drop,
    "leaf": _leaf,
    "trefoil": _trefoil,
    "pentagon": lambda: _regular(5),
    "hexagon": lambda: _regular(6),
    "semicircle": lambda: _arc(1.05, 1.0, 2.0, y=0.45),
    "diamond": lambda: [(0.0, -1.1), (0.72, 0.0), (0.0, 1.1), (-0.72, 0.0)],
    "trapezoid": lambda: [(-0.5, -0.7), (0.5, -0.7), (1.05, 0.7), (-1.05, 0.7)],
}
# In no picture that a helper is trained on: they measure what a helper makes of a shape it never saw.
UNSEEN: dict[str, Callable[[], list[Point]]] = {
    "arrow": lambda: [(-1, -0.3), (0.1, -0.3), (0.1, -0.8), (1, 0), (0.1, 0.8), (0.1, 0.3), (-1, 0.3)],
    "bolt": lambda: [(0.3, -1.1), (-0.7, 0.2), (-0.1, 0.2), (-0.35, 1.1), (0.7, -0.25), (0.1, -0.25)],
    "house": lambda: [(0, -1), (0.95, -0.1), (0.65, -0.1), (0.65, 0.9), (-0.65, 0.9), (-0.65, -0.1), (-0.95, -0.1)],
}


@cache
def stranger(name: str) -> list[Point]:
    """The outline of one of STRANGERS or UNSEEN, or of a blob; KeyError for any other name."""
    kind, _, number = name.partition(" ")
    return blob(int(number)) if kind == BLOB else {**STRANGERS, **UNSEEN}[name]()


def blob(number: int) -> list[Point]:
    """A wavy or a jagged outline; different numbers, different outlines."""
    rng = random.Random(f"{BLOB} {number}")
    phases = [2 * math.pi * rng.random() for _ in range(3)]
    if rng.random() < 0.6:
        waves = [(2, rng.uniform(0.2, 0.4)), (3, rng.uniform(0.15, 0.3)), (5, rng.uniform(0.0, 0.12))]
        turns = [2 * math.pi * i / 90 for i in range(90)]
        radii = [1 + sum(a * math.sin(k * t + p) for (k, a), p in zip(waves, phases, strict=True)) for t in turns]
    else:
        corners = rng.randint(5, 9)
        turns = [phases[0] + 2 * math.pi * (i + rng.uniform(-0.3, 0.3)) / corners for i in range(corners)]
        radii = [rng.choice((rng.uniform(0.35, 0.6), rng.uniform(0.85, 1.1))) for _ in turns]
    return _centred([(r * math.cos(t), r * math.sin(t)) for r, t in zip(radii, turns, strict=True)])


def _centred(points: list[Point]) -> list[Point]:
    """Moved and scaled so that the longer side of its box goes from -1 to 1."""
    low_x, low_y = (min(values) for values in zip(*points, strict=True))
    high_x, high_y = (max(values) for values in zip(*points, strict=True))
    half = max(high_x - low_x, high_y - low_y) / 2
    x, y = (low_x + high_x) / 2, (low_y + high_y) / 2
    return [((a - x) / half, (b - y) / half) for a, b in points]
