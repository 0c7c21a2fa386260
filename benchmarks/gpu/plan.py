"""What is measured: lines in a table, cells that fill them, and the course of a run that has only so much time."""

import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, asdict, dataclass, field
from typing import Any

import torch

from sdxl.progress import Bar

RowJson = dict[str, Any]


class NotMeasuredError(Exception):
    """A cell that cannot be measured here; the message says why."""


@dataclass(frozen=True)
class Line:
    """A line of the table. The goal is A/B of at least `ratio`, B of at most `most`, B of at least `least`."""

    name: str
    unit: str = ""
    ratio: float | None = None
    most: float | None = None
    least: float | None = None

    @property
    def goal(self) -> str:
        """In words, empty without one."""
        parts = ((self.ratio, "A/B ≥"), (self.most, "B ≤"), (self.least, "B ≥"))
        return ", ".join(f"{words} {limit:g}" for limit, words in parts if limit is not None)

    def met(self, found: "Found") -> bool | None:
        """Whether the goal is reached; None without one, or without the numbers for it."""
        kept = []
        if self.ratio is not None and found.a is not None:
            kept.append(found.b * self.ratio <= found.a)
        if self.most is not None:
            kept.append(found.b <= self.most)
        if self.least is not None:
            kept.append(found.b >= self.least)
        return all(kept) if kept else None


@dataclass(frozen=True)
class Found:
    """What a line says: of the reference if there is one, and of this package or the machine."""

    a: float | None
    b: float
    _: KW_ONLY
    spread: float | None = None  # distance of A's quartiles over its median; a smaller difference is noise
    note: str = ""


Measure = Callable[[Any], Mapping[str, Found]]


@dataclass(frozen=True)
class Cell:
    """Lines that are measured together. `seconds` is what that takes on an H100; with less left it is not begun."""

    name: str
    seconds: float
    lines: Sequence[Line]
    measure: Measure = field(repr=False)


def measured(cell: Cell, line: Line, found: Found) -> RowJson:
    """A row with its numbers."""
    ratio = found.a / found.b if found.a and found.b else None
    noise = ratio is not None and found.spread is not None and abs(ratio - 1) < found.spread
    return _row(cell, line) | asdict(found) | {"ratio": ratio, "met": line.met(found), "noise": noise}


def unmeasured(cell: Cell, line: Line, status: str) -> RowJson:
    """A row that says why it has none."""
    return _row(cell, line) | {"status": status}


def _row(cell: Cell, line: Line) -> RowJson:
    row = {"group": cell.name, "name": line.name, "unit": line.unit, "goal": line.goal, "status": "measured"}
    return row | dict.fromkeys(("a", "b", "ratio", "met", "spread")) | {"noise": False, "note": "", "seconds": 0.0}


def run(cells: Sequence[Cell], bench: Any, deadline: float, unwanted: Callable[[Cell], str]) -> Iterator[list[RowJson]]:
    """The rows of each cell, in order. A cell that fails says so in its rows, and the next one begins.

    `deadline` is in the seconds of time.monotonic(): a cell that would take longer is not begun. `unwanted` says why a
    cell is left out, or nothing.
    """
    with Bar(total=len(cells), unit="cell", file=sys.stderr) as bar:
        for cell in cells:
            left = deadline - time.monotonic()
            bar.set_description(f"{cell.name}, {max(0, left):.0f} s left")
            why = unwanted(cell) or ("no time was left" if cell.seconds > left else "")
            if why:
                yield [unmeasured(cell, line, f"not measured: {why}") for line in cell.lines]
            else:
                start = time.monotonic()
                rows = _measure(cell, bench)
                yield [row | {"seconds": round(time.monotonic() - start, 1)} for row in rows]
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()  # one side's blocks for four pictures are of no use to the other
            bar.update()


def _measure(cell: Cell, bench: Any) -> list[RowJson]:
    try:
        found = cell.measure(bench)
    except NotMeasuredError as error:
        return [unmeasured(cell, line, f"not measured: {error}") for line in cell.lines]
    except Exception as error:  # noqa: BLE001 - the other cells are worth having
        traceback.print_exc()
        traceback.clear_frames(error.__traceback__)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        said = f"failed: {type(error).__name__}: {error}".splitlines()[0][:120]
        return [unmeasured(cell, line, said) for line in cell.lines]
    return [
        measured(cell, line, found[line.name])
        if line.name in found
        else unmeasured(cell, line, "not measured: not on this machine, or not at this size")
        for line in cell.lines
    ]
