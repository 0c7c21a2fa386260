"""How captioner and segmenter learn to see: what every patch shows, read off its state by heads that are thrown away.

Words alone teach a small vision transformer almost nothing: after 650 steps captions named the ground and no thing.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from miniature.gallery import SHAPE, Exhibit, named
from miniature.models import HELPER_PATCH, HELPER_SIDE
from miniature.world import COLORS, SHAPES

GRID = HELPER_SIDE // HELPER_PATCH  # patches a side
FINE = 6  # cells a side of a patch, each covered by a thing or not
KINDS = ("", *SHAPES, SHAPE, "face")  # of what a patch shows
IGNORED = -100
COVERED = 64  # of 255: share of a patch from which on it shows the thing
OVERTONES = 4.0  # weight of a patch's pattern against its mean colour at the start
PEAK, PEAK_MATRICES = 1.5e-3, 0.02  # learning rates


@dataclass(frozen=True)
class Labels:
    """Of every patch (GRID * GRID): its place in COLORS, IGNORED for faces, in KINDS, and its covered cells (36)."""

    colors: Tensor
    kinds: Tensor
    cells: Tensor


def label(exhibit: Exhibit) -> Labels:
    """What the patches of an exhibit show, row by row."""
    names, scene = list(COLORS), named(exhibit.scene)
    colors, kinds = np.full(GRID * GRID, names.index(scene.background)), np.zeros(GRID * GRID, np.int64)
    fine = np.zeros((GRID * FINE, GRID * FINE), np.float32)
    things = [(names.index(thing.color), KINDS.index(thing.shape)) for thing in scene.things]
    for cover, (color, kind) in zip(exhibit.covers, things or [(IGNORED, KINDS.index("face"))], strict=False):
        image = Image.fromarray(cover.astype(np.uint8) * 255)
        inside = np.asarray(image.resize((GRID, GRID), Image.Resampling.BOX)).ravel() > COVERED
        colors[inside], kinds[inside] = color, kind
        fine += np.asarray(image.resize(fine.shape, Image.Resampling.BOX), np.float32) / 255
    cells = torch.from_numpy(fine.clip(0, 1)).view(GRID, FINE, GRID, FINE).transpose(1, 2).reshape(GRID * GRID, -1)
    return Labels(torch.from_numpy(colors), torch.from_numpy(kinds), cells)


class Heads(nn.Module):
    """Linear readers of a patch's state."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.color = nn.Linear(width, len(COLORS))
        self.kind = nn.Linear(width, len(KINDS))
        self.cells = nn.Linear(width, FINE * FINE)

    def loss(self, states: Tensor, labels: list[Labels]) -> Tensor:
        """Cross-entropy of colours, kinds and cells; states (B, GRID * GRID, D)."""
        flat = states.flatten(0, 1)
        colors, kinds, cells = (
            torch.cat([getattr(one, name) for one in labels]) for name in ("colors", "kinds", "cells")
        )
        return (
            F.cross_entropy(self.color(flat), colors, ignore_index=IGNORED)
            + F.cross_entropy(self.kind(flat), kinds)
            + 2 * F.binary_cross_entropy_with_logits(self.cells(flat), cells)
        )


@torch.no_grad()
def start_waves(weight: Tensor) -> None:
    """Starts a patch embedding (D, 3, P, P) as a cosine transform of every colour, patterns louder than the mean.

    Random weights mostly sum up: all a patch says is its mean colour, and edges have to be found in what is left.
    """
    width, _, side, _ = weight.shape
    steps = math.pi * (torch.arange(side) + 0.5) / side
    waves = sorted((a * a + b * b, a, b) for a in range(side) for b in range(side))[: width // 3]
    weight.zero_()
    for number, (_, a, b) in enumerate(waves):
        wave = torch.cos(a * steps)[:, None] * torch.cos(b * steps)[None]
        wave = wave / wave.norm() / side * (OVERTONES if number else 1.0)
        for color in range(3):
            weight[3 * number + color, color] = wave


class Optimizer:
    """Muon for the matrices of transformer layers, AdamW for all else; gradients clipped to norm 1."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        learning = [pair for module in modules for pair in module.named_parameters()]
        matrices = [weight for name, weight in learning if ".layer" in name and weight.dim() == 2]
        inside = {id(weight) for weight in matrices}
        others = [weight for _, weight in learning if id(weight) not in inside]
        self.weights = [*matrices, *others]
        self.parts: tuple[tuple[torch.optim.Optimizer, float], ...] = (
            (torch.optim.Muon(matrices, weight_decay=0.01), PEAK_MATRICES),
            (torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.01), PEAK),
        )

    def step(self, loss: Tensor, share: float) -> None:
        """One step at this share of the peak learning rates."""
        for part, peak in self.parts:
            part.zero_grad(set_to_none=True)
            part.param_groups[0]["lr"] = share * peak
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_([weight for weight in self.weights if weight.grad is not None], 1.0)
        for part, _ in self.parts:
            part.step()
