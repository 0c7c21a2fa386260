"""What a download needs of this machine: room, a lock, a digest, the names in a file, a bar to look at."""

import fcntl
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from operator import index
from pathlib import Path
from threading import Lock
from typing import Any

from tqdm import tqdm

from errors import WeightsError
from fetch.answers import Stop

RESERVE = 64 << 20  # bytes of disk left free
# What the header of a .safetensors file may have: Python reads JSON with the GIL held, 16 MiB of it for two seconds if
# they are empty lists. A whole SDXL checkpoint has 2,500 tensors and 0.3 MB of header.
HEADER = 16 << 20  # bytes
TENSORS = 20_000
NAME = 300  # characters
MARKS = 20 * TENSORS  # each of these signs; a tensor has ten commas, the rest is for metadata


def digest_of(path: Path, kind: str = "sha256", *, stop: Stop | None = None) -> str:
    """ "sha256:…" of a file, or "git:…", the name that git gives its content."""
    found = hashlib.sha256()
    if kind == "git":
        found = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while data := file.read(1 << 20):
            found.update(data)
            if stop:
                stop.check()
    return f"{kind}:{found.hexdigest()}"


@contextmanager
def locked(path: Path, *, quietly: bool = False) -> Iterator[None]:
    """Alone among all processes that lock this path; the lock goes with the process, however that ends."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as error:
        raise WeightsError(f"cannot write in {path.parent}: {error.strerror}; set SDXL_CACHE") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not quietly:
                sys.stderr.write(f"another process is writing in {path.parent}; waiting for it\n")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def require_space(folder: Path, need: int) -> None:
    """Refuse before the first byte what the disk cannot hold."""
    free = shutil.disk_usage(folder).free
    if free < need + RESERVE:
        raise WeightsError(f"{folder} has {free / 1e9:.1f} GB free but {need / 1e9:.1f} are needed; set SDXL_CACHE")


def read_ahead(path: Path) -> None:
    """Tell the system to read a file of weights into memory, or those of a folder; where both are, those in 16 bits.
    Where a system cannot be told (macOS) nothing happens."""
    if not hasattr(os, "posix_fadvise"):
        return
    found = [path] if path.is_file() else sorted(path.rglob("*.safetensors"))
    halved = {file.parent for file in found if ".fp16" in file.name}
    for file in found:
        if file.parent not in halved or ".fp16" in file.name:
            with file.open("rb") as opened:
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


def safetensors_keys(path: Path, shown: str = "") -> set[str]:
    """The names of the tensors in a .safetensors file whose length is what its header says.

    WeightsError calls it by its path, or as what a user has sent: `shown`.
    """
    named, again = shown or path, "pack or upload it again" if shown else "download it again"
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        text = file.read(length) if 2 <= length <= min(size, HEADER) else b""
    excess = f"{length} bytes; at most {HEADER} are allowed" if HEADER < length <= size else _too_much(text)
    try:
        header: dict[str, Any] = {} if excess else json.loads(text)
        header.pop("__metadata__", None)
        excess = excess or _too_many(header)
        end = 0 if excess else max(index(entry["data_offsets"][1]) for entry in header.values())
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{named} is damaged: it has no header of a .safetensors file; {again}") from error
    if excess:
        raise WeightsError(f"{named} has a header that no weights of SDXL have ({excess}); save it with less in it")
    if size != 8 + length + end:
        raise WeightsError(f"{named} is damaged: it has {size} bytes instead of {8 + length + end}; {again}")
    return set(header)


def _too_much(text: bytes) -> str:
    """What a header has too much of to be read at all, or ""."""
    much = [mark.decode() for mark in (b",", b"[", b"{") if text.count(mark) > MARKS]
    return f"more than {MARKS} times {much[0]!r}" if much else ""


def _too_many(header: dict[str, Any]) -> str:
    longest = max(map(len, header), default=0)
    if longest > NAME:
        return f"a name of {longest} characters; at most {NAME} are allowed"
    return f"{len(header)} tensors; at most {TENSORS} are allowed" if len(header) > TENSORS else ""


def sizes_in(folder: Path) -> dict[str, int]:
    """Bytes of each file below a folder, by its path there; what goes away meanwhile has none."""
    found = {}
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                path = Path(place, name)
                found[path.relative_to(folder).as_posix()] = path.lstat().st_size
    return found


class Bar:
    """One progress bar over all bytes, on stderr; safe between threads."""

    def __init__(self, label: str) -> None:
        pace = 0.2 if sys.stderr.isatty() else 10.0
        self.tqdm = tqdm(desc=label, unit="B", unit_scale=True, mininterval=pace, file=sys.stderr, total=0)
        self.lock = Lock()

    def add(self, count: int, *, total: int = 0) -> None:
        with self.lock:
            self.tqdm.total += total
            self.tqdm.update(count)
