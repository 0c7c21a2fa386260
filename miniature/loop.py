"""What every training stage shares: a budget with progress, a cosine schedule, averages, atomic saving."""

import math
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm


@dataclass(frozen=True)
class Budget:
    """How long a stage may train: minutes of wall time, or exactly `steps` when given."""

    minutes: float
    steps: int | None = None

    def __call__(self, label: str) -> Iterator[tuple[int, float, "tqdm[None]"]]:
        """Yields (step, progress in [0, 1), bar) until the budget is spent."""
        start, step = time.monotonic(), 0
        with tqdm(desc=label, total=self.steps, mininterval=10) as bar:
            while (progress := self._progress(step, start)) < 1:
                yield step, progress, bar
                step += 1
                bar.update()

    def amount(self, wanted: int) -> int:
        """How many examples to prepare: `wanted`, but few when only steps are tried."""
        return wanted if self.steps is None else min(wanted, 32)

    def _progress(self, step: int, start: float) -> float:
        if self.steps is not None:
            return step / self.steps
        return (time.monotonic() - start) / (60 * self.minutes)


def cosine(peak: float, progress: float, step: int, warmup: int = 100) -> float:
    """Learning rate: linear warm-up over the first steps, then a cosine from peak down to 1 % of it."""
    return peak * min(1.0, (step + 1) / warmup) * max(0.01, 0.5 * (1 + math.cos(math.pi * progress)))


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Gives every parameter group the same learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


class Average:
    """Exponential moving average of a module's parameters; young averages forget faster."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.shadow = [p.detach().clone() for p in self.parameters]
        self.decay = decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Moves the average towards the present weights."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.shadow, [p.detach() for p in self.parameters], 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchanges the average with the present weights; a second call undoes it."""
        for parameter, mean in zip(self.parameters, self.shadow, strict=True):
            kept = parameter.detach().clone()
            parameter.copy_(mean)
            mean.copy_(kept)


class Saveable(Protocol):
    """Any diffusers or transformers model, tokenizer or pipeline."""

    def save_pretrained(self, save_directory: str) -> object:
        """Writes the object into a folder."""


def save(model: Saveable, folder: Path) -> None:
    """Writes a model folder so that it is whole or not there."""
    fresh = folder.with_name(folder.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    model.save_pretrained(str(fresh))
    replace(fresh, folder)


def replace(fresh: Path, folder: Path) -> None:
    """Puts a finished folder in the place of an older one."""
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def clip_and_step(optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor], loss: Tensor) -> None:
    """One optimizer step on a loss, gradients clipped to norm 1."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
