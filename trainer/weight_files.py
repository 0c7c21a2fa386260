"""What was trained -> the weight files of an archive: the reference runtime's three, and those that other tools read.

lora.safetensors          attention, float32, as replicate/cog-sdxl names it: no alpha, which is folded into `up`
embeddings.pti            rows of both text encoders, float32: that runtime rounds them to its own type as it loads them
special_params.json       {"TOK": "<s0><s1>"}
lora_kohya.safetensors    every layer, 16 bit, as sd-scripts names it: names of the published UNet, an alpha for each
lora_peft.safetensors     every layer, 16 bit, as diffusers and PEFT name it, rank and alpha in the header
<trigger>.safetensors     its rows, float32, as web UIs read them, which call a token by the name of its file
unet.safetensors          of full fine-tuning, in place of the LoRA: diffusers' names, float16, as SDXL itself is kept:
                          it has eight times the precision of bfloat16, and what did not change stays what it was

Headers say what is the same in two dialects (`sdxl.finetune.contents`), so that a reader takes one and misses none.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from sdxl.finetune.contents import PART, TRAINING
from sdxl.finetune.names import Blocks, stem
from trainer.files import save_tensors, whole
from trainer.trained import Trained

Metadata = Mapping[str, object]
Tensors = dict[str, Tensor]
Factors = Mapping[str, tuple[Tensor, Tensor]]

HALF, FULL = torch.float16, torch.float32
ATTENTION = re.compile(r"(.+\.attn[12])\.(to_[qkv]|to_out\.0)")
PROJECTIONS = {"to_q", "to_k", "to_v", "to_out.0"}
# What kohya's header calls what ours says.
KOHYA = {
    "steps": "ss_steps",
    "epochs": "ss_epoch",
    "seed": "ss_seed",
    "images": "ss_num_train_images",
    "batch_size": "ss_total_batch_size",
    "unet_learning_rate": "ss_unet_lr",
    "optimizer": "ss_optimizer",
    "lr_scheduler": "ss_lr_scheduler",
}
# Not to be names of trigger files: those of the others, and what Windows keeps for itself.
TAKEN = {"lora", "lora_kohya", "lora_peft", "unet", "embeddings", "weights", "adapter_model", "pytorch_lora_weights"}
TAKEN |= {"con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(10))}
LONGEST = 50  # characters of a file's name; four bytes each at most, and systems take 255


def write_weights(folder: Path, trained: Trained, metadata: Metadata) -> list[Path]:
    """All of them, into a folder; `metadata` is for the headers: steps, seed, resolution, ... The same content gives
    the same bytes. WeightsError if the disk does not hold them.
    """
    said = _said(trained, metadata)
    paths = write_replicate(folder, trained, metadata)
    if trained.lora:
        factors = balanced(trained)
        paths += [folder / "lora_kohya.safetensors", folder / "lora_peft.safetensors"]
        save_tensors(paths[-2], kohya(factors, trained.alpha), said | kohya_header(trained, metadata), HALF)
        save_tensors(paths[-1], peft(factors), said | peft_header(trained), HALF)
    for trigger, name in file_names(trained.triggers).items():
        numbers = list(trained.triggers[trigger])
        rows = dict(zip(("clip_l", "clip_g"), (each[numbers] for each in trained.rows), strict=True))
        own = _said(trained, metadata, part=numbers != list(range(len(trained.rows[0]))))
        paths.append(folder / f"{name}.safetensors")
        save_tensors(paths[-1], rows, own | {"trigger": trigger, "pooled_at": "token"}, FULL)
    return paths


def write_replicate(folder: Path, trained: Trained, metadata: Metadata) -> list[Path]:
    """Those that the reference runtime reads, which are enough for a checkpoint too."""
    said = _said(trained, metadata)
    paths: list[Path] = []
    if trained.unet:
        paths.append(folder / "unet.safetensors")
        save_tensors(paths[-1], trained.unet, said, HALF)
    if trained.lora:
        tensors = replicate(balanced(trained), trained.alpha)
        paths.append(folder / "lora.safetensors")
        part = len(tensors) < 2 * len(trained.lora)
        save_tensors(paths[-1], tensors, _said(trained, metadata, part=part), FULL)
    paths.append(folder / "embeddings.pti")
    rows = {f"text_encoders_{number}": each for number, each in enumerate(trained.rows)}
    words = json.dumps(special_params(trained.triggers))
    save_tensors(paths[-1], rows, said | {"pooled_at": "token", "special_params": words}, FULL)
    paths.append(folder / "special_params.json")
    with whole(paths[-1]) as file:
        file.write(words.encode())
    return paths


def special_params(triggers: Mapping[str, Sequence[int]]) -> dict[str, str]:
    """Trigger -> its tokens. The longest first: the reference runtime replaces one after the other in a prompt, and TOK
    in TOKEN would be the first of both."""
    ordered = sorted(triggers, key=len, reverse=True)
    return {trigger: "".join(f"<s{number}>" for number in triggers[trigger]) for trigger in ordered}


def balanced(trained: Trained) -> dict[str, tuple[Tensor, Tensor]]:
    """The LoRA with `up` and `down` of about the same size: times a power of two and through the same, which changes no
    product. `up` starts at zero, and after a short training half precision would round what is in it."""
    factors = {}
    for path, (down, up) in trained.lora.items():
        tops = float(down.abs().max()), float(up.abs().max())
        two = 2.0 ** round(math.log2(tops[0] / tops[1]) / 2) if all(map(math.isfinite, tops)) and all(tops) else 1.0
        factors[path] = down / two, up * two
    return factors


def replicate(factors: Factors, alpha: float) -> Tensors:
    """Attention in the processors' names of old diffusers. The reference runtime gives one rank to a processor and asks
    for all of its projections."""
    tensors: Tensors = {}
    found: dict[str, set[str]] = {}
    for path, (down, up) in factors.items():
        if match := ATTENTION.fullmatch(path):
            owner, layer = match.groups()
            found.setdefault(owner, set()).add(layer)
            name = f"{owner}.processor.{layer.removesuffix('.0')}_lora"
            tensors |= {f"{name}.down.weight": down, f"{name}.up.weight": up * (alpha / len(down))}
    if lacking := [owner for owner, layers in found.items() if layers != PROJECTIONS]:
        raise ValueError(f"{lacking[0]} has no LoRA on some of its projections")
    return tensors


def kohya(factors: Factors, alpha: float) -> Tensors:
    """Every layer in the names of the published UNet: sd-scripts knows no others, all other tools know both."""
    blocks = Blocks.of(list(factors))
    tensors: Tensors = {}
    for path, (down, up) in factors.items():
        name = f"lora_unet_{blocks.original(stem(path))}"
        tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
        tensors[f"{name}.alpha"] = torch.tensor(alpha)
    return tensors


def peft(factors: Factors) -> Tensors:
    """Every layer in diffusers' own names."""
    return {
        f"unet.{path}.lora_{side}.weight": factor
        for path, pair in factors.items()
        for side, factor in zip("AB", pair, strict=True)
    }


