"""One process or several, one per GPU: who this one is, and how gradients are averaged. accelerate does the rest."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process's number of `count`."""

    rank: int = 0
    count: int = 1
    _accelerator: Any = None

    @classmethod
    def joined(cls) -> "Ranks":
        """As `torchrun` or `accelerate launch` has started this process, if one has."""
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        from accelerate import Accelerator  # half a second that one process does not need

        accelerator = Accelerator(cpu=not torch.cuda.is_available())
        return cls(accelerator.process_index, accelerator.num_processes, accelerator)

    def leave(self) -> None:
        """Part from the others in order: left to the end of the process, their threads' end can abort it."""
        if self._accelerator is not None:
            self._accelerator.end_training()

    @property
    def first(self) -> bool:
        """Whether this is the one that speaks and writes."""
        return self.rank == 0

    def mean(self, tensors: Iterable[Tensor]) -> None:
        """Each tensor becomes its mean over all processes."""
        if self._accelerator is None:
            return
        for tensor in tensors:
            tensor.copy_(self._accelerator.reduce(tensor, reduction="mean"))

    def part(self, batches: Iterable[T], skipped: int) -> Iterator[T]:
        """Those of all batches that are this process's, but for the first ones."""
        return islice(batches, self.rank + skipped * self.count, None, self.count)
