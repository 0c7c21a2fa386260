"""How a UNet is called: in the fastest way that is ready on this machine, with the same picture.

SDXL_ENGINE  what calls the UNet        ready           the picture, against diffusers
diffusers    its own `forward`          at once         is it
eager        `sdxl.unet`                at once         the same bits
graph        that, as CUDA graphs       second step     the same bits
compile      its blocks compiled, too   after setup     the last bits differ
auto         on a GPU graph, and compile as soon as the background has it; else eager

Graphs and compiled blocks want weights that stay where they are. Where a GPU is too small for that, it is eager that
works, or, where weights come layer by layer, diffusers.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from errors import InputError
from sdxl.attention import preferred
from sdxl.compiled import compiled, kinds
from sdxl.eight_bit import QUANTIZATIONS, Copies
from sdxl.graphs import Graphs
from sdxl.layout import settled
from sdxl.narrow import UNet2DConditionModel
from sdxl.placement import Placement
from sdxl.unet import BlockFunction, Told, UNet, block, is_known
from sdxl.workers import Job, Workers

ENGINES = ("auto", "compile", "graph", "eager", "diffusers")
COMPILED = ("auto", "compile")
Compiling = Job[BlockFunction | None]


@dataclass(frozen=True)
class Conditioning:
    """What a UNet is told beside the latents. B rows: with guidance all negative ones, then all positive ones."""

    prompt_embeds: Tensor  # (B, T, D)
    text_embeds: Tensor  # (B, P) pooled
    time_ids: Tensor  # (B, 6) sizes and crop for the base, (B, 5) sizes, crop and score for the refiner

    def last(self, rows: int) -> Conditioning:
        """Of the last rows alone."""
        return Conditioning(self.prompt_embeds[-rows:], self.text_embeds[-rows:], self.time_ids[-rows:])


class Call(Protocol):
    """A UNet that knows the prompts of a request."""

    def __call__(self, model_input: Tensor, timestep: Tensor, *, reuse: bool = False) -> Tensor:
        """model_input (b, 4, h, w), timestep () -> noise, the same shape, float32. b is all rows of the conditioning,
        or the last of them. With `reuse` the deep layers may take their result of the call before."""
        ...


class _Runs(Protocol):
    """`UNet`, or `Graphs` of one."""

    def full(self, latents: Tensor, timestep: Tensor, told: Told) -> tuple[Tensor, Tensor]: ...

    def shallow(self, latents: Tensor, timestep: Tensor, told: Told, deep: Tensor) -> Tensor: ...


@dataclass
class _Plain:
    """A `Call` of diffusers' own forward."""

    module: UNet2DConditionModel
    conditioning: Conditioning

    def __call__(self, model_input: Tensor, timestep: Tensor, *, reuse: bool = False) -> Tensor:
        del reuse  # it may be taken, and need not
        told = self.conditioning.last(len(model_input))
        added = {"text_embeds": told.text_embeds, "time_ids": told.time_ids}
        noise: Tensor = self.module(
            model_input.to(told.prompt_embeds.dtype),
            timestep,
            encoder_hidden_states=told.prompt_embeds,
            added_cond_kwargs=added,
            return_dict=False,
        )[0]
        return noise.float()


@dataclass
class _Fast:
    """A `Call` of ours."""

    runs: _Runs
    told: Told
    dtype: torch.dtype
    attention: Callable[[], contextlib.AbstractContextManager[object]]
    _deep: Tensor | None = None
    _part: tuple[int, Told] | None = None

    def __call__(self, model_input: Tensor, timestep: Tensor, *, reuse: bool = False) -> Tensor:
        told, latents = self._rows(len(model_input)), model_input.to(self.dtype)
        with self.attention():
            if reuse and self._deep is not None and len(self._deep) == len(latents):
                noise = self.runs.shallow(latents, timestep, told, self._deep)
            else:
                noise, self._deep = self.runs.full(latents, timestep, told)
        return noise.to(torch.float32, copy=True)  # the next call may write over it

    def _rows(self, count: int) -> Told:
        """What the last rows are told; the same object for the same number of them."""
        if count == len(self.told.added):
            return self.told
        if self._part is None or self._part[0] != count:
            self._part = count, self.told.map(lambda tensor: tensor[-count:])
        return self._part[1]


class _Eight(NamedTuple):
    """A UNet in 8 bits, and what calls it."""

    quantization: str
    copies: Copies
    unet: UNet
    runs: _Runs


