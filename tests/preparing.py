"""What the tests of `preprocess` share: archives in memory, wishes, a job that keeps its log."""

import io
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from preprocess.archive import Member
from preprocess.job import Job
from preprocess.wishes import Wishes

USUAL: dict[str, Any] = {
    "resolution": 64,
    "triggers": ("TOK",),
    "caption_prefix": "a photo of TOK, ",
    "mask_target_prompts": None,
    "crop_based_on_salience": False,
    "aspect_ratio_buckets": True,
    "use_face_detection_instead": False,
    "clipseg_temperature": 1.0,
}


def wishes(**more: Any) -> Wishes:
    return Wishes(**(USUAL | more))


def no_helper(part: str) -> Path:
    raise AssertionError(f"the {part} is not needed")


@dataclass
class Log:
    """What was said."""

    lines: list[str] = field(default_factory=list)

    def __call__(self, line: str) -> None:
        self.lines.append(line)


def job(folder: Path, helper: Callable[[str], Path] = no_helper, **more: Any) -> Job:
    return Job(wishes(**more), helper, folder, torch.device("cpu"), Log(), lambda: None)


def encoded(image: Image.Image, kind: str = "PNG", **more: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **more)
    return buffer.getvalue()


def picture(color: str | tuple[int, ...] = "red", size: tuple[int, int] = (64, 64), mode: str = "RGB") -> bytes:
    return encoded(Image.new(mode, size, color))


def zipped(files: Mapping[str, bytes], **more: Any) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **more) as packed:
        for name, body in files.items():
            packed.writestr(name, body)
    return buffer.getvalue()


def tarred(files: Mapping[str, bytes], mode: str = "w", **more: Any) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, **more) as packed:  # type: ignore[call-overload]
        for name, body in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            packed.addfile(info, io.BytesIO(body))
    return buffer.getvalue()


def members(folder: Path, files: Mapping[str, bytes]) -> list[Member]:
    """Files as `unpack` leaves them."""
    folder.mkdir(parents=True, exist_ok=True)
    return list(_members(folder, files))


def _members(folder: Path, files: Mapping[str, bytes]) -> Iterator[Member]:
    for number, (name, body) in enumerate(sorted(files.items())):
        path = folder / f"{number:05}{Path(name).suffix.lower()}"
        path.write_bytes(body)
        yield Member(name, path)


def left(folder: Path) -> list[str]:
    """The files below a folder."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
