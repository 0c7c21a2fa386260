"""What moves the weights: optimisers and the course of their learning rates, by name."""

import math
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from errors import InputError

Groups = list[dict[str, Any]]
WEIGHT_DECAY = 1e-4
SIDE = Path(__file__).resolve().parent.parent / ".venv" / "side"  # requirements-side.txt says why


def _adamw(groups: Groups) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, weight_decay=WEIGHT_DECAY, fused=True)


def _adamw8bit(groups: Groups) -> torch.optim.Optimizer:
    if (side := os.environ.get("SDXL_SIDE_PACKAGES") or str(SIDE)) not in sys.path:
        sys.path.append(side)
    try:
        from bitsandbytes.optim.adamw import AdamW8bit
    except ImportError as error:
        raise InputError(
            "optimizer='adamw8bit' needs bitsandbytes, which is not installed here; run script/setup, or choose adamw."
        ) from error
    make: Any = AdamW8bit
    optimizer: torch.optim.Optimizer = make(groups, weight_decay=WEIGHT_DECAY)
    return optimizer


def _prodigy(groups: Groups) -> torch.optim.Optimizer:
    from prodigyopt import Prodigy

    for group in groups:
        group["lr"] = float(group["lr"] > 0)
    optimizer: torch.optim.Optimizer = Prodigy(
        groups, weight_decay=WEIGHT_DECAY, use_bias_correction=True, safeguard_warmup=True
    )
    return optimizer


OPTIMIZERS: dict[str, Callable[[Groups], torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "adamw8bit": _adamw8bit,
    "prodigy": _prodigy,
}

# (step, steps, warm-up steps) -> what the learning rates are multiplied with
SCHEDULES: dict[str, Callable[[int, int, int], float]] = {
    "constant": lambda _step, _steps, _warmup: 1.0,
    "linear": lambda step, steps, warmup: _rise(step, warmup) * (1 - _progress(step, steps, warmup)),
    "cosine": lambda step, steps, warmup: (
        _rise(step, warmup) * 0.5 * (1 + math.cos(math.pi * _progress(step, steps, warmup)))
    ),
}


def _rise(step: int, warmup: int) -> float:
    return min(1.0, (step + 1) / (warmup + 1))


def _progress(step: int, steps: int, warmup: int) -> float:
    """From 0 at the end of the warm-up to just under 1 at the last step."""
    return max(0, step - warmup) / max(1, steps - warmup)


def make_optimizer(name: str, groups: Sequence[tuple[float, list[torch.nn.Parameter]]]) -> torch.optim.Optimizer:
    """One over groups of (learning rate, parameters)."""
    optimizer = OPTIMIZERS[name]([{"params": parameters, "lr": rate} for rate, parameters in groups])
    for group in optimizer.param_groups:
        group["peak"] = group["lr"]
    return optimizer


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Every group's learning rate is its peak times the factor."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor


def clear_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Before the first backward pass of a step: 0 for all that learns, in the place where it was, to which a recorded
    step adds; none for what does not."""
    for parameter in parameters:
        if not parameter.requires_grad:
            parameter.grad = None
        elif parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        else:
            parameter.grad.zero_()
