"""A UNet's calls as CUDA graphs: what a call launches is recorded once per shape and then started as a whole.

The first call of a shape runs as it is, which lets the libraries choose their kernels; the second is recorded, which
takes the time of launching it and no more; all others are replays. A graph reads and writes fixed places in memory:
every call copies its inputs there. Weights are read where they lie, so folding a fine-tune needs no new recording.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sdxl.unet import Told, UNet
from sdxl.workers import Workers

MOST = 8  # shapes that are kept
Key = tuple[tuple[int, ...], ...]


@dataclass
class Recording:
    """What a call computes into, and how it is computed again."""

    replay: Callable[[], None]
    outputs: tuple[Tensor, ...]


def record(work: Callable[[], tuple[Tensor, ...]], device: torch.device, pool: Any) -> Recording:
    """What `work` launches, as a CUDA graph. A device without graphs computes anew, into the same places."""
    if device.type == "cuda":
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(pool, capture_error_mode="thread_local")
        try:
            outputs = work()
        finally:
            graph.capture_end()
        return Recording(graph.replay, outputs)
    outputs = work()

    def replay() -> None:
        for output, fresh in zip(outputs, work(), strict=True):
            output.copy_(fresh)

    return Recording(replay, outputs)


@dataclass
class Places:
    """The fixed places of one shape, and what was recorded over them."""

    latents: Tensor
    timestep: Tensor
    told: Told
    holds: Told | None = None  # whose copy `told` is; None while it is being written
    called: set[str] = field(default_factory=set)
    recordings: dict[str, Recording] = field(default_factory=dict)

    def fill(self, latents: Tensor, timestep: Tensor, told: Told) -> None:
        """Copy a call's inputs there; what is the same at every step, once."""
        if self.holds is not told:
            self.holds = None
            torch._foreach_copy_(self.told.tensors(), told.tensors())
            self.holds = told
        self.latents.copy_(latents)
        self.timestep.copy_(timestep)


class Graphs:
    """Calls of one UNet. What launches without a recording does so on a thread that no cancel meets: one in the middle
    of a recording would leave the device in it."""

    def __init__(self, unet: UNet, device: torch.device, worker: Workers) -> None:
        self.unet = unet
        self._device, self._worker = device, worker
        self._places: OrderedDict[Key, Places] = OrderedDict()
        self._failed = False  # whatever a driver has against graphs, it will have again
        cuda = device.type == "cuda"
        self._pool: Any = torch.cuda.graph_pool_handle() if cuda else None
        self._stream = torch.cuda.Stream(device) if cuda else None  # type: ignore[no-untyped-call]

    def full(self, latents: Tensor, timestep: Tensor, told: Told) -> tuple[Tensor, Tensor]:
        """As `UNet.full`; the results are overwritten by the next call of the same shape."""
        places = self._at(latents, timestep, told)
        noise, deep = self._call("full", places, lambda: self.unet.full(places.latents, places.timestep, places.told))
        return noise, deep

    def shallow(self, latents: Tensor, timestep: Tensor, told: Told, deep: Tensor) -> Tensor:
        """As `UNet.shallow`, after a `full` call of the same shape, whose deep result it reads where that lies."""
        places = self._at(latents, timestep, told)
        recorded = places.recordings.get("full")
        if recorded is None or recorded.outputs[1] is not deep:  # that of the one call before the recording
            return self.unet.shallow(latents, timestep, told, deep)
        work = self.unet.shallow
        (noise,) = self._call("shallow", places, lambda: (work(places.latents, places.timestep, places.told, deep),))
        return noise

    def _at(self, latents: Tensor, timestep: Tensor, told: Told) -> Places:
        """The places of this shape, filled."""
        key = (tuple(latents.shape), tuple(told.key_values[0][0].shape))
        places = self._places.get(key)
        if places is None:
            places = Places(latents.clone(), timestep.clone(), told.map(lambda tensor: tensor.clone()))
            self._places[key] = places
            while len(self._places) > MOST:
                self._places.popitem(last=False)
        self._places.move_to_end(key)
        places.fill(latents, timestep, told)
        return places

    def _call(self, kind: str, places: Places, work: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        if kind not in places.recordings:
            return self._worker.submit(lambda: self._launch(kind, places, work)).result()
        recording = places.recordings[kind]
        recording.replay()
        return recording.outputs

    def _launch(self, kind: str, places: Places, work: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """The first call of a shape as it is, the second recorded."""
        with torch.inference_mode(), _on(self._stream):
            if kind not in places.called or self._failed:
                outputs = work()
                places.called.add(kind)
                return outputs
            try:
                places.recordings[kind] = recording = record(work, self._device, self._pool)
            except RuntimeError as error:
                self._failed = True
                logging.getLogger(__name__).warning("The UNet runs without CUDA graphs: %s", str(error)[:200])
                return work()
            recording.replay()
            return recording.outputs


@contextmanager
def _on(stream: Any) -> Iterator[None]:
    """Launch on a stream that is in order with the current one."""
    if stream is None:
        yield
        return
    current = torch.cuda.current_stream(stream.device)
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        yield
    current.wait_stream(stream)
