"""One and the same LoRA, written in every dialect that exists in the wild.

Where each dialect's names come from:
- replicate: `unet_attn_processors_state_dict` of replicate/cog-sdxl, dataset_and_utils.py.
- kohya: kohya-ss/sd-scripts, networks/lora.py (`lora_unet`, `lora_te1`, `lora_te2`, a 0-d `alpha` per layer). Its
  SDXL UNet, library/sdxl_original_unet.py, has the block names of the published checkpoint (SGM); OneTrainer and
  LyCORIS on diffusers write the same keys with diffusers' block names.
- old_diffusers_a, _b: diffusers up to 0.17 and from 0.20 to 0.25, diffusers/utils/state_dict_utils.py.
- peft_diffusers, peft_raw: diffusers' `save_lora_weights` and PEFT's `save_pretrained`.
- comfy: the node LoraSave of ComfyUI, comfy_extras/nodes_lora_extract.py (no alpha; every layer of the model).
"""

import copy
import io
import json
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors.torch import save as to_bytes
from safetensors.torch import save_file
from torch import Tensor, nn

Tensors = dict[str, Tensor]
UNET, TEXTS = "unet", ("text_encoder", "text_encoder_2")
WHERE = ("attention", "all linear", "conv too", "everything")  # each holds the ones before it


@dataclass(frozen=True)
class Factors:
    """What one layer learns: down (r, in[, kh, kw]), up (out, r[, 1, 1]); no alpha means alpha = r."""

    down: Tensor
    up: Tensor
    alpha: float | None

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        return 1.0 if self.alpha is None else self.alpha / self.rank

    @property
    def delta(self) -> Tensor:
        """What is added to the weight, in the weight's shape."""
        product = self.up.flatten(1) @ self.down.flatten(1)
        return self.scale * product.view(self.up.shape[0], *self.down.shape[1:])


Lora = dict[tuple[str, str], Factors]  # (part, the module's path in this process's own classes)


def part_of(models: Any, part: str) -> nn.Module:
    """The module that a part's name stands for."""
    found: nn.Module = models.base if part == UNET else getattr(models.text, part)
    return found


def layers(module: nn.Module, where: str) -> dict[str, nn.Module]:
    """Path -> layer. `all linear` is what sd-scripts trains by default, `conv too` what it trains with conv_dim."""
    found = {path: layer for path, layer in module.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)}
    return {path: layer for path, layer in found.items() if WHERE.index(_where(path)) <= WHERE.index(where)}


def _where(path: str) -> str:
    if re.search(r"\.attn[12]\.|\.self_attn\.", path):
        return "attention"
    if re.search(r"\.ff\.|\.proj_(in|out)$|\.mlp\.", path):
        return "all linear"
    return "conv too" if re.search(r"\.(resnets|downsamplers|upsamplers)\.", path) else "everything"


def make_lora(
    models: Any,
    *,
    parts: Iterable[str] = (UNET,),
    where: str = "attention",
    rank: int = 4,
    alpha: float | None = None,
    seed: int = 0,
    scale: float = 0.3,
) -> Lora:
    """Random factors; whatever rank and alpha, each layer's change is `scale` times as large as its weight."""
    generator = torch.Generator().manual_seed(seed)
    lora: Lora = {}
    for part in parts:
        for path, layer in layers(part_of(models, part), where).items():
            weight: Any = layer.weight
            shape = weight.shape
            down = torch.randn(rank, *shape[1:], generator=generator)
            up = torch.randn(shape[0], rank, *[1] * (weight.dim() - 2), generator=generator)
            raw = Factors(down, up, alpha)
            factor = scale * float(weight.detach().float().norm() / raw.delta.norm())
            lora[part, path] = Factors(down * factor**0.5, up * factor**0.5, alpha)
    return lora


def merged(module: nn.Module, lora: Lora, part: str, weight: float = 1.0) -> nn.Module:
    """The judge: a copy of the module with W + weight * alpha / r * up @ down."""
    module = copy.deepcopy(module)
    with torch.no_grad():
        for (owner, path), factors in lora.items():
            if owner == part:
                layer: Any = module.get_submodule(path)
                layer.weight += weight * factors.delta.to(layer.weight)
    return module


def folded(lora: Lora) -> Lora:
    """The same LoRA without alphas, for a dialect that has no place for them."""
    return {key: Factors(layer.down, layer.up * layer.scale, None) for key, layer in lora.items()}


