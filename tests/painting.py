"""Short ways to ask for pictures in tests, in process: the code behind predict.py, without Cog."""

from typing import Any

import numpy as np
import torch
from PIL import Image

from sdxl.canvas import make_canvas
from sdxl.finetune.tokens import LearnedTokens
from sdxl.generate import generate, plan
from sdxl.models import Models
from sdxl.progress import Progress
from sdxl.request import MicroConditioning, Prompts, Request, Sampling

PROMPT = "a red circle on a blue background"
CANVAS = {"image": None, "mask": None, "width": None, "height": None}
CANVAS_REST: dict[str, Any] = {"aspect_ratio": "custom", "mask_blur": 0, "mask_padding": None}
PROMPTS: dict[str, Any] = {
    "prompt": PROMPT,
    "negative_prompt": "",
    "prompt_2": None,
    "negative_prompt_2": None,
    "clip_skip": None,
}
SAMPLING: dict[str, Any] = {
    "scheduler": "K_EULER",
    "num_inference_steps": 8,
    "guidance_scale": 7.5,
    "guidance_rescale": 0.0,
    "prompt_strength": 0.8,
    "refine": "no_refiner",
    "high_noise_frac": 0.8,
    "refine_steps": None,
    "refine_strength": 0.3,
    "guidance_start": 0.0,
    "guidance_end": 1.0,
    "cache_interval": 1,
    "quantization": "none",
}
MICRO: dict[str, Any] = {
    "original_size": None,
    "target_size": None,
    "crop_top_left": None,
    "negative_original_size": None,
    "negative_target_size": None,
    "negative_crop_top_left": None,
    "aesthetic_score": 6.0,
    "negative_aesthetic_score": 2.5,
}


def make_request(models: Models, seeds: tuple[int, ...] = (3,), **asked: Any) -> Request:
    """A request with predict.py's defaults (but 8 steps), changed by what is asked."""

    def chosen(defaults: dict[str, Any]) -> dict[str, Any]:
        return {name: asked.pop(name, value) for name, value in defaults.items()}

    request = Request(
        prompts=Prompts(**chosen(PROMPTS)),
        canvas=make_canvas(native=models.native, **chosen(CANVAS | CANVAS_REST)),
        seeds=seeds,
        sampling=Sampling(**chosen(SAMPLING)),
        micro=MicroConditioning(**chosen(MICRO)),
    )
    assert not asked, f"unknown: {asked}"
    return request


def pictures(
    models: Models, seeds: tuple[int, ...] = (3,), *, learned: LearnedTokens | None = None, **asked: Any
) -> list[Image.Image]:
    """All pictures of a request."""
    request = make_request(models, seeds, **asked)
    with torch.inference_mode(), Progress(0) as progress:
        return list(generate(models, request, plan(models, request), progress, learned))


def picture(models: Models, seed: int = 3, **asked: Any) -> Image.Image:
    """The picture of a request for one."""
    return pictures(models, (seed,), **asked)[0]


def difference(a: Image.Image, b: Image.Image) -> int:
    """The largest difference of two pictures in levels of 255."""
    assert a.size == b.size
    return int(np.abs(np.asarray(a).astype(int) - np.asarray(b).astype(int)).max())


def likeness(a: Image.Image, b: Image.Image) -> float:
    """PSNR in dB."""
    error = np.mean((np.asarray(a, float) - np.asarray(b, float)) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-9)))
