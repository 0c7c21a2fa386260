"""The state of a training between two steps, whole, in one .safetensors file; going on from it gives what an
uninterrupted training gives, bit for bit."""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from errors import InputError, WeightsError
from trainer.loop import Training

NAME = "state.safetensors"
TENSOR = "tensor "  # no key that an optimiser has
KEPT = 3  # trainings whose checkpoints stay on this machine


@dataclass(frozen=True)
class State:
    """What is in a checkpoint. `said`: step, seed, settings, losses, and the optimiser's plain numbers."""

    tensors: Mapping[str, Tensor]
    said: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> "State":
        """WeightsError says what is wrong with the file."""
        try:
            with safe_open(path, "pt") as file:
                state = cls(
                    {name: file.get_tensor(name) for name in file.keys()},  # noqa: SIM118 - no mapping
                    json.loads(file.metadata()["training"]),
                )
            if not (isinstance(state.said["settings"], dict) and 0 <= state.step == len(state.said["losses"])):
                raise ValueError("what it says of itself does not fit")
            state.seed, state.said["optimizer"]["param_groups"]  # KeyError where it has none
            return state
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise WeightsError(
                f"{path.name} is no checkpoint of a training ({error}); leave resume_from blank."
            ) from error

    @property
    def step(self) -> int:
        """How many steps are done."""
        return int(self.said["step"])

    @property
    def seed(self) -> int:
        """That of the training; going on with another would be another training."""
        return int(self.said["seed"])


def save(training: Training, step: int, settings: Mapping[str, object], path: Path) -> None:
    """Write the state after `step` steps; an older file stays until this one is whole."""
    tensors = dict[str, Tensor]()
    for name, tensor in _places(training).items():
        tensors[name] = tensor.detach().cpu().contiguous()
    said = {
        "step": step,
        "seed": training.config.seed,
        "settings": settings,
        "losses": training.losses,
        "optimizer": _told(training.optimizer.state_dict(), "optimizer", tensors),
    }
    part = path.with_suffix(".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, part, {"training": json.dumps(said)})
        part.replace(path)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise WeightsError(f"the checkpoint after step {step} cannot be written ({error}); free some disk.") from error


def require_same(state: State, settings: Mapping[str, object], seed: int | None) -> None:
    """InputError where the checkpoint is that of a training with other settings."""
    if seed is not None and seed != state.seed:
        raise InputError(f"seed={seed} is not that of the checkpoint, {state.seed}; leave it blank or give that one.")
    then = state.said["settings"]
    for name in dict.fromkeys([*settings, *then]):
        if settings.get(name) != then.get(name):
            raise InputError(
                f"{name}={settings.get(name)!r} is not that of the checkpoint, {then.get(name)!r}; "
                "give that, or leave resume_from blank."
            )


def restore(training: Training, state: State) -> int:
    """Put a training that has not begun into the state, and return how many of its steps are done."""
    if state.step > training.steps:
        raise InputError(f"the checkpoint is after step {state.step}, and max_train_steps={training.steps}; give more.")
    places = _places(training)
    if any(name not in state.tensors or state.tensors[name].shape != each.shape for name, each in places.items()):
        raise WeightsError("the checkpoint is that of another model; leave resume_from blank.")
    with torch.no_grad():
        for name, tensor in places.items():
            tensor.copy_(state.tensors[name])
    optimizer = _made(state.said["optimizer"], state.tensors)
    now = training.optimizer.state_dict()["param_groups"]
    for then, group in zip(optimizer["param_groups"], now, strict=True):
        then["peak"] = group["peak"]
    optimizer["state"] = {int(index): value for index, value in optimizer["state"].items()}
    training.optimizer.load_state_dict(optimizer)
    training.losses[:] = state.said["losses"]
    return state.step


def _places(training: Training) -> dict[str, Tensor]:
    """All that learns, and its averages, by name."""
    learned = {f"learned.{index}": tensor for index, tensor in enumerate(training.learning)}
    return {**learned, **{f"average.{index}": tensor for index, tensor in enumerate(training.average)}}


def _told(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """What JSON can hold of a value; the tensors in it go to `tensors`, and their names take their place."""
    if isinstance(value, Tensor):
        tensors[name] = value.detach().cpu().contiguous()
        return {TENSOR: name}
    if isinstance(value, dict):
        return {str(key): _told(each, f"{name}.{key}", tensors) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_told(each, f"{name}.{index}", tensors) for index, each in enumerate(value)]
    return value


def _made(told: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What `_told` told of."""
    if isinstance(told, dict):
        if TENSOR in told:
            return tensors[told[TENSOR]]
        return {key: _made(each, tensors) for key, each in told.items()}
    return [_made(each, tensors) for each in told] if isinstance(told, list) else told


def place(root: Path, of: Sequence[str], settings: Mapping[str, object]) -> Path:
    """Where the checkpoint of a training lies: `of` the same pictures and model, the same settings, the same place."""
    words = json.dumps([*of, settings], sort_keys=True).encode()
    return root / hashlib.sha256(words).hexdigest()[:32] / NAME


def sweep(kept: Path) -> None:
    """Remove the checkpoints of all trainings but the latest, and `kept`."""
    root = kept.parent.parent
    folders = [each for each in root.iterdir() if each.is_dir()] if root.is_dir() else []
    for old in sorted(folders, key=lambda each: each.stat().st_mtime, reverse=True)[KEPT:]:
        if old != kept.parent:
            shutil.rmtree(old, ignore_errors=True)
