"""How many bytes operations read and write."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

NO_WORK = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view"}
UNREAD = {"copy_", "fill_", "zero_", "random_", "uniform_", "normal_"}  # they write over what was there


class Traffic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """`with Traffic() as traffic:` counts, for every operation but views, each tensor that it reads and each that it
    writes, once: what has to go through memory where nothing stays in a cache. What a kernel does beyond that, as
    addmm into another tensor, which on a CPU is a copy and then a sum in place, is kept apart in `hidden`.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = self.hidden = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if func.is_view or name in NO_WORK:
            return result
        read, written = set[tuple[int, int]](), set[tuple[int, int]]()
        for argument, tensor in _arguments(func, args, kwargs):
            writes = argument.alias_info is not None and argument.alias_info.is_write
            if writes:
                written.add(_place(tensor))
            if not argument.is_out and not (writes and name in UNREAD):
                read.add(_place(tensor))
        if name == "addmm" and written - read:
            self.hidden += 2 * sum(size for _, size in written)
        written |= {_place(tensor) for tensor in tree_leaves(result) if isinstance(tensor, Tensor)}
        self.bytes += sum(size for _, size in (*read, *written))
        return result


def _arguments(func: Any, args: Any, kwargs: Any) -> Iterator[tuple[Any, Tensor]]:
    """Every tensor that is given, with what the operation's schema says of it."""
    stated = func._schema.arguments
    named = {argument.name: argument for argument in stated}
    given = [*zip(stated, args, strict=False), *((named[name], value) for name, value in kwargs.items())]
    for argument, value in given:
        for tensor in tree_leaves(value):
            if isinstance(tensor, Tensor):
                yield argument, tensor


def _place(tensor: Tensor) -> tuple[int, int]:
    """Where it lies, and its bytes; none on the meta device."""
    return (0, 0) if tensor.is_meta else (tensor.data_ptr(), tensor.nbytes)
