"""Which pictures may leave: diffusers' StableDiffusionSafetyChecker on a batch, and what its answer means.

The answer is the checker's own, from the same products; its forward() is not called because that blacks
pictures out, says so in the log, and fetches twenty numbers per picture from the device one by one.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize
from transformers import CLIPConfig, CLIPImageProcessorPil

from errors import InputError, UnsafeContentError, WeightsError
from sdxl.modules import blank, fill
from sdxl.reading import read_tensors


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
        processor = CLIPImageProcessorPil.from_pretrained(folder, local_files_only=True)
        checker = blank(folder, lambda found: StableDiffusionSafetyChecker(CLIPConfig(**found)))
        checker = fill(checker, _tensors(folder, torch.device(device), dtype), torch.device(device))
    except (OSError, ValueError, RuntimeError, pickle.UnpicklingError) as error:
        raise WeightsError(f"safety checker in {folder.name!r} cannot be read; fetch it again") from error
    except WeightsError as error:
        raise WeightsError(f"safety checker: {error}") from error
    return Safety(checker, processor)


def _tensors(folder: Path, device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    if (folder / "model.safetensors").is_file():
        yield from read_tensors(folder, device, dtype)
        return
    for name, tensor in torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True).items():
        yield name, tensor.to(device, dtype)


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
