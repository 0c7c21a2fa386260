"""The tensors that a file has for one layer -> the changes they mean. A kind of fine-tune is a row in KINDS."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from errors import WeightsError
from sdxl.finetune.changes import (
    Change,
    Difference,
    Directed,
    Hadamard,
    Kronecker,
    LowRank,
    Product,
    Replacement,
    Rotation,
    Scaling,
)

# The end of a key -> the role of its tensor. `.default` and the like are names of adapters in PEFT.
ENDINGS = {
    r"lora_(?:down|A)(?:\.\w+)?\.weight|lora(?:_linear_layer)?\.down\.weight": "down",
    r"lora_(?:up|B)(?:\.\w+)?\.weight|lora(?:_linear_layer)?\.up\.weight": "up",
    r"lora_mid\.weight": "mid",
    r"alpha": "alpha",
    r"dora_scale": "length",
    r"lora_magnitude_vector(?:\.\w+)*": "magnitude",
    r"hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t2)|oft_blocks|oft_diag|rescale|on_input|diff|diff_b": "",
    r"w_norm": "diff",
    r"b_norm": "diff_b",
    r"weight": "weight",
    r"bias": "bias",
}
ENDING = re.compile(rf"(.+?)\.(?:{'|'.join(f'({ending})' for ending in ENDINGS)})")
PROCESSOR = re.compile(r"(.+?)(?:\.processor)?\.to_(q|k|v|out)_lora\.(down|up)\.weight")
# Kinds of LyCORIS whose files do not say enough to fold them.
UNFOLDABLE = {r"\.(a1|a2|b1|b2)\.weight$": "GLoRA", r"\.bias_(indices|values|size)$": "sparse bias"}


def split(key: str) -> tuple[str, str] | None:
    """A key -> (name of the layer, role of the tensor); None for what says nothing of a layer."""
    if match := PROCESSOR.fullmatch(key):
        layer, kind, role = match.groups()
        return f"{layer}.to_{kind}{'.0' if kind == 'out' else ''}", role
    if match := ENDING.fullmatch(key):
        layer, *found = match.groups()
        role, text = next((role, text) for role, text in zip(ENDINGS.values(), found, strict=True) if text)
        return layer, role or text
    return None


NUMBERS = {"alpha", "on_input"}  # the roles whose tensors are single numbers
MOST_RANK = 8192  # a higher one is no low rank, and what is made of it would not fit in memory


@dataclass
class Found:
    """What a file says of one layer; builders take out what they use."""

    name: str  # as the file has it
    trained_gain: Callable[[str, int | None], float]  # (name, rank): alpha / rank where the file states it elsewhere
    roles: dict[str, Tensor] = field(default_factory=dict)

    def trial(self) -> Found:
        """The same without data, for finding out, at no cost, whether it fits."""
        roles = {role: tensor if role in NUMBERS else tensor.to("meta") for role, tensor in self.roles.items()}
        return replace(self, roles=roles)

    def take(self, role: str) -> Tensor:
        if role not in self.roles:
            has = ", ".join(sorted(self.roles)) or "parts of it"
            raise WeightsError(f"{self.name!r} has {has} but no {role}; the file is incomplete, download it again.")
        return self.roles.pop(role)

    def maybe(self, role: str) -> Tensor | None:
        return self.roles.pop(role, None)

    def gain(self, rank: int | None) -> float:
        """alpha / rank, where an alpha that is stated nowhere counts as equal to the rank. `rank` is None where there
        is none: then only a trainer that states both says how much the change counts."""
        alpha = self.maybe("alpha")
        if rank is not None and not 0 < rank <= MOST_RANK:
            raise WeightsError(f"{self.name!r} has the rank {rank}; choose weights with one from 1 to {MOST_RANK}.")
        gain = self.trained_gain(self.name, rank) if alpha is None or rank is None else float(alpha) / rank
        if not math.isfinite(gain):
            raise WeightsError(
                f"{self.name!r} has an alpha that is no number; the training failed, choose other weights."
            )
        return gain


def _low_rank(found: Found) -> Change:
    up, down, core = found.take("up"), found.take("down"), found.maybe("mid")
    gain = found.gain(down.shape[0])
    if core is not None:  # Tucker: down (r, I, 1, 1), core (r, r, kh, kw)
        down = torch.einsum("pq...,qi->pi...", core.float(), down.float().flatten(1))
    return _directed(found, LowRank(up.flatten(1), down.flatten(1), gain))


def _hadamard(found: Found) -> Change:
    first = found.take("hada_w1_a"), found.take("hada_w1_b"), found.maybe("hada_t1")
    second = found.take("hada_w2_a"), found.take("hada_w2_b"), found.maybe("hada_t2")
    return _directed(found, Hadamard(Product(*first), Product(*second), found.gain(first[1].shape[0])))


def _kronecker(found: Found) -> Change:
    (left, rank), (right, rank_2) = _half(found, "lokr_w1", None), _half(found, "lokr_w2", "lokr_t2")
    return _directed(found, Kronecker(left, right, found.gain(rank_2 or rank)))


def _half(found: Found, name: str, core_name: str | None) -> tuple[Tensor, int | None]:
    """One side of a Kronecker product, (O, I ...), and its rank; None where it is whole."""
    if (whole := found.maybe(name)) is not None:
        return whole, None
    a, b = found.take(f"{name}_a"), found.take(f"{name}_b")
    core = found.maybe(core_name) if core_name else None
    return Product(a, b, core).whole(), b.shape[0]


def _scaling(found: Found) -> Change:
    on_input = bool(found.take("on_input"))
    share = found.take("weight").flatten()
    return Scaling(share[None] if on_input else share[:, None])


def _rotation(found: Found) -> Change:
    blocks = found.take("oft_blocks" if "oft_blocks" in found.roles else "oft_diag")
    if blocks.dim() != 3:
        raise WeightsError(f"{found.name!r} is of the kind BOFT, which cannot be folded; merge it with its trainer.")
    limit = found.maybe("alpha")  # for each output channel
    outputs = blocks.shape[0] * blocks.shape[1]
    return Rotation(blocks, found.maybe("rescale"), 0.0 if limit is None else float(limit) * outputs)


def _directed(found: Found, inner: Change) -> Change:
    """DoRA, if there are lengths: kohya's and LyCORIS's with the axes of the weight, PEFT's one for each output."""
    length, magnitude = found.maybe("length"), found.maybe("magnitude")
    if magnitude is not None:
        length = magnitude.reshape(-1, 1)
    return inner if length is None else Directed(inner, length)


