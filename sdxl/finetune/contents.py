"""The files of a fine-tune: which of them count, and what stands beside the tensors."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from errors import WeightsError
from sdxl import few_step

# The rows of the two encoders, as Replicate's trainer and as everybody else calls them.
TOKEN_KEYS = (("text_encoders_0", "text_encoders_1"), ("clip_l", "clip_g"))
BUNDLED = re.compile(r"bundle_emb\.(.+)\.(clip_[lg])")  # tokens inside a LoRA file, as OneTrainer writes them
TENSORS = (".safetensors", ".pti")
# Of several files of one kind the first of these, and else the one nearest to the top
USUAL = (
    *("unet.safetensors", "lora.safetensors", "pytorch_lora_weights.safetensors", "adapter_model.safetensors"),
    "embeddings.pti",
)
# Headers of this package's own trainer. Its archives hold one training in several dialects: the files that hold all of
# it say so with one and the same value, those that hold some of it (no feed-forward, one token of several) as well.
TRAINING, PART = "sdxl_training", "sdxl_part_of_training"


@dataclass(frozen=True)
class Contents:
    """A .safetensors file; its tensors stay on the disk, mapped, until they are used."""

    path: Path
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]

    @classmethod
    def read(cls, path: Path) -> Contents:
        """WeightsError if it is damaged."""
        try:
            with safe_open(path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
                metadata = file.metadata() or {}
        except (OSError, SafetensorError) as error:
            raise WeightsError(f"{path.name} is damaged ({error}); fetch it again.") from error
        if not tensors:
            raise WeightsError(f"{path.name} holds no tensors, it is empty; export the weights again.")
        for name, tensor in tensors.items():
            if tensor.is_complex() or (not tensor.is_floating_point() and tensor.numel() != 1):
                kind = str(tensor.dtype).removeprefix("torch.")
                raise WeightsError(f"{name!r} in {path.name} is of type {kind}; export the weights in 16 or 32 bit.")
        return cls(path, tensors, metadata)

    @property
    def token_keys(self) -> tuple[str, str] | None:
        """What the rows of learned tokens are called in it, if it has any."""
        return next((pair for pair in TOKEN_KEYS if set(pair) <= self.tensors.keys()), None)

    @property
    def only_tokens(self) -> bool:
        """Whether it holds learned tokens and nothing else."""
        return any(set(self.tensors) <= set(pair) for pair in TOKEN_KEYS)

    def recipe(self, name: str) -> few_step.Recipe | None:
        """Of few-step weights, as content, names or header tell; `name` is what it was called where it came from."""
        if few_step.reads_guidance(self.tensors):
            return few_step.LCM
        return few_step.named(name, self.path.stem, *(self.metadata.get(key, "") for key in few_step.HEADER))

    def usual(self) -> Contents:
        """The same weights for a UNet that is not told the guidance scale."""
        if not few_step.reads_guidance(self.tensors):
            return self
        return replace(self, tensors=few_step.with_guidance_built_in(self.tensors))

    def repeats(self, other: Contents) -> bool:
        """Whether it holds nothing that is not in the other file too."""
        training = other.metadata.get(TRAINING)
        return training is not None and training in (self.metadata.get(TRAINING), self.metadata.get(PART))

    def beside(self, name: str) -> dict[str, Any]:
        """The JSON object in a file of the same folder; empty without one."""
        path = self.path.with_name(name)
        return as_object(path.read_bytes(), name) if path.is_file() else {}


@dataclass(frozen=True)
class Chosen:
    """The file with weights, the file with tokens, and the names of those that are not used."""

    weights: Contents | None
    tokens: Contents | None
    left_out: tuple[str, ...]


def choose(folder: Path) -> Chosen:
    """The files that count. WeightsError where several could be meant alike."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in TENSORS)
    if not paths:
        raise WeightsError("it holds no .safetensors file; choose weights in that format.")
    files = [Contents.read(path) for path in paths]

    def rank(file: Contents) -> tuple[int, int]:
        name = file.path.name.lower()
        return USUAL.index(name) if name in USUAL else len(USUAL), len(file.path.relative_to(folder).parts)

    weights, more = _first([file for file in files if not file.only_tokens], rank)
    tokens, others = _first([file for file in files if file.only_tokens], rank)
    return Chosen(weights, tokens, tuple(str(file.path.relative_to(folder)) for file in (*more, *others)))


