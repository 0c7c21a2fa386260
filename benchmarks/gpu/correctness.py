"""How far the latents are from those of float32, from the same noise: of A, and of B with each engine."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

import sdxl.generate
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.plan import Cell, Found, Line, NotMeasuredError
from benchmarks.gpu.scale import Scale
from benchmarks.gpu.sides import Reference, TextToImage

PROMPT = "a photo of an astronaut riding a horse"
EXACT, HALF = "float32", "reference"
BITS = "values of the latents that differ between graph and {}"
SAME_BITS = ("eager", "diffusers")  # engines whose bits are those of graph
SECONDS = {"graph": 75, "compile": 5, "eager": 5}  # float32 goes with the first
WORST = 1.25  # times A's distance


def cells(scale: Scale, engines: Sequence[str]) -> list[Cell]:
    """One for each engine; the first of them all makes what all are compared with."""
    found = []
    for engine in engines:
        lines = []
        for steps in _courses(scale):
            lines += [
                Line(_distance(steps), "%", ratio=1 / WORST),
                Line(_psnr(steps), "dB"),
                Line(_psnr_less(steps), "dB", least=-1),
            ]
        measure = partial(distances, engine)
        found.append(Cell(f"distance from float32, engine {engine}", SECONDS[engine], lines, measure))
    return found


def bits_cell() -> Cell:
    """Of engines that do the same arithmetic."""
    return Cell("the same bits", 25, [Line(BITS.format(other), most=0) for other in SAME_BITS], same_bits)


def _courses(scale: Scale) -> tuple[int, int]:
    return scale.short_steps, scale.steps


def _distance(steps: int) -> str:
    return f"latents of {steps} steps, distance from float32's"


def _psnr(steps: int) -> str:
    return f"decoded, {steps} steps, likeness to float32's (PSNR)"


def _psnr_less(steps: int) -> str:
    return f"... of B less A, {steps} steps"


def keep_latents(bench: Bench, engine: str) -> None:
    """B's, of all seeds."""
    for steps in _courses(bench.scale):
        for seed in range(bench.scale.seeds):
            bench.latents[engine, steps, seed] = latents_of(bench, engine, steps, seed)


def latents_of(bench: Bench, engine: str, steps: int, seed: int, **inputs: Any) -> Tensor:
    """Clean latents (1, 4, h, w) of a prediction, float32, on the CPU."""
    side = bench.scale.side
    with _seen() as seen:
        bench.package(engine)(prompt=PROMPT, steps=steps, seed=seed, size=(side, side), **inputs)
    return seen[-1]


@contextmanager
def _seen() -> Iterator[list[Tensor]]:
    """What predictions inside hand to the VAE."""
    decode: Any = sdxl.generate.decode
    found: list[Tensor] = []

    def watched(models: Any, latents: Tensor) -> Any:
        found.append(latents.detach().float().cpu())
        return decode(models, latents)

    sdxl.generate.decode = watched
    try:
        yield found
    finally:
        sdxl.generate.decode = decode


def distances(engine: str, bench: Bench) -> Mapping[str, Found]:
    """Medians over the seeds."""
    if (engine, bench.scale.steps, 0) not in bench.latents:
        raise NotMeasuredError(f"there is no picture of engine {engine}")
    _make_judges(bench)
    found = {}
    for steps in _courses(bench.scale):
        exact = [bench.latents[EXACT, steps, seed] for seed in range(bench.scale.seeds)]
        off, likeness = [], []
        for side in (HALF, engine):
            own = [bench.latents[side, steps, seed] for seed in range(bench.scale.seeds)]
            off.append(median(100 * float((a - b).norm() / b.norm()) for a, b in zip(own, exact, strict=True)))
            likeness.append(median(psnr(bench, a, b) for a, b in zip(own, exact, strict=True)))
        found[_distance(steps)] = Found(*off)
        found[_psnr(steps)] = Found(*likeness)
        found[_psnr_less(steps)] = Found(None, likeness[1] - likeness[0])
    return found


def _make_judges(bench: Bench) -> None:
    """A's latents, and those of A in float32 without TF32, from the noise that B draws."""
    if (EXACT, bench.scale.steps, 0) in bench.latents:
        return
    bench.drop()
    matmul, cudnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        exact = Reference.__new__(Reference)  # its base alone
        exact.device, exact.dtype = bench.device, torch.float32
        loaded = TextToImage.from_pretrained(bench.model / "base", torch_dtype=torch.float32, local_files_only=True)
        exact.text = loaded.to(bench.device)
        exact.text.set_progress_bar_config(disable=True)
        for name, side in ((HALF, bench.reference), (EXACT, exact)):
            for steps in _courses(bench.scale):
                for seed in range(bench.scale.seeds):
                    noise = _noise(bench, seed)
                    bench.latents[name, steps, seed] = side.latents(noise, PROMPT, steps)
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, cudnn


def _noise(bench: Bench, seed: int) -> Tensor:
    """As `sdxl.generate` draws it."""
    side = bench.scale.side // 8
    return torch.randn((1, 4, side, side), generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def psnr(bench: Bench, own: Tensor, other: Tensor) -> float:
    """Of the pictures that A's VAE makes of two latents in float32, in dB; 99 for the same one."""
    vae: Any = bench.reference.text.vae
    dtype = vae.dtype
    vae.to(torch.float32)
    pixels = [
        vae.decode(each.to(bench.device) / vae.config.scaling_factor, return_dict=False)[0].clamp(-1, 1)
        for each in (own, other)
    ]
    vae.to(dtype)
    error = float((pixels[0] - pixels[1]).square().mean())
    return 99.0 if error < 4e-10 else float(10 * torch.tensor(4 / error).log10())


def same_bits(bench: Bench) -> Mapping[str, Found]:
    """A graph is what was recorded, and what was recorded is diffusers' arithmetic."""
    made = {engine: latents_of(bench, engine, bench.scale.few, 0) for engine in ("graph", *SAME_BITS)}
    return {BITS.format(other): Found(None, float((made["graph"] != made[other]).sum())) for other in SAME_BITS}
