"""The loaded model and what a prediction does with it; predict.py imports it while the weights are on their way."""

import gc
import os
import pathlib
import time
from collections.abc import Callable
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import torch
from cog import Path
from PIL import Image

from errors import InputError
from fetch.sources import Tokens
from sdxl.canvas import make_canvas
from sdxl.engine import Engines
from sdxl.files import ModelFiles
from sdxl.generate import generate, memory_named, plan
from sdxl.models import load_models
from sdxl.output import OutputFolders, finish_images
from sdxl.picture import open_image
from sdxl.placement import placement_from
from sdxl.progress import Progress
from sdxl.request import MicroConditioning, Prompts, Request, Sampling, choose_seeds, parse_micro
from sdxl.safety import required
from sdxl.schedulers import SCHEDULERS
from sdxl.stages import Stages
from sdxl.workers import Workers
from tuning import FineTunes, wished
from weights import cache_root

# These stay out of the files
UNSAID = {"image", "mask", "seed", "embed_parameters", "disable_safety_checker"}
UNSAID |= {"replicate_weights", "lora_weights", "lora_scale", "lora_scales"}  # Tuning.said has them, without secrets
UNSAID |= {"hf_api_token", "civitai_api_token", "replicate_api_token"}


class Painter:
    """A model, loaded once; a prediction leaves nothing behind that a later one could notice."""

    def __init__(self, files: ModelFiles, boot: str, stages: Stages) -> None:
        """Load it to where it works. `boot` is the source of a fine-tune for requests that name none, or empty."""
        with stages.timed("weights"):
            placement, dtype = placement_from(os.environ)
            engines = Engines.chosen(os.environ, placement, cache_root() / "compiled")
            defer = os.environ.get("SDXL_DEFER_REFINER") == "1"
            self.models = load_models(files, placement, dtype, defer_refiner=defer, engines=engines)
        with stages.timed("engines"):
            engines.prepare(self.models.base, None if defer else self.models.refiner)
        self.writers = Workers(min(4, os.cpu_count() or 1), "writer")  # each that uses the GPU keeps some of its memory
        self.outputs = OutputFolders(self.writers)
        with stages.timed("fine-tunes"):
            self.fine_tunes = FineTunes(self.models, boot, os.environ.get("SDXL_MODEL", ""))
        Image.preinit()  # it and schedulers import more at their first use, where a cancel may come
        for each in SCHEDULERS.values():
            each.scheduler(self.models.scheduler_config)
        gc.collect()
        gc.freeze()  # what is loaded stays: each later collection would walk 400,000 objects of it for nothing

    @torch.inference_mode()
    def draw(self, asked: SimpleNamespace, record: Callable[[str, float], object]) -> list[pathlib.Path]:
        """A prediction, step by step: lay out, check, plan, tune, generate, check for safety, mark and write."""
        canvas = make_canvas(
            native=self.models.native,
            image=_received("image", asked.image),
            mask=_received("mask", asked.mask),
            width=asked.width,
            height=asked.height,
            aspect_ratio=asked.aspect_ratio,
            mask_blur=asked.mask_blur,
            mask_padding=asked.mask_padding,
        )
        request = Request(
            prompts=Prompts(**_named(Prompts, asked)),
            canvas=canvas,
            seeds=choose_seeds(asked.seed, asked.num_outputs),
            sampling=Sampling(**_named(Sampling, asked)),
            micro=MicroConditioning(**parse_micro(_named(MicroConditioning, asked))),
        )
        plan(self.models, request)  # refuses what cannot be done before anything is fetched
        safety = None if asked.disable_safety_checker else required(self.models.safety)
        wishes = wished(asked)
        print(f"Using seed: {', '.join(map(str, request.seeds))}")
        started = time.perf_counter()
        with memory_named("these weights", "ask for fewer or smaller ones"):
            tuning = self.fine_tunes.use(
                wishes,
                _tokens(asked),
                boot_scale=asked.lora_scale,
                token_pooling=asked.token_pooling,
                few_step=asked.few_step,
            )
        request = tuning.fitted(request)
        passes = plan(self.models, request)
        for line in tuning.lines(request):
            print(line)
        record("tune_seconds", round(time.perf_counter() - started, 4))
        done = {**vars(asked), **vars(request.sampling)}
        said = {name: value for name, value in done.items() if name not in UNSAID and value is not None}
        steps = len(request.seeds) * sum(len(each.schedule.steps) for each in passes)
        size = f"{canvas.width}x{canvas.height} pixels"
        with memory_named(size, "ask for a smaller picture"), Progress(steps) as progress, progress.rest("write"):
            images = generate(self.models, request, passes, progress, tuning.learned)
            marks = ({**said, **tuning.said(), "seed": seed} for seed in request.seeds)
            paths = finish_images(
                zip(images, marks, strict=True),
                self.outputs.fresh(),
                self.writers,
                safety=safety,
                watermark=asked.apply_watermark,
                output_format=asked.output_format,
                quality=asked.output_quality,
                embed_parameters=asked.embed_parameters,
                watermark_only=canvas.blend,
            )
        for stage, seconds in progress.seconds.items():
            record(f"{stage}_seconds", round(seconds, 4))
        return paths


def _named(kind: type, asked: SimpleNamespace) -> dict[str, Any]:
    """The inputs that a dataclass has fields for."""
    return {field.name: getattr(asked, field.name) for field in fields(kind) if hasattr(asked, field.name)}


def _tokens(asked: SimpleNamespace) -> Tokens:
    """Who asks for weights; unwrapped here and nowhere else."""
    given = (asked.hf_api_token, asked.civitai_api_token, asked.replicate_api_token)
    huggingface, civitai, replicate = (secret.get_secret_value() if secret else None for secret in given)
    return Tokens(huggingface=huggingface, civitai=civitai, replicate=replicate)


def _received(name: str, path: Path | None) -> Image.Image | None:
    """The picture that coglet has put into a file; a value that is no upload and no URL it passes on as a string."""
    if path is None:
        return None
    if not isinstance(path, Path):
        raise InputError(f"{name}: {str(path)[:80]!r} is no picture; send an http(s) URL or a data: URL.")
    return open_image(path, name)
