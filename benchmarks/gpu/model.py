"""A model folder as SDXL_MODEL names one, of SDXL 1.0's architecture, with random weights that are made on the device.

Every layer has the weights that its class gives it to begin with, never zeros, on which arithmetic is faster than on
numbers. Last layers are scaled: what the UNets predict has the size of noise, as it has once they are trained, so that
an error of theirs shows in the latents; and pictures have contrast.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessorPil

import weights
from benchmarks import wide_model
from sdxl.models import config_of
from sdxl.modules import blank
from tests import tunes

# CLIP-L/14's picture half, which the safety checker is
VISION = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "patch_size": 14,
    "image_size": 224,
    "projection_dim": 768,
}
WHOLE = {"num_attention_heads", "num_hidden_layers", "patch_size", "image_size"}  # the same at any width
CONTRAST = 0.3  # standard deviation of pixels from -1 to 1
POOLED = 5  # the pooled text is as wide as this many embeddings of a number, in base and refiner
PARTS = {"base": ("unet", "vae", "text_encoder", "text_encoder_2"), "refiner": ("unet",)}


def write(folder: Path, divisor: int, device: torch.device) -> int:
    """base/, refiner/, vae/ and safety_checker/; the number of parameters. The top VAE is base's, said to be safe in
    float16, as the one that sdxl-1.0 comes with is."""
    torch.manual_seed(0)
    total = 0
    for name, parts in PARTS.items():
        shutil.copytree(weights.CONFIGS / name, folder / name)
        for part in parts:
            total += _write_part(folder / name / part, name, part, divisor, device)
    shutil.copytree(folder / "base" / "tokenizer_2", folder / "refiner" / "tokenizer_2", dirs_exist_ok=True)
    (folder / "vae").mkdir()
    config = json.loads((folder / "base" / "vae" / "config.json").read_text()) | {"force_upcast": False}
    (folder / "vae" / "config.json").write_text(json.dumps(config))
    for file in (folder / "base" / "vae").glob("*.safetensors"):
        (folder / "vae" / file.name).hardlink_to(file)
    return total + _write_checker(folder / "safety_checker", divisor, device)


def _write_part(folder: Path, name: str, part: str, divisor: int, device: torch.device) -> int:
    with device:
        module = wide_model.started(part, divisor, name)
        {"unet": _scale_unet, "vae": _scale_vae}.get(part, lambda _: None)(module)
    module.half().save_pretrained(folder)
    return sum(value.numel() for value in module.parameters())


@torch.no_grad()
def _scale_unet(unet: Any) -> None:
    """So that what it makes of noise has a variance of about one."""
    config = config_of(unet)
    each = int(config.addition_time_embed_dim)
    pooled = POOLED * each
    ids = int(config.projection_class_embeddings_input_dim) // each - POOLED
    told = {"text_embeds": torch.randn(1, pooled), "time_ids": torch.zeros(1, ids)}
    states = torch.randn(1, 77, config.cross_attention_dim)
    out = unet(torch.randn(1, 4, 16, 16), torch.tensor(500.0), states, added_cond_kwargs=told, return_dict=False)[0]
    unet.conv_out.weight /= out.std()


@torch.no_grad()
def _scale_vae(vae: Any) -> None:
    """So that what it makes of latents uses most of the range: a flat picture is marked and written faster."""
    pixels = vae.decode(torch.randn(1, 4, 16, 16) / vae.config.scaling_factor, return_dict=False)[0]
    vae.decoder.conv_out.weight *= CONTRAST / pixels.std()


def _write_checker(folder: Path, divisor: int, device: torch.device) -> int:
    sizes = {name: size if name in WHOLE else size // divisor for name, size in VISION.items()}
    config = CLIPConfig(vision_config=sizes, projection_dim=sizes["projection_dim"])
    with device:
        checker: Any = StableDiffusionSafetyChecker(config)
        checker.half()
    checker.save_pretrained(folder)
    side = {"height": VISION["image_size"], "width": VISION["image_size"]}
    CLIPImageProcessorPil(size={"shortest_edge": VISION["image_size"]}, crop_size=side).save_pretrained(folder)
    return sum(value.numel() for value in checker.parameters())


def write_loras(folder: Path, model: Path, rank: int, count: int) -> list[Path]:
    """Files as diffusers' training script leaves them, on all attention projections of the base's UNet, 16 bit."""
    unet = blank(model / "base" / "unet", wide_model.MAKERS["unet"])
    layers: dict[str, Any] = dict(tunes.layers(unet, "attention"))
    files = []
    for number in range(count):
        generator = torch.Generator().manual_seed(number)
        lora = {
            ("unet", path): tunes.Factors(
                _factor(generator, rank, layer.weight.shape[1]), _factor(generator, layer.weight.shape[0], rank), None
            )
            for path, layer in layers.items()
        }
        files.append(tunes.save(folder / str(number), tunes.peft_diffusers(lora)))
    return files


def _factor(generator: torch.Generator, *shape: int) -> Tensor:
    return ((torch.rand(shape, generator=generator) - 0.5) * 0.02).half()
