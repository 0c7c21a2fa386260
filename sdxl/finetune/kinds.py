"""The tensors that a file has for one layer -> the changes they mean. A kind of fine-tune is a row in KINDS."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

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


@dataclass
class Found:
    """What a file says of one layer; builders take out what they use."""

    name: str  # as the file has it
    trained_gain: Callable[[str, int], float]  # (name, rank): alpha / rank where the file states it elsewhere
    roles: dict[str, Tensor] = field(default_factory=dict)

    def take(self, role: str) -> Tensor:
        if role not in self.roles:
            has = ", ".join(sorted(self.roles)) or "parts of it"
            raise WeightsError(f"{self.name!r} has {has} but no {role}; the file is incomplete, download it again.")
        return self.roles.pop(role)

    def maybe(self, role: str) -> Tensor | None:
        return self.roles.pop(role, None)

    def gain(self, rank: int) -> float:
        """alpha / rank; without an alpha it counts as equal to the rank."""
        alpha = self.maybe("alpha")
        return self.trained_gain(self.name, rank) if alpha is None else float(alpha) / rank


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
    if rank or rank_2:
        return _directed(found, Kronecker(left, right, found.gain(rank or rank_2)))
    found.maybe("alpha")  # two whole halves have no rank to divide by, and are written with alpha as if it were 1
    return _directed(found, Kronecker(left, right, 1.0))


def _half(found: Found, name: str, core_name: str | None) -> tuple[Tensor, int]:
    """One side of a Kronecker product, (O, I ...), and its rank; 0 where it is whole."""
    if (whole := found.maybe(name)) is not None:
        return whole, 0
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
        raise WeightsError(f"{found.name!r} has {', '.join(sorted(found.roles))}, which means nothing to this loader")
    return changes
