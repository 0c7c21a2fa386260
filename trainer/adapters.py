"""A LoRA beside the linear layers of a UNet, in as few operations as its arithmetic allows.

All factors of all layers lie in one flat tensor, and so do their gradients: the optimiser, clipping, averaging over
GPUs and the copy in 16 bits are one operation each, not one per layer. Layers that read the same input (to_q, to_k,
to_v) are computed together, and where the frozen layers and the LoRA meet there is no float32 in between.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention


@dataclass(frozen=True)
class Factors:
    """The factors of n layers that read the same input: down (n R, I) and up (n, O, R), views of a flat tensor."""

    down: Tensor
    up: Tensor

    def apart(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Each layer's down (R, I) and up (O, R)."""
        return zip(self.down.chunk(len(self.up)), self.up, strict=True)


@dataclass(frozen=True)
class Projections:
    """Linear layers of one input, and the LoRA beside each: y_i = x W_i' + b_i + (x down_i') up_i'.

    weight (n O, I), bias (n O) or None; calling it with x (..., I) gives (..., n O). The anchor makes autograd visit
    a layer whose input needs no gradient.
    """

    weight: Tensor
    bias: Tensor | None
    factors: Factors
    gradient: Factors
    anchor: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        y: Tensor = _Projected.apply(x, self.anchor, self)  # type: ignore[no-untyped-call]
        return y


