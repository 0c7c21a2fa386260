"""How a fine-tune changes one weight. Every kind is a change to the pristine weight, so several add up.

Shapes: a weight is (O, I) or, of a convolution, (O, I, kh, kw); r is a rank. The formulas are those of the trainers
that write the files: LoRA (arXiv 2106.09685), DoRA (arXiv 2402.09353), and LoHa, LoKr, (IA)3 and diagonal OFT as
LyCORIS 4 computes them (arXiv 2309.14859).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor


class Kept:
    """A dataclass of tensors, numbers and others of its kind."""

    def to(self, device: torch.device) -> Self:
        """The same on a device."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}  # type: ignore[arg-type]
        moved = {name: value.to(device) for name, value in values.items() if isinstance(value, Tensor | Kept)}
        return replace(self, **moved)  # type: ignore[type-var]

    def tensors(self) -> list[Tensor]:
        """What it keeps in memory."""
        values = [getattr(self, each.name) for each in fields(self)]  # type: ignore[arg-type]
        inner = [tensor for value in values if isinstance(value, Kept) for tensor in value.tensors()]
        return inner + [value for value in values if isinstance(value, Tensor)]


class Change(Kept, ABC):
    """What a fine-tune does to one weight. At scale 0 it does nothing, at scale 1 what was trained."""

    @abstractmethod
    def delta(self, weight: Tensor) -> Tensor:
        """What scale 1 adds to the pristine weight, float32, in its shape."""

    def applied(self, total: Tensor, pristine: Tensor, scale: float) -> Tensor:
        """`total`, the weight so far in float32, with this change in it."""
        return torch.add(total, self.delta(pristine), alpha=scale)


@dataclass(frozen=True)
class Product(Kept):
    """A product of low rank: a (O, r), b (r, I ...); with a Tucker core (r, r, kh, kw) a is (r, O) and b (r, I)."""

    a: Tensor
    b: Tensor
    core: Tensor | None

    def whole(self) -> Tensor:
        """(O, I ...), float32"""
        a, b = self.a.float(), self.b.float()
        if self.core is None:
            return (a.flatten(1) @ b.flatten(1)).reshape(len(a), *b.shape[1:])
        return torch.einsum("pq...,po,qi->oi...", self.core.float(), a, b)


@dataclass(frozen=True)
class LowRank(Change):
    """LoRA: gain * up @ down. up (O, r), down (r, I) or, flattened, (r, I * kh * kw)."""

    up: Tensor
    down: Tensor
    gain: float

    def delta(self, weight: Tensor) -> Tensor:
        return shaped((self.up.float() @ self.down.float()).mul_(self.gain), weight)

    def rounded(self, dtype: torch.dtype) -> LowRank:
        """In the type that the model computes in; in half precision the largest value becomes 1, so that no small one
        is lost: what is left of rounding the factors is far below the rounding of the weight itself."""
        if dtype == torch.float32:
            return LowRank(self.up.float(), self.down.float(), self.gain)
        tops = [float(each.float().abs().max()) or 1.0 for each in (self.up, self.down)]
        up, down = (each.float() / top for each, top in zip((self.up, self.down), tops, strict=True))
        return LowRank(up.to(dtype), down.to(dtype), self.gain * tops[0] * tops[1])


@dataclass(frozen=True)
class Hadamard(Change):
    """LoHa: gain * first * second, element by element, each (O, I ...) a product of low rank."""

    first: Product
    second: Product
    gain: float

    def delta(self, weight: Tensor) -> Tensor:
        return shaped((self.first.whole() * self.second.whole()).mul_(self.gain), weight)


@dataclass(frozen=True)
class Kronecker(Change):
    """LoKr: gain * kron(left, right), either of them a product of two factors or whole."""

    left: Tensor  # (O1, I1)
    right: Tensor  # (O2, I2 ...)
    gain: float

    def delta(self, weight: Tensor) -> Tensor:
        left, right = self.left.float(), self.right.float()
        left = left.reshape(*left.shape, *[1] * (right.dim() - left.dim()))
        return shaped(torch.kron(left, right.contiguous()).mul_(self.gain), weight)


@dataclass(frozen=True)
class Scaling(Change):
    """(IA)3: each output (or input) channel made longer by its own share of itself."""

    share: Tensor  # (O, 1 ...), or (1, I, ...) for inputs

    def delta(self, weight: Tensor) -> Tensor:
        share = self.share.float()
        return weight.float() * share.reshape(*share.shape, *[1] * (weight.dim() - share.dim()))


