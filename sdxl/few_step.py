"""Few-step models: how weights that were distilled to draw in 1 to 12 steps are told, and what they want.

The table is the model cards' own advice. A name counts only as their authors write it, words whole and with the number
of steps where they state one: "Lightning McQueen", "hyperrealism" and "turbocharger" are ordinary LoRAs.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from errors import InputError, WeightsError
from sdxl.schedule import LAST_TIMESTEP

KINDS = ("lcm", "lightning", "hyper", "tcd", "turbo")
CHOICES = ("auto", "off", *KINDS)


@dataclass(frozen=True)
class Recipe:
    """What distilled weights want, by the names of `sdxl.request.Sampling`; `refusal`: why they cannot be used."""

    kind: str
    title: str
    scheduler: str
    num_inference_steps: int
    guidance_scale: float
    first_timestep: int | None = None
    refusal: str = ""


LCM = Recipe("lcm", "LCM", "LCM", 4, 1.0)
LIGHTNING = Recipe("lightning", "SDXL-Lightning", "K_EULER", 4, 0.0, LAST_TIMESTEP)
HYPER = Recipe("hyper", "Hyper-SD", "DDIM", 8, 0.0, LAST_TIMESTEP)
TCD = Recipe("tcd", "TCD", "TCD", 4, 0.0)
TURBO = Recipe("turbo", "SDXL-Turbo", "K_EULER_ANCESTRAL", 1, 0.0, LAST_TIMESTEP)
DMD2 = Recipe("lcm", "DMD2", "LCM", 4, 0.0, LAST_TIMESTEP)

OF_KIND = {recipe.kind: recipe for recipe in (LCM, LIGHTNING, HYPER, TCD, TURBO)}
PREDICTS_CLEAN = "SDXL-Lightning in one step predicts the picture and not the noise; use its 2, 4 or 8 step weights."
STEPS = r"(?P<steps>\d+) ?steps?"
ONE_STEP = r"1 ?steps?"
# The name of a file or repository, in small letters with a space for all that is neither letter nor digit. First fits.
NAMES: tuple[tuple[str, Recipe], ...] = (
    (rf"hyper sdxl {ONE_STEP} unet", replace(HYPER, scheduler="LCM", num_inference_steps=1, first_timestep=800)),
    (rf"hyper sdxl {ONE_STEP}", replace(HYPER, scheduler="TCD", num_inference_steps=1, first_timestep=None)),
    (rf"hyper sdxl {STEPS} cfg", replace(HYPER, guidance_scale=5.0)),
    (rf"hyper sdxl {STEPS}", HYPER),
    (rf"(sd)?xl lightning {ONE_STEP}", replace(LIGHTNING, num_inference_steps=1, refusal=PREDICTS_CLEAN)),
    (rf"(sd)?xl lightning {STEPS}", LIGHTNING),
    (rf"dmd2 (sd)?xl {ONE_STEP}", replace(DMD2, num_inference_steps=1, first_timestep=399)),
    (rf"dmd2( (sd)?xl)? {STEPS}", DMD2),
    (r"dmd2", DMD2),
    (r"lcm lora|lora lcm|lcm (sd)?xl|(sd)?xl lcm", LCM),
    (r"tcd lora|tcd (sd)?xl|(sd)?xl tcd", TCD),
    (r"sd ?xl turbo( \d.*| lora.*| fp16.*| unet.*)?$", TURBO),
)
# The scheduler that a model's folder was saved with
SAVED: Mapping[str, Mapping[str, Any]] = {
    "lcm": {"_class_name": "LCMScheduler"},
    "tcd": {"_class_name": "TCDScheduler"},
    "turbo": {"_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "trailing"},
}
HEADER = ("ss_output_name", "modelspec.title")  # what trainers call a file in its own header


def named(*texts: str) -> Recipe | None:
    """By what weights are called: files, their headers, addresses. The first that says something counts."""
    for part in (part for text in texts for part in reversed(re.split(r"[/?#&=]", text))):
        words = " ".join(re.findall(r"[a-z0-9]+", part.removesuffix(".safetensors").lower()))
        for pattern, recipe in NAMES:
            if match := re.search(rf"\b(?:{pattern})\b", words):
                steps = match.groupdict().get("steps")
                return replace(recipe, num_inference_steps=int(steps)) if steps else recipe
    return None


def of_model(name: str, scheduler_config: Mapping[str, Any]) -> Recipe | None:
    """Of a whole model, by its name or the scheduler that it was saved with."""
    config = dict(scheduler_config)
    kinds = (kind for kind, marks in SAVED.items() if marks.items() <= config.items())
    return named(name) or next((OF_KIND[kind] for kind in kinds), None)


def chosen(asked: str, found: Iterable[Recipe | None]) -> Recipe | None:
    """What the input `few_step` means for weights with these recipes. InputError for one that cannot be used."""
    known = [recipe for recipe in found if recipe is not None and asked in ("auto", recipe.kind)]
    recipe = next(iter(known), OF_KIND.get(asked))
    if recipe is not None and recipe.refusal:
        raise InputError(recipe.refusal)
    return recipe


GUIDANCE = "time_embedding.cond_proj.weight"  # (C, E): a UNet that was told the guidance scale, and needs none since
BUILT_IN = 8.0  # the scale of its authors' examples


def reads_guidance(tensors: Iterable[str]) -> bool:
    """Whether a file is a whole UNet of an LCM, which embeds the guidance scale beside the timestep."""
    return any(name.endswith(GUIDANCE) for name in tensors)


def with_guidance_built_in(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same UNet for one guidance scale, without the embedding of it.

    The embedding is added to the timestep's before the first linear layer: for one scale that is a change of its bias.
    """
    state = dict(tensors)
    name = next(name for name in state if name.endswith(GUIDANCE))
    layer = name.removesuffix("cond_proj.weight") + "linear_1"
    if f"{layer}.weight" not in state or f"{layer}.bias" not in state:
        raise WeightsError(f"it has {name!r} but no {layer!r}; the file is incomplete, download it again.")
    told = state.pop(name).float()
    shift = state[f"{layer}.weight"].float() @ told @ _embedded(BUILT_IN - 1, told.shape[1])
    state[f"{layer}.bias"] = state[f"{layer}.bias"].float() + shift
    return state


def _embedded(scale: float, width: int) -> Tensor:
    """(width,): sines, then cosines, as diffusers' `get_guidance_scale_embedding`."""
    half = width // 2
    angles = 1000 * scale * torch.exp(torch.arange(half) * -(math.log(10000.0) / (half - 1)))
    return torch.cat([angles.sin(), angles.cos(), angles.new_zeros(width % 2)])
