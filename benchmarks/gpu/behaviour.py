"""What a user waits for beside pictures, and what must not happen between them."""

import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from torch._dynamo.utils import counters

import weights
from benchmarks.gpu.bench import Bench, allocated, needs_gpu
from benchmarks.gpu.correctness import latents_of, psnr
from benchmarks.gpu.inference import HANDOVER, PICTURE
from benchmarks.gpu.plan import Cell, Found, Line, NotMeasuredError
from benchmarks.gpu.scale import Scale
from benchmarks.gpu.sides import refuses
from benchmarks.gpu.started import ALL, STAGES
from benchmarks.measure import last_json, timed

SWAP, FIRST_USE = "change of LoRA, both used before", "first use of a file"
COMPILED, RECORDED = "graphs compiled for other {}", "CUDA graphs recorded for other {}"
KINDS = ("prompts, seeds, steps, guidance and LoRAs", "sizes")
SYNCS = "waits for the device per step"
MEMORY = "peak, base, refiner and safety checker, the ensemble"
GIGA = 1e9
CHILD_SECONDS = 240
LIKENESS = "likeness to the picture without it, PSNR"


@dataclass(frozen=True)
class Mode:
    """A way to be faster, asked for by these inputs; `likeness` where the picture should be nearly the same."""

    name: str
    inputs: Mapping[str, Any]
    likeness: bool = True


MODES = (
    Mode("guidance in the first half of the steps", {"guidance_end": 0.5}),
    Mode("deep layers in every second step", {"cache_interval": 2}),
    Mode("deep layers in every third step", {"cache_interval": 3}),
    Mode("products in int8", {"quantization": "int8"}),
    Mode("products in fp8", {"quantization": "fp8"}),
    Mode("4 steps of LCM", {"scheduler": "LCM", "num_inference_steps": 4, "guidance_scale": 1.0}, likeness=False),
)


def swap_cell(engine: str) -> Cell:
    """Changes of LoRA."""
    lines = [Line(SWAP, "s", most=0.15), Line(FIRST_USE, "s")]
    return Cell(f"LoRAs that change, engine {engine}", 15, lines, partial(swap, engine))


def swap(engine: str, bench: Bench) -> Mapping[str, Found]:
    """A loads and takes out; B says itself how long a request waits for its weights."""
    b, few = bench.package(engine), bench.scale.few
    first, second = bench.loras[:2]
    b(**bench.asked(steps=few))
    waits = []
    for lora in (first, second, first, second, first):
        b(**bench.asked(steps=few), lora=lora)
        waits.append(float(b.told["tune_seconds"]))
    b(**bench.asked(steps=few))

    def change() -> None:
        bench.reference.attach(second)
        bench.reference.detach()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    first_use, *later = [timed(change)[1] for _ in range(3)]
    return {SWAP: Found(median(later), median(waits[2:])), FIRST_USE: Found(first_use, waits[1])}


def counts_cell(engine: str) -> Cell:
    """What is compiled or recorded anew."""
    lines = [
        Line(COMPILED.format(KINDS[0]), most=0),
        Line(RECORDED.format(KINDS[0]), most=0),
        Line(COMPILED.format(KINDS[1])),
        Line(RECORDED.format(KINDS[1])),
    ]
    return Cell(
        f"compiled and recorded, engine {engine}", 40 if engine == "compile" else 10, lines, partial(counts, engine)
    )


def counts(engine: str, bench: Bench) -> Mapping[str, Found]:
    """After two requests of the same size."""
    b, few = bench.package(engine), bench.scale.few + 2
    for _ in range(2):
        b(**bench.asked(steps=few))
    with recordings() as recorded:
        before = graphs(), len(recorded)
        b(**bench.asked(steps=few + 1))
        b(**bench.asked(steps=few), guidance_scale=4.0)
        for lora in (*bench.loras, None):
            b(**bench.asked(steps=few), lora=lora)
        same = graphs() - before[0], len(recorded) - before[1]
        before = graphs(), len(recorded)
        for size in bench.scale.sizes:
            b(**bench.asked(steps=few, size=size))
        other = graphs() - before[0], len(recorded) - before[1]
    found = {}
    for kind, numbers in zip(KINDS, (same, other), strict=True):
        found[COMPILED.format(kind)] = Found(None, numbers[0])
        if torch.cuda.is_available():
            found[RECORDED.format(kind)] = Found(None, numbers[1])
    return found


def graphs() -> int:
    """All that torch.compile has made so far, recompilations among them."""
    return int(counters["stats"]["unique_graphs"])


