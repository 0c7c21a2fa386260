"""The shipped configurations and tokenizers against the genuine ones."""

import hashlib
import json
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

import weights


def test_the_shipped_files_are_the_genuine_ones() -> None:
    files = json.loads(weights.SOURCES.read_text())["base"]["files"]
    shipped = {name: weights.CONFIGS / "base" / name for name in files if not name.endswith(".safetensors")}
    assert len(shipped) == 13
    for name, path in shipped.items():
        assert [path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()] == files[name]


def test_the_shipped_configurations_have_the_genuine_parameter_counts() -> None:
    unet: Any = UNet2DConditionModel
    vae: Any = AutoencoderKL
    base = weights.CONFIGS / "base"
    with torch.device("meta"):
        counts = {
            2_567_463_684: unet.from_config(unet.load_config(base / "unet")),
            2_259_526_660: unet.from_config(unet.load_config(weights.CONFIGS / "refiner" / "unet")),
            83_653_863: vae.from_config(vae.load_config(base / "vae")),
            123_060_480: CLIPTextModel(CLIPTextConfig.from_pretrained(base / "text_encoder")),
            694_659_840: CLIPTextModelWithProjection(CLIPTextConfig.from_pretrained(base / "text_encoder_2")),
        }
    for count, model in counts.items():
        assert sum(parameter.numel() for parameter in model.parameters()) == count


@pytest.mark.parametrize(("name", "pad"), [("tokenizer", 49407), ("tokenizer_2", 0)])
def test_the_shipped_tokenizer_is_clip_s(name: str, pad: int) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(weights.CONFIGS / "base" / name)
    assert tokenizer("A  photo of a CAT").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert (len(tokenizer), tokenizer.pad_token_id, tokenizer.model_max_length) == (49408, pad, 77)
