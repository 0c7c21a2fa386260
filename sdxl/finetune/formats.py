"""The files of a fine-tune -> what they mean for this model; told by what is in them, never by what they are called.

All or nothing: a tensor that fits no layer, a factor without its partner, a wrong shape is an error that names it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from errors import WeightsError
from sdxl.few_step import Recipe
from sdxl.files import TunedFiles
from sdxl.finetune import foreign
from sdxl.finetune.changes import Change, Difference, LowRank, Replacement
from sdxl.finetune.contents import BUNDLED, Contents, Gain, choose, is_finite
from sdxl.finetune.kinds import UNFOLDABLE, Found, changes_of, split
from sdxl.finetune.names import Layer, index, stem
from sdxl.finetune.tokens import LearnedTokens
from sdxl.finetune.words import read_tokens

# What a change that does not fit its layer raises, tried without data
MISFITS = (RuntimeError, IndexError, ValueError, TypeError, ZeroDivisionError, NotImplementedError)


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
    left_out: tuple[str, ...]  # files of it that are not used
    recipe: Recipe | None  # of few-step weights, if content, header or file name tells them

    def size(self) -> int:
        """Bytes in memory."""
        tensors = [tensor for change in self.changes.values() for tensor in change.tensors()]
        return sum(tensor.nbytes for tensor in (*tensors, *(self.learned.rows if self.learned else ())))


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
            chosen = choose(files.folder)
            recipe = chosen.weights.recipe(files.name) if chosen.weights else None
            changes = self._changes(chosen.weights.usual()) if chosen.weights else {}
            learned = read_tokens(chosen, self.parts, self.home, key=files.key, name=files.name)
        except WeightsError as error:
            raise WeightsError(f"{files.shown}: {error}") from error
        whole = bool(changes) and all(isinstance(change, Replacement) for change in changes.values())
        return FineTune(files.key, files.name, changes, learned, whole, chosen.left_out, recipe)

    def _changes(self, file: Contents) -> dict[Target, Change]:
        changes: dict[Target, Change] = {}
        for layer, found in self._found(file).items():
            module = self.parts[layer.part].get_submodule(layer.path)
            _require_fit(found, module)
            _require_finite(found)
            for parameter, change in changes_of(found).items():
                changes[Target(layer, parameter)] = self._kept(change)
        return changes

    def _found(self, file: Contents) -> dict[Layer, Found]:
        """The tensors by layer, every one of them."""
        found, unknown = dict[Layer, Found](), list[str]()
        gain = Gain.of(file)
        for key, tensor in file.tensors.items():
            if BUNDLED.fullmatch(key) or key in (file.token_keys or ()):
                continue
            name, role = split(key) or (key, "")
            layer = self.layers.get(stem(name))
            if layer is None or not role:
                unknown.append(key)
                continue
            roles = found.setdefault(layer, Found(name, gain)).roles
            if role in roles:
                raise WeightsError(f"it has {role} of {layer} twice, the second time as {key!r}; send it once.")
            roles[role] = tensor
        if unknown:
            raise self._foreign(file, unknown)
        return found

    def _kept(self, change: Change) -> Change:
        """As it is kept until it is folded in: ready on the device, but what is as large as the weights themselves
        (5 GB) mapped from the disk."""
        if isinstance(change, Replacement | Difference):
            return change
        return (change.rounded(self.dtype) if isinstance(change, LowRank) else change).to(self.home)

    def _foreign(self, file: Contents, unknown: list[str]) -> WeightsError:
        shapes = {key: tuple(tensor.shape) for key, tensor in file.tensors.items()}
        first = min(unknown)
        if kind := next((kind for pattern, kind in UNFOLDABLE.items() if re.search(pattern, first)), None):
            return WeightsError(f"{first!r} is of the kind {kind}, which cannot be folded; merge it with its trainer.")
        unet: Any = self.parts["unet"]
        if what := foreign.named(shapes, int(unet.config.cross_attention_dim)):
            return WeightsError(f"it is {what} (it has {first!r:.200}).")
        some, all_of_them = len(unknown), len(shapes)
        count = f"{some} of its {all_of_them} tensors fit no"
        if some == all_of_them:
            count = f"none of its {all_of_them} tensors fits a"
        return WeightsError(f"{count} layer of SDXL, first {first!r:.200}; choose weights made for SDXL 1.0.")


def _require_fit(found: Found, module: Module) -> None:
    """Refuse what does not have the layer's shape, tried without data: what does not fit could be made to ask for any
    amount of memory.
    """
    meta = torch.device("meta")
    for parameter, change in _tried(found, module).items():
        weight: Tensor | None = getattr(module, parameter, None)
        if weight is None:
            raise WeightsError(f"{found.name!r} changes a bias, and this layer has none; choose weights for SDXL 1.0.")
        blank = torch.empty(weight.shape, device=meta)
        try:
            result = change.value if isinstance(change, Replacement) else change.delta(blank)
        except MISFITS:
            raise _misfit(found, weight.shape) from None
        if result.shape != weight.shape:
            raise _misfit(found, weight.shape)


def _require_finite(found: Found) -> None:
    if not all(map(is_finite, found.roles.values())):
        raise WeightsError(
            f"{found.name!r} holds values that are no numbers (NaN or infinite); the training failed, "
            "choose other weights."
        )


def _tried(found: Found, module: Module) -> dict[str, Change]:
    try:
        return changes_of(found.trial())
    except MISFITS:
        weight: Any = module.weight
        raise _misfit(found, weight.shape) from None


def _misfit(found: Found, wanted: torch.Size) -> WeightsError:
    shapes = " and ".join("x".join(map(str, tensor.shape)) or "a number" for tensor in found.roles.values())
    return WeightsError(
        f"{found.name!r} has the shape {shapes}, which does not fit SDXL's {'x'.join(map(str, wanted))}; "
        "choose weights made for SDXL 1.0."
    )
