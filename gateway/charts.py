"""Line charts as SVG, for docs: nothing to install, and a change of them can be read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 760, 420  # of the picture, in pixels
LEFT, RIGHT, TOP, BOTTOM = 70, 36, 50, 60  # around the axes
COLOURS = ("#1b6ac9", "#d1495b", "#2e8b57", "#8a5fbf", "#b7791f")
GRID = "#d9d9d9"
FONT = 'font-family="sans-serif" font-size="13"'


@dataclass(frozen=True)
class Axis:
    """What is along it, and the marks at which its lines are."""

    title: str
    marks: Sequence[float]
    logarithmic: bool = False

    def part(self, value: float) -> float:
        """0 at the first mark, 1 at the last; what lies beyond is put there."""
        scale = math.log10 if self.logarithmic else float
        first, last = scale(self.marks[0]), scale(self.marks[-1])
        return (scale(min(max(value, self.marks[0]), self.marks[-1])) - first) / (last - first)


def lines(title: str, across: Axis, up: Axis, series: Mapping[str, Points]) -> str:
    """One line for each series, with its name in the corner."""
    x = [LEFT + across.part(mark) * (WIDTH - LEFT - RIGHT) for mark in across.marks]
    y = [HEIGHT - BOTTOM - up.part(mark) * (HEIGHT - TOP - BOTTOM) for mark in up.marks]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" {FONT}>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        _text(WIDTH / 2, 24, title, "middle", 'font-size="16"'),
        *(_line(at, y[0], at, y[-1]) for at in x),
        *(_line(x[0], at, x[-1], at) for at in y),
        *(_text(at, y[0] + 20, f"{mark:,g}", "middle") for at, mark in zip(x, across.marks, strict=True)),
        *(_text(x[0] - 8, at + 4, f"{mark:,g}", "end") for at, mark in zip(y, up.marks, strict=True)),
        _text((x[0] + x[-1]) / 2, HEIGHT - 12, across.title, "middle"),
        _text(0, 0, up.title, "middle", f'transform="translate(18 {(y[0] + y[-1]) / 2:.0f}) rotate(-90)"'),
    ]
    for number, (name, points) in enumerate(series.items()):
        colour = COLOURS[number]
        places = " ".join(
            f"{LEFT + across.part(a) * (WIDTH - LEFT - RIGHT):.1f},"
            f"{HEIGHT - BOTTOM - up.part(b) * (HEIGHT - TOP - BOTTOM):.1f}"
            for a, b in points
        )
        parts.append(f'<polyline points="{places}" fill="none" stroke="{colour}" stroke-width="2.5"/>')
        parts.append(_text(LEFT + 12, HEIGHT - BOTTOM - 14 - 18 * number, name, "start", f'fill="{colour}"'))
    return "\n".join([*parts, "</svg>", ""])


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{GRID}"/>'


def _text(x: float, y: float, text: str, anchor: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {more}>{escape(text)}</text>'
