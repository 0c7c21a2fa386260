"""A LoRA beside the linear layers of a UNet.

All factors of all layers lie in one flat tensor, and so do their gradients: the optimiser, clipping, averaging over
GPUs and the copy in 16 bits are one operation each, not one per layer. Layers that read the same input (to_q, to_k,
to_v) are computed together, and where the frozen layers and the LoRA meet there is no float32 in between.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trainer.layers import Block, CrossAttention, Factors, Projections, SelfAttention, joined, norm, plain
from trainer.optimizers import clear_gradients

Group = Sequence[tuple[str, nn.Linear]]
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


@dataclass(frozen=True)
class _Plan:
    """Which layers of a module are computed together, and where the result goes."""

    module: nn.Module
    groups: Sequence[Group]
    forward: Callable[[Sequence[Projections]], Block]


class Adapters:
    """The LoRA of a UNet whose own weights are frozen; installed when made, until `remove`.

    Every weight changes by strength * alpha / rank * up @ down; `refresh` says at which strength the UNet works next.
    Without `learns` it stays as it starts, and costs no gradient.
    """

    def __init__(
        self,
        unet: nn.Module,
        *,
        rank: int,
        alpha: float,
        feed_forward: bool,
        generator: torch.Generator,
        learns: bool = True,
    ) -> None:
        plans = list(_plans(unet, feed_forward=feed_forward))
        groups = [group for plan in plans for group in plan.groups]
        own = groups[0][0][1].weight
        start = _start(groups, rank, generator)
        self.rank, self.alpha, self._learns = rank, alpha, learns
        self.flat = nn.Parameter(start.to(own.device), learns)  # float32: what is optimised. All downs, then all ups
        self._working = start.to(own, copy=True)  # what the UNet reads, in its own type
        self._gradient = torch.zeros_like(self._working)
        self._downs = sum(rank * each.in_features for group in groups for _, each in group)
        self._anchor = torch.zeros((), device=own.device, requires_grad=learns)
        self._scale = torch.zeros(1, device=own.device)  # there, so that it can change under a recorded step
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
        downs = self._downs
        self._scale.fill_(strength * self.alpha / self.rank)
        self._working[:downs] = self.flat[:downs]
        torch.mul(self.flat[downs:], self._scale, out=self._working[downs:])

    def clear(self) -> None:
        """Before the first backward pass of a step."""
        clear_gradients(self.parameters)

    @torch.no_grad()
    def collect(self) -> None:
        """Add the gradients of the backward pass that has just been to that of `flat`."""
        if self.flat.grad is not None:
            downs = self._downs
            self.flat.grad[:downs].add_(self._gradient[:downs])
            self.flat.grad[downs:].add_(self._gradient[downs:] * self._scale)

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
        weight = joined([each for _, each in group])
        return Projections(weight, bias, factors, gradient if self._learns else None, self._anchor)


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
    """Every transformer block: the layers of its attentions, and the feed-forward layers if wanted."""
    for path, block in unet.named_modules():
        if path and {"attn1", "attn2"} <= {name for name, _ in block.named_children()}:
            yield _plan(path, block, feed_forward=feed_forward)


def _plan(path: str, block: Any, *, feed_forward: bool) -> _Plan:
    def layer(name: str) -> tuple[str, nn.Linear]:
        return f"{path}.{name}", block.get_submodule(name)

    q, k, v, out = (layer(f"attn1.{name}") for name in ATTENTION)
    text_q, text_k, text_v, text_out = (layer(f"attn2.{name}") for name in ATTENTION)
    wide, narrow = layer("ff.net.0.proj"), layer("ff.net.2")

    def forward(made: Sequence[Projections]) -> Block:
        widen, narrowed = made[5:] if feed_forward else (plain(wide[1]), plain(narrow[1]))
        return Block(
            (norm(block.norm1), norm(block.norm2), norm(block.norm3)),
            SelfAttention(made[0], made[1], int(block.attn1.heads)),
            CrossAttention(made[2], made[3], made[4], int(block.attn2.heads)),
            widen,
            narrowed,
        )

    groups = [[q, k, v], [out], [text_q], [text_k, text_v], [text_out]]
    return _Plan(block, [*groups, [wide], [narrow]] if feed_forward else groups, forward)


def _start(groups: Sequence[Group], rank: int, generator: torch.Generator) -> Tensor:
    """down ~ N(0, 1 / rank**2), up = 0, as PEFT's init_lora_weights="gaussian"; drawn on the CPU."""
    layers = [layer for group in groups for _, layer in group]
    downs, ups = (sum(rank * getattr(each, width) for each in layers) for width in ("in_features", "out_features"))
    return torch.cat([torch.randn(downs, generator=generator) / rank, torch.zeros(ups)])
