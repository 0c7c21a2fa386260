"""How much memory something would take at full size: every tensor in its shape and type, and none of its data."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

NUMBER = 0.5  # what a tensor without data says when it is asked for its value


class Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of all storages that are alive, whoever holds them: a module, autograd, an optimiser, a variable."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = self.peak = 0
        self._known = dict[int, int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return NUMBER
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._meet(tensor.untyped_storage())
        return result

    def _meet(self, storage: Any) -> None:
        key = storage._cdata
        if key in self._known:
            return
        self._known[key] = storage.nbytes()
        self.bytes += storage.nbytes()
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.bytes -= self._known.pop(key)


@contextmanager
def without_data() -> Iterator[Live]:
    """Inside, tensors have no data, and the memory that they would take is counted.

    They say that they are on a CPU, for which torch picks flash attention, as it does on a GPU: it keeps its inputs,
    its output and one number for each query.
    """
    with FakeTensorMode(allow_non_fake_inputs=True), Live() as live:
        yield live
