"""diffusers' classes that SDXL is made of, without all that importing them brings along.

Its UNet alone imports transformers, peft where it is, sympy and torch's compiler: two thirds of the time that a start
takes, for five names that loading and offloading in ways that are not ours make use of. While this module imports
diffusers those packages are stand-ins, and a name out of one is fetched when it is first used. Nothing of a stand-in
outlives that: who imports these packages later, in the same process, gets them.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

POSTPONED = ("transformers", "peft", "diffusers.hooks")
UNREAD = ("diffusers.models.autoencoders", "diffusers.models.transformers", "diffusers.models.unets")
COMPILER = "torch._dynamo"  # where it cannot be had diffusers goes without a mark for it on its blocks


class _Name:
    """A name of a module that is imported when the name is used: called, asked for an attribute, or as a class."""

    def __init__(self, module: str, name: str) -> None:
        self._of = module, name

    def _found(self) -> Any:
        module, name = self._of
        return getattr(import_module(module), name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._found()(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._found(), name)

    def __instancecheck__(self, instance: object) -> bool:
        return isinstance(instance, self._found())


class _StandIn(Loader):
    """A module that has every public name."""

    def exec_module(self, module: ModuleType) -> None:
        vars(module)["__getattr__"] = partial(self._name, module.__name__)

    def _name(self, module: str, name: str) -> _Name:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Name(module, name)


class _Unread(Loader):
    """A package whose __init__, which imports every model there is, runs when a name is asked of it."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def exec_module(self, module: ModuleType) -> None:
        vars(module)["__getattr__"] = partial(self._read, module)

    def _read(self, module: ModuleType, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        del vars(module)["__getattr__"]
        self._loader.exec_module(module)
        return getattr(module, name)


class _Finder(MetaPathFinder):
    """Finds stand-ins for what is postponed, and is there at all."""

    def __init__(self) -> None:
        self.stand_ins: list[str] = []

    def find_spec(self, name: str, path: Sequence[str] | None, _target: ModuleType | None = None) -> ModuleSpec | None:
        if any(name == each or name.startswith(f"{each}.") for each in POSTPONED):
            if "." not in name and PathFinder.find_spec(name) is None:
                return None
            self.stand_ins.append(name)
            return ModuleSpec(name, _StandIn(), is_package=True)
        spec = PathFinder.find_spec(name, path) if name in UNREAD else None
        if spec is not None:
            spec.loader = _Unread(spec.loader)
        return spec


@contextmanager
def _stand_ins() -> Iterator[None]:
    """What is not imported already is postponed inside."""
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    blocked = COMPILER not in sys.modules
    if blocked:
        sys.modules[COMPILER] = None  # type: ignore[assignment]  # so says the reference: its import fails
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        if blocked:
            del sys.modules[COMPILER]
        for name in finder.stand_ins:
            sys.modules.pop(name, None)
            parent, _, own = name.rpartition(".")
            vars(sys.modules.get(parent, sys)).pop(own, None)


with _stand_ins():
    from diffusers import (
        DDIMScheduler,
        DPMSolverMultistepScheduler,
        EulerAncestralDiscreteScheduler,
        EulerDiscreteScheduler,
        HeunDiscreteScheduler,
        LCMScheduler,
        PNDMScheduler,
        TCDScheduler,
    )
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.modeling_utils import no_init_weights
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

__all__ = [
    "AutoencoderKL",
    "DDIMScheduler",
    "DPMSolverMultistepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "LCMScheduler",
    "PNDMScheduler",
    "TCDScheduler",
    "UNet2DConditionModel",
    "no_init_weights",
]
