"""The regular files of a zip, in bounded memory, whatever it claims."""

import os
import stat
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from errors import WeightsError
from fetch.answers import CHUNK


def members(
    payload: Path, shown: str, counted: Callable[[], None], *, directory: int
) -> Iterator[tuple[zipfile.ZipInfo, Iterator[bytes]]]:
    """What is said of each regular file, and its data, which may be left where it is. `counted` is told of each member.

    directory  bytes that the zip's directory may have: zipfile reads it whole
    """
    if (size := _directory_size(payload)) > directory:
        raise WeightsError(f"{shown} has too many members ({size} bytes of names); pack only what is needed")
    with zipfile.ZipFile(payload) as archive:
        for info in archive.infolist():
            counted()
            mode = info.external_attr >> 16
            if not info.is_dir() and (not stat.S_IFMT(mode) or stat.S_ISREG(mode)):
                yield info, _data(archive, info)


def require_open(info: zipfile.ZipInfo, shown: str) -> None:
    """WeightsError where a file is encrypted."""
    if info.flag_bits & 1:
        raise WeightsError(f"{shown} is locked with a password; pack it again without one")


def _data(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[bytes]:
    with archive.open(info) as file:
        yield from reading(file)


def reading(file: IO[bytes]) -> Iterator[bytes]:
    while data := file.read(CHUNK):
        yield data


def _directory_size(payload: Path) -> int:
    """Bytes of a zip's directory, as its end states them (APPNOTE 4.3.16, and 4.3.14 beyond 4 GB)."""
    with payload.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(-min(size, 22 + 0xFFFF), os.SEEK_END)
        tail = file.read()
        at = tail.rfind(b"PK\5\6")
        if at < 0:
            raise zipfile.BadZipFile("it breaks off")
        (stated,) = struct.unpack_from("<L", tail, at + 12)
        if stated == 0xFFFFFFFF and tail[at - 20 : at].startswith(b"PK\6\7"):
            file.seek(min(size, struct.unpack_from("<Q", tail, at - 12)[0]))
            (stated,) = struct.unpack_from("<Q", file.read(56), 40)
    return int(stated)
