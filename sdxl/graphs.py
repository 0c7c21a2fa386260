"""A UNet's calls as CUDA graphs: what a call launches is recorded once per shape and then started as a whole.

The first call of a shape runs as it is, which lets the libraries choose their kernels; the second is recorded, which
takes the time of launching it and no more; all others are replays. A graph reads and writes fixed places in memory:
every call copies its inputs there. Weights are read where they lie, so folding a fine-tune needs no new recording.
"""

from __future__ import annotations

import logging
import weakref
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
MOST_BYTES = 2 * 2**30  # of what they are told; one that is told more is kept alone
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
    holds: weakref.ref[Tensor] | None = None  # `added` of what `told` is a copy of; None while it is being written
    called: set[str] = field(default_factory=set)
    refused: int = 0  # recordings that there was no memory for
    recordings: dict[str, Recording] = field(default_factory=dict)

    @classmethod
    def like(cls, latents: Tensor, timestep: Tensor, told: Told) -> Places:
        """For such inputs. Samplers differ in the type of their timesteps; float32 holds them all."""
        return cls(latents.clone(), timestep.to(torch.float32, copy=True), told.map(torch.clone))

    def bytes(self) -> int:
        """What they are told, in memory."""
        return sum(tensor.nbytes for tensor in self.told.tensors())

    def fill(self, latents: Tensor, timestep: Tensor, told: Told) -> None:
        """Copy a call's inputs there; what is the same at every step, once."""
        if self.holds is None or self.holds() is not told.added:
            self.holds = None
            torch._foreach_copy_(self.told.tensors(), told.tensors())
            self.holds = weakref.ref(told.added)
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
        self._handle: Any = None
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

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
        if key not in self._places:
            self._places[key] = self._fresh(latents, timestep, told)
        places = self._places[key]
        self._places.move_to_end(key)
        while len(self._places) > MOST or sum(each.bytes() for each in self._places.values()) > MOST_BYTES:
            if len(self._places) == 1:
                break
            self._places.popitem(last=False)
        places.fill(latents, timestep, told)
        return places

    def _fresh(self, latents: Tensor, timestep: Tensor, told: Told) -> Places:
        try:
            return Places.like(latents, timestep, told)
        except torch.OutOfMemoryError:
            self.forget()
        return Places.like(latents, timestep, told)

    def forget(self, but: Places | None = None) -> None:
        """Let go of all shapes, or the others, and of memory that nothing lies in."""
        for key in [key for key, places in self._places.items() if places is not but]:
            del self._places[key]
        torch.cuda.empty_cache()

    def _call(self, kind: str, places: Places, work: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        if kind in places.recordings:
            recording = places.recordings[kind]
            recording.replay()
            return recording.outputs
        job = self._worker.submit(lambda: self._launch(kind, places, work))
        try:
            return job.result()
        except BaseException:
            job.wait()  # what comes next may wait for the device, which a recording forbids, or use the same scratch
            raise

    def _launch(self, kind: str, places: Places, work: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """The first call of a shape as it is, the second recorded."""
        with torch.inference_mode(), ordered(self._stream):
            if kind in places.called and places.refused < 2 and not self._failed:
                recording = self._record(places, work)
                if recording is not None:
                    places.recordings[kind] = recording
                    recording.replay()
                    return recording.outputs
            try:
                outputs = work()
            except torch.OutOfMemoryError:
                outputs = ()
            if not outputs:  # outside of the clause that holds, by its error, what the call had in hand
                self.forget(but=places)
                outputs = work()
            places.called.add(kind)
            return outputs

    def _record(self, places: Places, work: Callable[[], tuple[Tensor, ...]]) -> Recording | None:
        """None if that does not work: for this shape, if twice there is no memory for it; for all, if it is anything
        else. During a recording torch gives back no memory that nothing lies in."""
        try:
            return record(work, self._device, self._pool())
        except torch.OutOfMemoryError:
            places.refused += 1
        except RuntimeError as error:
            self._failed = True
            logging.getLogger(__name__).warning("The UNet runs without CUDA graphs: %s", str(error)[:200])
        if not self._failed:
            self.forget(but=places)
        return None

    def _pool(self) -> Any:
        """The memory that all recordings share; it ends with the last of them, and its number cannot be used again."""
        if self._device.type == "cuda" and not any(each.recordings for each in self._places.values()):
            self._handle = torch.cuda.graph_pool_handle()
        return self._handle


@contextmanager
def ordered(stream: Any) -> Iterator[None]:
    """Launch on a stream that is in order with the current one."""
    if stream is None:
        yield
        return
    current = torch.cuda.current_stream(stream.device)
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        yield
    current.wait_stream(stream)
