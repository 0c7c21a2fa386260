"""What calls the UNet (sdxl.engine) against diffusers' own forward, and what the opt-in fast modes save and cost."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch._dynamo.utils import counters

from benchmarks import wide_model
from benchmarks.measure import TINY, Effort, Row, interleave, timing_row
from benchmarks.stand_ins import load
from miniature.adherence import fresh_scenes, verdict
from miniature.oracle import read
from miniature.world import caption
from sdxl.engine import Call, Conditioning, Engines
from sdxl.models import Models
from sdxl.placement import Placement
from tests.painting import picture

GROUP = "engine"
CPU = torch.device("cpu")
FAST: dict[str, dict[str, Any]] = {
    "guidance_end 0.5": {"guidance_end": 0.5},
    "guidance_end 0.25": {"guidance_end": 0.25},
    "cache_interval 2": {"cache_interval": 2},
    "cache_interval 3": {"cache_interval": 3},
    "guidance_end 0.5, cache_interval 2": {"guidance_end": 0.5, "cache_interval": 2},
    "int8": {"quantization": "int8"},
    "fp8": {"quantization": "fp8"},
}
CHANGES: tuple[dict[str, Any], ...] = (
    {"prompt": "a green star"},
    {"seed": 9},
    {"num_inference_steps": 3},
    {"guidance_scale": 3.0},
    {"guidance_scale": 1.0},
    {"width": 192, "height": 136},
)


def rows(effort: Effort) -> list[Row]:
    """On the miniature; the time of a call on SDXL's topology, where what counts is the host's work."""
    models = load()
    table = [*pixels(models), *call_times(effort), *fast_modes(models, effort)]
    return [*table, *graphs(models)] if effort.rounds > 1 else table  # the tests compile in tests/test_compiled.py


def by(models: Models, engine: str) -> Models:
    """The same model, called otherwise."""
    return replace(models, engines=Engines(models.placement, engine))


def pixels(models: Models) -> list[Row]:
    """All default optimisations on against all off."""
    found = []
    for name in ("eager", "graph"):
        asked: dict[str, Any] = {"refine": "expert_ensemble_refiner"}
        a, b = (np.asarray(picture(by(models, engine), **asked)) for engine in ("diffusers", name))
        count = int((a != b).any(axis=2).sum())
        row = Row(
            GROUP, f"pixels that differ from diffusers' UNets, {name}", f"of {a.shape[0] * a.shape[1]}", None, count
        )
        found.append(replace(row, most=0, exact=True))
    return found


def call_times(effort: Effort) -> list[Row]:
    """CPU time of a call with guidance."""
    torch.manual_seed(0)
    unet = wide_model.started("unet", TINY.divisor)
    config: Any = unet.config
    pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    told = Conditioning(torch.randn(2, 77, config.cross_attention_dim), torch.randn(2, pooled), torch.zeros(2, 6))
    latents, when = torch.randn(2, 4, 8, 8), torch.tensor(500.0)
    placement = Placement(CPU, "resident")
    theirs, ours = (Engines(placement, name).of(unet).begin(told) for name in ("diffusers", "eager"))

    def timed(b: Call, reuse: bool) -> tuple[list[float], list[float]]:
        calls: list[Callable[[], object]] = [partial(theirs, latents, when), partial(b, latents, when, reuse=reuse)]
        with torch.inference_mode():
            a_times, b_times = interleave(calls[0], calls[1], effort.rounds)
        return a_times.cpu, b_times.cpu

    name = "a call of SDXL's topology at 1/32 of its width, CPU time"
    whole, shallow = timed(ours, False), timed(ours, True)
    return [
        timing_row(GROUP, name, *whole, most_ratio=1),
        timing_row(GROUP, f"{name}, deep layers remembered", *shallow, most_ratio=0.5),
    ]


def fast_modes(models: Models, effort: Effort) -> list[Row]:
    """Against the same picture without: CPU time, likeness (PSNR), and how many show what was asked for."""
    count, steps = (24, 20) if effort.rounds > 1 else (2, 6)
    scenes = fresh_scenes("plain", count, seed=11)
    base: dict[str, Any] = {"num_inference_steps": steps}
    asked = [base | {"prompt": caption(scene), "seed": 100 + at} for at, scene in enumerate(scenes)]
    plain = [picture(models, **each) for each in asked]

    def right(made: list[Any]) -> int:
        return sum(verdict(scene, read(image))["all"] for scene, image in zip(scenes, made, strict=True))

    table = []
    for name, extra in FAST.items():
        made = [picture(models, **each, **extra) for each in asked]
        errors = [np.mean((np.asarray(a, float) - np.asarray(b, float)) ** 2) for a, b in zip(plain, made, strict=True)]
        times = interleave(
            partial(picture, models, **asked[0]), partial(picture, models, **asked[0], **extra), effort.rounds
        )
        table += [
            timing_row(GROUP, f"a picture, {name}, CPU time", times[0].cpu, times[1].cpu),
            Row(GROUP, f"likeness, {name}", "dB", None, float(10 * np.log10(255**2 / np.mean(errors)))),
            Row(GROUP, f"right pictures, {name}", f"of {count}", right(plain), right(made)),
        ]
    return table


def graphs(models: Models) -> list[Row]:
    """What the compiler makes, by the real compiler, and makes anew when requests change."""
    with TemporaryDirectory() as name:
        engines = Engines(models.placement, "compile", Path(name))
        own = replace(load(), engines=engines)
        before = int(counters["stats"]["unique_graphs"])
        picture(own)
        first = int(counters["stats"]["unique_graphs"]) - before
        for asked in CHANGES:
            picture(own, **asked)
        more = int(counters["stats"]["unique_graphs"]) - before - first
    return [
        Row(GROUP, "graphs that are compiled for a UNet", "", None, first, most=2, exact=True),
        Row(
            GROUP,
            "graphs more for another prompt, seed, number of steps, guidance, size",
            "",
            None,
            more,
            most=0,
            exact=True,
        ),
    ]