def wild(part: str, path: str) -> str:
    """A text encoder's path as files have it; since transformers 5 the first encoder has no `text_model.`."""
    named = part in TEXTS and not path.startswith("text_projection")
    return f"text_model.{path.removeprefix('text_model.')}" if named else path


RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
OUTER = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}


def sgm(path: str, per_block: int = 1) -> str:
    """diffusers' path of a UNet layer -> the published checkpoint's, read backwards from diffusers'
    `convert_ldm_unet_checkpoint`. `per_block` is the config's layers_per_block: 2 for SDXL, 1 for the miniature.
    """
    if found := re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", path):
        way, block, kind, layer, rest = found.groups()
        first = int(block) * (per_block + 1) + (way == "down")  # input block 0 is conv_in
        if kind == "downsamplers":
            return f"input_blocks.{first + per_block}.0.op"
        if kind == "upsamplers":
            return f"output_blocks.{first + per_block}.2.conv"  # behind a resnet and an attention, in all of SDXL
        index = f"{'input' if way == 'down' else 'output'}_blocks.{first + int(layer)}"
        return f"{index}.0.{RESNET[rest]}" if kind == "resnets" else f"{index}.1.{rest}"
    if found := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)", path):
        kind, layer, rest = found.groups()
        return f"middle_block.1.{rest}" if kind == "attentions" else f"middle_block.{2 * int(layer)}.{RESNET[rest]}"
    return OUTER[path]


def replicate(lora: Lora) -> Tensors:
    assert all(part == UNET for part, _ in lora), "the trainer's file has no text encoder"
    return {key.removeprefix("unet."): value for key, value in old_diffusers_a(lora).items()}


