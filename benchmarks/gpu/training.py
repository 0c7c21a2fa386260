"""A step of a LoRA training: diffusers' recipe (A), this trainer (B), both as `benchmarks.training` builds them."""

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch

import weights
from benchmarks.gpu.bench import Bench, allocated
from benchmarks.gpu.plan import Cell, Found, Line
from benchmarks.gpu.scale import Scale
from benchmarks.measure import Times, interleave, spread
from benchmarks.training import AFTER, BATCH, BEFORE, CAPTION
from benchmarks.training_sides import begin, picture, reference, settings
from sdxl.models import Models
from tests.training import job
from trainer.loop import Training, training_steps
from trainer.run import exact, load

AFTERWARDS, BEFOREHAND = "after the pivot", "before the pivot (A learns no tokens)"
RATE, SHARE = "after the pivot, arithmetic", "... of the measured product of matrices"
THOUSAND = "1000 steps, half of them before the pivot"
MEMORY = "peak of memory, after the pivot"
GIGA = 1e9


def cells(scale: Scale) -> list[Cell]:
    """The one."""
    lines = [
        Line(AFTERWARDS, "ms", ratio=1.8),
        Line(BEFOREHAND, "ms", ratio=1),
        Line(RATE, "TFLOP/s"),
        Line(SHARE, "%", least=45),
        Line(THOUSAND, "s", most=90),
        Line(MEMORY, "GB", most=27),
    ]
    name = f"training, a step at {scale.training_side} px, batch {BATCH}, rank {scale.rank}"
    return [Cell(name, 60, lines, measure)]


def measure(bench: Bench) -> Mapping[str, Found]:
    """All of it; what predicts gives its memory back first."""
    bench.drop()
    os.environ["SDXL_ENGINE"] = "auto" if bench.device.type == "cuda" else "graph"  # which records its steps
    scale, before = bench.scale, allocated()
    folder = bench.folder / f"training-{next(bench.seeds)}"
    models = _loaded(bench, folder)
    own = allocated() - before
    examples = picture(folder, scale.training_side, CAPTION)
    theirs = reference(models, settings(scale.rank, BATCH, **AFTER), examples)
    theirs.step()
    others = allocated() - own  # A with its optimiser's state, and what lay there before
    found, medians = {}, []
    courses = ((BEFOREHAND, BEFORE, scale.training_rounds // 2 or 1), (AFTERWARDS, AFTER, scale.training_rounds))
    for line, asked, rounds in courses:
        training = begin(models, settings(scale.rank, BATCH, **asked), examples)
        step = _steps(training)
        times = _times(bench, theirs.step, step, rounds)
        a, b = ([1000 * each / scale.training_steps for each in side.wall] for side in times)
        found[line] = Found(median(a), median(b), spread=spread(a))
        medians.append((median(a), median(b)))
        found |= _peak(step, others)
        training.finish()
    a_whole, b_whole = ((before + after) / 2 for before, after in zip(*medians, strict=True))
    return found | {THOUSAND: Found(a_whole, b_whole)} | _rates(bench, *medians[1])


def _loaded(bench: Bench, folder: Path) -> Models:
    """As trainer.run has them."""
    asked = replace(job(folder, max_train_steps=1), files=weights.resolve(str(bench.model)))
    return load(asked)


def _steps(training: Training) -> Callable[[], object]:
    """One of them, as trainer.run takes it on a GPU: reproducible where there is a choice."""
    course = training_steps(training, 0)

    def step() -> object:
        with exact():
            return next(course)

    return step


def _times(bench: Bench, a: Callable[[], object], b: Callable[[], object], rounds: int) -> tuple[Times, Times]:
    """Of some steps at a time: only then is the card waited for."""

    def several(step: Callable[[], object]) -> None:
        for _ in range(bench.scale.training_steps):
            step()
        if bench.device.type == "cuda":
            torch.cuda.synchronize()

    return interleave(lambda: several(a), lambda: several(b), rounds)


def _peak(step: Callable[[], object], others: int) -> dict[str, Found]:
    """B's, without what lies there beside it."""
    if not torch.cuda.is_available():
        return {}
    torch.cuda.reset_peak_memory_stats()
    step()
    return {MEMORY: Found(None, (torch.cuda.max_memory_allocated() - others) / GIGA)}


def _rates(bench: Bench, a: float, b: float) -> dict[str, Found]:
    """Of milliseconds per step."""
    work = bench.scale.training_teraflop
    if work is None:
        return {}
    rates = 1000 * work / a, 1000 * work / b
    found = {RATE: Found(*rates)}
    if ceiling := bench.kept.get("ceiling"):
        found[SHARE] = Found(*(100 * rate / ceiling for rate in rates))
    return found
