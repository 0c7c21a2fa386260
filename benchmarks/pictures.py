"""Whole predictions: from the inputs to files, the miniature, as many steps on both sides."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from transformers import CLIPImageProcessorPil

import weights
from benchmarks.measure import Effort, Row, interleave, timing_row
from benchmarks.stand_ins import pipeline
from predict import Predictor
from sdxl.models import Models
from sdxl.schedulers import SCHEDULERS
from tests.predicting import predict

GROUP = "whole prediction, CPU time"


def rows(effort: Effort) -> list[Row]:
    """One picture and four, each time of another prompt, so that nothing is remembered."""
    predictor = started()
    with TemporaryDirectory() as folder, quiet():
        reference = Reference(predictor.painter.models, Path(folder))
        return [_row(predictor, reference, number, effort) for number in (1, 4)]


def _row(predictor: Predictor, reference: "Reference", pictures: int, effort: Effort) -> Row:
    fresh = count()
    steps = effort.picture_steps

    unchecked = predictor.painter.models.safety is None

    def asked() -> dict[str, Any]:
        prompt = f"a red circle on a blue background, number {next(fresh)} of {pictures}"
        return {"prompt": prompt, "num_inference_steps": steps, "num_outputs": pictures, "seed": 3}

    a, b = interleave(
        lambda: reference(**asked()),
        lambda: predict(predictor, disable_safety_checker=unchecked, **asked()),
        effort.rounds,
    )
    side = predictor.painter.models.native
    name = f"{pictures} picture{'s' if pictures > 1 else ''}, {side}x{side}, {steps} steps"
    return timing_row(GROUP, name, a.cpu, b.cpu, most_ratio=1)


def started() -> Predictor:
    """Our predictor with the miniature."""
    os.environ["SDXL_MODEL"] = "miniature"
    predictor = Predictor()
    predictor.setup()
    return predictor


@contextmanager
def quiet() -> Iterator[None]:
    """Without the predictor's log."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield


class Reference:
    """The flow of cog-sdxl: a scheduler per request, the pipeline with its watermark, the safety checker, PNG."""

    def __init__(self, models: Models, folder: Path) -> None:
        self.models, self.folder = models, folder
        self.pipe = pipeline(models, add_watermarker=True)
        checker = weights.resolve("miniature").safety_checker
        self.checker: Any = checker and StableDiffusionSafetyChecker.from_pretrained(checker, dtype=torch.float32)
        self.processor: Any = checker and CLIPImageProcessorPil.from_pretrained(checker)

    def __call__(self, *, prompt: str, num_inference_steps: int, num_outputs: int, seed: int) -> None:
        """Write out-0.png, ..."""
        self.pipe.scheduler = SCHEDULERS["K_EULER"].scheduler(self.models.scheduler_config)
        images = self.pipe(
            prompt=[prompt] * num_outputs,
            negative_prompt=[""] * num_outputs,
            width=self.models.native,
            height=self.models.native,
            guidance_scale=7.5,
            generator=torch.Generator().manual_seed(seed),
            num_inference_steps=num_inference_steps,
        ).images
        if self.checker:
            prepared = self.processor(images=images, return_tensors="pt")
            self.checker(clip_input=prepared["pixel_values"], images=[np.array(image) for image in images])
        for number, image in enumerate(images):
            image.save(self.folder / f"out-{number}.png")
