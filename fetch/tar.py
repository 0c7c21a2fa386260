"""The regular files of a tar, read once from its beginning to its end in bounded memory, whatever it claims.

Two blocks of zeros end a tar; one that ends without them is whole as well if its last member is.
"""

import gzip
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO

from errors import WeightsError
from fetch.answers import CHUNK

BLOCK = 512
NOTE = 1 << 20  # bytes of a header extension


@dataclass
class Counted:
    """A stream that ends in an error rather than deliver more than `most` bytes."""

    file: IO[bytes] | gzip.GzipFile
    most: int
    check: Callable[[], None]  # asked before each piece; raises to stop it
    shown: str

    def chunks(self, size: int, *, or_end: bool = False) -> Iterator[bytes]:
        """The next `size` bytes; EOFError where there are fewer, unless it ends just here and `or_end`."""
        whole = size
        while size > 0:
            self.check()
            data = self.file.read(min(size, CHUNK))
            if not data and or_end and size == whole:
                return
            if not data:
                raise EOFError("it breaks off")
            self.most -= len(data)
            if self.most < 0:
                raise WeightsError(f"{self.shown} unpacks to far more than its own size; pack it without compression")
            size -= len(data)
            yield data

    def read(self, size: int, *, or_end: bool = False) -> bytes:
        if size > NOTE:
            raise EOFError(f"a header of {size} bytes")
        return b"".join(self.chunks(size, or_end=or_end))


def members(stream: Counted, counted: Callable[[], None]) -> Iterator[tuple[str, int, Iterator[bytes]]]:
    """(name, size, data) of each regular file; the data may be left where it is. `counted` is told of every member.

    `tarfile` itself would read header extensions and maps of sparse files into memory, as long as they claim to be.
    """
    fields: dict[str, str] = {}
    whole = False  # what has come
    while any(block := stream.read(BLOCK, or_end=whole)):
        counted()
        whole = False
        info = tarfile.TarInfo.frombuf(block, "utf-8", "replace")
        if info.type in (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME):
            note = stream.read(_whole(info.size))
            stream.read(-info.size % BLOCK)
            long = info.type == tarfile.GNUTYPE_LONGNAME
            fields |= {"path": note.rstrip(b"\0").decode("utf-8", "replace")} if long else _pax(note)
            continue
        if info.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not any(key.startswith("GNU.sparse") for key in fields):
            size = _whole(fields.get("size", info.size))
            chunks = stream.chunks(size)
            yield fields.get("path", info.name), size, chunks
            for _ in chunks:
                pass
            stream.read(-size % BLOCK)
        elif info.type not in (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE):
            size = _whole(fields.get("size", info.size))
            for _ in stream.chunks(size + -size % BLOCK):
                pass
        fields, whole = {}, True


def _whole(size: str | int) -> int:
    try:
        size = int(size)
    except ValueError:
        size = -1
    if size < 0:
        raise tarfile.ReadError("a size that is no number")
    return size


def _pax(note: bytes) -> dict[str, str]:
    """The fields of a POSIX header extension: lines of "LENGTH KEY=VALUE"."""
    fields = {}
    while note:
        length, space, _ = note.partition(b" ")
        if not space or not length.isdigit() or not len(length) + 2 < int(length) <= len(note):
            raise tarfile.ReadError("a header extension that makes no sense")
        key, _, value = note[len(length) + 1 : int(length) - 1].decode("utf-8", "replace").partition("=")
        fields[key] = value
        note = note[int(length) :]
    return fields
