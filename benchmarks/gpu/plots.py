"""Pictures of a run: A beside B, and what the time of a picture goes to."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import accumulate, pairwise
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from benchmarks.gpu.inference import STAGE_LINES
from benchmarks.report import number
from trainer.pictures import FAINT, GREY, INK, PIVOT, RAW, SMOOTH, WHITE

WIDTH, LEFT, RIGHT, TOP, BAR, GAP = 1460, 560, 220, 60, 22, 14
FINER = 2  # times as large drawn, then made smaller
COLORS = (PIVOT, SMOOTH, RAW, GREY)
UNITS, GOAL = ("s", "ms"), "A/B"

RowJson = Mapping[str, Any]
Piece = tuple[float, str]


def compared(rows: Sequence[RowJson]) -> Image.Image:
    """A bar for each side of every time that has a goal for both, each pair on its own scale."""
    pairs = [row for row in rows if row["ratio"] and row["unit"] in UNITS and GOAL in row["goal"]]
    bars = []
    for row in pairs:
        most, name = max(row["a"], row["b"]), f"{row['group']}: {row['name']}"
        for side, color in (("a", GREY), ("b", SMOOTH)):
            times = f", {row['ratio']:.2f} times as fast" if side == "b" else ""
            said = f"{number(row[side])} {row['unit']}{times}"
            bars.append((name if side == "a" else "", [(row[side] / most, color)], said))
    return _drawn("A (grey, diffusers) and B (this package); shorter is better", bars, {})


def stages(rows: Sequence[RowJson]) -> Image.Image:
    """Of every engine's picture, both sides."""
    found = {(row["group"], row["name"]): row for row in rows if row["status"] == "measured"}
    groups = list(dict.fromkeys(group for group, name in found if name == STAGE_LINES["denoise"]))
    bars, words = [], list(STAGE_LINES.values())
    times = {(group, side): [found[group, name][side] for name in words] for group in groups for side in ("a", "b")}
    most = max((sum(each) for each in times.values()), default=1.0)
    for (group, side), each in times.items():
        pieces = [(time / most, color) for time, color in zip(each, COLORS, strict=True)]
        bars.append((f"{side.upper()}, {group}", pieces, f"{number(sum(each))} ms"))
    return _drawn("what the time of a picture goes to", bars, dict(zip(words, COLORS, strict=True)))


def _drawn(title: str, bars: Sequence[tuple[str, Sequence[Piece], str]], key: Mapping[str, str]) -> Image.Image:
    """Horizontal bars of (share of the whole width, colour); every bar with a name begins a new group."""
    starts = list(accumulate((BAR + (GAP if name else 2) for name, _, _ in bars), initial=TOP + (26 if key else 0)))
    size = WIDTH, starts[-1] + BAR + GAP
    image = Image.new("RGB", (size[0] * FINER, size[1] * FINER), WHITE)
    pen = ImageDraw.Draw(image)
    write = _writer(pen)
    write((GAP, GAP), title, 20, INK, "lt")
    x = float(GAP)
    for words, color in key.items():
        _box(pen, x, TOP - 12, x + 14, TOP + 2, color)
        write((x + 20, TOP - 5), words, 14, INK, "lm")
        x += 40 + _font(14).getlength(words)
    for (name, pieces, said), y in zip(bars, starts[1:], strict=True):
        write((LEFT - 10, y + BAR / 2), name, 13, INK, "rm")
        _box(pen, LEFT, y, WIDTH - RIGHT, y + BAR, FAINT)
        ends = list(accumulate((share for share, _ in pieces), initial=0.0))
        for (_, color), (start, end) in zip(pieces, pairwise(ends), strict=True):
            across = WIDTH - RIGHT - LEFT
            _box(pen, LEFT + start * across, y, LEFT + end * across, y + BAR, color)
        write((WIDTH - RIGHT + 8, y + BAR / 2), said, 13, INK, "lm")
    return image.resize(size, Image.Resampling.LANCZOS)


def _box(pen: ImageDraw.ImageDraw, left: float, top: float, right: float, bottom: float, color: str) -> None:
    pen.rectangle((left * FINER, top * FINER, max(left, right) * FINER, bottom * FINER), color)


def _writer(pen: ImageDraw.ImageDraw) -> Callable[[tuple[float, float], str, int, str, str], None]:
    def write(at: tuple[float, float], text: str, size: int, color: str, anchor: str) -> None:
        pen.text((at[0] * FINER, at[1] * FINER), text, color, _font(size * FINER), anchor)

    return write


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
