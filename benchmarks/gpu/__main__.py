"""Measure this package (B) against plain diffusers pipelines as Replicate's cog-sdxl uses them (A), on this GPU.

Makes SDXL 1.0 with random weights, in memory; needs no file and no network. Prints a table last, and leaves it with
its numbers, two plots and profiles in a folder. Lines for which no time is left say so.
"""

import argparse
import json
import logging
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import behaviour, ceilings, correctness, inference, plots, profiles, table, training
from benchmarks.gpu.bench import Bench, opened
from benchmarks.gpu.plan import Cell, RowJson, run, unmeasured
from benchmarks.gpu.scale import ENGINES, FULL, SCALES, Scale
from benchmarks.measure import machine
from benchmarks.report import RESULTS
from weights import ROOT

SECONDS = 540.0
NUMBERS = "gpu.json"


def all_cells(scale: Scale) -> list[Cell]:
    """In the order in which time is spent: what counts most first, with as few changes of engine as that allows."""
    graph, compiled, eager = ENGINES
    return [
        *ceilings.cells(scale),
        inference.picture_cell(graph),
        inference.lora_cell(graph),
        inference.four_cell(graph),
        behaviour.swap_cell(graph),
        inference.sizes_cell(graph, scale),
        behaviour.counts_cell(graph),
        behaviour.syncs_cell(graph),
        behaviour.memory_cell(graph),
        profiles.cell(graph),
        inference.picture_cell(compiled),
        inference.lora_cell(compiled),
        behaviour.counts_cell(compiled),
        profiles.cell(compiled),
        *training.cells(scale),
        *correctness.cells(scale, (graph, compiled)),
        behaviour.setup_cell(scale),
        inference.picture_cell(eager),
        profiles.cell(eager),
        *correctness.cells(scale, (eager,)),
        correctness.bits_cell(),
        inference.ways_cell(graph),
        *behaviour.mode_cells(graph),
        inference.four_cell(graph, tuned=True),
        inference.four_cell(compiled),
    ]


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="script/gpu", description=__doc__)
    parser.add_argument("--size", choices=SCALES, default=FULL.name, help="tiny goes the same way on a CPU")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"for all of it; default {SECONDS:.0f}")
    out = os.environ.get("OUT", str(RESULTS / "gpu"))
    parser.add_argument("--out", type=Path, default=Path(out), help="folder for what is found; default $OUT")
    parser.add_argument("--only", action="append", default=[], metavar="CELL", help="only cells that begin so")
    parser.add_argument("--rest", type=Path, metavar="JSON", help="only what that run has not measured")
    parser.add_argument("--commit", help="what is measured, where the tree came without its history")
    parser.add_argument("--list", action="store_true", help="name the cells and measure nothing")
    words_for_publish = "write these into docs/benchmarks.md, each line from the last that measured it"
    parser.add_argument("--publish", nargs="*", type=Path, metavar="JSON", help=words_for_publish)
    return parser.parse_args(words)


def measure(cells: Sequence[Cell], options: argparse.Namespace) -> dict[str, Any]:
    """A whole run; what is found so far is in the folder after each cell, should the next one never end."""
    start = time.monotonic()
    scale: Scale = SCALES[options.size]
    found: dict[str, Any] = {
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "commit": options.commit or _git("rev-parse", "--short", "HEAD") or "unknown",
        "dirty": bool(_git("status", "--porcelain", "--", ".", ":!benchmarks/results", ":!docs")),
        "machine": machine() | {"card": _card()},
        "scale": scale.name,
        "rows": [],
    }
    with opened(scale, options.out) as bench:
        for rows in run(cells, bench, start + options.seconds, _unwanted(options)):
            found["rows"] += rows
            found |= {"seconds": time.monotonic() - start, "remarks": _remarks(bench)}
            store(found, options.out)
    return found


def _unwanted(options: argparse.Namespace) -> Callable[[Cell], str]:
    """Why a cell is left out, or nothing. The ceilings never are: others compare with them."""
    before = json.loads(options.rest.read_text())["rows"] if options.rest else []
    done = {row["group"] for row in before if row["status"] == "measured"}
    skipped = SCALES[options.size].skipped

    def why(cell: Cell) -> str:
        if cell.name == ceilings.NAME:
            return ""
        if any(word in cell.name for word in skipped):
            return f"left out at size {options.size}"
        asked = not options.only or cell.name.startswith(tuple(options.only))
        return "" if asked and cell.name not in done else "not asked for"

    return why


def _git(*words: str) -> str:
    """What git says; nothing where the tree came without its history."""
    with suppress(OSError):
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    return ""


def _card() -> str:
    """With its driver's word for it."""
    if not torch.cuda.is_available():
        return "no GPU"
    card = torch.cuda.get_device_properties(0)
    return f"{card.name}, {card.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"


def _remarks(bench: Bench) -> list[str]:
    """What differs from what a user has."""
    count = bench.kept.get("parameters", 0) / 1e6
    found = [f"random weights, {count:,.0f} M parameters"] if count else []
    if "reference" in vars(bench) and not bench.reference.marked:
        found.append("no watermark on either side: invisible-watermark is not there")
    return found


def store(found: dict[str, Any], out: Path) -> None:
    """Numbers and table."""
    (out / NUMBERS).write_text(json.dumps(found, indent=1) + "\n")
    (out / "gpu.txt").write_text(table.text(found) + "\n")


def draw(found: dict[str, Any], out: Path) -> None:
    """Plots."""
    plots.compared(found["rows"]).save(out / "compared.png")
    plots.stages(found["rows"]).save(out / "stages.png")


def blank_rows() -> list[RowJson]:
    """Of a whole run in which nothing was measured."""
    return [unmeasured(cell, line, "not measured") for cell in all_cells(FULL) for line in cell.lines]


def main(words: Sequence[str] | None = None) -> None:
    """script/gpu."""
    options = arguments(words)
    cells = all_cells(SCALES[options.size])
    if options.list:
        sys.stdout.write("\n".join(f"{cell.seconds:4.0f} s  {cell.name}" for cell in cells) + "\n")
        return
    if options.publish is not None:
        table.publish([json.loads(file.read_text()) for file in options.publish], blank_rows())
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            found = measure(cells, options)
        finally:
            logging.disable(logging.NOTSET)
    draw(found, options.out)
    sys.stdout.write(table.text(found) + "\n")


if __name__ == "__main__":
    main()