@contextmanager
def recordings() -> Iterator[list[int]]:
    """A list that grows with every CUDA graph."""
    found: list[int] = []
    begin: Any = torch.cuda.CUDAGraph.capture_begin

    def counted(self: Any, *args: Any, **kwargs: Any) -> None:
        found.append(1)
        begin(self, *args, **kwargs)

    changed: Any = torch.cuda.CUDAGraph
    changed.capture_begin = counted
    try:
        yield found
    finally:
        changed.capture_begin = begin


def syncs_cell(engine: str) -> Cell:
    """Waits in the loop."""
    return Cell(f"waits, engine {engine}", 10, [Line(SYNCS, most=0)], partial(syncs, engine))


def syncs(engine: str, bench: Bench) -> Mapping[str, Found]:
    """What torch warns of, in a request with some steps more less one with some steps fewer. B lets the card get two
    steps ahead and then waits for an event, which is none of these: the card has work all the time."""
    needs_gpu()
    few = bench.scale.few
    found = []
    for make in (bench.reference, bench.package(engine)):
        short, long = (_waits(lambda n=n, make=make: make(**bench.asked(steps=n))) for n in (few, 3 * few))  # type: ignore[misc]
        found.append((long - short) / (2 * few))
    return {SYNCS: Found(*found)}


def _waits(call: Callable[[], object]) -> int:
    call()
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("called a synchronizing" in str(each.message) for each in heard)


def memory_cell(engine: str) -> Cell:
    """Memory of the card."""
    return Cell(f"memory of the card, engine {engine}", 10, [Line(MEMORY, "GB")], partial(memory, engine))


def memory(engine: str, bench: Bench) -> Mapping[str, Found]:
    """Each side's own: the other's weights, which lie there too, are taken off."""
    needs_gpu()
    b, own = bench.package(engine), bench.kept["reference bytes"]
    peaks = []
    for make, others in ((bench.reference, allocated() - own), (b, own)):
        torch.cuda.reset_peak_memory_stats()
        make(**bench.asked(steps=bench.scale.refined_steps), high_noise_frac=HANDOVER)
        peaks.append((torch.cuda.max_memory_allocated() - others) / GIGA)
    return {MEMORY: Found(*peaks)}


def setup_cell(scale: Scale) -> Cell:
    """A process of its own for each side."""
    lines = [Line(name, "s", most=9 if name == ALL else None) for name in STAGES]
    return Cell("setup, a process of its own, the engine of a user", 60 * (scale.divisor == 1), lines, setup)


def setup(bench: Bench) -> Mapping[str, Found]:
    """From the start of Python; the files are in the page cache."""
    bench.drop()
    model, loras = bench.model, bench.loras
    found = []
    apart = {"SDXL_CACHE": "cache", "TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}
    fresh = {name: str(bench.folder / "fresh" / folder) for name, folder in apart.items()}  # nothing compiled is there
    for side in ("reference", "package"):
        command = [sys.executable, "-m", "benchmarks.gpu.started", side, str(model), bench.scale.name, str(loras[0])]
        run = subprocess.run(
            command,
            cwd=weights.ROOT,
            env=os.environ | fresh,
            capture_output=True,
            text=True,
            check=False,
            timeout=CHILD_SECONDS,
        )
        if run.returncode:
            raise RuntimeError(run.stderr.strip().splitlines()[-1])
        found.append(last_json(run.stdout))
    a, b = found
    return {name: Found(a.get(name), b[name]) for name in STAGES}


def mode_cells(engine: str) -> list[Cell]:
    """Ways to be faster that a user must ask for."""
    cells = []
    for each in MODES:
        lines = [Line(PICTURE, "s", ratio=1), *([Line(LIKENESS, "dB")] if each.likeness else [])]
        cells.append(Cell(f"{each.name}, engine {engine}", 15, lines, partial(mode, engine, each)))
    return cells


def mode(engine: str, asked: Mode, bench: Bench) -> Mapping[str, Found]:
    """B without it as A, B with it as B."""
    for name, value in asked.inputs.items():
        if refuses(name, value):
            raise NotMeasuredError(f"there is no {name}={value}")
    b = bench.package(engine)
    walls: tuple[list[float], list[float]] = ([], [])
    for _ in range(bench.scale.few_rounds + 1):
        walls[0].append(timed(lambda: b(**bench.asked()))[1])
        walls[1].append(timed(lambda: b(**bench.asked(), **asked.inputs))[1])
    found = {PICTURE: Found(*(median(each[1:]) for each in walls))}
    if asked.likeness:
        plain, other = (latents_of(bench, engine, bench.scale.steps, 0, **each) for each in ({}, asked.inputs))
        found[LIKENESS] = Found(None, psnr(bench, other, plain))
    return found
