"""What the loop around the UNet costs the processor: on a fast GPU, where it is host-bound, every picture pays this."""

from functools import partial

from benchmarks.measure import Effort, Row, interleave, timing_row
from benchmarks.stand_ins import Sides, load
from sdxl.schedulers import SCHEDULERS

MOST_MS = 0.5


def rows(effort: Effort) -> list[Row]:
    """CPU time per step of the whole loop, the making of its schedule included, with an instant UNet."""
    sides = Sides(load())
    return [_row(sides, name, effort) for name in SCHEDULERS]


def _row(sides: Sides, name: str, effort: Effort) -> Row:
    a, b = interleave(
        partial(sides.a, name, effort.loop_steps), partial(sides.b, name, effort.loop_steps), effort.rounds
    )
    return timing_row(
        "CPU time per step outside the UNet",
        name,
        a.cpu,
        b.cpu,
        per=effort.loop_steps,
        most_ratio=0.5,
        most=MOST_MS,
    )
