"""From nothing to ready: imports, loading, memory and disk, each side in fresh processes."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import weights
from benchmarks import wide_model
from benchmarks.measure import Effort, Row, last_json, timing_row

GROUP = "setup"
A, APART, B = "reference", "unshared", "ours"
MOST_IMPORT_SECONDS = 5.0
MOST_READ = 1.05
FORKS = 3  # loads per process
MB = 1e6


def rows(effort: Effort) -> list[Row]:
    """The miniature, where imports and Python dominate, and a model whose weights do."""
    with TemporaryDirectory() as name:
        miniature, wide = Path(name) / "miniature", Path(name) / "wide"
        shutil.copytree(weights.resolve("miniature").base.parent, miniature)
        millions = wide_model.write(wide, effort.divisor) / 1e6
        os.sync()  # what is not on the disk yet cannot be dropped from memory
        rounds = -(-effort.rounds // FORKS) if effort.rounds > 1 else 1
        order = [side for number in range(rounds) for side in ((A, B) if number % 2 == 0 else (B, A))]
        start = partial(_start, small=miniature, forks=min(FORKS, effort.rounds))
        found = start([*order, APART], miniature, "float32")
        table = [*_times(found), *_disk(found, miniature), *_memory("miniature, float32", found)]
        for dtype in ("float16", "float32") if effort.rounds > 1 else ("float16",):
            found = start([A, B], wide, dtype)
            if effort.rounds > 1:
                found |= _start([APART], wide, dtype, small=miniature, forks=0)
            what = f"{millions:,.0f} M parameters, {dtype}"
            table += [_load_time(f"load, {what}", found, A), *_memory(what, found)]
    return table


def _start(
    sides: Sequence[str], model: Path, dtype: str, *, small: Path, forks: int
) -> dict[str, list[dict[str, Any]]]:
    """What each side says about itself, one process after another."""
    found: dict[str, list[dict[str, Any]]] = {}
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    for side in sides:
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.startup_child"]
        command += [side, str(small), str(model), dtype, str(forks)]
        run = subprocess.run(command, cwd=weights.ROOT, env=environment, capture_output=True, text=True, check=False)
        if run.returncode:
            raise RuntimeError(f"{side} could not start:\n{run.stderr[-2000:]}")
        found.setdefault(side, []).append(last_json(run.stdout))
    return found


Found = dict[str, list[dict[str, Any]]]


def _middle(found: Found, side: str, name: str) -> float:
    return float(median(each[name] for each in found[side]))


def _times(found: Found) -> list[Row]:
    imports = {side: [each["import"] for each in found[side]] for side in (A, B)}
    setup = {side: [each["import"] + median(each["load"]) for each in found[side]] for side in (A, B)}
    return [
        timing_row(GROUP, "setup: imports and the miniature, CPU time", setup[A], setup[B], unit="s", most_ratio=0.6),
        timing_row(GROUP, "import, CPU time", imports[A], imports[B], unit="s", most=MOST_IMPORT_SECONDS),
        _load_time("load the miniature", found, A),
        _load_time("load the miniature, A shares nothing", found, APART),
    ]


def _load_time(name: str, found: Found, against: str) -> Row:
    times = {side: [seconds for each in found[side] for seconds in each["load"]] for side in (against, B)}
    return timing_row(GROUP, f"{name}, CPU time", times[against], times[B], most_ratio=0.6)


def _disk(found: Found, model: Path) -> list[Row]:
    """Weights that come from the disk when none is in memory."""
    parts = (model / "base", model / "refiner" / "unet", model / "safety_checker")
    needed = sum(file.stat().st_size for part in parts for file in part.rglob("*.safetensors"))
    read = {side: _middle(found, side, "read") / needed for side in (A, APART, B)}
    opened = {side: _middle(found, side, "most_opened") for side in (A, B)}
    return [
        Row(GROUP, "bytes read over bytes needed", "", read[A], read[B], most=MOST_READ),
        Row(GROUP, "bytes read over bytes needed, A shares nothing", "", read[APART], read[B], most=MOST_READ),
        Row(GROUP, "how often a file of weights is opened, at most", "", opened[A], opened[B], most=1, exact=True),
    ]


def _memory(what: str, found: Found) -> list[Row]:
    """Resident memory: after the imports, and at its highest while loading and reading every weight once."""

    def megabytes(side: str, name: str, less: str | None = None) -> float:
        return (_middle(found, side, name) - (_middle(found, side, less) if less else 0)) / MB

    table = []
    for against, suffix in ((A, ""), (APART, ", A shares nothing")):
        if against in found:
            peaks = megabytes(against, "peak"), megabytes(B, "peak")
            grown = megabytes(against, "peak", "baseline"), megabytes(B, "peak", "baseline")
            table += [
                Row(GROUP, f"peak memory, {what}{suffix}", "MB", *peaks, most_ratio=0.8),
                Row(GROUP, f"... of which after the imports, {what}{suffix}", "MB", *grown),
            ]
    return table