def _kohya(lora: Lora, unet: Callable[[str], str]) -> Tensors:
    prefixes = {UNET: "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}
    tensors: Tensors = {}
    for (part, path), layer in lora.items():
        name = prefixes[part] + (unet(path) if part == UNET else wild(part, path)).replace(".", "_")
        tensors |= {f"{name}.lora_down.weight": layer.down, f"{name}.lora_up.weight": layer.up}
        if layer.alpha is not None:
            tensors[f"{name}.alpha"] = torch.tensor(layer.alpha)
    return tensors


def kohya_diffusers(lora: Lora) -> Tensors:
    return _kohya(lora, lambda path: path)


def kohya_sgm(lora: Lora, per_block: int = 1) -> Tensors:
    return _kohya(lora, lambda path: sgm(path, per_block))


def kohya_metadata(lora: Lora) -> dict[str, str]:
    first = next(iter(lora.values()))
    return {
        "ss_base_model_version": "sdxl_base_v1-0",
        "ss_network_dim": str(first.rank),
        "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
    }


def peft_diffusers(lora: Lora) -> Tensors:
    return _suffixed(lora, _dotted, ".lora_A.weight", ".lora_B.weight")


def _dotted(part: str, path: str) -> str:
    return f"{part}.{wild(part, path)}"


def old_diffusers_a(lora: Lora) -> Tensors:
    tensors: Tensors = {}
    for (part, path), layer in folded(lora).items():
        owner, last = wild(part, path).removesuffix(".0").rsplit(".", 1)  # to_out.0 was named to_out
        name = f"{owner}.processor.{last}" if part == UNET else f"{owner}.to_{last.removesuffix('_proj')}"
        tensors |= {f"{part}.{name}_lora.down.weight": layer.down, f"{part}.{name}_lora.up.weight": layer.up}
    return tensors


def old_diffusers_b(lora: Lora) -> Tensors:
    unet, text = ({k: v for k, v in folded(lora).items() if (k[0] == UNET) is wanted} for wanted in (True, False))
    return {
        **_suffixed(unet, _dotted, ".lora.down.weight", ".lora.up.weight"),
        **_suffixed(text, _dotted, ".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
    }


def peft_raw(lora: Lora, adapter: str = "") -> Tensors:
    """One part's `adapter_model.safetensors`; some scripts save the live state, with the adapter's name in it."""
    end = f".{adapter}.weight" if adapter else ".weight"
    return _suffixed(lora, lambda part, path: f"base_model.model.{wild(part, path)}", f".lora_A{end}", f".lora_B{end}")


COMFY = {"text_encoder": "text_encoders.clip_l.transformer.", "text_encoder_2": "text_encoders.clip_g.transformer."}


def comfy(lora: Lora, per_block: int = 1) -> Tensors:
    def name(part: str, path: str) -> str:
        return f"diffusion_model.{sgm(path, per_block)}" if part == UNET else COMFY[part] + wild(part, path)

    return _suffixed(folded(lora), name, ".lora_down.weight", ".lora_up.weight")


def _suffixed(lora: Lora, name: Callable[[str, str], str], down: str, up: str) -> Tensors:
    pairs = [(name(part, path), layer) for (part, path), layer in lora.items()]
    return {key: value for stem, layer in pairs for key, value in ((stem + down, layer.down), (stem + up, layer.up))}


def peft_config(lora: Lora, part: str = UNET) -> dict[str, Any]:
    """`adapter_config.json`, by PEFT itself: the usual rank and alpha, and a pattern for every layer that differs."""
    own = {wild(owner, path): layer for (owner, path), layer in lora.items() if owner == part}
    ranks = {path: layer.rank for path, layer in own.items()}
    alphas = {path: layer.alpha or layer.rank for path, layer in own.items()}
    rank, alpha = (Counter(each.values()).most_common(1)[0][0] for each in (ranks, alphas))
    config: Any = LoraConfig(
        r=int(rank),
        lora_alpha=alpha,  # type: ignore[arg-type]  # PEFT reads a float too
        target_modules=sorted(own if part == UNET else {path.rsplit(".", 1)[-1] for path in own}),
        rank_pattern={path: value for path, value in ranks.items() if value != rank},
        alpha_pattern={path: value for path, value in alphas.items() if value != alpha},
    )
    return {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}


def peft_metadata(lora: Lora) -> dict[str, str]:
    """The header of diffusers' `save_lora_weights`; a file of a LoRA without alphas has none, as most have not."""
    if all(layer.alpha is None for layer in lora.values()):
        return {"format": "pt"}
    parts = dict.fromkeys(part for part, _ in lora)
    configs = {f"{part}.{key}": value for part in parts for key, value in peft_config(lora, part).items()}
    return {"format": "pt", "lora_adapter_metadata": json.dumps(configs, indent=2, sort_keys=True)}


@dataclass(frozen=True)
class Dialect:
    """How to write a file, its header, and what the dialect can hold: `where` at most, text encoders or not."""

    write: Callable[[Lora], Tensors]
    where: str
    texts: bool
    metadata: Callable[[Lora], dict[str, str]] = lambda _: {"format": "pt"}


EXPORTERS = {
    "replicate": Dialect(replicate, "attention", False, lambda _: {}),
    "kohya_diffusers": Dialect(kohya_diffusers, "everything", True, kohya_metadata),
    "kohya_sgm": Dialect(kohya_sgm, "everything", True, kohya_metadata),
    "peft_diffusers": Dialect(peft_diffusers, "everything", True, peft_metadata),
    "peft_raw": Dialect(peft_raw, "everything", False),  # alpha: `peft_config` in a second file
    "peft_raw_named": Dialect(lambda lora: peft_raw(lora, "default"), "everything", False),
    "old_diffusers_a": Dialect(old_diffusers_a, "attention", True),
    "old_diffusers_b": Dialect(old_diffusers_b, "everything", True),
    "comfy": Dialect(comfy, "everything", True, lambda _: {}),
}


def save(folder: Path, tensors: Tensors, metadata: dict[str, str] | None = None, name: str = "lora") -> Path:
    """The file as it lies on a disk."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.safetensors"
    save_file({key: value.contiguous() for key, value in tensors.items()}, path, metadata)
    return path


def replicate_tar(
    path: Path,
    lora: Lora,
    rows: tuple[Tensor, Tensor] | None = None,
    trigger: str = "TOK",
    nested: str = "",
    gz: bool = False,
) -> Path:
    """The archive of the public trainer; rows (n, D1) and (n, D2) are its learned tokens."""
    files = {"lora.safetensors": to_bytes(replicate(lora))}
    if rows is not None:
        pair = {f"text_encoders_{i}": each.bfloat16().contiguous() for i, each in enumerate(rows)}
        files["embeddings.pti"] = to_bytes(pair)
        files["special_params.json"] = json.dumps({trigger: "".join(f"<s{i}>" for i in range(len(rows[0])))}).encode()
    with tarfile.open(path, "w:gz" if gz else "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(f"{nested}/{name}" if nested else name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path
