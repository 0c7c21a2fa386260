"""The files of a fine-tune -> what they mean for this model; told by what is in them, never by what they are called.

All or nothing: a tensor that fits no layer, a factor without its partner, a wrong shape is an error that names it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn import Module

from errors import WeightsError
from sdxl.files import TunedFiles
from sdxl.finetune import foreign
from sdxl.finetune.changes import Change, LowRank, Replacement
from sdxl.finetune.kinds import UNFOLDABLE, Found, changes_of, split
from sdxl.finetune.names import Layer, index, stem
from sdxl.finetune.tokens import LearnedTokens, PooledAt

# Replicate's trainer, and what everybody else calls the rows of the two encoders.
TOKEN_KEYS = (("text_encoders_0", "text_encoders_1"), ("clip_l", "clip_g"))
BUNDLED = re.compile(r"bundle_emb\.(.+)\.(clip_[lg])")  # embeddings inside a LoRA file, as OneTrainer writes them
PREFERRED = ("unet.safetensors", "lora.safetensors", "pytorch_lora_weights.safetensors", "adapter_model.safetensors")
TOKENS_FILE = "embeddings.pti"
TRIGGER_METADATA = ("trigger", "modelspec.trigger_phrase", "ss_trigger_words", "trigger_word")


@dataclass(frozen=True)
class Target:
    """One parameter of the model."""

    layer: Layer
    parameter: str  # weight or bias


@dataclass(frozen=True)
class FineTune:
    """What one content asks for, wherever it came from. `whole`: a full UNet, meant to be used at scale 1."""

    key: str  # of the content
    name: str  # what stands for its tokens in a prompt, unless the content says it
    changes: Mapping[Target, Change]
    learned: LearnedTokens | None
    whole: bool

    def size(self) -> int:
        """Bytes in memory."""
        tensors = [tensor for change in self.changes.values() for tensor in change.tensors()]
        return sum(tensor.nbytes for tensor in (*tensors, *(self.learned.rows if self.learned else ())))


@dataclass(frozen=True)
class Contents:
    """A .safetensors file."""

    name: str
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]

    @classmethod
    def read(cls, path: Path) -> Contents:
        """Its tensors stay on the disk, mapped, until they are used."""
        try:
            with safe_open(path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
                return cls(path.name, tensors, file.metadata() or {})
        except (OSError, SafetensorError) as error:
            raise WeightsError(f"{path.name} is damaged ({error}); fetch it again.") from error

    @property
    def only_tokens(self) -> bool:
        """Whether it holds learned tokens and nothing else."""
        return any(set(self.tensors) == set(pair) for pair in TOKEN_KEYS)


@dataclass(frozen=True)
class Reader:
    """Reads fine-tunes for the model with these parts; `home` is where and in what type their factors are kept."""

    parts: Mapping[str, Module]
    layers: Mapping[str, Layer]
    home: torch.device
    dtype: torch.dtype

    @classmethod
    def of(cls, parts: Mapping[str, Module], home: torch.device, dtype: torch.dtype) -> Reader:
        """For the UNet and the text encoders, by the names of `Layer.part`."""
        return cls(parts, index(parts), home, dtype)

    @torch.no_grad()
    def read(self, files: TunedFiles) -> FineTune:
        """Everything that the files mean. WeightsError in one sentence if any of it does not fit."""
        try:
            weights, tokens = _chosen(files)
            changes = self._changes(weights, _trained_gain(files, weights)) if weights else {}
            learned = self._learned(files, weights, tokens)
        except WeightsError as error:
            raise WeightsError(f"{files.shown}: {error}") from error
        whole = bool(changes) and all(isinstance(change, Replacement) for change in changes.values())
        return FineTune(files.key, files.name, changes, learned, whole)

    def _changes(self, file: Contents, trained_gain: Any) -> dict[Target, Change]:
        if not file.tensors:
            raise WeightsError(f"{file.name} holds no tensors; it is empty.")
        found, unknown = dict[Layer, Found](), list[str]()
        for key, tensor in file.tensors.items():
            if BUNDLED.fullmatch(key):
                continue
            name, role = split(key) or (key, "")
            layer = self.layers.get(stem(name))
            if layer is None or not role:
                unknown.append(key)
                continue
            roles = found.setdefault(layer, Found(name, trained_gain)).roles
            if role in roles:
                raise WeightsError(f"it has {role} of {layer} twice, the second time as {key!r}.")
            roles[role] = tensor
        if unknown:
            raise self._foreign(file, unknown)
        changes: dict[Target, Change] = {}
        for layer, said in found.items():
            module = self.parts[layer.part].get_submodule(layer.path)
            for parameter, change in changes_of(said).items():
                _require_fit(said.name, change, getattr(module, parameter, None))
                changes[Target(layer, parameter)] = self._kept(change)
        return changes

    def _kept(self, change: Change) -> Change:
        """As it is kept until it is folded in: ready on the device, but whole weights (5 GB) mapped from the disk."""
        if isinstance(change, Replacement):
            return change
        return (change.rounded(self.dtype) if isinstance(change, LowRank) else change).to(self.home)

    def _foreign(self, file: Contents, unknown: list[str]) -> WeightsError:
        shapes = {key: tuple(tensor.shape) for key, tensor in file.tensors.items()}
        first = min(unknown)
        if kind := next((kind for pattern, kind in UNFOLDABLE.items() if re.search(pattern, first)), None):
            return WeightsError(f"{first!r} is of the kind {kind}, which cannot be folded; merge it with its trainer.")
        what = foreign.named(shapes, self._cross_attention_dim())
        if what:
            return WeightsError(f"it is {what}, not for SDXL (it has {first!r}); choose weights made for SDXL 1.0.")
        count = f"none of its {len(shapes)}" if len(unknown) == len(shapes) else f"{len(unknown)} of its {len(shapes)}"
        verb = "tensors fits a layer of SDXL" if count.startswith("none") else "tensors fit no layer of SDXL"
        return WeightsError(f"{count} {verb}, first {first!r}; choose weights made for SDXL 1.0.")

    def _cross_attention_dim(self) -> int:
        unet: Any = self.parts["unet"]
        return int(unet.config.cross_attention_dim)

    def _learned(self, files: TunedFiles, weights: Contents | None, tokens: Contents | None) -> LearnedTokens | None:
        rows = dict[str, tuple[Tensor, Tensor]]()  # trigger, or "" for the file's own
        pooled_at: PooledAt = "end"
        if tokens:
            first, second = next(pair for pair in TOKEN_KEYS if set(tokens.tensors) == set(pair))
            rows[""] = tokens.tensors[first], tokens.tensors[second]
            stated = tokens.metadata.get("pooled_at", "token" if first == TOKEN_KEYS[0][0] else "end")
            pooled_at = "token" if stated == "token" else "end"
        elif weights:
            named = {match[1] for key in weights.tensors if (match := BUNDLED.fullmatch(key))}
            for name in sorted(named):
                rows[name] = self._bundled(weights, name)
        if not rows:
            return None
        triggers, start = dict[str, list[int]](), 0
        for name, pair in rows.items():
            self._require_rows(pair)
            count = len(pair[0])
            numbers = list(range(start, start + count))
            triggers |= _own_triggers(files, tokens, count) if not name else {name: numbers}
            start += count
        first_rows, second_rows = (
            torch.cat([pair[encoder] for pair in rows.values()]).to(self.home, torch.float32) for encoder in (0, 1)
        )
        return LearnedTokens(f"{files.key}/{files.name}", (first_rows, second_rows), triggers, pooled_at)

    def _bundled(self, weights: Contents, name: str) -> tuple[Tensor, Tensor]:
        pair = [weights.tensors.get(f"bundle_emb.{name}.{kind}") for kind in TOKEN_KEYS[1]]
        if pair[0] is None or pair[1] is None:
            raise WeightsError(f"the token {name!r} has rows for one text encoder only; SDXL has two.")
        return pair[0], pair[1]

    def _require_rows(self, pair: tuple[Tensor, Tensor]) -> None:
        for rows, part in zip(pair, ("text_encoder", "text_encoder_2"), strict=True):
            encoder: Any = self.parts[part]
            width = int(encoder.config.hidden_size)
            if rows.dim() != 2 or rows.shape[1] != width or not len(rows) or len(rows) != len(pair[0]):
                shapes = " and ".join("x".join(map(str, each.shape)) for each in pair)
                raise WeightsError(f"its token rows are {shapes}, and {part} of this model reads rows of {width}.")
            _require_finite(part, rows)


def _chosen(files: TunedFiles) -> tuple[Contents | None, Contents | None]:
    """(weights, tokens): of several files the one nearest to the top, those with the usual names first."""
    paths = [path for path in files.folder.rglob("*") if path.suffix in (".safetensors", ".pti")]
    read = {path: Contents.read(path) for path in sorted(paths)}

    def rank(path: Path) -> tuple[int, int]:
        name = path.name
        usual = PREFERRED.index(name) if name in PREFERRED else 0 if name == TOKENS_FILE else len(PREFERRED)
        return usual, len(path.relative_to(files.folder).parts)

    weights = sorted((path for path, file in read.items() if not file.only_tokens), key=rank)
    tokens = sorted((path for path, file in read.items() if file.only_tokens), key=rank)
    for paths in (weights, tokens):
        if len(paths) > 1 and rank(paths[0]) == rank(paths[1]):
            names = ", ".join(path.name for path in paths[:4])
            raise WeightsError(f"it holds {len(paths)} files of the same kind ({names}); name one of them.")
    if not read:
        raise WeightsError("it holds no .safetensors file.")
    return read[weights[0]] if weights else None, read[tokens[0]] if tokens else None


def _own_triggers(files: TunedFiles, tokens: Contents | None, count: int) -> dict[str, list[int]]:
    """Each token by its own name, and all of them by the word that stands for them."""
    triggers = {f"<s{number}>": [number] for number in range(count)}
    written = next(iter(sorted(files.folder.rglob("special_params.json"))), None)
    for name, text in _object(written).items() if written else ():
        numbers = [int(number) for number in re.findall(r"<s(\d+)>", str(text))]
        if not name.strip() or not numbers or max(numbers) >= count or re.sub(r"<s\d+>", "", str(text)).strip():
            raise WeightsError(f"special_params.json gives {name!r} the meaning {text!r}; it holds {count} tokens.")
        triggers[name] = numbers
    if not written:
        metadata = tokens.metadata if tokens else {}
        stated = next((metadata[name] for name in TRIGGER_METADATA if metadata.get(name)), "")
        trigger = (stated or files.name).strip()
        triggers |= {trigger: list(range(count))} if trigger else {}
    return triggers


def _object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path.name} cannot be read ({error}).") from error
    if not isinstance(value, dict):
        raise WeightsError(f"{path.name} holds no JSON object.")
    return value


def _trained_gain(files: TunedFiles, file: Contents | None) -> Any:
    """alpha / rank by (layer, rank) for files that state alpha once for all layers: diffusers in the header, PEFT in
    adapter_config.json beside the file. 1 where nothing is stated, as diffusers has it.
    """
    config = dict[str, Any]()
    beside = next(iter(sorted(files.folder.rglob("adapter_config.json"))), None)
    if beside:
        config = _object(beside)
    elif file and (text := file.metadata.get("lora_adapter_metadata")):
        try:
            config = dict(json.loads(text))
        except (ValueError, TypeError) as error:
            raise WeightsError(f"{file.name}: its lora_adapter_metadata is no JSON object.") from error
    return _Gain(config)


@dataclass(frozen=True)
class _Gain:
    config: Mapping[str, Any]

    def __call__(self, name: str, rank: int) -> float:
        part, _, rest = name.partition(".")
        prefix = f"{part}." if f"{part}.lora_alpha" in self.config else ""
        alpha = self.config.get(f"{prefix}lora_alpha")
        patterns: Iterable[tuple[str, Any]] = (self.config.get(f"{prefix}alpha_pattern") or {}).items()
        for pattern, own in patterns:  # PEFT: a regular expression for the end of a module's path
            if re.match(rf"(.*\.)?({pattern})$", rest if prefix else name):
                alpha = own
                break
        if alpha is None:
            return 1.0
        return float(alpha) / (math.sqrt(rank) if self.config.get(f"{prefix}use_rslora") else rank)


def _require_fit(name: str, change: Change, parameter: Tensor | None) -> None:
    """Refuse what does not have the layer's shape, or holds no numbers; a trial run on the meta device tells."""
    if parameter is None:
        raise WeightsError(f"{name!r} changes a bias, and this layer has none.")
    if not isinstance(change, Replacement):
        for tensor in change.tensors():
            _require_finite(name, tensor)
    meta = torch.device("meta")
    try:
        fits = change.to(meta).delta(torch.empty(parameter.shape, device=meta)).shape == parameter.shape
    except (RuntimeError, IndexError, ValueError):
        fits = False
    if isinstance(change, Replacement):
        fits = change.value.shape == parameter.shape
    if not fits:
        shapes = " and ".join("x".join(map(str, tensor.shape)) for tensor in change.tensors())
        raise WeightsError(
            f"{name!r} has the shape {shapes}, which does not fit SDXL's {'x'.join(map(str, parameter.shape))}; "
            "choose weights made for SDXL 1.0."
        )


def _require_finite(name: str, tensor: Tensor) -> None:
    values = tensor if tensor.dtype in (torch.float32, torch.float16, torch.bfloat16) else tensor.float()
    if values.numel() and not all(map(math.isfinite, map(float, torch.aminmax(values)))):
        raise WeightsError(f"{name!r} holds values that are no numbers (NaN or infinite); the training failed.")
