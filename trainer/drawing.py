"""Pictures by the model itself: class pictures for prior preservation, and samples before and after."""

from collections.abc import Iterator, Sequence

import torch
from PIL import Image

from sdxl.canvas import make_canvas
from sdxl.finetune.tokens import LearnedTokens
from sdxl.generate import generate, plan
from sdxl.models import Models
from sdxl.progress import Progress
from sdxl.request import MicroConditioning, Prompts, Request, Sampling

STEPS, GUIDANCE = 25, 5.0
MICRO = MicroConditioning(None, None, None, None, None, None, 6.0, 2.5)


def draw_pictures(
    models: Models, wanted: Sequence[tuple[str, int]], side: int, learned: LearnedTokens | None = None
) -> Iterator[Image.Image]:
    """A square picture of each (prompt, seed)."""
    requests = [_request(models, prompt, seed, side) for prompt, seed in wanted]
    with torch.inference_mode(), Progress(0) as progress:
        for request in requests:
            yield from generate(models, request, plan(models, request), progress, learned)


def _request(models: Models, prompt: str, seed: int, side: int) -> Request:
    canvas = make_canvas(
        native=models.native,
        image=None,
        mask=None,
        width=side,
        height=side,
        aspect_ratio="custom",
        mask_blur=0,
        mask_padding=None,
    )
    sampling = Sampling("K_EULER", STEPS, GUIDANCE, 0.0, 0.8, "no_refiner", 0.8, None, 0.3)
    return Request(Prompts(prompt, "", None, None, None), canvas, (seed,), sampling, MICRO)
