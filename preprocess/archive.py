"""The archive of a training, told by its content: its images and captions, under names of our own, within limits.

Nothing of it is run, no link is followed, no name of its own is used on disk. Memory is bounded, whatever it claims.
"""

from __future__ import annotations

import gzip
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from errors import DatasetError, InputError, WeightsError
from fetch import tar, zip
from fetch.archive import DAMAGE, packed_as
from preprocess.job import Check
from sdxl.picture import MAX_BYTES

SHOWN = "input_images"
IMAGES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif"),
    *(".tif", ".tiff", ".heic", ".heif", ".hif", ".avif"),
)
TEXTS = {".txt": 1 << 20, ".csv": 16 << 20, ".jsonl": 16 << 20}  # bytes of a file
TOTAL = 16 << 30  # bytes that an archive may unpack to
RATIO = 100  # times its own size that it may unpack to: pictures hardly shrink at all
SLACK = 256 << 20  # bytes that any archive may unpack to: flat drawings as BMP do shrink
MEMBERS = 20_000  # entries of any kind
MOST = 5_000  # images
DIRECTORY = 4 << 20  # bytes of a zip's directory
RESERVE = 64 << 20  # bytes of disk left free
NAME = 500  # characters of a path
UTF8 = 1 << 11  # zip: the name says that it is UTF-8 (APPNOTE 4.4.4)
CLUTTER = {"__MACOSX", ".DS_Store", "Thumbs.db", "desktop.ini"}
KINDS = {"tar": "tar", "gzip": "tar.gz", "zip": "zip"}
# What else is sent, from how it begins
OTHERS = {
    b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a RAR archive",
    b"\xfd7zXZ": "packed with xz",
    b"BZh": "packed with bzip2",
    b"\x28\xb5\x2f\xfd": "packed with Zstandard",
    b"PK\x07\x08": "a part of a split zip",
    b"\x89PNG": "a single image",
    b"\xff\xd8\xff": "a single image",
    b"RIFF": "a single image",
    b"GIF8": "a single image",
    b"<": "a web page",
    b"": "no archive",
}


@dataclass(frozen=True)
class Member:
    """A file of the archive: its path there, and where it lies now."""

    name: str
    path: Path

    @property
    def inside(self) -> PurePosixPath:
        return PurePosixPath(self.name)


@dataclass(frozen=True)
class Unpacked:
    """What came of an archive, by name."""

    images: tuple[Member, ...]
    texts: tuple[Member, ...]
    skipped: tuple[tuple[str, str], ...]


def unpack(archive: Path, filetype: str, folder: Path, *, check: Check) -> Unpacked:
    """The images and captions of an archive into a new folder, which is gone again where this raises.

    filetype  "zip", "tar" (plain or gzip) or "infer"
    """
    kind = _kind(archive, filetype)
    inbox = _Inbox(folder / "archive", check)
    try:
        with _sentences(kind):
            inbox.folder.mkdir(parents=True)
            for name, size, chunks in _FILES[kind](archive, inbox):
                inbox.take(name, size, chunks)
        return inbox.contents()
    except BaseException:
        shutil.rmtree(inbox.folder, ignore_errors=True)
        raise


@contextmanager
def _sentences(kind: str) -> Iterator[None]:
    """Whatever is wrong with an archive as one sentence."""
    try:
        yield
    except WeightsError as error:  # what `fetch` calls whatever came from outside
        raise DatasetError(str(error)) from error
    except OSError as error:
        if isinstance(error, DAMAGE) or error.errno is None:  # bzip2's way to say so
            raise DatasetError(f"{SHOWN} is a damaged {KINDS[kind]} archive ({error}); pack it again") from error
        raise DatasetError(f"{SHOWN} cannot be unpacked: {error.strerror}; make room on the disk") from error
    except DAMAGE as error:
        raise DatasetError(f"{SHOWN} is a damaged {KINDS[kind]} archive ({error}); pack or upload it again") from error


