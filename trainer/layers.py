"""A UNet's transformer blocks with a LoRA in them, in as few operations as their arithmetic allows.

They stand in the places of diffusers' own `forward`, over the same weights. What a step needs of the factors is made
ready once, as views: on a GPU the host's work per layer is what a small batch waits for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, linear, scaled_dot_product_attention

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Factors:
    """The factors of n layers that read the same input: down (n R, I) and up (n, O, R), views of a flat tensor."""

    down: Tensor
    up: Tensor

    def apart(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Each layer's down (R, I) and up (O, R)."""
        return zip(self.down.chunk(len(self.up)), self.up, strict=True)


class Projections:
    """Linear layers of one input, and the LoRA beside each: y_i = x W_i' + b_i + (x down_i') up_i'.

    weight (n O, I), bias (n O) or None; calling it with x (..., I) gives (..., n O). The anchor makes autograd visit
    a layer whose input needs no gradient. Without a place for its gradient the LoRA is one whose `up` stays 0.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, factors: Factors, gradient: Factors | None, anchor: Tensor
    ) -> None:
        self.weight, self.bias, self.down, self.count = weight, bias, factors.down, len(factors.up)
        self.up = factors.up[0] if self.count == 1 else factors.up
        self.down_t, self.up_t = self.down.t(), self.up.mT
        self._anchor, self.learns = anchor, gradient is not None
        if gradient is not None:
            self.down_grad, self.up_grad = gradient.down, gradient.up[0] if self.count == 1 else gradient.up

    def __call__(self, x: Tensor) -> Tensor:
        if not self.learns:
            return linear(x, self.weight, self.bias)
        y: Tensor = _Projected.apply(x, self._anchor, self)  # type: ignore[no-untyped-call]
        return y


class _Projected(torch.autograd.Function):
    """Gradients of the factors go to where `Projections` says; autograd carries that of the input alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, _anchor: Tensor, layers: Projections) -> Tensor:
        shape = x.shape
        rows = x.reshape(-1, shape[-1])
        y = linear(rows, layers.weight, layers.bias)
        low = torch.mm(rows, layers.down_t)
        if layers.count == 1:
            y.addmm_(low, layers.up_t)
        else:
            _apart(y, layers.count).baddbmm_(_apart(low, layers.count), layers.up_t)
        ctx.layers = layers
        ctx.save_for_backward(rows, low)
        return y.view(*shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None]:
        layers: Projections = ctx.layers
        rows, low = ctx.saved_tensors
        wide = grad.reshape(rows.shape[0], -1)
        if layers.count == 1:
            low_grad = torch.mm(wide, layers.up)
            torch.mm(wide.t(), low, out=layers.up_grad)
        else:
            low_grad, parts = torch.empty_like(low), _apart(wide, layers.count)
            _apart(low_grad, layers.count).baddbmm_(parts, layers.up, beta=0)
            torch.bmm(parts.mT, _apart(low, layers.count), out=layers.up_grad)
        torch.mm(low_grad.t(), rows, out=layers.down_grad)
        if not ctx.needs_input_grad[0]:
            return None, None, None
        x_grad = torch.mm(wide, layers.weight).addmm_(low_grad, layers.down)
        return x_grad.view(*grad.shape[:-1], -1), None, None


def _apart(rows: Tensor, count: int) -> Tensor:
    """(N, n k) -> (n, N, k)"""
    return rows.view(rows.shape[0], count, -1).transpose(0, 1)


@dataclass(frozen=True)
class SelfAttention:
    """(B, T, D) -> (B, T, D)."""

    qkv: Function
    out: Function
    heads: int

    def __call__(self, x: Tensor) -> Tensor:
        batch, length, _width = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.heads, -1)
        query, key, value = (each.transpose(1, 2) for each in qkv.unbind(2))
        mixed = scaled_dot_product_attention(query, key, value)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, -1))


@dataclass(frozen=True)
class CrossAttention:
    """(B, T, D), (B, S, C) -> (B, T, D)."""

    q: Function
    kv: Function
    out: Function
    heads: int

    def __call__(self, x: Tensor, text: Tensor) -> Tensor:
        batch, length, _width = x.shape
        query = self.q(x).view(batch, length, self.heads, -1).transpose(1, 2)
        kv = self.kv(text).view(batch, -1, 2, self.heads, query.shape[-1])
        key, value = (each.transpose(1, 2) for each in kv.unbind(2))
        mixed = scaled_dot_product_attention(query, key, value)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, -1))


@dataclass(frozen=True)
class Block:
    """In the place of `BasicTransformerBlock.forward`: (B, T, D), (B, S, C) -> (B, T, D)."""

    norms: tuple[Function, Function, Function]
    own: SelfAttention
    cross: CrossAttention
    widen: Function
    narrow: Function

    def __call__(
        self, hidden_states: Tensor, *others: Tensor, encoder_hidden_states: Tensor | None = None, **_: object
    ) -> Tensor:
        """Checkpointing hands everything over by its place, all else by name."""
        text = encoder_hidden_states if encoder_hidden_states is not None else others[1]
        first, second, third = self.norms
        x = self.own(first(hidden_states)) + hidden_states
        x = self.cross(second(x), text) + x
        value, gate = self.widen(third(x)).chunk(2, -1)
        return self.narrow(value * gelu(gate)) + x


def norm(module: nn.LayerNorm) -> Function:
    """What a layer norm computes."""
    return partial(_normed, tuple(module.normalized_shape), module.weight, module.bias, module.eps)


def plain(layer: nn.Linear) -> Function:
    """What a linear layer computes."""
    return partial(_projected, layer.weight, layer.bias)


def _normed(shape: tuple[int, ...], weight: Tensor, bias: Tensor, eps: float, x: Tensor) -> Tensor:
    return layer_norm(x, shape, weight, bias, eps)


def _projected(weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    return linear(x, weight, bias)


def joined(linears: Sequence[nn.Linear]) -> Tensor:
    """The weights of several layers as one, which they are views of from now on: nothing is held twice, and whoever has
    them has them still."""
    if len(linears) == 1:
        return linears[0].weight.detach()
    whole = torch.cat([each.weight.detach() for each in linears])
    for each, part in zip(linears, whole.chunk(len(linears)), strict=True):
        each.weight.data = part
    return whole
