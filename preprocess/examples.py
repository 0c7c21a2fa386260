"""What pictures are when they are ready to be trained on, and how another process reads it."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from preprocess.crops import Offset, Size

FILE = "examples.json"


@dataclass(frozen=True)
class Example:
    """A picture to train on.

    name           its path in the archive
    image          PNG, RGB, of the size it is trained at: a multiple of 8 both ways
    mask           PNG, L, of the same size, white where it counts; None: everything does
    caption        holds a trigger
    original_size  (height, width) as it came, EXIF rotation applied, before any resizing
    crop_top_left  (top, left) pixels cut off after resizing: SDXL is told of both (arXiv 2307.01952, 2.2)
    size           (height, width) of `image`: the target size, its bucket
    """

    name: str
    image: Path
    mask: Path | None
    caption: str
    original_size: Size
    crop_top_left: Offset
    size: Size


@dataclass(frozen=True)
class Prepared:
    """All of them by name, with what was left out, (file, why), and what else was done."""

    examples: tuple[Example, ...]
    skipped: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]


def write(prepared: Prepared, folder: Path) -> None:
    """Into the folder that holds its pictures; it may be moved."""
    entries = [
        dataclasses.asdict(example)
        | {
            "image": example.image.relative_to(folder).as_posix(),
            "mask": example.mask.relative_to(folder).as_posix() if example.mask else None,
        }
        for example in prepared.examples
    ]
    content = {"examples": entries, "skipped": prepared.skipped, "notes": prepared.notes}
    (folder / FILE).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read(folder: Path) -> Prepared:
    """What `write` has written there."""
    content = json.loads((folder / FILE).read_text(encoding="utf-8"))
    examples = tuple(
        Example(
            name=entry["name"],
            image=folder / entry["image"],
            mask=folder / entry["mask"] if entry["mask"] else None,
            caption=entry["caption"],
            original_size=_pair(entry["original_size"]),
            crop_top_left=_pair(entry["crop_top_left"]),
            size=_pair(entry["size"]),
        )
        for entry in content["examples"]
    )
    return Prepared(examples, tuple((name, why) for name, why in content["skipped"]), tuple(content["notes"]))


def _pair(values: list[int]) -> tuple[int, int]:
    first, second = values
    return first, second
