"""SDXL's own architecture at a fraction of its width, with random float16 weights: the weights outweigh the imports."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection
from transformers.utils import logging as transformers_logging

import weights

logging: Any = transformers_logging

# What is a width, or a number that must divide one, in the configs of SDXL 1.0.
WIDTHS = {
    "block_out_channels", "cross_attention_dim", "projection_class_embeddings_input_dim", "addition_time_embed_dim",
    "norm_num_groups", "hidden_size", "intermediate_size", "projection_dim",
}  # fmt: skip
MAKERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "unet": UNet2DConditionModel.from_config,
    "vae": AutoencoderKL.from_config,
    "text_encoder": lambda config: CLIPTextModel(CLIPTextConfig(**config)),
    "text_encoder_2": lambda config: CLIPTextModelWithProjection(CLIPTextConfig(**config)),
}


def write(folder: Path, divisor: int) -> int:
    """A model with base and refiner whose widths are SDXL's over `divisor`; its number of parameters."""
    logging.disable_progress_bar()
    total = 0
    for source in (weights.CONFIGS / "base", weights.CONFIGS / "refiner"):
        target = folder / source.name
        shutil.copytree(source, target)
        for part, make in MAKERS.items():
            if (source / part).is_dir():
                total += _write_part(target / part, make, divisor)
    shutil.copytree(folder / "base" / "tokenizer_2", folder / "refiner" / "tokenizer_2", dirs_exist_ok=True)
    return total


def unet(divisor: int, dtype: torch.dtype) -> Any:
    """The base's UNet, in memory."""
    config = json.loads((weights.CONFIGS / "base" / "unet" / "config.json").read_text())
    return _made(MAKERS["unet"], _narrow(config, divisor), dtype).requires_grad_(False).eval()


def started(part: str, divisor: int, model: str = "base") -> Any:
    """A part of base or refiner in float32, with the weights that its class gives it to begin with: nothing dies out in
    it."""
    config = json.loads((weights.CONFIGS / model / part / "config.json").read_text())
    return MAKERS[part](_narrow(config, divisor)).float().requires_grad_(False).eval()


def _write_part(folder: Path, make: Callable[[dict[str, Any]], Any], divisor: int) -> int:
    module = _made(make, _narrow(json.loads((folder / "config.json").read_text()), divisor), torch.float16)
    module.save_pretrained(folder)
    return sum(value.numel() for value in module.state_dict().values())


def _made(make: Callable[[dict[str, Any]], Any], config: dict[str, Any], dtype: torch.dtype) -> Any:
    block = torch.randn(2**20, generator=torch.Generator().manual_seed(0)).to(dtype) * 0.02
    with torch.device("meta"):
        module = make(config)
    state = {name: _filled(value.shape, block) for name, value in module.state_dict().items()}
    module.load_state_dict(state, assign=True)
    return module


def _filled(shape: torch.Size, block: torch.Tensor) -> torch.Tensor:
    count = shape.numel()
    return torch.cat([block[: min(len(block), count - at)] for at in range(0, count, len(block))]).reshape(shape)


def _narrow(config: dict[str, Any], divisor: int) -> dict[str, Any]:
    def narrow(value: Any) -> Any:
        return [each // divisor for each in value] if isinstance(value, list) else value // divisor

    if "num_attention_heads" in config and "hidden_size" in config:  # no fewer than one channel for each
        config["num_attention_heads"] = min(config["num_attention_heads"], 4)
    return {name: narrow(value) if name in WIDTHS and value else value for name, value in config.items()}