@dataclass(frozen=True)
class Rotation(Change):
    """Diagonal OFT: blocks of output channels rotated by the Cayley transform of `blocks`, then stretched."""

    blocks: Tensor  # (N, b, b), O = N * b; only its skew part counts
    stretch: Tensor | None  # (O, 1 ...)
    limit: float  # most that the norm of the skew part may be; 0: no limit

    def delta(self, weight: Tensor) -> Tensor:
        blocks, whole = self.blocks.float(), weight.float()
        skew = blocks - blocks.transpose(1, 2)
        if self.limit > 0:
            skew = skew * (self.limit / (skew.norm() + 1e-8)).clamp(max=1)
        identity = torch.eye(blocks.shape[-1], device=blocks.device)
        rotation: Tensor = (identity + skew) @ (identity - skew).inverse()
        parts = whole.reshape(*blocks.shape[:2], -1)
        turned = torch.einsum("knm,kni->kmi", rotation, parts).reshape(whole.shape)
        if self.stretch is not None:
            turned = turned * self.stretch.float().reshape(-1, *[1] * (whole.dim() - 1))
        return turned - whole


@dataclass(frozen=True)
class Difference(Change):
    """A whole difference, as LyCORIS "full" and extracted biases have it."""

    difference: Tensor

    def delta(self, weight: Tensor) -> Tensor:
        return shaped(self.difference.float(), weight)


@dataclass(frozen=True)
class Replacement(Change):
    """A whole new weight: at scale 1 exactly that one, in between a mixture."""

    value: Tensor

    def delta(self, weight: Tensor) -> Tensor:
        return self.value.float() - weight.float()

    def applied(self, total: Tensor, pristine: Tensor, scale: float) -> Tensor:
        del pristine
        return torch.lerp(total, self.value.to(total), scale)


@dataclass(frozen=True)
class Directed(Change):
    """DoRA: the direction of the changed weight, with a trained length for each output (or input) channel."""

    inner: Change
    length: Tensor  # (O, 1 ...), or (1, I, ...)

    def delta(self, weight: Tensor) -> Tensor:
        whole = weight.float()
        changed = whole + self.inner.delta(weight)
        per_output = self.length.shape[0] == whole.shape[0] and self.length.numel() == whole.shape[0]
        axes = [axis for axis in range(whole.dim()) if axis != (0 if per_output else 1)]
        norm: Tensor = torch.linalg.vector_norm(changed, dim=axes, keepdim=True)
        norm = norm.clamp(min=torch.finfo(norm.dtype).eps)  # a row of zeros has no direction
        return changed * (self.length.float().reshape(norm.shape) / norm) - whole


def shaped(delta: Tensor, weight: Tensor) -> Tensor:
    """(O, ...) in the shape of the weight (O, ...)."""
    if len(delta) != len(weight):
        raise ValueError(f"{tuple(delta.shape)} is no change to {tuple(weight.shape)}")
    return delta.view(weight.shape)


Terms = Sequence[tuple[Change, float]]


def fold(weight: Tensor, pristine: Tensor, terms: Terms) -> None:
    """Write the pristine weight with all changes, each at its scale, into `weight`, rounded once.

    Only low rank, the usual case, is one matrix product on top of the pristine weight (inside of which ATen copies
    that first); a GPU accumulates it in float32.
    """
    pristine = pristine.to(weight.device, non_blocking=True)
    low = [(change, scale) for change, scale in terms if isinstance(change, LowRank)]
    if low and len(low) == len(terms) and weight.is_contiguous() and low[0][0].up.dtype == weight.dtype:
        _fold_low_rank(weight.flatten(1), pristine.flatten(1), low)
        return
    total = pristine.float()
    for change, scale in sorted(terms, key=lambda term: not isinstance(term[0], Replacement)):
        total = change.to(weight.device).applied(total, pristine, scale)
    weight.copy_(total)


def _fold_low_rank(weight: Tensor, pristine: Tensor, terms: Sequence[tuple[LowRank, float]]) -> None:
    """weight, pristine (O, I): several products are one, of the factors side by side."""
    device = weight.device
    gains = [scale * change.gain for change, scale in terms]
    largest = max(gains, key=abs)
    up, down = terms[0][0].up.to(device), terms[0][0].down.to(device)
    if len(terms) > 1:
        shares = (gain / largest if largest else 0.0 for gain in gains)
        up = torch.cat([change.up.to(device) * share for (change, _), share in zip(terms, shares, strict=True)], 1)
        down = torch.cat([change.down.to(device) for change, _ in terms])
    torch.addmm(pristine, up, down, alpha=largest, out=weight)
