"""A work folder becomes the folders that the genuine SDXL repositories have, in half precision."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    __version__,
)
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from transformers import (
    BlipForConditionalGeneration,
    CLIPSegForImageSegmentation,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Swin2SRForImageSuperResolution,
)

from miniature.loop import replace, save
from miniature.models import Pipeline, best, load
from miniature.safety import image_processor

WEIGHTS = Path(__file__).parent / "weights"
LIMIT = 20_000_000  # bytes of all .safetensors together
# Every key of the genuine scheduler_config.json, those that Euler ignores included.
SCHEDULER = {
    "_class_name": "EulerDiscreteScheduler",
    "_diffusers_version": __version__,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "sample_max_value": 1.0,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "trained_betas": None,
    "use_karras_sigmas": False,
}
BASE_PARTS = {
    "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
ABSENT = [None, None]
MODELS = {
    "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModelWithProjection,
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
}
# Model and, in other files of the same folder, its processor.
HELPERS: dict[str, Any] = {
    "captioner": BlipForConditionalGeneration,
    "segmenter": CLIPSegForImageSegmentation,
    "upscaler": Swin2SRForImageSuperResolution,
}
BASE_INDEX: dict[str, object] = {
    "_class_name": "StableDiffusionXLPipeline",
    "_diffusers_version": __version__,
    "add_watermarker": None,
    "force_zeros_for_empty_prompt": True,
    **BASE_PARTS,
}
REFINER_INDEX: dict[str, object] = {
    "_class_name": "StableDiffusionXLImg2ImgPipeline",
    "_diffusers_version": __version__,
    "add_watermarker": None,
    "force_zeros_for_empty_prompt": False,
    "requires_aesthetics_score": True,
    **BASE_PARTS,
    "text_encoder": ABSENT,
    "tokenizer": ABSENT,
}


def pack(work: Path, weights: Path = WEIGHTS) -> None:
    """Writes what the work folder has of base, refiner, safety_checker and HELPERS; each is whole or not there."""
    weights.mkdir(parents=True, exist_ok=True)
    for name, index in (("base", BASE_INDEX), ("refiner", REFINER_INDEX)):
        if (work / name).exists():
            _pack_pipeline(work, weights, name, index)
    if (work / "safety_checker").exists():
        _save_half(load(StableDiffusionSafetyChecker, work / "safety_checker"), weights / "safety_checker")
        image_processor().save_pretrained(weights / "safety_checker")
    for name, helper in HELPERS.items():
        if (work / name).exists():
            _pack_helper(best(work, name), weights / name, helper)
    if (size := weights_size(weights)) > LIMIT:
        raise ValueError(f"{weights} holds {size} bytes of weights, {size - LIMIT} over the limit; use smaller parts")


def _pack_pipeline(work: Path, weights: Path, name: str, index: Mapping[str, object]) -> None:
    fresh = weights / f"{name}.fresh"
    shutil.rmtree(fresh, ignore_errors=True)
    for part, kind in MODELS.items():
        if index[part] != ABSENT:
            _save_half(load(kind, best(work, name if part == "unet" else part)), fresh / part)
    for part in ("tokenizer", "tokenizer_2"):
        if index[part] != ABSENT:
            shutil.copytree(work / part, fresh / part)
    (fresh / "scheduler").mkdir()
    _write_json(fresh / "scheduler" / "scheduler_config.json", SCHEDULER)
    _write_json(fresh / "model_index.json", index)
    replace(fresh, weights / name)


def _pack_helper(source: Path, target: Path, kind: Any) -> None:
    """The whole folder, its model in half precision."""
    fresh = target.with_name(f"{target.name}.fresh")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(source, fresh)
    load(kind, source).half().save_pretrained(fresh)
    replace(fresh, target)


def weights_size(weights: Path = WEIGHTS) -> int:
    """Bytes of all .safetensors below a folder."""
    return sum(file.stat().st_size for file in weights.rglob("*.safetensors"))


def load_base(folder: Path) -> Pipeline:
    """The text-to-image pipeline in float32 from a packed folder."""
    return _load_pipeline(StableDiffusionXLPipeline, folder)


def load_refiner(folder: Path) -> Pipeline:
    """The refiner as an image-to-image pipeline in float32 from a packed folder."""
    return _load_pipeline(StableDiffusionXLImg2ImgPipeline, folder)


def _load_pipeline(kind: Any, folder: Path) -> Pipeline:
    pipeline = kind.from_pretrained(folder, dtype=torch.float32, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _save_half(model: Any, folder: Path) -> None:
    save(model.half(), folder)


def _write_json(path: Path, value: Mapping[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
