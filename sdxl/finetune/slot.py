"""The place where fine-tunes are folded into the model: whole or absent, and out again bit for bit.

Weights are written in place, so that nothing that was captured or compiled around them notices. The pristine copy of a
weight is made before it is first changed and is what every later fold starts from: nothing is ever subtracted. From
the first write to the last `state` is None: whatever happens in between, the next request begins by setting all that
was touched, from the pristine copies.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from sdxl.finetune.changes import Change, fold
from sdxl.finetune.formats import FineTune, Target

RESERVE = 6 * 2**30  # bytes of a GPU that pristine copies leave free; the rest of them lie in main memory

State = tuple[tuple[str, float], ...]


@dataclass
class Slot:
    """`parts` are the UNet and the text encoders by the names of `Layer.part`; `text_changed` is called before a text
    encoder's weights are written.
    """

    parts: Mapping[str, Module]
    text_changed: Callable[[], None]
    state: State | None = ()
    _pristine: dict[Target, Tensor] = field(default_factory=dict)
    _touched: set[Target] = field(default_factory=set)

    def set(self, wanted: Sequence[tuple[FineTune, float]]) -> bool:
        """Make the weights those of the base with each fine-tune at its scale; no fine-tune is the base itself.

        Whether anything was written. If it fails, or is cancelled, the weights are the base's.
        """
        wanted = [(tune, scale) for tune, scale in wanted if scale and tune.changes]
        state = tuple((tune.key, scale) for tune, scale in wanted)
        if state == self.state:
            return False
        terms: defaultdict[Target, list[tuple[Change, float]]] = defaultdict(list)
        for tune, scale in wanted:
            for target, change in tune.changes.items():
                terms[target].append((change, scale))
        self.state = None
        try:
            self._write(terms)
            self.state = state
        except BaseException:
            self._write({})
            self.state = ()
            raise
        return True

    @torch.no_grad()
    def _write(self, terms: Mapping[Target, Sequence[tuple[Change, float]]]) -> None:
        """Every weight that was touched or will be, from its pristine copy; again from the start if it is cut short."""
        targets = [*self._touched.difference(terms), *terms]
        if any(target.layer.part != "unet" for target in targets):
            self.text_changed()
        for target in targets:
            weight = self._weight(target)
            if target not in self._pristine:
                self._pristine[target] = _kept(weight)
            self._touched.add(target)
            if changes := terms.get(target):
                fold(weight, self._pristine[target], changes)
            else:
                weight.copy_(self._pristine[target])
                self._touched.discard(target)

    def _weight(self, target: Target) -> Tensor:
        """The tensor that the layer computes with, or, if it comes to the device for each call, where it comes from."""
        module = self.parts[target.layer.part].get_submodule(target.layer.path)
        hook: Any = getattr(module, "_hf_hook", None)
        source = getattr(hook, "weights_map", None)
        weight: Tensor = getattr(module, target.parameter) if source is None else source[target.parameter]
        return weight


def _kept(weight: Tensor) -> Tensor:
    """A copy: beside the weight, or in main memory where a GPU gets full."""
    if weight.device.type == "cuda" and torch.cuda.mem_get_info(weight.device)[0] < RESERVE + weight.nbytes:
        return weight.to("cpu", copy=True)
    return weight.detach().clone(memory_format=torch.preserve_format)
