"""Weights from .safetensors files: each byte read once.

On a CPU a file is mapped, and a tensor that needs no other type is the file itself. To a GPU it goes in pieces, through
a ring of pinned memory, several of which are read while others are copied.

The format (github.com/huggingface/safetensors): 8 bytes, the length of a header in JSON, the header, the tensors.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from errors import WeightsError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "I64": torch.int64,
    "I32": torch.int32,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
READERS = 4  # pieces of a file that are read at a time
PIECE = 32 * 2**20  # bytes


@dataclass(frozen=True)
class Entry:
    """A tensor in a file: `begin` and `size` in bytes."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    size: int


def read_tensors(folder: Path, device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of the folder's .safetensors, the fp16 variant where there is one; one file or shards.

    WeightsError if there is none, or one is damaged.
    """
    files = sorted(folder.glob("*.safetensors"))
    files = [file for file in files if ".fp16" in file.name] or files
    if not files:
        raise WeightsError(f"{folder.parent.name}/{folder.name} holds no .safetensors file; fetch the model again.")
    for file in files:
        try:
            yield from (streamed if device.type == "cuda" else mapped)(file, device, dtype)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            what = f"{file.name} in {folder.parent.name}/{folder.name}"
            raise WeightsError(f"{what} is damaged ({error}); fetch the model again.") from error


def entries(file: Path) -> list[Entry]:
    """What a file holds, in the order in which it lies there. ValueError or KeyError if its header is none."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if not 2 <= length <= size - 8:
            raise ValueError("it is cut short")
        header = json.loads(opened.read(length))
    header.pop("__metadata__", None)
    found = []
    for name, each in header.items():
        begin, end = each["data_offsets"]
        dtype, shape = DTYPES[each["dtype"]], tuple(each["shape"])
        if torch.Size(shape).numel() * dtype.itemsize != end - begin or not 0 <= begin <= end:
            raise ValueError(f"{name} has {end - begin} bytes")
        found.append(Entry(name, dtype, shape, 8 + length + begin, end - begin))
    found.sort(key=lambda entry: entry.begin)
    ends = [8 + length, *(entry.begin + entry.size for entry in found)]
    if [entry.begin for entry in found] != ends[:-1] or ends[-1] != size:
        raise ValueError(f"it has {size} bytes in place of {ends[-1]}")
    return found


def mapped(file: Path, device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Each tensor is the file's own memory, or a copy where its type has to change. Writing to one changes no file."""
    found = entries(file)
    storage: Any = torch.UntypedStorage.from_file(os.fspath(file), False, file.stat().st_size)
    for entry in found:
        place, odd = divmod(entry.begin, entry.dtype.itemsize)
        if odd:  # at no address that its type can be read from
            tensor = _at(storage, torch.uint8, entry.begin, entry.size).clone().view(entry.dtype)
        else:
            tensor = _at(storage, entry.dtype, place, entry.size // entry.dtype.itemsize)
        yield entry.name, tensor.view(entry.shape).to(device, dtype)


def _at(storage: Any, dtype: torch.dtype, place: int, size: int) -> Tensor:
    """A tensor of its own, not a view of another: each weight counts its own changes."""
    return torch.empty(0, dtype=dtype).set_(storage, place, (size,), (1,))


@dataclass(frozen=True)
class Part:
    """Bytes of a tensor, and where in a piece they are."""

    tensor: int
    into: int
    at: int
    size: int


def pieces(found: Sequence[Entry], most: int) -> Iterator[tuple[int, list[Part]]]:
    """A file in pieces of `most` bytes: where each begins, and what is in it."""
    begin, parts, filled = (found[0].begin if found else 0), list[Part](), 0
    for number, entry in enumerate(found):
        done = 0
        while done < entry.size:
            size = min(entry.size - done, most - filled)
            parts.append(Part(number, done, filled, size))
            done, filled = done + size, filled + size
            if filled == most:
                yield begin, parts
                begin, parts, filled = begin + filled, [], 0
    if parts:
        yield begin, parts


def streamed(
    file: Path, device: torch.device, dtype: torch.dtype, *, piece: int = PIECE
) -> Iterator[tuple[str, Tensor]]:
    """Each tensor in memory of its own on the device; its type changes there."""
    found, cuda = entries(file), device.type == "cuda"
    tensors = [torch.empty(entry.shape, dtype=entry.dtype, device=device) for entry in found]
    raw = [tensor.view(-1).view(torch.uint8) for tensor in tensors]
    ring = deque(torch.empty(piece, dtype=torch.uint8, pin_memory=cuda) for _ in range(READERS + 2))
    waiting: deque[tuple[Future[None], Tensor, list[Part]]] = deque()
    copied: deque[tuple[torch.cuda.Event | None, Tensor]] = deque()
    handle = os.open(file, os.O_RDONLY)
    try:
        with ThreadPoolExecutor(READERS) as readers:

            def copy() -> None:
                job, buffer, parts = waiting.popleft()
                job.result()
                for part in parts:
                    target = raw[part.tensor][part.into : part.into + part.size]
                    target.copy_(buffer[part.at : part.at + part.size], non_blocking=True)
                copied.append((torch.cuda.current_stream(device).record_event() if cuda else None, buffer))

            for begin, parts in pieces(found, piece):
                if not ring:
                    copy()
                    event, buffer = copied.popleft()
                    if event is not None:
                        event.synchronize()
                    ring.append(buffer)
                buffer = ring.popleft()
                size = sum(part.size for part in parts)
                waiting.append((readers.submit(_fill, handle, begin, buffer[:size]), buffer, parts))
            while waiting:
                copy()
        if cuda:
            torch.cuda.current_stream(device).synchronize()  # before the ring goes, and others read on their streams
    finally:
        os.close(handle)
    for number, entry in zip(count(), found, strict=False):
        tensor, tensors[number], raw[number] = tensors[number], torch.empty(0), torch.empty(0)
        yield entry.name, tensor.to(dtype)


def _fill(handle: int, begin: int, buffer: Tensor) -> None:
    """A piece of a file, read into memory."""
    view, done = memoryview(buffer.numpy().data), 0
    while done < len(view):
        size = os.preadv(handle, [view[done:]], begin + done)
        if not size:
            raise ValueError("it is cut short")
        done += size
