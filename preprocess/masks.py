"""What counts in each picture: the user's own mask, else its transparency, else faces, else what a prompt names.

The user's own masks are white where a picture counts. For NAME.jpg they are called NAME.mask.png, NAME-mask.png or
NAME_mask.png and lie beside it, or NAME.png in a folder `masks` beside it or beside its folder.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from errors import InputError
from preprocess import clipseg, faces
from preprocess.archive import Member
from preprocess.captions import same
from preprocess.images import Source, opened, save
from preprocess.job import WORK, Job
from sdxl.picture import to_mask

SUFFIXES = (".mask", "-mask", "_mask")
FOLDER = "masks"
SKEW = 0.02  # a mask whose shape differs by more was made for another picture
# What is found by a model may be missed in part, and a background that never counts may become anything: it counts
# this much. OneTrainer's unmasked_weight has the same value.
FLOOR = 0.1


def split(members: Sequence[Member], job: Job) -> tuple[list[Member], dict[str, Member]]:
    """The pictures, and the masks among them by the path of the picture they are for.

    A file is a mask only if it is called after a picture that is there: "venetian_mask.jpg" alone is a picture.
    """
    named = {member.name: same(member.name) for member in members}
    outside = [member for member in members if FOLDER not in named[member.name].parts[:-1]]
    places: dict[PurePosixPath, list[Member]] = {}
    stems: dict[str, list[Member]] = {}
    for member in outside or members:
        places.setdefault(named[member.name].with_suffix(""), []).append(member)
        stems.setdefault(named[member.name].stem, []).append(member)
    photos, masks = list[Member](), dict[str, Member]()
    for member in members:
        path = named[member.name]
        owners = _beside(path, places)
        if not owners and outside and FOLDER in path.parts[:-1]:
            owners = _above(path, places, stems)
            if len(owners) != 1:
                job.skip(member.name, f"is a mask for {'several images' if owners else 'no image'} of this name")
                continue
        if not owners:
            photos.append(member)
        for owner in owners:
            if masks.setdefault(owner.name, member) is not member:
                job.skip(member.name, f"is a second mask for {owner.name!r}; the first counts")
    return photos, masks


def _beside(path: PurePosixPath, places: Mapping[PurePosixPath, list[Member]]) -> list[Member]:
    """The pictures that NAME-mask.png is for, beside them."""
    for suffix in SUFFIXES:
        if path.stem.endswith(suffix) and path.stem != suffix:
            return places.get(path.with_name(path.stem.removesuffix(suffix)), [])
    return []


def _above(
    path: PurePosixPath, places: Mapping[PurePosixPath, list[Member]], stems: Mapping[str, list[Member]]
) -> list[Member]:
    """The pictures that masks/NAME.png may be for: in the folder above, or anywhere if there is only one."""
    stem = path.stem
    for suffix in SUFFIXES:
        stem = stem.removesuffix(suffix)
    above = path.parts[: len(path.parts) - 1 - path.parts[::-1].index(FOLDER)]
    return places.get(PurePosixPath(*above, stem)) or stems.get(stem, [])


def made(sources: Sequence[Source], own: Mapping[str, Member], job: Job) -> dict[str, Path]:
    """Masks by the name of the picture, PNG, L, of its `shape`; none where everything counts."""
    found = {}
    for source in sources:
        job.check()
        if source.name in own and (mask := _own(own[source.name], source, job)):
            found[source.name] = mask
        elif source.alpha:
            found[source.name] = source.alpha
    missing = [source for source in sources if source.name not in found]
    finder = faces.found if job.wishes.use_face_detection_instead else clipseg.found if job.wishes.prompts else None
    if finder and missing:
        for source, weights in finder(missing, job):
            found[source.name] = goal = _goal(source, job)
            save(Image.fromarray(np.rint((FLOOR + (1 - FLOOR) * weights) * 255).astype(np.uint8)), goal)
    return found


def mass(mask: Path | None) -> NDArray[np.float32] | None:
    """How much each place counts, for `crops.crop`."""
    if mask is None:
        return None
    with Image.open(mask) as image:
        return np.asarray(image, dtype=np.float32)


def _own(member: Member, source: Source, job: Job) -> Path | None:
    """The user's mask for a picture, of its shape; None where it cannot be meant."""
    try:
        mask = to_mask(opened(member.path))
        height, width = source.original
        if abs(math.log(mask.width / mask.height * height / width)) > SKEW:
            raise InputError(f"has {mask.width}x{mask.height} pixels, another shape than {source.name!r}")
        if mask.getextrema() == (0, 0):
            raise InputError("is black everywhere: nothing would be learned")
    except InputError as error:
        job.skip(member.name, f"{error}; the mask is not used")
        return None
    goal = _goal(source, job)
    save(mask.resize((source.shape[1], source.shape[0]), Image.Resampling.BILINEAR), goal)
    return goal


def _goal(source: Source, job: Job) -> Path:
    return job.place(WORK, f"{source.image.stem}.mask.png")
