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


def safetensors_keys(path: Path) -> set[str]:
    """The names of the tensors in a .safetensors file whose length is what its header says."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            header: dict[str, Any] = json.loads(file.read(length)) if 2 <= length <= min(size, 100 << 20) else {}
            header.pop("__metadata__", None)
            end = max(index(entry["data_offsets"][1]) for entry in header.values())
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
            raise WeightsError(f"{path} is no .safetensors file; download it again") from error
    if size != 8 + length + end:
        raise WeightsError(f"{path} has {size} bytes instead of {8 + length + end}; download it again")
    return set(header)


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
