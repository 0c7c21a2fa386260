"""A second device that is not there: which tensors would be on it, what would run on it, and who waits for it.

A tensor is on it if a `torch.device` object was named in making or moving it, or if it was computed from one that is.
Tensors stay where they are, so that the code under test gets its numbers; only the book is kept. What is written
`.to("cpu")`, `.cpu()`, `.numpy()` or `.tolist()`, a number or truth value taken from a tensor, and an operation whose
result has a size that depends on the data: each makes the host wait for the device.
"""

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

WAITS = {"_local_scalar_dense", "is_nonzero", "nonzero", "equal", "masked_select", "_unique2", "unique_dim"}
FETCHES = {"cpu", "numpy", "tolist", "__array__"}
NO_WORK = {"_local_scalar_dense", "is_nonzero", "_unsafe_view"}  # the last is a view that does not call itself one


class Book:
    """The tensors on the device and what has been counted since."""

    def __init__(self) -> None:
        self.there = WeakTensorKeyDictionary()
        self.ops = self.syncs = self.uploads = 0

    def mark(self, values: Any) -> None:
        """These tensors are on the device."""
        for value in tree_leaves(values):
            if isinstance(value, Tensor):
                self.there[value] = True

    def holds(self, values: Any) -> bool:
        """Whether one of these tensors is."""
        return any(isinstance(value, Tensor) and value in self.there for value in tree_leaves(values))


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Below autograd and composite operations: what a device would be given to do."""

    def __init__(self, book: Book) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.book = book

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.is_inference_mode_enabled():  # which hands composite operations over in one piece
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        result = func(*args, **kwargs)
        book = self.book
        if not book.holds((args, kwargs)):
            return result
        name = func.overloadpacket.__name__
        if name in WAITS or _index_waits(book, name, args):
            book.syncs += 1
        if name not in NO_WORK and not func.is_view:
            book.ops += 1
        book.mark(result)
        return result


def _index_waits(book: Book, name: str, args: Any) -> bool:
    """Whether an index comes from the device to a tensor on the host, or is a mask, whose count must be known."""
    if name not in {"index", "index_select", "gather"}:
        return False
    indices = [index for index in tree_leaves(args[1:]) if isinstance(index, Tensor) and book.holds(index)]
    return bool(indices) and (not book.holds(args[0]) or any(index.dtype == torch.bool for index in indices))


class _Moves(TorchFunctionMode):
    """What only the Python surface tells: moves to and from the device."""

    def __init__(self, book: Book) -> None:
        super().__init__()
        self.book = book

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        places = [value for value in (*args[1:], *kwargs.values()) if isinstance(value, str | torch.device)]
        fetches = name in FETCHES or (name == "to" and "cpu" in places)
        if fetches and self.book.holds(args[:1]):
            self.book.syncs += 1
            with torch._C._DisableTorchDispatch():  # the copy on the host is no work of the device
                return func(args[0].detach().clone(), *args[1:], **kwargs)
        there = any(isinstance(place, torch.device) for place in places)
        if there and not self.book.holds(args) and (name in {"to", "tensor"}):
            self.book.uploads += 1
        result = func(*args, **kwargs)
        if there:
            self.book.mark(result)
        return result


class Emulated:
    """`with Emulated() as book:` keeps the book of everything that happens inside."""

    def __enter__(self) -> Book:
        self.book = Book()
        self.modes = ExitStack()
        self.modes.enter_context(_Operations(self.book))
        self.modes.enter_context(_Moves(self.book))
        return self.book

    def __exit__(self, *error: Any) -> None:
        self.modes.__exit__(*error)
