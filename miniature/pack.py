"""A work folder becomes the folders that the genuine SDXL repositories have, in half precision."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    __version__,
)
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from miniature.loop import Saveable, replace, save
from miniature.safety import image_processor

WEIGHTS = Path(__file__).parent / "weights"
LIMIT = 16_000_000  # bytes of all .safetensors together
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
BASE_INDEX = {
    "_class_name": "StableDiffusionXLPipeline",
    "_diffusers_version": __version__,
    "add_watermarker": None,
    "force_zeros_for_empty_prompt": True,
    **BASE_PARTS,
}
REFINER_INDEX = {
    "_class_name": "StableDiffusionXLImg2ImgPipeline",
    "_diffusers_version": __version__,
    "add_watermarker": None,
    "force_zeros_for_empty_prompt": False,
    "requires_aesthetics_score": True,
    **BASE_PARTS,
    "text_encoder": [None, None],
    "tokenizer": [None, None],
}


def make_scheduler() -> EulerDiscreteScheduler:
    """SDXL's own scheduler."""
    return EulerDiscreteScheduler.from_config(SCHEDULER)


def best(work: Path, name: str) -> Path:
    """The longest-trained form of a part: its second phase where there is one."""
    polished = work / f"{name}-polished"
    return polished if polished.exists() else work / name


def pack(work: Path, weights: Path = WEIGHTS) -> None:
    """Writes weights/base, weights/refiner and weights/safety_checker; each is whole or not there."""
    loaders: dict[str, tuple[Callable[[Path], torch.nn.Module], Path]] = {
        "vae": (AutoencoderKL.from_pretrained, best(work, "vae")),
        "text_encoder": (CLIPTextModel.from_pretrained, work / "text_encoder"),
        "text_encoder_2": (CLIPTextModelWithProjection.from_pretrained, work / "text_encoder_2"),
    }
    for name, index in (("base", BASE_INDEX), ("refiner", REFINER_INDEX)):
        fresh = weights / f"{name}.fresh"
        shutil.rmtree(fresh, ignore_errors=True)
        for part, (load, source) in {
            **loaders,
            "unet": (UNet2DConditionModel.from_pretrained, work / name),
        }.items():
            if index[part] != [None, None]:
                _save_half(load(source), fresh / part)
        for part in ("tokenizer", "tokenizer_2"):
            if index[part] != [None, None]:
                shutil.copytree(work / part, fresh / part)
        (fresh / "scheduler").mkdir()
        _write_json(fresh / "scheduler" / "scheduler_config.json", SCHEDULER)
        _write_json(fresh / "model_index.json", index)
        replace(fresh, weights / name)
    checker = StableDiffusionSafetyChecker.from_pretrained(work / "safety_checker")
    _save_half(checker, weights / "safety_checker")
    image_processor().save_pretrained(weights / "safety_checker")
    if (size := weights_size(weights)) > LIMIT:
        raise ValueError(f"{weights} holds {size} bytes of weights, {size - LIMIT} over the limit; use smaller parts")


def weights_size(weights: Path = WEIGHTS) -> int:
    """Bytes of all .safetensors below a folder."""
    return sum(file.stat().st_size for file in weights.rglob("*.safetensors"))


def load_base(source: Path) -> StableDiffusionXLPipeline:
    """The text-to-image pipeline in float32, from weights/base or from a work folder."""
    if (source / "model_index.json").exists():
        return StableDiffusionXLPipeline.from_pretrained(source, dtype=torch.float32, add_watermarker=False)
    from miniature.text import TextEncoders

    encoders = TextEncoders.load(source)
    return StableDiffusionXLPipeline(
        vae=AutoencoderKL.from_pretrained(best(source, "vae")),
        text_encoder=encoders.first,
        text_encoder_2=encoders.second,
        tokenizer=encoders.tokenizers[0],
        tokenizer_2=encoders.tokenizers[1],
        unet=UNet2DConditionModel.from_pretrained(best(source, "base")),
        scheduler=make_scheduler(),
        add_watermarker=False,
    )


def load_refiner(source: Path) -> StableDiffusionXLImg2ImgPipeline:
    """The refiner as an image-to-image pipeline in float32, from weights/refiner or from a work folder."""
    if (source / "model_index.json").exists():
        return StableDiffusionXLImg2ImgPipeline.from_pretrained(source, dtype=torch.float32, add_watermarker=False)
    from miniature.text import TextEncoders

    encoders = TextEncoders.load(source)
    return StableDiffusionXLImg2ImgPipeline(
        vae=AutoencoderKL.from_pretrained(best(source, "vae")),
        text_encoder=None,
        text_encoder_2=encoders.second,
        tokenizer=None,
        tokenizer_2=encoders.tokenizers[1],
        unet=UNet2DConditionModel.from_pretrained(best(source, "refiner")),
        scheduler=make_scheduler(),
        force_zeros_for_empty_prompt=False,
        requires_aesthetics_score=True,
        add_watermarker=False,
    )


def _save_half(model: torch.nn.Module, folder: Path) -> None:
    saveable: Saveable = model.half()  # type: ignore[assignment]
    save(saveable, folder)


def _write_json(path: Path, value: dict[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
