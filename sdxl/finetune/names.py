"""What files call a layer: diffusers' own names, kohya's with underscores, and the names of the original (SGM) UNet.

The names are made from the model that is there, not taken apart from the file: what is in the index fits a layer, and
what is not, does not. A dot counts as an underscore, so that one index serves `down_blocks.1` and `down_blocks_1`.

SGM's UNet numbers its blocks through (generative-models, sgm/modules/diffusionmodules/openaimodel.py): input block 0
is conv_in, then come, for each level, its layers and a downsampler; output blocks likewise, an upsampler in the last of
a level.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch.nn import Conv2d, GroupNorm, LayerNorm, Linear, Module

LAYERS = (Linear, Conv2d, GroupNorm, LayerNorm)

# What stands before a layer's name, by the part of the model that it belongs to.
PREFIXES = {
    "unet": (
        *("lora_unet_", "oft_unet_", "lycoris_", "unet_", "", "diffusion_model_"),
        *("base_model_model_", "base_model_model_unet_"),
    ),
    "text_encoder": ("lora_te1_", "text_encoder_", "lycoris_te1_", "text_encoders_clip_l_transformer_"),
    "text_encoder_2": ("lora_te2_", "text_encoder_2_", "lycoris_te2_", "text_encoders_clip_g_transformer_"),
}

# diffusers' name inside a residual block, and the original one.
RESNET = {
    "norm1": "in_layers_0",
    "conv1": "in_layers_2",
    "time_emb_proj": "emb_layers_1",
    "norm2": "out_layers_0",
    "conv2": "out_layers_3",
    "conv_shortcut": "skip_connection",
}
# Outside the blocks.
OUTSIDE = {
    "conv_in": "input_blocks_0_0",
    "time_embedding_linear_1": "time_embed_0",
    "time_embedding_linear_2": "time_embed_2",
    "add_embedding_linear_1": "label_emb_0_0",
    "add_embedding_linear_2": "label_emb_0_2",
    "conv_norm_out": "out_0",
    "conv_out": "out_2",
}


@dataclass(frozen=True, order=True)
class Layer:
    """A layer of the model: the part it belongs to and its path there."""

    part: str
    path: str

    def __str__(self) -> str:
        return f"{self.part}.{self.path}"


def stem(name: str) -> str:
    """A layer's name in a file, as the index has it."""
    return name.replace(".", "_")


def index(parts: Mapping[str, Module]) -> dict[str, Layer]:
    """Every name under which a file may speak of a layer -> that layer."""
    found: dict[str, Layer] = {}
    for part, module in parts.items():
        paths = [path for path, child in module.named_modules() if isinstance(child, LAYERS)]
        blocks = Blocks.of(paths)
        for path in paths:
            names = {stem(path), blocks.original(stem(path))} if part == "unet" else _text_names(path)
            found |= {prefix + name: Layer(part, path) for prefix in PREFIXES[part] for name in names if name}
    return found


def _text_names(path: str) -> set[str]:
    """transformers 5 dropped the level `text_model` from one of the encoders; all files have it. diffusers up to 0.17
    called the projections as in its UNet."""
    bare = stem(path.removeprefix("text_model."))
    old = re.sub(r"attn_([qkv])_proj$", r"attn_to_\1", bare).replace("attn_out_proj", "attn_to_out_0")
    return {bare, old, f"text_model_{bare}", f"text_model_{old}"}


@dataclass(frozen=True)
class Blocks:
    """How SGM counts the blocks of a UNet."""

    layers: int  # residual blocks in a down block; an up block has one more
    attended: frozenset[str]  # the up blocks with attention

    @classmethod
    def of(cls, paths: Sequence[str]) -> "Blocks":
        """From the paths of a UNet's layers; those of its attention are enough, but for upsamplers."""
        numbers = (re.match(r"down_blocks\.\d+\.(?:resnets|attentions)\.(\d+)\.", path) for path in paths)
        first = {match[1] for match in numbers if match}
        attended = {path.split(".")[1] for path in paths if re.match(r"up_blocks\.\d+\.attentions\.", path)}
        return cls(len(first), frozenset(attended))

    def original(self, name: str) -> str | None:
        """The SGM name, with underscores, of a UNet layer; None for what is in no block."""
        if name in OUTSIDE:
            return OUTSIDE[name]
        if middle := re.fullmatch(r"mid_block_(attentions|resnets)_(\d)_(.*)", name):
            kind, number, rest = middle.groups()
            return f"middle_block_{1 if kind == 'attentions' else 2 * int(number)}_{_inside(kind, rest)}"
        block = re.fullmatch(r"(down|up)_blocks_(\d)_(attentions|resnets|downsamplers|upsamplers)_(\d)_(.*)", name)
        return self._numbered(*block.groups()) if block else None

    def _numbered(self, side: str, level: str, kind: str, number: str, rest: str) -> str:
        count = int(level) * (self.layers + 1)
        if kind == "downsamplers":
            return f"input_blocks_{1 + count + self.layers}_0_op"
        if kind == "upsamplers":
            return f"output_blocks_{count + self.layers}_{2 if level in self.attended else 1}_conv"
        place = f"input_blocks_{1 + count + int(number)}" if side == "down" else f"output_blocks_{count + int(number)}"
        return f"{place}_{1 if kind == 'attentions' else 0}_{_inside(kind, rest)}"


def _inside(kind: str, rest: str) -> str:
    """A layer's name inside its block; that of an attention layer is the same in both."""
    return RESNET.get(rest, rest) if kind == "resnets" else rest
