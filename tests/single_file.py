"""A tiny SDXL of the genuine topology, and its weights under the names that one-file checkpoints use.

diffusers' own key maps, read backwards: what `from_single_file` must turn round again.
"""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

Tensors = dict[str, torch.Tensor]

NARROW: dict[str, dict[str, Any]] = {
    "unet": {
        "block_out_channels": [32, 64, 128],
        "attention_head_dim": [1, 2, 4],
        "cross_attention_dim": 96,
        "projection_class_embeddings_input_dim": 6 * 256 + 64,
    },
    "vae": {"block_out_channels": [32, 32, 64, 64]},
    "text_encoder": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 2,
        "projection_dim": 32,
    },
    "text_encoder_2": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "projection_dim": 64,
    },
}
RESNET = {
    "norm1.": "in_layers.0.",
    "conv1.": "in_layers.2.",
    "norm2.": "out_layers.0.",
    "conv2.": "out_layers.3.",
    "time_emb_proj.": "emb_layers.1.",
    "conv_shortcut.": "skip_connection.",
}
OUTER = {
    "time_embedding.linear_": "time_embed.",
    "add_embedding.linear_": "label_emb.0.",
    "conv_in.": "input_blocks.0.0.",
    "conv_norm_out.": "out.0.",
    "conv_out.": "out.2.",
}
VAE_ATTENTION = {
    "group_norm.": "norm.",
    "to_q.": "q.",
    "to_k.": "k.",
    "to_v.": "v.",
    "to_out.0.": "proj_out.",
}
OPEN_CLIP = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn": "attn",
}


def narrow_config(source: Path, folder: Path) -> Path:
    """The shipped config folder with every width cut down, depth and block types as they are."""
    shutil.copytree(source, folder)
    for part, changes in NARROW.items():
        path = folder / part / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


def models(config: Path) -> dict[str, torch.nn.Module]:
    """Random models as the config folder says, in fp16."""
    torch.manual_seed(0)
    unet: Any = UNet2DConditionModel
    vae: Any = AutoencoderKL
    found: dict[str, torch.nn.Module] = {
        "unet": unet.from_config(unet.load_config(config / "unet")),
        "vae": vae.from_config(vae.load_config(config / "vae")),
        "text_encoder": CLIPTextModel(CLIPTextConfig.from_pretrained(config / "text_encoder")),
        "text_encoder_2": CLIPTextModelWithProjection(CLIPTextConfig.from_pretrained(config / "text_encoder_2")),
    }
    return {name: model.half() for name, model in found.items()}


def write_checkpoint(parts: dict[str, torch.nn.Module], path: Path) -> None:
    state = {name: {key: value.detach() for key, value in part.state_dict().items()} for name, part in parts.items()}
    tensors = {
        **{f"model.diffusion_model.{_unet(key)}": value for key, value in state["unet"].items()},
        **{f"first_stage_model.{_vae(key)}": _conv(key, value) for key, value in state["vae"].items()},
        **{
            f"conditioner.embedders.0.transformer.text_model.{key.removeprefix('text_model.')}": value
            for key, value in state["text_encoder"].items()
        },
        **{f"conditioner.embedders.1.model.{key}": value for key, value in _bigg(state["text_encoder_2"]).items()},
    }
    save_file({key: value.contiguous() for key, value in tensors.items()}, path)


def _unet(key: str) -> str:
    if found := re.match(r"(down|up)_blocks\.(\d)\.(resnets|attentions|\w+samplers)\.(\d)\.(.*)", key):
        way, block, kind, layer, rest = found.groups()
        index = 3 * int(block) + int(layer) + (way == "down")  # two layers and a resampler, or three layers
        side = f"{'input' if way == 'down' else 'output'}_blocks"
        if kind == "downsamplers":
            return f"{side}.{index + 2}.0.op.{rest.removeprefix('conv.')}"
        if kind == "upsamplers":
            return f"{side}.{index + 2}.2.{rest}"
        name = _renamed(rest, RESNET) if kind == "resnets" else rest
        return f"{side}.{index}.{int(kind == 'attentions')}.{name}"
    if found := re.match(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", key):
        kind, layer, rest = found.groups()
        index = 1 if kind == "attentions" else 2 * int(layer)
        return f"middle_block.{index}.{_renamed(rest, RESNET) if kind == 'resnets' else rest}"
    name = _renamed(key, OUTER)
    return re.sub(r"^(time_embed|label_emb\.0)\.(1|2)\.", lambda m: f"{m[1]}.{2 * int(m[2]) - 2}.", name)


def _vae(key: str) -> str:
    key = re.sub(r"up_blocks\.(\d)", lambda found: f"up.{3 - int(found[1])}", key)
    key = key.replace("down_blocks.", "down.").replace(".resnets.", ".block.")
    key = re.sub(r"mid_block\.block\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", key)
    if ".attentions.0." in key:
        key = _renamed(key, VAE_ATTENTION)
    key = key.replace("mid_block.attentions.0.", "mid.attn_1.").replace("conv_norm_out.", "norm_out.")
    key = key.replace("downsamplers.0.", "downsample.").replace("upsamplers.0.", "upsample.")
    return key.replace("conv_shortcut", "nin_shortcut")


def _conv(key: str, value: torch.Tensor) -> torch.Tensor:
    """The VAE's attention is linear in diffusers and a 1x1 convolution in a checkpoint."""
    return value[:, :, None, None] if ".attentions." in key and value.ndim == 2 else value


def _bigg(state: Tensors) -> Tensors:
    found = {
        "positional_embedding": state["text_model.embeddings.position_embedding.weight"],
        "token_embedding.weight": state["text_model.embeddings.token_embedding.weight"],
        "ln_final.weight": state["text_model.final_layer_norm.weight"],
        "ln_final.bias": state["text_model.final_layer_norm.bias"],
        "text_projection": state["text_projection.weight"].T,
    }
    prefix = "text_model.encoder.layers."
    for key in (key.removeprefix(prefix) for key in state if key.startswith(prefix)):
        if ".q_proj." in key:
            three = [state[prefix + key.replace("q_proj", f"{one}_proj")] for one in "qkv"]
            name = key.replace("self_attn.q_proj.", "attn.in_proj_")
            found[f"transformer.resblocks.{name}"] = torch.cat(three)
        elif ".k_proj." not in key and ".v_proj." not in key:
            found[f"transformer.resblocks.{_renamed(key, OPEN_CLIP)}"] = state[prefix + key]
    return found


def _renamed(key: str, names: dict[str, str]) -> str:
    for old, new in names.items():
        if old in key:
            return key.replace(old, new)
    return key
