"""Pictures and their masks at the size they are trained at."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from preprocess import crops, masks
from preprocess.crops import Box, Offset
from preprocess.images import Source, save
from preprocess.job import Job
from preprocess.upscale import TIMES, Upscaler

SLIGHT = 1.1  # times larger: what Lanczos does as well
MARGIN = 8  # pixels around a cut that Swin2SR sees, and Lanczos in its output
LOST = 1 / 3  # of a picture outside its crop is worth a word


@dataclass(frozen=True)
class Cut:
    """A picture and its mask as they are trained on, and where they were cut."""

    source: Source
    offset: Offset
    image: Path
    mask: Path | None


def cut(sources: Sequence[Source], found: Mapping[str, Path], job: Job) -> list[Cut]:
    """All of them, enlarged by Swin2SR where they are too small; it is read only if one is."""
    upscaler = None
    cuts, enlarged = list[Cut](), list[str]()
    for source in sources:
        job.check()
        mask = found.get(source.name)
        offset = crops.crop(source.fit, masks.mass(mask))
        box = crops.source_box(source.fit, offset, source.shape)
        with Image.open(source.image) as image:
            if source.fit.resized[0] > SLIGHT * source.shape[0]:
                upscaler = upscaler or Upscaler(job)
                large, inner = _enlarged(image, box, upscaler)
                enlarged.append(source.name)
            else:
                large, inner = image, box
            goal = job.place("images", source.image.name)
            save(_sized(large, inner, source, Image.Resampling.LANCZOS), goal)
        cuts.append(Cut(source, offset, goal, _cut_mask(mask, box, source, job) if mask else None))
        _tell_loss(source, job)
    if enlarged:
        job.note(f"enlarged by Swin2SR, smaller than what is trained: {', '.join(map(repr, enlarged))}")
    return cuts


def _cut_mask(mask: Path, box: Box, source: Source, job: Job) -> Path | None:
    """The mask of what is cut out; None where all of that counts, since nothing else of it would."""
    with Image.open(mask) as image:
        small = _sized(image, box, source, Image.Resampling.BILINEAR)
    if not small.getbbox():
        job.note(f"nothing that counts in {source.name!r} lies in its crop; all of it counts")
        return None
    goal = job.place("masks", source.image.name)
    save(small, goal)
    return goal


def _sized(image: Image.Image, box: Box, source: Source, resampling: Image.Resampling) -> Image.Image:
    """What lies in a box, at the size that is trained: not a pixel is touched where it has that size already."""
    height, width = source.fit.size
    return image.resize((width, height), resampling, box)


def _enlarged(image: Image.Image, box: Box, upscaler: Upscaler) -> tuple[Image.Image, Box]:
    """What lies in a box and a little around it, four times as large, and the box there."""
    left, top = (max(0, math.floor(low) - MARGIN) for low in box[:2])
    right, bottom = min(image.width, math.ceil(box[2]) + MARGIN), min(image.height, math.ceil(box[3]) + MARGIN)
    inner = tuple(TIMES * (edge - start) for edge, start in zip(box, (left, top, left, top), strict=True))
    return upscaler(image.crop((left, top, right, bottom))), (inner[0], inner[1], inner[2], inner[3])


def _tell_loss(source: Source, job: Job) -> None:
    if (lost := 1 - source.fit.kept) > LOST:
        height, width = source.fit.size
        job.note(f"{lost:.0%} of {source.name!r} is outside of its {width}x{height} crop")
