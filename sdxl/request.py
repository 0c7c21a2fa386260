"""What one prediction is asked to do, checked before anything is computed."""

import math
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from errors import InputError
from sdxl import few_step
from sdxl.canvas import Canvas
from sdxl.eight_bit import QUANTIZATIONS
from sdxl.few_step import Recipe
from sdxl.schedule import LAST_TIMESTEP
from sdxl.schedulers import SCHEDULERS

MAX_SEED = 2**63 - 1  # what a seed can be in JSON clients and in torch alike
MAX_STEPS = 999  # a schedule has at most this many steps of the 1000 it was trained on
SHARES = (
    "guidance_rescale",
    "guidance_start",
    "guidance_end",
    "prompt_strength",
    "high_noise_frac",
    "refine_strength",
)
REFINE = ("no_refiner", "expert_ensemble_refiner", "base_image_refiner")

# What a recipe sets, where it has the value of the signature, so that nobody has asked for another
DEFAULTS = {"scheduler": "K_EULER", "num_inference_steps": 50, "guidance_scale": 7.5}

Pair = tuple[int, int]


@dataclass(frozen=True)
class Prompts:
    """The texts; `prompt_2` and `negative_prompt_2` are what the second text encoder reads instead, if given."""

    prompt: str
    negative_prompt: str
    prompt_2: str | None
    negative_prompt_2: str | None
    clip_skip: int | None  # text encoder layers left out before the last, 0 or more


@dataclass(frozen=True)
class MicroConditioning:
    """SDXL's conditioning on how a picture came to be: sizes and crop in pixels, (height, width) and (top, left);
    section 2.2 of arXiv 2307.01952. None: the size of the picture, no crop; for the negatives: as the positives.
    """

    original_size: Pair | None
    target_size: Pair | None
    crop_top_left: Pair | None
    negative_original_size: Pair | None
    negative_target_size: Pair | None
    negative_crop_top_left: Pair | None
    aesthetic_score: float
    negative_aesthetic_score: float


@dataclass(frozen=True)
class Sampling:
    """How the noise is taken away."""

    scheduler: str
    num_inference_steps: int
    guidance_scale: float
    guidance_rescale: float
    prompt_strength: float
    refine: str
    high_noise_frac: float
    refine_steps: int | None
    refine_strength: float
    guidance_start: float = 0.0  # shares of the steps between which guidance works
    guidance_end: float = 1.0
    cache_interval: int = 1  # calls of a UNet per one of its deep layers
    quantization: str = "none"
    few_step: str = "auto"
    first_timestep: int | None = None  # where the steps begin, evenly; None: as the checkpoint's config says

    def __post_init__(self) -> None:
        _one_of("scheduler", self.scheduler, tuple(SCHEDULERS))
        _one_of("refine", self.refine, REFINE)
        _between("num_inference_steps", self.num_inference_steps, 1, 500)
        _between("guidance_scale", self.guidance_scale, 0, 50)
        _one_of("quantization", self.quantization, QUANTIZATIONS)
        _between("cache_interval", self.cache_interval, 1, 10)
        _one_of("few_step", self.few_step, few_step.CHOICES)
        if self.few_step in few_step.KINDS and self.refine != "no_refiner":
            raise InputError(
                f"refine={self.refine!r} does not go with few-step weights ({self.few_step}): the refiner needs many "
                "steps; choose refine=no_refiner, or few_step=off."
            )
        for name in SHARES:
            _between(name, getattr(self, name), 0, 1)
        if self.guidance_start > self.guidance_end:
            raise InputError(
                f"guidance_start={self.guidance_start} is after guidance_end={self.guidance_end}; exchange them."
            )
        if self.refine_steps is not None:
            _between("refine_steps", self.refine_steps, 1, 500)
        if self.refine == "base_image_refiner":
            self.second_pass()

    def fitted(self, recipe: Recipe | None) -> "Sampling":
        """As few-step weights want it, but for what was asked for."""
        if recipe is None:
            return self
        left = {name: getattr(recipe, name) for name, value in DEFAULTS.items() if getattr(self, name) == value}
        return replace(self, few_step=recipe.kind, first_timestep=recipe.first_timestep, **left)

    def said(self) -> str:
        """For the logs."""
        spaced = {None: "", LAST_TIMESTEP: " trailing"}.get(self.first_timestep, f" from {self.first_timestep}")
        steps = f"{self.num_inference_steps} step{'s' if self.num_inference_steps > 1 else ''}"
        return f"{steps}, {self.scheduler}{spaced}, guidance {self.guidance_scale:g}"

    def begin(self) -> int:
        """How many steps image-to-image leaves out: prompt_strength 1 none, 0 all, above 0 never all."""
        return self.num_inference_steps - _share(self.num_inference_steps, self.prompt_strength)

    def second_pass(self) -> tuple[int, int]:
        """base_image_refiner's (steps of the whole schedule, steps left out at its start)."""
        if self.refine_steps is None or self.refine_strength == 0:
            total = self.num_inference_steps
            return total, total - _share(total, self.refine_strength)
        total = math.ceil(round(self.refine_steps / self.refine_strength, 6))
        if total > MAX_STEPS:
            most = int(MAX_STEPS * self.refine_strength)
            raise InputError(
                f"refine_steps={self.refine_steps} at refine_strength={self.refine_strength} needs a schedule of "
                f"{total} steps and there are {MAX_STEPS}; ask for at most {most} refine_steps or a higher strength."
            )
        return total, total - self.refine_steps


def _share(steps: int, strength: float) -> int:
    """diffusers' int(steps * strength), but at least one step for any strength above 0."""
    return min(steps, max(1, int(steps * strength))) if strength > 0 else 0


@dataclass(frozen=True)
class Request:
    """A whole prediction: one picture for every seed."""

    prompts: Prompts
    canvas: Canvas
    seeds: tuple[int, ...]
    sampling: Sampling
    micro: MicroConditioning

    def __post_init__(self) -> None:
        if not self.prompts.prompt.strip() and not (self.prompts.prompt_2 or "").strip() and self.canvas.image is None:
            raise InputError("prompt is empty; say what the picture should show.")
        for seed in self.seeds:
            _between("seed", seed, 0, MAX_SEED)


def choose_seeds(seed: int | None, count: int) -> tuple[int, ...]:
    """One seed per picture, counted up from `seed`; blank: from a random one that every client can send back."""
    first = secrets.randbelow(2**31) if seed is None else seed
    return tuple(range(first, first + count))


def parse_micro(written: Mapping[str, Any]) -> dict[str, Any]:
    """MicroConditioning's fields as people write them: sizes as "WIDTHxHEIGHT", corners as "TOP,LEFT"."""
    found = dict(written)
    for name, text in written.items():
        if text is not None and name.endswith("size"):
            width, height = _pair(name, text, "x")
            found[name] = (height, width)
        elif text is not None and name.endswith("left"):
            found[name] = _pair(name, text, ",")
    return found


def _pair(name: str, text: str, separator: str) -> Pair:
    if not re.fullmatch(rf"[0-9]{{1,4}}{separator}[0-9]{{1,4}}", text):
        raise InputError(f"{name}={text!r} is not two numbers such as '1024{separator}1024'.")
    first, second = (int(part) for part in text.split(separator))
    return first, second


def _between(name: str, value: float, low: float, high: float) -> None:
    if not (math.isfinite(value) and low <= value <= high):
        raise InputError(f"{name}={value} is out of range; give a number from {low} to {high}.")


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"{name}={value!r} is not known; choose one of {', '.join(choices)}.")