def kohya_header(trained: Trained, metadata: Metadata) -> dict[str, str]:
    """What tools show of a LoRA: sd-scripts' own words, and those of Stability's model spec 1.0.0."""
    said = {theirs: str(metadata[ours]) for ours, theirs in KOHYA.items() if ours in metadata}
    triggers = ", ".join(trained.triggers)
    if "resolution" in metadata:
        side = metadata["resolution"]
        said |= {"ss_resolution": f"({side}, {side})", "modelspec.resolution": f"{side}x{side}"}
    return said | {
        "ss_base_model_version": "sdxl_base_v1-0",
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(trained.rank),
        "ss_network_alpha": f"{trained.alpha:g}",
        "ss_output_name": next(iter(trained.triggers)),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.prediction_type": "epsilon",
        "modelspec.title": next(iter(trained.triggers)),
        "modelspec.trigger_phrase": triggers,
    }


def peft_header(trained: Trained) -> dict[str, str]:
    """The config of the adapter, as diffusers' `save_lora_weights` puts it into a header."""
    config = {
        "peft_type": "LORA",
        "r": trained.rank,
        "lora_alpha": trained.alpha,
        "target_modules": sorted(trained.lora),
        "bias": "none",
        "lora_dropout": 0.0,
    }
    named = {f"unet.{key}": value for key, value in config.items()}
    return {"lora_adapter_metadata": json.dumps(named, sort_keys=True)}


def file_names(triggers: Mapping[str, Sequence[int]]) -> dict[str, str]:
    """Trigger -> a file's name for it, without an ending, that every system takes: as near to the trigger as can be,
    since web UIs call a token by it. No two are the same, in small letters either."""
    names: dict[str, str] = {}
    taken = set(TAKEN)
    for trigger in triggers:
        safe = re.sub(r"[^\w.-]+", "_", trigger).strip("._-")[:LONGEST].rstrip("._-") or "token"
        count, name = 1, safe
        while name.casefold() in taken:
            count += 1
            name = f"{safe}_{count}"
        taken.add(name.casefold())
        names[trigger] = name
    return names


def _said(trained: Trained, metadata: Metadata, *, part: bool = False) -> dict[str, str]:
    """The header of every file; of one with a part of what was learned, that it is one."""
    said = {key: str(value) for key, value in metadata.items()}
    return said | {"format": "pt", "trigger": ", ".join(trained.triggers), PART if part else TRAINING: trained.key}
