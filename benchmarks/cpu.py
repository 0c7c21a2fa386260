"""Compare this package (B) with plain diffusers pipelines as Replicate's cog-sdxl uses them (A), on this CPU.

Prints a table, stores it in benchmarks/results/ and says what changed since the run before. Naming groups measures
only these and stores nothing.
"""

import argparse
import importlib
import logging
import os
import subprocess
import sys
import time
import warnings
from datetime import UTC, datetime
from typing import Any

import torch

import weights
from benchmarks import report
from benchmarks.measure import FULL, machine

GROUPS = ("counts", "calls", "loop", "engine", "files", "startup", "pictures", "finetunes", "training", "http")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="script/bench", description=__doc__)
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"any of {', '.join(GROUPS)}; default all")
    parser.add_argument("--publish", action="store_true", help="also write the table into docs/benchmarks.md")
    options = parser.parse_args()
    if unknown := set(options.groups) - set(GROUPS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    return options


def measure(groups: list[str]) -> dict[str, Any]:
    """A whole run."""
    start = time.perf_counter()
    run: dict[str, Any] = {
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "commit": _git("rev-parse", "--short", "HEAD"),
    }
    run |= {"dirty": bool(_git("status", "--porcelain", "--", ".", ":!benchmarks/results", ":!docs"))}
    run |= {"machine": machine(), "rows": []}
    for name in groups:
        sys.stderr.write(f"{name} ...\n")
        module = importlib.import_module(f"benchmarks.{name}")
        run["rows"] += [row.as_json() for row in module.rows(FULL)]
    return run | {"seconds": time.perf_counter() - start}


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=weights.ROOT, capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    """script/bench."""
    options = arguments()
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    before = report.last_run()
    run = measure(options.groups or list(GROUPS))
    table = [*report.facts(run), "", *report.lines(run["rows"], before, markdown=False)]
    sys.stdout.write("\n".join(table) + "\n")
    if not options.groups:
        sys.stdout.write(f"\nstored in {report.store(run).relative_to(weights.ROOT)}\n")
    if options.publish:
        report.publish(run)


if __name__ == "__main__":
    main()
