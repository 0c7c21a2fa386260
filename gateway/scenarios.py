"""What docs/scale.md shows of the simulation: `python -m gateway.scenarios FOLDER` draws and prints it, in a minute."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from gateway.charts import Axis, Points, lines
from gateway.simulate import Fleet, Outcome, simulate

SIZES = (1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000)
GPUS = Axis("GPUs", (1, 10, 100, 1_000, 10_000), logarithmic=True)
PART = Axis("part of the GPUs' time that makes pictures", (0, 0.25, 0.5, 0.75, 1))
SECONDS = Axis("seconds", (0.01, 0.1, 1, 10, 100, 1_000), logarithmic=True)
ORDERS = {"in the order of coming": False, "by weights, within bounds": True}
DATABASES = {  # transactions a second: measured, see docs/scale.md, and what they become
    "Postgres on two shared cores (measured)": 1_900.0,
    "SQLite, the same machine (measured)": 5_000.0,
    "Postgres on 32 cores and NVMe (reckoned)": 20_000.0,
    "eight of these, by pool (reckoned)": 160_000.0,
}


def fleet(workers: int, *, affinity: bool = True, load: float = 0.9) -> Fleet:
    """With more tunes for more workers, and enough jobs to see where it goes."""
    return Fleet(workers, 7 + workers // 2, max(20_000, 20 * workers), load=load, affinity=affinity)


def pictures() -> Iterator[tuple[str, str]]:
    """(name of the file, what is in it)"""
    outcomes = {
        name: [simulate(fleet(workers, affinity=affinity)) for workers in SIZES] for name, affinity in ORDERS.items()
    }
    yield (
        "scale-busy.svg",
        lines("Jobs for 90 % of the GPUs' time, changes of weights not counted", GPUS, PART, {
            name: points((each, each.busy) for each in found) for name, found in outcomes.items()
        }),
    )  # fmt: skip
    yield (
        "scale-waits.svg",
        lines("Seconds until a job starts, at the same load", GPUS, SECONDS, {
            f"{part:.0%} of jobs, {name}": points((each, each.wait(part)) for each in found)
            for name, found in outcomes.items() for part in (0.5, 0.99)
        }),
    )  # fmt: skip
    yield "scale-database.svg", lines("What a database lets through", GPUS, PART, dict(databases()))


def databases() -> Iterator[tuple[str, Points]]:
    for name, rate in DATABASES.items():
        sizes = [size for size in SIZES if size * Fleet.per_worker < rate]
        yield name, points((each, each.busy) for each in (simulate(replace(fleet(s), database=rate)) for s in sizes))


def points(values: Iterator[tuple[Outcome, float]]) -> Points:
    return [(outcome.fleet.workers, value) for outcome, value in values]


def table() -> Iterator[str]:
    yield "| GPUs | load | order | GPUs busy | changes per job | wait p50, s | p99, s | longest, s |"
    yield "|---|---|---|---|---|---|---|---|"
    for workers in (1, 100, 10_000):
        for load in (0.5, 0.9, 1.2):
            for name, affinity in ORDERS.items():
                found = simulate(fleet(workers, affinity=affinity, load=load))
                waits = " | ".join(f"{wait:.1f}" for wait in (found.wait(0.5), found.wait(0.99), found.wait(1)))
                yield f"| {workers:,} | {load} | {name} | {found.busy:.2f} | {found.changes_per_job:.2f} | {waits} |"


def main() -> None:
    for name, drawn in pictures():
        (Path(sys.argv[1]) / name).write_text(drawn)
    for line in table():
        sys.stdout.write(line + "\n")


if __name__ == "__main__":
    main()
