"""Modules made without weights, and then given those of a file."""

import json
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from errors import WeightsError
from sdxl.narrow import no_init_weights

M = TypeVar("M", bound=Module)

# What diffusers called the attention layers of a VAE before 2023, and transformers the eye of the safety checker.
OLD_NAMES = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
OLD_NAMES |= {"vision_model.vision_model.": "vision_model."}


def config(folder: Path) -> dict[str, Any]:
    """Its config.json. WeightsError if that is none."""
    try:
        found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise WeightsError(f"{folder.parent.name}/{folder.name}/config.json cannot be read: {error}.") from error
    return found


def blank(folder: Path, make: Callable[[dict[str, Any]], M]) -> M:
    """A module without weights, built by `make` from the folder's config; no random start is drawn for it."""
    with no_init_weights(), torch.device("meta"):
        return make(config(folder))


def fill(module: M, tensors: Iterable[tuple[str, Tensor]]) -> M:
    """Give a module made on the meta device its weights; every one must fit and none may be missing."""
    places = _places(module)
    missing, unknown = set(places), set[str]()
    for name, tensor in tensors:
        known = _known(name, places)
        if known is None:
            unknown.add(name)
            continue
        holder, own = places[known]
        place = holder[own]
        if place.shape != tensor.shape:
            raise WeightsError(f"{name} has the shape {tuple(tensor.shape)} in place of {tuple(place.shape)}.")
        holder[own] = Parameter(tensor, requires_grad=False) if isinstance(place, Parameter) else tensor
        missing.discard(known)
    if unknown := {name for name in unknown if not name.endswith("position_ids")}:
        raise WeightsError(f"{len(unknown)} weights fit no layer of {type(module).__name__}, first {min(unknown)!r}.")
    if missing:
        raise WeightsError(f"{len(missing)} weights of {type(module).__name__} are missing, first {min(missing)!r}.")
    return module.eval()


def _places(module: Module) -> dict[str, tuple[dict[str, Any], str]]:
    """The name of each weight -> what holds it, and under which name. `load_state_dict` takes three times as long."""
    return {
        f"{path}.{name}" if path else name: (holder, name)
        for path, part in module.named_modules()
        for holder in (part._parameters, part._buffers)
        for name, value in holder.items()
        if value is not None and name not in part._non_persistent_buffers_set
    }


def _known(name: str, places: Collection[str]) -> str | None:
    """What this version of the libraries calls a weight."""
    if name in places:
        return name
    for old, new in OLD_NAMES.items():
        name = name.replace(old, new)
    # transformers 5 has no `text_model` level in CLIPTextModel; files written before it do.
    return next((each for each in (name, name.removeprefix("text_model.")) if each in places), None)
