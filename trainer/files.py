"""Files that are whole or not there, with the same bytes for the same content."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from errors import WeightsError

TYPES = {torch.float32: "F32", torch.float16: "F16"}


@contextmanager
def whole(path: Path) -> Iterator[IO[bytes]]:
    """A file to write; at `path` is nothing of it until all of it is there. WeightsError where the disk refuses."""
    part = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            yield file
        part.replace(path)
    except BaseException as error:
        with suppress(OSError):
            part.unlink()
        if isinstance(error, OSError):
            why = (error.strerror or str(error)).lower()
            raise WeightsError(
                f"{path.name} cannot be written in {path.parent} ({why}); make room there and train again."
            ) from error
        raise


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], dtype: torch.dtype) -> None:
    """A .safetensors file: what has a dimension in that type, single numbers in float32.

    By hand: the library writes what a header says in an order of chance, and wants all tensors in their types at once,
    which is 5 GB more for a UNet.
    """
    types = {name: dtype if tensor.dim() else torch.float32 for name, tensor in tensors.items()}
    names = sorted(tensors, key=lambda name: (-types[name].itemsize, name))  # so that all are aligned
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    end = 0
    for name in names:
        start, end = end, end + tensors[name].numel() * types[name].itemsize
        shape = list(tensors[name].shape)
        header[name] = {"dtype": TYPES[types[name]], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with whole(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            file.write(tensors[name].detach().to(types[name]).reshape(-1).numpy().data)
