"""A UNet whose transformer blocks compute in 8 bits, kept in step with the weights that it was made from."""

from collections.abc import Iterable

import torch
from torch import Tensor

from errors import InputError
from sdxl.linear import KINDS, Fp8, Int8, Kind, Linear
from sdxl.placement import Placement
from sdxl.unet import Block

QUANTIZATIONS = ("none", *KINDS)


def require(quantization: str, placement: Placement) -> None:
    """InputError where this machine has no such arithmetic, or no room for a second set of weights."""
    if quantization == "none":
        return
    if placement.tier != "resident":
        raise InputError(f"quantization={quantization!r} needs a GPU of 24 GB or more; choose none.")
    if placement.device.type == "cuda":
        first = KINDS[quantization].capability
        if torch.cuda.get_device_capability(placement.device) < first:
            name = torch.cuda.get_device_name(placement.device)
            raise InputError(f"quantization={quantization!r} is nothing that {name} can compute; choose another.")


class Copies:
    """What linear layers of blocks compute with in 8 bits, kept in step with the weights that it was made from. What
    stays: convolutions, and what runs once a request."""

    def __init__(self, quantization: str) -> None:
        self._kind: Kind = KINDS[quantization]
        self._copies: list[tuple[Tensor, Tensor, Tensor]] = []  # a weight, its copy and its scale
        self._versions: list[int] = []

    def of(self, blocks: Iterable[Block]) -> tuple[Block, ...]:
        """They, in 8 bits."""
        with torch.inference_mode(False), torch.no_grad():
            made = tuple(map(self._block, blocks))
        self._versions = self._now()
        return made

    def refresh(self) -> None:
        """Make anew, in their places, the copies of weights that have been written since."""
        now = self._now()
        for (weight, copy, copied_scale), before, version in zip(self._copies, self._versions, now, strict=True):
            if before != version:
                made, scale = self._kind.quantize(weight)
                copy.copy_(made)
                copied_scale.copy_(scale[:, 0])
        self._versions = now

    def _now(self) -> list[int]:
        """How often each weight has been written."""
        return [weight._version for weight, _, _ in self._copies]

    def _block(self, w: Block) -> Block:
        attn1 = w.attn1._replace(qkv=self._layer(w.attn1.q, w.attn1.k, w.attn1.v), out=self._layer(w.attn1.out))
        attn2 = w.attn2._replace(q=self._layer(w.attn2.q), out=self._layer(w.attn2.out))
        return w._replace(attn1=attn1, attn2=attn2, ff_in=self._layer(w.ff_in), ff_out=self._layer(w.ff_out))

    def _layer(self, *layers: Linear) -> Int8 | Fp8:
        """One layer in the place of several with the same input."""
        (bias,) = {getattr(layer, "bias", None) for layer in layers}
        made, scales = zip(*(self._kind.quantize(layer.weight) for layer in layers), strict=True)
        whole = self._kind.layer(torch.cat(made), torch.cat(scales)[:, 0].contiguous(), bias)
        rows = [len(layer.weight) for layer in layers]
        parts = zip(torch.split(whole.weight, rows), torch.split(whole.scale, rows), strict=True)
        self._copies += [(layer.weight, *part) for layer, part in zip(layers, parts, strict=True)]
        return whole
