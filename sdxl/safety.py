"""Which pictures may leave: diffusers' StableDiffusionSafetyChecker on a batch, and what its answer means.

The answer is the checker's own, from the same products; its forward() also blacks pictures out, says so in the log, and
fetches twenty numbers per picture from the device one by one.
"""

from __future__ import annotations

import json
import logging
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import normalize

from errors import InputError, UnsafeContentError, WeightsError
from sdxl.clip import VisionModel
from sdxl.modules import blank, fill
from sdxl.reading import read_tensors

CONCEPTS, SPECIAL = 17, 3


class Checker(nn.Module):
    """The weights of diffusers' StableDiffusionSafetyChecker, under its names."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        width = config.get("projection_dim", 512)
        self.vision_model = VisionModel(config["vision_config"])
        self.visual_projection = nn.Linear(self.vision_model.config.hidden_size, width, bias=False)
        self.concept_embeds = nn.Parameter(torch.empty(CONCEPTS, width))
        self.special_care_embeds = nn.Parameter(torch.empty(SPECIAL, width))
        self.concept_embeds_weights = nn.Parameter(torch.empty(CONCEPTS))
        self.special_care_embeds_weights = nn.Parameter(torch.empty(SPECIAL))

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, side, side), normed, in any type and anywhere -> (B,): whether each is unsafe."""
        embeds = self.visual_projection(self.vision_model(pixels.to(self.concept_embeds)))
        special = _scores(embeds, self.special_care_embeds, self.special_care_embeds_weights)
        stricter = 0.01 * (special.round(decimals=3) > 0).any(dim=1, keepdim=True)
        scores = _scores(embeds, self.concept_embeds, self.concept_embeds_weights) + stricter
        return (scores.round(decimals=3) > 0).any(dim=1)


@dataclass(frozen=True)
class Preparation:
    """How a picture becomes what CLIP looks at: transformers' CLIPImageProcessor, from its preprocessor_config.json."""

    shortest: int  # pixels of the shorter side, to which it is scaled
    side: int  # pixels of the square in the middle that is kept
    mean: Sequence[float]
    std: Sequence[float]

    @classmethod
    def read(cls, folder: Path) -> Preparation:
        found = json.loads((folder / "preprocessor_config.json").read_text())
        size, crop = found["size"], found["crop_size"]  # plain numbers in the genuine one
        shortest = size["shortest_edge"] if isinstance(size, dict) else size
        side = crop["height"] if isinstance(crop, dict) else crop
        return cls(shortest, side, found["image_mean"], found["image_std"])

    def __call__(self, images: Sequence[Image.Image]) -> Tensor:
        """(B, 3, side, side), float32, normed."""
        pixels = np.stack([self._square(image) for image in images])
        mean, std = (np.array(each, np.float32) for each in (self.mean, self.std))
        normed = ((pixels * (1 / 255)).astype(np.float32) - mean) / std
        return torch.from_numpy(normed).permute(0, 3, 1, 2)

    def _square(self, image: Image.Image) -> Any:
        width, height = (int(self.shortest * side / min(image.size)) for side in image.size)
        left, top = (width - self.side) // 2, (height - self.side) // 2
        scaled = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
        return np.asarray(scaled.crop((left, top, left + self.side, top + self.side)))


@dataclass(frozen=True)
class Safety:
    """The checker on its device, and what prepares pictures for it."""

    checker: Checker
    prepared: Preparation

    def unsafe(self, images: Sequence[Image.Image]) -> list[bool]:
        """Whether each picture must not leave; the pictures stay as they are. Any thread may call it."""
        if not images:
            return []
        with torch.inference_mode():
            found: list[bool] = self.checker(self.prepared(images)).tolist()
        return found


def load_safety(folder: Path, device: torch.device | str, dtype: torch.dtype) -> Safety:
    """From a folder as diffusers saves it: config, model.safetensors or pytorch_model.bin, preprocessor."""
    if not folder.is_dir():
        raise WeightsError(f"safety checker: there is no folder {folder.name!r}; fetch it first")
    try:
        prepared = Preparation.read(folder)
        checker = fill(blank(folder, Checker), _tensors(folder, torch.device(device), dtype))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, pickle.UnpicklingError) as error:
        raise WeightsError(f"safety checker in {folder.name!r} cannot be read; fetch it again") from error
    except WeightsError as error:
        raise WeightsError(f"safety checker: {error}") from error
    return Safety(checker, prepared)


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
