"""The pictures of an archive, one after the other: upright, RGB, and no larger than their training needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pillow_heif
from PIL import Image

from errors import DatasetError, InputError
from preprocess import crops
from preprocess.archive import SHOWN, Member
from preprocess.crops import Fit, Size
from preprocess.job import WORK, Job
from sdxl.picture import MAX_PIXELS, MAX_SIDE, eight_bit, open_image, to_rgb

LEAST = 32  # pixels of the shorter side: below it, enlarging invents everything
FAINT = 8  # of 255: a picture whose alpha is nowhere more shows nothing
# Brands of ISO files that hold pictures (ISO/IEC 23008-12): of HEVC, which Pillow cannot read, or of AV1, which it can
HEIF = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
AVIF = {b"avif", b"avis"}


@dataclass(frozen=True)
class Source:
    """A picture that can be trained on.

    name      its path in the archive
    image     PNG, RGB, of `shape`: as large as fit.resized, or as it came where that is larger
    alpha     PNG, L, of `shape`, where transparency says what counts
    original  (height, width) as it came, upright
    """

    name: str
    image: Path
    alpha: Path | None
    original: Size
    shape: Size
    fit: Fit


def read(members: Sequence[Member], job: Job) -> list[Source]:
    """What can be used of these; DatasetError where that is nothing."""
    wishes = job.wishes
    square = (wishes.resolution, wishes.resolution)
    bucketed = wishes.aspect_ratio_buckets and not wishes.crop_based_on_salience
    sizes = crops.buckets(wishes.resolution) if bucketed else (square,)
    found, failed = list[Source](), list[str]()
    for number, member in enumerate(members):
        job.check()
        try:
            found.append(_source(member, number, sizes, job))
        except InputError as error:
            job.skip(member.name, str(error))
            failed.append(f"{member.name[:80]!r} {error}")
    if not found:
        more = f" (and {len(failed) - 3} more)" if len(failed) > 3 else ""
        raise DatasetError(f"no image of {SHOWN} can be used: {'; '.join(failed[:3])}{more}")
    return found


def opened(path: Path) -> Image.Image:
    """The picture in a file, told by its content, as `sdxl.picture` has it: upright, L, RGB or RGBA.

    InputError says why not, and does not name it: "has …".
    """
    brands = _brands(path)
    if brands & HEIF and not brands & AVIF:
        return _opened_heif(path)
    try:
        return open_image(path, SHOWN)
    except InputError as error:
        raise InputError(str(error).removeprefix(f"{SHOWN}: {path.name!r} ")) from error


def _brands(path: Path) -> set[bytes]:
    """What an ISO file says that it is (ISO/IEC 14496-12, 4.3); nothing of any other file."""
    with path.open("rb") as file:
        head = file.read(128)
    length = min(int.from_bytes(head[:4]), len(head))
    return {head[at : at + 4] for at in range(8, length, 4)} if head[4:8] == b"ftyp" else set()


def _opened_heif(path: Path) -> Image.Image:
    try:
        file = pillow_heif.open_heif(path)
        width, height = file.size
        if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
            raise InputError(f"has {width}x{height} pixels; send at most {MAX_PIXELS >> 20} megapixels")
        return eight_bit(file.to_pillow())  # libheif has turned it upright
    except InputError:
        raise
    except Exception as error:  # decoders meet hostile bytes and raise nearly anything
        raise InputError("is not a picture that libheif can read; send a PNG, JPEG or WebP") from error


def _source(member: Member, number: int, sizes: tuple[Size, ...], job: Job) -> Source:
    image = opened(member.path)
    original = (image.height, image.width)
    if min(original) < LEAST:
        raise InputError(f"has {image.width}x{image.height} pixels; at least {LEAST} a side are needed")
    fit = crops.fit(original, crops.nearest(original, sizes))
    shape = fit.resized if fit.resized[0] <= original[0] and fit.resized[1] <= original[1] else original
    alpha = image.getchannel("A") if image.mode == "RGBA" else Image.new("L", (1, 1), 255)
    seen = alpha.histogram()
    if not any(seen[FAINT:]):
        raise InputError("is transparent everywhere; send one that shows something")
    goal, goal_alpha = job.place(WORK, f"{number:05}.png"), None
    save(_resized(to_rgb(image), shape), goal)
    if max(seen) < sum(seen):  # it varies
        goal_alpha = job.place(WORK, f"{number:05}.alpha.png")
        save(_resized(alpha, shape), goal_alpha)
    return Source(member.name, goal, goal_alpha, original, shape, fit)


def save(image: Image.Image, goal: Path) -> None:
    """As PNG, packed lightly: these files live as long as the training."""
    image.save(goal, "PNG", compress_level=1)


def _resized(image: Image.Image, shape: Size) -> Image.Image:
    height, width = shape
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.LANCZOS)
