"""What came, told by its content and never by its name, and its weights put into a folder.

A .safetensors file is taken as it is. Of a tar (plain or gzip) or a zip only regular files that a fine-tune is made
of are written, below the folder, within limits; nothing is ever executed, so pickles are refused. Memory is bounded
by MEMBERS and CHUNK, whatever an archive claims.
"""

import gzip
import lzma
import os
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from errors import WeightsError
from fetch import zip
from fetch.answers import Stop
from fetch.disk import safetensors_keys
from fetch.tar import BLOCK, Counted, members

TENSORS = (".safetensors", ".pti")
WANTED = (*TENSORS, ".json")
BARE = "weights.safetensors"  # what a file that came alone is called: its content is its key, its name is not
MEMBERS = 10_000  # entries of an archive, of any kind
NOTE = 1 << 20  # bytes of a zip's directory
JSON = 16 << 20  # bytes of one .json file
RATIO = 100  # times its own size that an archive may unpack to; weights hardly shrink at all
SLACK = 64 << 20  # bytes that any archive may unpack to
EXPECTED = "send a .safetensors file, or a tar or zip that holds one"
# What names a pickle, and what is said of it
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle")
PICKLE = "is a pickle (.pt, .ckpt, .bin), which can run code and is never opened; convert it to .safetensors"
DAMAGE = (
    EOFError,
    zlib.error,
    lzma.LZMAError,
    gzip.BadGzipFile,
    tarfile.TarError,
    struct.error,
    zipfile.BadZipFile,
    NotImplementedError,  # how zipfile says: a compression it does not know
    ValueError,  # and: an offset that cannot be
)


@dataclass
class Target:
    """A folder that an archive is unpacked into, with what may still come into it.

    limit  bytes in all
    room   asked for the bytes of each file before it is written; raises where they do not fit
    token  the input that might have let the asker in, for what turns out to be a page
    """

    folder: Path
    shown: str
    limit: int
    room: Callable[[int], None]
    stop: Stop
    token: str | None = None
    entries: int = 0
    total: int = 0
    names: set[PurePosixPath] = field(default_factory=set)
    pickles: list[str] = field(default_factory=list)  # what was left out because it is one

    def counted(self) -> None:
        self.stop.check()
        self.entries += 1
        if self.entries > MEMBERS:
            raise WeightsError(f"{self.shown} has more than {MEMBERS} members; pack only the weights")

    def write(self, path: PurePosixPath, size: int, chunks: Iterable[bytes]) -> None:
        """One member, checked; `size` is what the archive says of it."""
        self.total += size
        if size > JSON and path.suffix == ".json":
            raise WeightsError(f"{str(path)!r} in {self.shown} has {size} bytes; at most {JSON} are allowed for JSON")
        if self.total > self.limit:
            raise WeightsError(f"{self.shown} unpacks to more than the {self.limit} bytes that are allowed")
        if path in self.names:
            raise WeightsError(f"{self.shown} has two members {str(path)!r}; pack it again")
        self.names.add(path)
        self.room(size)
        goal, came = self.folder / path, 0
        try:
            goal.parent.mkdir(parents=True, exist_ok=True)
            with goal.open("xb") as file:
                for data in chunks:
                    self.stop.check()
                    came += file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:  # a name too long, a file where a folder should be, a disk that is full
            if isinstance(error, DAMAGE):
                raise
            raise WeightsError(f"{str(path)[:80]!r} in {self.shown} cannot be written: {error.strerror}") from error
        if came != size:
            raise EOFError(f"{came} bytes instead of {size}")
        self._check(goal, path)

    def _check(self, goal: Path, path: PurePosixPath) -> None:
        if path.suffix in TENSORS:
            safetensors_keys(goal, f"{str(path)!r} in {self.shown}")

    def wanted(self, name: str) -> PurePosixPath | None:
        """Where a regular file goes, its ending in small letters, or None: it is not part of a fine-tune."""
        parts = [part for part in name.replace("\\", "/").split("/") if part != "."]
        path = PurePosixPath(*parts)
        ending = path.suffix.lower()
        if any(part == "__MACOSX" or part.startswith("._") for part in parts):
            return None
        if ending in PICKLES:
            self.pickles.append(str(path)[:80])
        if ending not in WANTED:
            return None
        if not parts[0] or ".." in parts or ":" in parts[0] or "\0" in name:
            raise WeightsError(f"{self.shown} has a member {name[:80]!r} outside of its folder; pack it again")
        return path.with_suffix(ending)

    def require_weights(self, found: Iterable[PurePosixPath], remedy: str) -> None:
        """WeightsError where what was found holds none; what was left out beside some is said."""
        first = f"{self.pickles[0]!r}" if self.pickles else ""
        if not any(path.suffix in TENSORS for path in found):
            if first:
                raise WeightsError(f"{self.shown} holds no .safetensors file, and {first} {PICKLE}")
            raise WeightsError(f"{self.shown} holds no {' or '.join(TENSORS)} file; {remedy}")
        if first:
            more = f" (and {len(self.pickles) - 1} more)" if len(self.pickles) > 1 else ""
            sys.stderr.write(f"{first}{more} in {self.shown} is a pickle and was left out\n")