# What marks a kind, and what makes a change of it. The first that fits is taken.
KINDS: tuple[tuple[frozenset[str], Callable[[Found], Change]], ...] = (
    (frozenset({"down", "up", "mid"}), _low_rank),
    (frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}), _hadamard),
    (frozenset({"lokr_w1", "lokr_w2", "lokr_w1_a", "lokr_w2_a"}), _kronecker),
    (frozenset({"on_input"}), _scaling),
    (frozenset({"oft_blocks", "oft_diag"}), _rotation),
    (frozenset({"diff"}), lambda found: Difference(found.take("diff"))),
    (frozenset({"weight"}), lambda found: Replacement(found.take("weight"))),
)
BIASES: Mapping[str, Callable[[Tensor], Change]] = {"diff_b": Difference, "bias": Replacement}


def changes_of(found: Found) -> dict[str, Change]:
    """{"weight": ..., "bias": ...}: what the file means for a layer. WeightsError for what it does not say whole."""
    changes: dict[str, Change] = {}
    for role, kind in BIASES.items():
        if (tensor := found.maybe(role)) is not None:
            changes["bias"] = kind(tensor)
    build = next((build for marks, build in KINDS if marks & found.roles.keys()), None)
    if build:
        changes["weight"] = build(found)
    if found.roles:
        left = ", ".join(sorted(found.roles))
        raise WeightsError(f"{found.name!r} has {left}, which means nothing there; export the weights again.")
    return changes
