"""The two sides: this package, and plain diffusers used as its guide and Replicate's cog-sdxl use it."""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor
from transformers import CLIPTokenizer

import weights
from sdxl.denoise import Draw
from sdxl.engine import Engines
from sdxl.generate import encode_text, paint, plan
from sdxl.models import Models, load_models
from sdxl.placement import Placement
from sdxl.progress import Progress
from sdxl.schedulers import SCHEDULERS
from tests.painting import PROMPT, make_request

HALF = torch.float16  # what both sides compute in on a GPU


def load(model: str = "miniature", dtype: torch.dtype = torch.float32) -> Models:
    """The model, on the CPU."""
    return load_models(weights.resolve(model), Placement(torch.device("cpu"), "resident"), dtype)


def instant(unet: Any, device: str = "cpu") -> tuple[Any, list[int], dict[tuple[int, ...], Tensor]]:
    """The UNet with all of its surface and none of its work, the batch size of every call that it got, its answers.

    It asks for contiguous latents, as the real one's first convolution does, so that a view handed to it is paid for.
    """
    calls: list[int] = []
    stand_in = copy.copy(unet)
    made: dict[tuple[int, ...], Tensor] = {}

    def forward(sample: Tensor, *_: Any, **__: Any) -> tuple[Tensor]:
        calls.append(sample.shape[0])
        sample.contiguous()
        shape = tuple(sample.shape)
        if shape not in made:
            made[shape] = (torch.randn(shape) * 0.1).to(torch.device(device), HALF)
        return (made[shape],)

    stand_in.forward = forward
    return stand_in, calls, made


class Sides:
    """Both sides' loops around the same instant UNet, with the same embeddings, from the same kind of noise."""

    def __init__(self, models: Models, device: str = "cpu") -> None:
        base, self.calls, self.answers = instant(models.base, device)
        self.device = torch.device(device)
        placement = Placement(self.device, "resident")
        self.models = replace(models, base=base, placement=placement, engines=Engines(placement, "diffusers"))
        with torch.inference_mode():
            embeds = encode_text(models, make_request(models))
            halves = {name: value.to(HALF) for name, value in vars(embeds).items()}
            self.embeds = replace(embeds, **{name: value.to(self.device) for name, value in halves.items()})

    @cached_property
    def pipe(self) -> Any:
        """The reference around the same modules."""
        return pipeline(self.models)

    def draw(self) -> Tensor:
        """Fresh noise of the miniature's own size, as sdxl.generate draws it."""
        side = self.models.native // self.models.vae_scale_factor
        return torch.randn(1, 4, side, side).to(self.device, non_blocking=True)

    def a(self, scheduler: str, steps: int) -> None:
        """The reference: a scheduler made for this request, then the pipeline's own loop."""
        self.pipe.scheduler = SCHEDULERS[scheduler].scheduler(self.models.scheduler_config)
        self.pipe(**vars(self.embeds), latents=self.draw().to(HALF), num_inference_steps=steps, output_type="latent")

    def b(self, scheduler: str, steps: int, draw: Draw | None = None) -> None:
        """This package: plan and paint."""
        request = make_request(self.models, scheduler=scheduler, num_inference_steps=steps)
        passes = plan(self.models, request)
        with torch.inference_mode(), Progress(0) as progress:
            paint(self.models, request, passes, self.embeds, None, draw or self.draw, progress)


def pipeline(models: Models, **options: Any) -> Any:
    """The diffusers pipeline around the modules of `models`, with the miniature's tokenizers."""
    make: Any = StableDiffusionXLPipeline
    folder = weights.MINIATURE / "base"
    pipe = make(
        vae=models.vae,
        text_encoder=models.text.text_encoder,
        text_encoder_2=models.text.text_encoder_2,
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        tokenizer_2=CLIPTokenizer.from_pretrained(folder / "tokenizer_2"),
        unet=models.base,
        scheduler=SCHEDULERS["K_EULER"].scheduler(models.scheduler_config),
        **({"add_watermarker": False} | options),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def counted(module: torch.nn.Module) -> tuple[list[int], Callable[[], None]]:
    """A list that grows with every forward pass of a module, and what stops that."""
    calls: list[int] = []
    handle = module.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls, handle.remove


__all__ = ["HALF", "PROMPT", "Sides", "counted", "instant", "load", "pipeline"]