def unpack(payload: Path, target: Target) -> bool:
    """What came into the target's folder; True where it was one bare file. The payload is moved or stays."""
    kind = kind_of(payload, target)
    if kind == "safetensors":
        safetensors_keys(payload, target.shown)
        payload.replace(target.folder / BARE)
        return True
    try:
        _UNPACKERS[kind](payload, target)
    except DAMAGE as error:
        raise WeightsError(f"{target.shown} is a damaged {kind} archive ({error}); pack or upload it again") from error
    target.require_weights(target.names, EXPECTED)
    return False


def kind_of(payload: Path, target: Target) -> str:
    """ "safetensors", "tar", "gzip" or "zip"; WeightsError says what else it is."""
    with payload.open("rb") as file:
        head = file.read(2 * BLOCK)
    if len(head) > 9 and head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= 100 << 20:
        return "safetensors"
    if kind := packed_as(head):
        return kind
    page = head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"<")
    hint = f", or set {target.token} if only some may have it" if page and target.token else ""
    raise WeightsError(f"{target.shown} {_amiss(head)}{hint}")


def packed_as(head: bytes) -> str | None:
    """ "tar", "gzip" or "zip", told by the first 512 bytes of a file; None: it is no such archive."""
    for magic, kind in ((b"\x1f\x8b", "gzip"), (b"PK\x03\x04", "zip"), (b"PK\x05\x06", "zip")):
        if head.startswith(magic):
            return kind
    try:
        tarfile.TarInfo.frombuf(head[:BLOCK], "utf-8", "replace")
    except tarfile.HeaderError:
        return None
    return "tar"


def _amiss(head: bytes) -> str:
    """What a file is that is no fine-tune, from how it begins."""
    if not head:
        return f"is empty; {EXPECTED}"
    if head[0] == 0x80 and head[1:2] in (b"\2", b"\3", b"\4", b"\5"):
        return PICKLE
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text.startswith(b"<"):
        return "is a web page; give the address of the file itself"
    if text.startswith((b"{", b"[")) or all(byte >= 32 or byte in b"\t\r\n" for byte in text):
        return "is text; give the address of the file itself"
    return f"is of no known kind; {EXPECTED}"


def _unpack_tar(payload: Path, target: Target) -> None:
    with payload.open("rb") as file:
        _walk(Counted(file, payload.stat().st_size, target.stop.check, target.shown), target)


def _unpack_gzip(payload: Path, target: Target) -> None:
    # Limits are on what is decompressed, so members that nobody wants count as well
    most = min(max(SLACK, RATIO * payload.stat().st_size), target.limit + SLACK)
    with gzip.open(payload) as file:
        _walk(Counted(file, most, target.stop.check, target.shown), target)


def _walk(stream: Counted, target: Target) -> None:
    for name, size, chunks in members(stream, target.counted):
        if path := target.wanted(name):
            target.write(path, size, chunks)


def _unpack_zip(payload: Path, target: Target) -> None:
    most = max(SLACK, RATIO * payload.stat().st_size)
    for info, chunks in zip.members(payload, target.shown, target.counted, directory=NOTE):
        if PurePosixPath(info.filename).name == "data.pkl":
            raise WeightsError(f"{target.shown} {PICKLE}")
        if path := target.wanted(info.filename):
            zip.require_open(info, target.shown)
            if target.total + info.file_size > most:
                raise WeightsError(f"{target.shown} unpacks to far more than its own size; pack it without compression")
            target.write(path, info.file_size, chunks)


_UNPACKERS: dict[str, Callable[[Path, Target], None]] = {"tar": _unpack_tar, "gzip": _unpack_gzip, "zip": _unpack_zip}
