"""Trains the miniature from nothing: `python -m miniature.train [stage ...] [--minutes N] [--work DIR]`.

Without stage names every stage runs whose result is not yet in the work folder; named stages always run.
Each process uses one thread: on a busy machine more threads wait for each other.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from diffusers.utils.logging import disable_progress_bar
from transformers.utils import logging as transformers_logging

from miniature.captioner import FIRST, POLISH, train_captioner
from miniature.latents import PLANS, SHARD, encode_latents
from miniature.loop import Budget
from miniature.pack import WEIGHTS, pack
from miniature.safety import train_safety
from miniature.segmenter import train_segmenter
from miniature.text import train_text
from miniature.unet import BASE, BASE_POLISH, REFINER, REFINER_POLISH, train_unet
from miniature.upscaler import train_upscaler
from miniature.vae import train_decoder, train_vae


@dataclass(frozen=True)
class Stage:
    """One step of the recipe: its name, what it leaves in the work folder, its minutes and its function."""

    name: str
    result: str
    minutes: float
    run: Callable[[Path, Budget], None]


def _encode(work: Path, budget: Budget) -> None:
    encode_latents(work, PLANS, budget.amount(SHARD))


STAGES = (
    Stage("vae", "vae", 13, train_vae),
    Stage("text", "text_encoder_2", 4.5, train_text),
    Stage("latents", f"latents/{PLANS[-1].name}", 0, _encode),
    Stage("base", "base", 42, partial(train_unet, recipe=BASE)),
    Stage("refiner", "refiner", 35, partial(train_unet, recipe=REFINER)),
    Stage("base-polish", "base-polished", 26.5, partial(train_unet, recipe=BASE_POLISH)),
    Stage("refiner-polish", "refiner-polished", 18, partial(train_unet, recipe=REFINER_POLISH)),
    Stage("decoder", "vae-polished", 10, train_decoder),
    Stage("safety", "safety_checker", 4.5, train_safety),
    Stage("captioner", FIRST.result, 11, partial(train_captioner, phase=FIRST)),
    Stage("captioner-polish", POLISH.result, 8, partial(train_captioner, phase=POLISH)),
    Stage("segmenter", "segmenter", 11, train_segmenter),
    Stage("upscaler", "upscaler", 4, train_upscaler),
)

PACK = "pack"


def missing(work: Path) -> list[str]:
    """The stages without a result in the work folder, and packing."""
    return [*(stage.name for stage in STAGES if not (work / stage.result).exists()), PACK]


def run_stages(names: list[str], work: Path, weights: Path, *, scale: float, steps: int | None) -> None:
    """Runs the named stages in the table's order; `scale` stretches their minutes, `steps` replaces them."""
    work.mkdir(parents=True, exist_ok=True)
    for stage in STAGES:
        if stage.name in names:
            stage.run(work, Budget(stage.minutes * scale, steps))
    if PACK in names:
        pack(work, weights)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m miniature.train", description=__doc__)
    names = [*(stage.name for stage in STAGES), PACK]
    parser.add_argument("stages", nargs="*", metavar="stage", help=f"any of {', '.join(names)}")
    parser.add_argument("--work", type=Path, default=Path("build/miniature"), help="folder of unfinished parts")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="where the finished folders go")
    parser.add_argument("--minutes", type=float, help="total minutes of training, shared in the table's proportions")
    parser.add_argument("--steps", type=int, help="optimizer steps per stage instead of minutes, to try the code")
    options = parser.parse_args(arguments)
    if unknown := set(options.stages) - set(names):
        parser.error(f"no stage is called {min(unknown)!r}; there are {', '.join(names)}")
    torch.set_num_threads(1)
    disable_progress_bar()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    total = sum(stage.minutes for stage in STAGES)
    scale = (options.minutes or total) / total
    chosen = options.stages or missing(options.work)
    run_stages(chosen, options.work, options.weights, scale=scale, steps=options.steps)


if __name__ == "__main__":
    main()
