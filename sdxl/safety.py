"""Which pictures may leave: diffusers' StableDiffusionSafetyChecker on a batch, and what its answer means.

The answer is the checker's own, from the same products; its forward() is not called because that blacks
pictures out, says so in the log, and fetches twenty numbers per picture from the device one by one.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor
from torch.nn.functional import normalize
from transformers import CLIPImageProcessorPil

from errors import InputError, UnsafeContentError, WeightsError


@dataclass(frozen=True)
class Safety:
    """The checker on its device, and what prepares pictures for it."""

    checker: StableDiffusionSafetyChecker
    processor: CLIPImageProcessorPil

    def unsafe(self, images: Sequence[Image.Image]) -> list[bool]:
        """Whether each picture must not leave; the pictures stay as they are. Any thread may call it."""
        if not images:
            return []
        checker = self.checker
        prepared = self.processor(images=[image.convert("RGB") for image in images], return_tensors="pt")
        with torch.inference_mode():
            pixels = prepared["pixel_values"].to(checker.device, checker.dtype)
            embeds = checker.visual_projection(checker.vision_model(pixels).pooler_output)
            special = _scores(embeds, checker.special_care_embeds, checker.special_care_embeds_weights)
            stricter = 0.01 * (special.round(decimals=3) > 0).any(dim=1, keepdim=True)
            scores = _scores(embeds, checker.concept_embeds, checker.concept_embeds_weights) + stricter
            found: list[bool] = (scores.round(decimals=3) > 0).any(dim=1).tolist()
        return found


def load_safety(folder: Path, device: torch.device | str, dtype: torch.dtype) -> Safety:
    """From a folder as diffusers saves it: config, model.safetensors or pytorch_model.bin, preprocessor."""
    if not folder.is_dir():
        raise WeightsError(f"safety checker: there is no folder {folder.name!r}; fetch it first")
    try:
        loaded: Any = StableDiffusionSafetyChecker.from_pretrained(
            folder, dtype=dtype, local_files_only=True, weights_only=True, output_loading_info=True
        )
        processor = CLIPImageProcessorPil.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, RuntimeError, SafetensorError, pickle.UnpicklingError) as error:
        raise WeightsError(f"safety checker in {folder.name!r} cannot be read; fetch it again") from error
    checker, report = loaded
    if missing := sorted(report["missing_keys"]):
        lack = f"{len(missing)} weights, first {missing[0]!r}"
        raise WeightsError(f"safety checker in {folder.name!r} lacks {lack}; fetch it again")
    return Safety(checker.to(device).eval(), processor)


def required(safety: Safety | None) -> Safety:
    """InputError where there is no checker."""
    if safety is None:
        raise InputError("This model has no safety checker to check with; set disable_safety_checker to go without.")
    return safety


def require_safe(kept: int, of: int) -> None:
    """UnsafeContentError if none of the pictures may leave; a warning if some may not."""
    if of and not kept:
        number = "the picture" if of == 1 else f"all {of} pictures"
        raise UnsafeContentError(
            f"The safety checker withheld {number}; try another prompt or seed, or set disable_safety_checker."
        )
    if kept < of:
        logging.getLogger(__name__).warning("The safety checker withheld %d of %d pictures", of - kept, of)


def _scores(embeds: Tensor, concepts: Tensor, thresholds: Tensor) -> Tensor:
    """(B, D), (N, D), (N,) -> (B, N): cosine of each picture with each concept, less its threshold."""
    return (normalize(embeds) @ normalize(concepts).T).float() - thresholds.float()