def _first(
    files: Sequence[Contents], rank: Callable[[Contents], tuple[int, int]]
) -> tuple[Contents | None, list[Contents]]:
    """Of files of one kind the one that counts, and those that hold something else. What holds all of a training counts
    in the place of what holds a part of it.
    """
    if not files:
        return None, []
    ranked = sorted(files, key=rank)
    chosen = next((file for file in ranked if ranked[0].repeats(file)), ranked[0])
    others = [file for file in ranked if file is not chosen and not file.repeats(chosen)]
    if any(rank(file) == rank(ranked[0]) for file in others if file is not ranked[0]):
        names = ", ".join(file.path.name for file in ranked[:4])
        raise WeightsError(f"it holds {len(files)} files of the same kind ({names}); send one of them alone.")
    return chosen, others


def is_finite(tensor: Tensor) -> bool:
    """Whether every value is a number; read once, without a copy where torch compares the type itself."""
    values = tensor if tensor.dtype in (torch.float32, torch.float16, torch.bfloat16) else tensor.float()
    return not values.numel() or all(map(math.isfinite, map(float, torch.aminmax(values))))


def as_object(text: bytes | str, name: str) -> dict[str, Any]:
    """The JSON object in a text."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{name} is no JSON ({str(error)[:80]}); export the weights again.") from error
    if not isinstance(value, dict):
        raise WeightsError(f"{name} holds no JSON object; export the weights again.")
    return value


@dataclass(frozen=True)
class Gain:
    """alpha / rank of each layer, for files that state it once for all: diffusers in the header, PEFT in
    adapter_config.json beside the file. 1 where nothing is stated, as diffusers has it.
    """

    config: Mapping[str, Any]

    @classmethod
    def of(cls, file: Contents) -> Gain:
        """As the file, or the one beside it, states it."""
        header = file.metadata.get("lora_adapter_metadata")
        return cls(file.beside("adapter_config.json") or (as_object(header, "lora_adapter_metadata") if header else {}))

    def __call__(self, name: str, rank: int | None) -> float:
        """Of the layer with this name in the file; `rank` is None where no factor tells it."""
        part, _, rest = name.partition(".")
        prefix = f"{part}." if f"{part}.lora_alpha" in self.config else ""
        path = (rest if prefix else name).removeprefix("base_model.model.")
        alpha = self._of(f"{prefix}lora_alpha", f"{prefix}alpha_pattern", path)
        if alpha is None:  # LoHa and LoKr of PEFT call it so
            alpha = self._of("alpha", "alpha_pattern", path)
        rank = rank or self._of(f"{prefix}r", f"{prefix}rank_pattern", path)
        if alpha is None or not rank:
            return 1.0
        return float(alpha / (math.sqrt(rank) if self.config.get(f"{prefix}use_rslora") is True else rank))

    def _of(self, key: str, pattern_key: str, path: str) -> Any:
        """A number of the config, unless a pattern states another for this path. PEFT's patterns are regular
        expressions for the end of a path; taken as plain text, since a file's own expression may run for ever.
        """
        found = self.config.get(key)
        patterns = self.config.get(pattern_key) or {}
        if not isinstance(patterns, dict):
            raise WeightsError(f"{pattern_key} is no JSON object; export the weights again.")
        for pattern, own in patterns.items():
            if not re.fullmatch(r"\^?[\w.]+\$?", pattern):
                raise WeightsError(f"{pattern_key} has {pattern!r:.80}, which is no path of a layer; write it out.")
            plain = pattern.strip("^$")
            if path == plain or path.endswith(f".{plain}"):
                found = own
        if found is not None and (isinstance(found, bool) or not isinstance(found, int | float)):
            raise WeightsError(f"{key} is {found!r:.40} and no number; export the weights again.")
        return found