class Engine:
    """One UNet, for all requests."""

    def __init__(self, module: UNet2DConditionModel, engines: Engines) -> None:
        self._module, self._engines = module, engines
        self._name = engines.resolved if is_known(module) else "diffusers"
        self._jobs: dict[str, Compiling | None] = {} if self._name in COMPILED else dict.fromkeys(QUANTIZATIONS)
        if self._name != "diffusers":
            self._unet = UNet.of(module)
            self._use(self._unet)
            self._block("none")

    @property
    def can_reuse(self) -> bool:
        """Whether its calls know `reuse` and 8 bits."""
        return self._name != "diffusers"

    def begin(self, conditioning: Conditioning, quantization: str = "none") -> Call:
        """Tell it a request's prompts. `quantization` is one of those in `sdxl.eight_bit`."""
        if self._name == "diffusers":
            return _Plain(self._module, conditioning)
        if (function := self._block("none")) is not self._unet.block:
            self._swap_in(function)
        runs = self._runs if quantization == "none" else self._in_eight_bits(quantization)
        told = self._unet.tell(conditioning.prompt_embeds, conditioning.text_embeds, conditioning.time_ids)
        return _Fast(runs, told, self._dtype, partial(preferred, self._engines.placement.device))

    @property
    def _dtype(self) -> torch.dtype:
        return self._unet.conv_in.weight.dtype

    def _block(self, quantization: str) -> BlockFunction:
        """The block for that arithmetic: compiled if the background has it ready, which begins with it when first asked
        for; SDXL_ENGINE=compile waits."""
        if quantization not in self._jobs:
            wanted, device = kinds(self._unet, quantization), self._engines.placement.device
            work = partial(compiled, wanted, device, self._dtype, self._engines.folder)
            self._jobs[quantization] = self._engines.compiler.submit(work)
        job = self._jobs[quantization]
        ready = job is not None and (job.finished or self._name == "compile") and job.result()
        return ready or block

    def _swap_in(self, function: BlockFunction) -> None:
        """From now on with compiled blocks. What was recorded knows where the weights were, and goes with them; if this
        is cut short, the next request begins with it again."""
        try:
            self._use(replace(settled(self._unet), block=function))
        except torch.OutOfMemoryError:
            self._use(UNet.of(self._module))
            self._jobs = dict.fromkeys(QUANTIZATIONS)
            logging.getLogger(__name__).warning("The UNet is not compiled: no memory for moving its weights.")

    def _use(self, unet: UNet) -> None:
        self._unet = unet
        self._runs = self._recorded(unet)
        self._eight: _Eight | None = None

    def _recorded(self, unet: UNet) -> _Runs:
        """It, as graphs where they are used."""
        if self._name == "eager":
            return unet
        return Graphs(unet, self._engines.placement.device, self._engines.recorder)

    def forget(self) -> None:
        """Give back the memory of recorded calls; they are recorded anew when they are made again."""
        for runs in (self._runs, self._eight and self._eight.runs) if self.can_reuse else ():
            if isinstance(runs, Graphs):
                runs.forget()

    def _in_eight_bits(self, quantization: str) -> _Runs:
        """In step with the weights as they are now. One kind is kept at a time."""
        function, eight = self._block(quantization), self._eight
        if eight is None or eight.quantization != quantization:
            self._eight = eight = None  # before there is another
            copies = Copies(quantization)
            unet = replace(self._unet, blocks=copies.of(self._unet.blocks), block=function)
            eight = _Eight(quantization, copies, unet, self._recorded(unet))
        elif eight.unet.block is not function:
            unet = replace(eight.unet, block=function)
            eight = eight._replace(unet=unet, runs=self._recorded(unet))
        self._eight = eight
        eight.copies.refresh()
        return eight.runs


@dataclass
class Engines:
    """The engines of a model's UNets, each made when it is first asked for."""

    placement: Placement
    name: str = "eager"
    folder: Path = Path("compiled")  # keeps what was compiled
    _made: dict[UNet2DConditionModel, Engine] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.resolved not in ("eager", "diffusers"):
            self.recorder = Workers(1, "recorder")
        if self.resolved in COMPILED:
            self.compiler = Workers(1, "compiler")

    @classmethod
    def chosen(cls, environ: Mapping[str, str], placement: Placement, folder: Path) -> Engines:
        """As SDXL_ENGINE names one. InputError if there is none of that name."""
        name = environ.get("SDXL_ENGINE") or "auto"
        if name not in ENGINES:
            raise InputError(f"SDXL_ENGINE={name!r} is not known; choose one of {', '.join(ENGINES)}.")
        return cls(placement, name, folder)

    @property
    def resolved(self) -> str:
        """What the name means on this machine."""
        if self.placement.tier != "resident":
            return "diffusers" if self.placement.tier == "stream" else "eager"
        return "eager" if self.name == "auto" and self.placement.device.type != "cuda" else self.name

    def of(self, module: UNet2DConditionModel) -> Engine:
        """The engine of a UNet."""
        if module not in self._made:
            self._made[module] = Engine(module, self)
        return self._made[module]

    def forget(self) -> None:
        """Give back the memory of recorded calls."""
        for engine in self._made.values():
            engine.forget()

    def prepare(self, *modules: Any) -> None:
        """Make those of a model that is being set up; with SDXL_ENGINE=compile until they are compiled."""
        for engine in [self.of(module) for module in modules if module is not None]:
            if self.resolved == "compile":
                engine._block("none")