@dataclass
class _Inbox:
    """Where files are put, with what is known of them so far."""

    folder: Path
    check: Check
    entries: int = 0
    total: int = 0
    images: dict[str, Path] = field(default_factory=dict)
    texts: dict[str, Path] = field(default_factory=dict)
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def counted(self) -> None:
        self.check()
        self.entries += 1
        if self.entries > MEMBERS:
            raise DatasetError(f"{SHOWN} has more than {MEMBERS} members; pack only images and captions")

    def take(self, name: str, size: int, chunks: Iterator[bytes]) -> None:
        """One regular file; `size` is what the archive says of it."""
        parts = [part for part in name.replace("\\", "/").split("/") if part != "."]
        if any(part in CLUTTER or part.startswith("._") for part in parts):
            return
        path = PurePosixPath(*parts)
        shown = "".join(letter if letter.isprintable() else "\ufffd" for letter in str(path))
        if why := _unwanted(path.suffix.lower(), size, shown):
            self.skipped.append((shown[:NAME], why))
            return
        if not parts[0] or ".." in parts or re.match("[A-Za-z]:/", name.replace("\\", "/")):
            raise DatasetError(f"{SHOWN} has a member {name[:80]!r} outside of its folder; pack the folder itself")
        goals = self.images if path.suffix.lower() in IMAGES else self.texts
        if shown in goals:
            raise DatasetError(f"{SHOWN} has two members {shown[:80]!r}; pack it again")
        goals[shown] = self.folder / f"{len(self.images) + len(self.texts):05}{path.suffix.lower()}"
        if len(self.images) > MOST:
            raise DatasetError(f"{SHOWN} has more than {MOST} images; choose the best of them")
        self._write(goals[shown], shown, size, chunks)

    def _write(self, goal: Path, shown: str, size: int, chunks: Iterator[bytes]) -> None:
        self.total += size
        if self.total > TOTAL:
            raise DatasetError(f"{SHOWN} unpacks to more than {TOTAL >> 30} GiB; send fewer or smaller images")
        if (free := shutil.disk_usage(self.folder).free) < size + RESERVE:
            raise DatasetError(f"the disk is full: {free >> 20} MiB are left, and {shown[:80]!r} has {size >> 20} MiB")
        came = 0
        with goal.open("xb") as file:
            for data in chunks:
                self.check()
                came += file.write(data)
        if came != size:
            raise EOFError(f"{came} bytes of {shown[:80]!r} instead of {size}")

    def contents(self) -> Unpacked:
        """All of it by name; DatasetError where there is no image."""
        if not self.images:
            others = [*self.texts, *(name for name, _ in self.skipped)]
            also = f" among {len(others)} files, {others[0]!r:.80} the first" if others else ""
            raise DatasetError(f"{SHOWN} holds no image{also}; pack .jpg, .png, .webp or .heic files")
        images, texts = (
            tuple(Member(name, path) for name, path in sorted(files.items())) for files in (self.images, self.texts)
        )
        return Unpacked(images, texts, tuple(self.skipped))


def _unwanted(ending: str, size: int, shown: str) -> str | None:
    """Why a file is left out, or None."""
    most = MAX_BYTES if ending in IMAGES else TEXTS.get(ending)
    if most is None:
        return "is no image and no captions, by its ending"
    if size > most:
        return f"has {size / 2**20:.0f} MiB; at most {most >> 20} are read"
    return "has too long a name" if len(shown) > NAME else None


def _kind(archive: Path, filetype: str) -> str:
    """ "zip", "tar" or "gzip"; an error that says what else it is, or that something else was stated."""
    if filetype not in ("zip", "tar", "infer"):
        raise InputError(f"input_images_filetype is {filetype[:40]!r}; give zip, tar or infer")
    if not archive.is_file() or not archive.stat().st_size:
        raise DatasetError(f"{SHOWN} is {'empty' if archive.is_file() else 'no file'}; send a zip or tar of images")
    with archive.open("rb") as file:
        head = file.read(tar.BLOCK)
    kind = packed_as(head)
    if kind is None:
        start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
        what = next(name for magic, name in OTHERS.items() if start.startswith(magic))
        raise DatasetError(f"{SHOWN} is {what}; send a zip, or a tar (plain or gzip), of images")
    if filetype != "infer" and (filetype == "zip") != (kind == "zip"):
        raise InputError(f"input_images_filetype says {filetype}, and {SHOWN} is a {KINDS[kind]}; leave it at infer")
    return kind


def _in_tar(payload: Path, inbox: _Inbox) -> Iterator[tuple[str, int, Iterator[bytes]]]:
    with payload.open("rb") as file:
        yield from tar.members(tar.Counted(file, payload.stat().st_size, inbox.check, SHOWN), inbox.counted)


def _in_gzip(payload: Path, inbox: _Inbox) -> Iterator[tuple[str, int, Iterator[bytes]]]:
    # Limits are on what is decompressed, so members that nobody wants count as well
    most = min(max(SLACK, RATIO * payload.stat().st_size), TOTAL + SLACK)
    with gzip.open(payload) as file:
        yield from tar.members(tar.Counted(file, most, inbox.check, SHOWN), inbox.counted)


def _in_zip(payload: Path, inbox: _Inbox) -> Iterator[tuple[str, int, Iterator[bytes]]]:
    most = max(SLACK, RATIO * payload.stat().st_size)
    for info, chunks in zip.members(payload, SHOWN, inbox.counted, directory=DIRECTORY):
        name = info.filename
        if not info.flag_bits & UTF8 and not name.isascii():
            name = _utf8(name)
        zip.require_open(info, SHOWN)
        if inbox.total + info.file_size > most:
            raise DatasetError(f"{SHOWN} unpacks to far more than its own size; pack it without compression")
        yield name, info.file_size, chunks


def _utf8(name: str) -> str:
    """A name that zipfile has read as code page 437, as the Finder means it: it writes UTF-8 and does not say so."""
    try:
        return name.encode("cp437").decode()
    except UnicodeError:
        return name


_FILES: dict[str, Callable[[Path, _Inbox], Iterator[tuple[str, int, Iterator[bytes]]]]] = {
    "tar": _in_tar,
    "gzip": _in_gzip,
    "zip": _in_zip,
}
