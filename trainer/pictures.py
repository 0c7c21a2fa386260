"""Pictures of a training: its losses, and what a prompt gave before and after."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import accumulate
from statistics import quantiles

from PIL import Image, ImageDraw, ImageFont

WHITE, INK, GREY, FAINT = "#ffffff", "#1f2430", "#6b7280", "#e5e7eb"
RAW, SMOOTH, PIVOT = "#a5b4fc", "#4338ca", "#d97706"
SIZE = (960, 480)  # pixels of the curve
LEFT, TOP, RIGHT, BOTTOM = 76, 48, 24, 52  # its margins
FINER = 2  # times as large drawn, then made smaller: lines without stairs
TILE, GAP = 256, 12  # pixels of a picture of the grid, at most, and between two
TICKS = 6
NOTHING = 1e-290  # a loss so small is none: parts of it are no numbers any more

Point = tuple[float, float]


def loss_curve(losses: Sequence[float], pivot: int) -> Image.Image:
    """The loss of each step, 1 to n, and its running mean; a line marks the last step, `pivot`, in which token rows
    learned, unless all were."""
    image = Image.new("RGB", (SIZE[0] * FINER, SIZE[1] * FINER), WHITE)
    pen = ImageDraw.Draw(image)
    numbers = [(step, loss) for step, loss in enumerate(losses, 1) if math.isfinite(loss)]
    if not numbers:
        _text(pen, (SIZE[0] / 2, SIZE[1] / 2), "no step was trained", 16, "mm", GREY)
        return image.resize(SIZE, Image.Resampling.LANCZOS)
    mean = smoothed([loss for _, loss in numbers])
    axes = Axes.around([step for step, _ in numbers], [loss for _, loss in numbers])
    _frame(pen, axes)
    if 0 < pivot < len(losses):
        _pivot(pen, axes, pivot)
    _line(pen, [axes.at(*each) for each in numbers], RAW, 1)
    _line(pen, [axes.at(step, each) for (step, _), each in zip(numbers, mean, strict=True)], SMOOTH, 2.5)
    _text(pen, (LEFT, 14), f"Loss: {mean[-1]:.4g} after {len(losses)} steps", 17, "lt", INK)
    key = f"each step (pale) and running mean (dark), from {mean[0]:.4g}"
    _text(pen, (SIZE[0] - RIGHT, 17), key, 13, "rt", GREY)
    return image.resize(SIZE, Image.Resampling.LANCZOS)


def smoothed(losses: Sequence[float]) -> list[float]:
    """The mean of those so far, in which older ones fade: half gone after a thirtieth of the way. At the start, where
    there are few, it is the mean of these."""
    keep = 0.5 ** (1 / max(1.0, len(losses) / 30))
    sums = accumulate(losses, lambda total, loss: keep * total + loss)
    weights = accumulate([1.0] * len(losses), lambda total, one: keep * total + one)
    return [total / weight for total, weight in zip(sums, weights, strict=True)]


class Axes:
    """From steps and losses to pixels: `across` and `up` are the numbers at the ends of both axes."""

    def __init__(self, across: Point, up: Point) -> None:
        self.across, self.up = across, up

    @classmethod
    def around(cls, steps: Sequence[int], losses: Sequence[float]) -> Axes:
        """Up to what all but a hundredth of the losses reach: a single one far off shall not flatten the others."""
        top = quantiles(losses, n=100, method="inclusive")[-1] if len(losses) > 1 else losses[0]
        return cls((0, max(steps[-1], 1)), (0, top * 1.08 if top > NOTHING else 1.0))

    def at(self, step: float, loss: float) -> Point:
        """Where a loss is; one above the top is at the top."""
        (first, last), (low, high) = self.across, self.up
        x = LEFT + (SIZE[0] - LEFT - RIGHT) * (step - first) / (last - first)
        y = SIZE[1] - BOTTOM - (SIZE[1] - TOP - BOTTOM) * (min(loss, high) - low) / (high - low)
        return x, y


def ticks(low: float, high: float) -> list[float]:
    """Round numbers from low to high, about TICKS of them."""
    raw = (high - low) / TICKS
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * next(each for each in (1, 2, 5, 10) if each * power >= raw * 0.999)
    return [step * number for number in range(math.ceil(low / step), math.floor(high / step + 1e-9) + 1)]


def _frame(pen: ImageDraw.ImageDraw, axes: Axes) -> None:
    base = SIZE[1] - BOTTOM
    for loss in ticks(*axes.up):
        y = axes.at(0, loss)[1]
        _line(pen, [(LEFT, y), (SIZE[0] - RIGHT, y)], FAINT if loss else GREY, 1)
        _text(pen, (LEFT - 8, y), f"{loss:.4g}", 13, "rm", GREY)
    for step in ticks(*axes.across):
        if step == int(step):
            x = axes.at(step, 0)[0]
            _line(pen, [(x, base), (x, base + 5)], GREY, 1)
            _text(pen, (x, base + 8), f"{step:.0f}", 13, "mt", GREY)
    _text(pen, ((LEFT + SIZE[0] - RIGHT) / 2, SIZE[1] - 8), "step", 13, "ms", INK)
    _text(pen, (12, TOP - 8), "loss", 13, "ls", INK)


def _pivot(pen: ImageDraw.ImageDraw, axes: Axes, pivot: int) -> None:
    x, _ = axes.at(pivot, 0)
    for y in range(TOP, SIZE[1] - BOTTOM, 9):
        _line(pen, [(x, y), (x, min(y + 5, SIZE[1] - BOTTOM))], PIVOT, 1.5)
    beside, anchor = (-6, "rt") if x > SIZE[0] * 0.7 else (6, "lt")
    _text(pen, (x + beside, TOP), f"token rows learn until step {pivot}", 13, anchor, PIVOT)


def _line(pen: ImageDraw.ImageDraw, points: Sequence[Point], color: str, width: float) -> None:
    drawn = [(x * FINER, y * FINER) for x, y in points]
    if len(drawn) == 1:
        (x, y), r = drawn[0], 2 * FINER
        pen.ellipse((x - r, y - r, x + r, y + r), color)
    pen.line(drawn, color, round(width * FINER), joint="curve")


def _text(pen: ImageDraw.ImageDraw, at: Point, text: str, size: int, anchor: str, color: str) -> None:
    pen.text((at[0] * FINER, at[1] * FINER), text, color, _font(size * FINER), anchor)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def sample_grid(rows: Mapping[str, Sequence[Image.Image]], captions: Sequence[str]) -> Image.Image:
    """Pictures in labelled rows ("before", "after"), a column for each prompt with the caption under it; a row, such as
    that of training pictures, may have fewer than there are columns, or more.
    """
    side = min(TILE, max((max(each.size) for row in rows.values() for each in row), default=TILE))
    columns = max(len(captions), *(len(row) for row in rows.values()))
    cell, font, label = side + GAP, _font(14), _font(15)
    written = ["\n".join(wrapped(text, side, font)) for text in captions]
    height = max((text.count("\n") + 1 for text in written), default=0) * 18 + GAP
    band = side + 26
    image = Image.new("RGB", (columns * cell + GAP, len(rows) * (band + GAP) + height + GAP), WHITE)
    pen = ImageDraw.Draw(image)
    y = GAP
    for name, row in rows.items():
        pen.text((GAP, y), name, INK, label)
        for column, each in enumerate(row):
            image.paste(_tile(each, side), (GAP + column * cell, y + 26))
        y += band + GAP
    for column, text in enumerate(written):
        pen.multiline_text((GAP + column * cell, y - 4), text, GREY, font, spacing=3)
    return image


def _tile(picture: Image.Image, side: int) -> Image.Image:
    """All of the picture, in the middle of a square."""
    tile = Image.new("RGB", (side, side), FAINT)
    ratio = side / max(picture.size)
    size = max(1, round(picture.width * ratio)), max(1, round(picture.height * ratio))
    shown = picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    tile.paste(shown, ((side - shown.width) // 2, (side - shown.height) // 2))
    return tile


def wrapped(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    """The text in lines of at most `width` pixels; a word that is longer is cut."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return lines