class _Projected(torch.autograd.Function):
    """Gradients of the factors go to where `Projections` says; autograd carries that of the input alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, _anchor: Tensor, layers: Projections) -> Tensor:
        down, up = layers.factors.down, layers.factors.up
        rows = x.reshape(-1, x.shape[-1])
        y = linear(rows, layers.weight, layers.bias)
        low = linear(rows, down)
        if len(up) == 1:
            y.addmm_(low, up[0].t())
        else:
            _apart(y, len(up)).baddbmm_(_apart(low, len(up)), up.mT)
        ctx.layers = layers
        ctx.save_for_backward(rows, low)
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None]:
        layers: Projections = ctx.layers
        rows, low = ctx.saved_tensors
        up, count = layers.factors.up, len(layers.factors.up)
        wide, low_grad = grad.reshape(len(rows), -1), torch.empty_like(low)
        if count == 1:
            torch.mm(wide, up[0], out=low_grad)
            torch.mm(wide.t(), low, out=layers.gradient.up[0])
        else:
            parts = _apart(wide, count)
            _apart(low_grad, count).baddbmm_(parts, up, beta=0)
            torch.bmm(parts.mT, _apart(low, count), out=layers.gradient.up)
        torch.mm(low_grad.t(), rows, out=layers.gradient.down)
        if not ctx.needs_input_grad[0]:
            return None, None, None
        x_grad = (wide @ layers.weight).addmm_(low_grad, layers.factors.down)
        return x_grad.view(*grad.shape[:-1], -1), None, None


def _apart(rows: Tensor, count: int) -> Tensor:
    """(N, n k) -> (n, N, k)"""
    return rows.view(len(rows), count, -1).transpose(0, 1)


@dataclass(frozen=True)
class _SelfAttention:
    """In the place of `Attention.forward`: (B, T, D) -> (B, T, D)."""

    qkv: Projections
    out: Projections
    heads: int

    def __call__(self, hidden_states: Tensor, **_: object) -> Tensor:
        batch, length, _width = hidden_states.shape
        qkv = self.qkv(hidden_states).view(batch, length, 3, self.heads, -1)
        query, key, value = (each.transpose(1, 2) for each in qkv.unbind(2))
        mixed = scaled_dot_product_attention(query, key, value)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, -1))


@dataclass(frozen=True)
class _CrossAttention:
    """In the place of `Attention.forward`: (B, T, D), (B, S, C) -> (B, T, D)."""

    q: Projections
    kv: Projections
    out: Projections
    heads: int

    def __call__(self, hidden_states: Tensor, encoder_hidden_states: Tensor, **_: object) -> Tensor:
        batch, length, _width = hidden_states.shape
        query = self.q(hidden_states).view(batch, length, self.heads, -1).transpose(1, 2)
        kv = self.kv(encoder_hidden_states).view(batch, -1, 2, self.heads, query.shape[-1])
        key, value = (each.transpose(1, 2) for each in kv.unbind(2))
        mixed = scaled_dot_product_attention(query, key, value)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, -1))


Group = Sequence[tuple[str, nn.Linear]]


@dataclass(frozen=True)
class _Plan:
    """Which layers of a module are computed together, and where the result goes."""

    module: nn.Module
    groups: Sequence[Group]
    forward: Callable[[Sequence[Projections]], Callable[..., Tensor]]


class Adapters:
    """The LoRA of a UNet whose own weights are frozen; installed when made, until `remove`.

    Every weight changes by strength * alpha / rank * up @ down; `refresh` says at which strength the UNet works next.
    """

    def __init__(
        self, unet: nn.Module, *, rank: int, alpha: float, feed_forward: bool, generator: torch.Generator
    ) -> None:
        plans = list(_plans(unet, feed_forward=feed_forward))
        groups = [group for plan in plans for group in plan.groups]
        own = groups[0][0][1].weight
        start = _start(groups, rank, generator)
        self.rank, self.alpha = rank, alpha
        self.flat = nn.Parameter(start.to(own.device))  # float32: what is optimised. All downs, then all ups
        self._working = start.to(own, copy=True)  # what the UNet reads, in its own type
        self._gradient = torch.zeros_like(self._working)
        self._downs = sum(rank * each.in_features for group in groups for _, each in group)
        self._anchor = torch.zeros((), device=own.device, requires_grad=True)
        self._shapes = [_Shape.of(group, rank) for group in groups]
        self._names = [[name for name, _ in group] for group in groups]
        self._modules = [plan.module for plan in plans]
        factors, gradients = (iter(self._factors(flat)) for flat in (self._working, self._gradient))
        for plan in plans:
            made = [self._projections(group, next(factors), next(gradients)) for group in plan.groups]
            plan.module.forward = plan.forward(made)
        self.refresh(1.0)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What learns."""
        return [self.flat]

    @torch.no_grad()
    def refresh(self, strength: float) -> None:
        """To be called after each change of `flat`, before the UNet works; whatever scales a change goes into `up`."""
        self._scale = strength * self.alpha / self.rank
        self._working.copy_(self.flat)
        self._working[self._downs :] *= self._scale

    @torch.no_grad()
    def collect(self) -> None:
        """Add the gradients of the backward pass that has just been to that of `flat`."""
        self._gradient[self._downs :] *= self._scale
        if self.flat.grad is None:
            self.flat.grad = self._gradient.to(torch.float32, copy=True)
        else:
            self.flat.grad.add_(self._gradient)

    def lora(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Each layer's down (R, I) and up (O, R), float32, on the CPU."""
        found: dict[str, tuple[Tensor, Tensor]] = {}
        for names, factors in zip(self._names, self._factors(self.flat.detach().cpu()), strict=True):
            pairs = zip(names, factors.apart(), strict=True)
            found.update({name: (down.clone(), up.clone()) for name, (down, up) in pairs})
        return found

    def weights(self) -> dict[str, Tensor]:
        """The UNet's own do not learn."""
        return {}

    def remove(self) -> None:
        """Give the UNet its own layers back."""
        for module in self._modules:
            del module.forward

    def _factors(self, flat: Tensor) -> list[Factors]:
        """Those of each group in a tensor that is laid out as `flat`."""
        found, down, up = [], 0, self._downs
        for shape in self._shapes:
            downs, ups = shape.count * shape.rank * shape.narrow, shape.count * shape.wide * shape.rank
            found.append(
                Factors(
                    flat[down : down + downs].view(shape.count * shape.rank, shape.narrow),
                    flat[up : up + ups].view(shape.count, shape.wide, shape.rank),
                )
            )
            down, up = down + downs, up + ups
        return found

    def _projections(self, group: Group, factors: Factors, gradient: Factors) -> Projections:
        first = group[0][1]
        bias = None if first.bias is None else first.bias.detach()
        return Projections(_joined([each for _, each in group]), bias, factors, gradient, self._anchor)


@dataclass(frozen=True)
class _Shape:
    """Of n layers with the same input: the rank, and the widths of input and output."""

    count: int
    rank: int
    narrow: int
    wide: int

    @classmethod
    def of(cls, group: Group, rank: int) -> "_Shape":
        return cls(len(group), rank, group[0][1].in_features, group[0][1].out_features)


def _plans(unet: nn.Module, *, feed_forward: bool) -> Iterator[_Plan]:
    """Every attention of the transformer blocks, and the feed-forward layers if wanted."""
    for path, block in unet.named_modules():
        if not path or not {"attn1", "attn2"} <= {name for name, _ in block.named_children()}:
            continue
        for name in ("attn1", "attn2"):
            yield _attention(f"{path}.{name}", block.get_submodule(name), own=name == "attn1")
        if feed_forward:
            for name in ("ff.net.0.proj", "ff.net.2"):
                linear = block.get_submodule(name)
                assert isinstance(linear, nn.Linear)
                yield _Plan(linear, [[(f"{path}.{name}", linear)]], lambda made: made[0])


def _attention(path: str, module: Any, *, own: bool) -> _Plan:
    layers: dict[str, tuple[str, nn.Linear]] = {
        name: (f"{path}.{name}", module.get_submodule(name)) for name in ("to_q", "to_k", "to_v", "to_out.0")
    }
    q, k, v, out = layers.values()
    heads = int(module.heads)
    if own:
        return _Plan(module, [[q, k, v], [out]], lambda made: _SelfAttention(made[0], made[1], heads))
    return _Plan(module, [[q], [k, v], [out]], lambda made: _CrossAttention(made[0], made[1], made[2], heads))


def _joined(linears: Sequence[nn.Linear]) -> Tensor:
    """The weights of several layers as one, which they are views of from now on: nothing is held twice."""
    if len(linears) == 1:
        return linears[0].weight.detach()
    whole = torch.cat([each.weight.detach() for each in linears])
    for each, part in zip(linears, whole.chunk(len(linears)), strict=True):
        each.weight = nn.Parameter(part, requires_grad=False)
    return whole


def _start(groups: Sequence[Group], rank: int, generator: torch.Generator) -> Tensor:
    """down ~ N(0, 1 / rank**2), up = 0, as PEFT's init_lora_weights="gaussian"; drawn on the CPU."""
    layers = [layer for group in groups for _, layer in group]
    downs, ups = (sum(rank * getattr(each, width) for each in layers) for width in ("in_features", "out_features"))
    return torch.cat([torch.randn(downs, generator=generator) / rank, torch.zeros(ups)])
