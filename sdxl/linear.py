"""Linear layers: in the type of their weights, or in 8 bits.

In 8 bits, weights are scaled per output and inputs per row, as they come (W8A8, dynamic); the products are summed in 32
bits. Only the opt-in input `quantization` makes such layers.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional

TINY = 1e-8  # a row of zeros stays one
LEAST = 17  # rows of a product in int8 on a GPU; pictures of 64 x 64 have fewer


class Layer(NamedTuple):
    """weight (O, I), bias (O,) or None; x (..., I) -> (..., O)"""

    weight: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight, self.bias)


class Int8(NamedTuple):
    """weight (O, I) int8, scale (O,) float32; x (N, I) -> (N, O). A GPU wants widths of multiples of 8."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        rows, scale = int8(x)
        if len(x) < LEAST:
            rows = functional.pad(rows, (0, 0, 0, LEAST - len(x)))
        y = torch._int_mm(rows, self.weight.t())[: len(x)].float() * scale * self.scale
        return _with_bias(y, self.bias, x.dtype)


class Fp8(NamedTuple):
    """weight (O, I) float8_e4m3fn, scale (O,) float32; x (N, I) -> (N, O). A GPU wants widths of multiples of 16."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        rows, scale = fp8(x)
        y = torch._scaled_mm(rows, self.weight.t(), scale_a=scale, scale_b=self.scale[None], out_dtype=torch.bfloat16)
        return _with_bias(y, self.bias, x.dtype)


def _with_bias(y: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    return (y if bias is None else y + bias).to(dtype)


def int8(x: Tensor) -> tuple[Tensor, Tensor]:
    """x (N, I) -> whole numbers (N, I), and what each row was divided by (N, 1)."""
    scale = x.abs().amax(-1, keepdim=True).float().clamp(min=TINY) / 127
    return (x / scale).round().to(torch.int8), scale


def fp8(x: Tensor) -> tuple[Tensor, Tensor]:
    """x (N, I) -> float8_e4m3fn (N, I), and what each row was divided by (N, 1)."""
    scale = x.abs().amax(-1, keepdim=True).float().clamp(min=TINY) / torch.finfo(torch.float8_e4m3fn).max
    return (x / scale).to(torch.float8_e4m3fn), scale


class Kind(NamedTuple):
    """A way to compute in 8 bits, and the compute capability of the first cards that have it."""

    quantize: Callable[[Tensor], tuple[Tensor, Tensor]]
    layer: type[Int8] | type[Fp8]
    capability: tuple[int, int]


KINDS = {"int8": Kind(int8, Int8, (8, 0)), "fp8": Kind(fp8, Fp8, (8, 9))}


class Linear(Protocol):
    """Any of the layers."""

    @property
    def weight(self) -> Tensor: ...

    def __call__(self, x: Tensor) -> Tensor: ...
