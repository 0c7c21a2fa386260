"""Exact counts per denoising step outside the UNet: work for the device, waits for it, copies to it."""

from typing import Any

from benchmarks.device import Book, Emulated
from benchmarks.measure import Effort, Row
from benchmarks.stand_ins import Sides, load
from sdxl.models import Models
from sdxl.schedulers import SCHEDULERS

GROUP = "per step, outside the UNet"
FEW, MORE = 8, 28  # steps; beyond all warm-ups, so that the difference is what a step costs


def rows(effort: Effort) -> list[Row]:
    """Seven samplers; every number is the same on each machine."""
    del effort
    sides = Sides(load())
    found = [row for name in SCHEDULERS for row in _per_step(sides, name)]
    return [
        *(row for row in found if "operations" in row.name),
        *(row for row in found if "waits" in row.name),
        *(row for row in found if "copies" in row.name),
        without_a_device(sides.models),
    ]


def _per_step(sides: Sides, name: str) -> list[Row]:
    counts = {}
    for side in ("a", "b"):
        books = [_book(sides, side, name, steps) for steps in (FEW, MORE)]
        counts[side] = [(last - first) / (MORE - FEW) for first, last in zip(*map(_counts, books), strict=True)]
    kinds = ("device operations", "waits for the device", "copies to the device")
    goals: tuple[dict[str, Any], ...] = ({"most_ratio": 1.0}, {"most": 0.0}, {})
    return [
        Row(GROUP, f"{kind}, {name}", "", a, b, exact=True, **goal)
        for kind, goal, a, b in zip(kinds, goals, counts["a"], counts["b"], strict=True)
    ]


def _counts(book: Book) -> tuple[int, int, int]:
    return book.ops, book.syncs, book.uploads


def _book(sides: Sides, side: str, name: str, steps: int) -> Book:
    """What one picture costs; the embeddings are on the device already."""
    getattr(sides, side)(name, 1)  # the instant UNet makes its answer at the first call
    with Emulated() as book:
        book.mark([*vars(sides.embeds).values(), *sides.answers.values()])
        getattr(sides, side)(name, steps)
    return book


def without_a_device(models: Models) -> Row:
    """The loop on tensors without data, where taking one number from a tensor raises."""
    sides = Sides(models, "meta")
    failed = 0
    for name in SCHEDULERS:
        try:
            sides.b(name, MORE)
        except RuntimeError:
            failed += 1
    name = "samplers whose loop fails on the meta device"
    return Row(GROUP, name, f"of {len(SCHEDULERS)}", None, failed, most=0, exact=True)
