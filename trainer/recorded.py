"""Forward and backward of a batch as CUDA graphs: what a batch launches is recorded once per kind of batch, and then
started as a whole. A small batch is bound by its launches, thousands of them; a graph is one.

The first batch of a kind runs as it is, which lets the libraries choose their kernels; the second is recorded; all
others are replays. A graph reads and writes fixed places in memory, so a batch's inputs are copied into those of its
kind, and what it leaves behind (gradients) lies where it did at the recording. Same kernels, same numbers, same bits.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdxl.graphs import ordered

Work = Callable[..., Tensor]


@dataclass
class _Kind:
    """The fixed places of a kind's inputs, and its recording, once there is one."""

    places: list[Tensor]
    replay: Callable[[], Tensor] | None = None


class Recorder:
    """Calls `work` with the same arguments' worth of numbers as it is given, recorded where that works.

    A device without graphs computes anew over the same places: all but the recording itself.
    """

    def __init__(self, device: torch.device, say: Callable[[str], None]) -> None:
        self._device, self._say = device, say
        self._kinds: dict[Hashable, _Kind] = {}
        self._works = True
        cuda = device.type == "cuda"
        self._pool: Any = torch.cuda.graph_pool_handle() if cuda else None
        self._stream = torch.cuda.Stream(device) if cuda else None  # type: ignore[no-untyped-call]

    def __call__(self, kind: Hashable, work: Work, inputs: Sequence[Tensor]) -> Tensor:
        """What `work(*inputs)` returns; the next call overwrites it. Calls of a kind differ in the numbers of their
        inputs alone, and `work` neither waits for the device nor takes anything else that changes from the host."""
        if not self._works:
            return work(*inputs)
        with ordered(self._stream):
            known = self._kinds.get(kind)
            if known is None:
                self._kinds[kind] = _Kind([each.clone() for each in inputs])
                return self._first(work, inputs)
            torch._foreach_copy_(known.places, list(inputs))
            if known.replay is None:
                try:
                    known.replay = _record(work, known.places, self._device, self._pool)
                except RuntimeError as error:  # whatever the driver, a library or the memory cannot do
                    self._give_up(error)
                    return work(*inputs)
            return known.replay()

    def forget(self) -> None:
        """Let go of all recordings and their memory: what they were made of changes."""
        if self._stream is not None:
            self._stream.synchronize()
        self._kinds.clear()
        gc.collect()
        if self._stream is not None:
            torch.cuda.empty_cache()

    def _first(self, work: Work, inputs: Sequence[Tensor]) -> Tensor:
        """As it is; once more without the recordings of other kinds where these leave no memory for it."""
        try:
            return work(*inputs)
        except torch.OutOfMemoryError as error:
            if not any(kind.replay for kind in self._kinds.values()):
                raise
            self._give_up(error)
        return work(*inputs)

    def _give_up(self, error: RuntimeError) -> None:
        self._works = False
        self.forget()
        reason = str(error).strip().partition("\n")[0]
        self._say(f"steps are not recorded, and take a little longer: {reason}")


def _record(work: Work, places: Sequence[Tensor], device: torch.device, pool: Any) -> Callable[[], Tensor]:
    """What `work` launches, as a CUDA graph that has not run yet."""
    if device.type != "cuda":
        return lambda: work(*places)
    torch.cuda.synchronize(device)
    gc.collect()  # what is collected during a recording may wait for the device
    torch.cuda.empty_cache()  # what the first call has used: the recording wants as much
    graph = torch.cuda.CUDAGraph()
    graph.capture_begin(pool, capture_error_mode="thread_local")
    try:
        result = work(*places)
    finally:
        graph.capture_end()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay
