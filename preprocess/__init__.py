"""An archive of pictures, made ready to be trained on: `archive.unpack`, then `prepare`."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from errors import DatasetError
from preprocess import blip, captions, cutting, images, masks
from preprocess.archive import Unpacked
from preprocess.cutting import Cut
from preprocess.examples import FILE, Example, Prepared, write
from preprocess.job import WORK, Check, Helper, Job, Say
from preprocess.wishes import Wishes

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def prepare(
    unpacked: Unpacked,
    wishes: Wishes,
    helper: Helper,
    folder: Path,
    device: torch.device,
    *,
    say: Say,
    check: Check,
) -> Prepared:
    """Examples of what is in an archive, in `folder`; nothing of them is left there where this raises.

    Models are read one after the other, and only those that are needed. The same archive and wishes give the same
    bytes on the same machine.
    """
    job = Job(wishes, helper, folder, device, say, check)
    for name, why in unpacked.skipped:
        job.skip(name, why)
    with _whole(folder):
        photos, own = masks.split(unpacked.images, job)
        sources = images.read(photos, job)
        named = [*(photo.name for photo in photos), *(name for name, _ in unpacked.skipped)]
        written = captions.written(unpacked.texts, named, {source.name for source in sources}, job)
        cuts = cutting.cut(sources, masks.made(sources, own, job), job)
        examples = _with_captions(cuts, written, job)
        prepared = Prepared(examples, tuple(job.skipped), tuple(job.notes))
        write(prepared, folder)
        shutil.rmtree(folder / WORK)
    if device.type == "cuda":
        torch.cuda.empty_cache()  # who trains may be other processes
    return prepared


def _with_captions(cuts: Sequence[Cut], written: Mapping[str, str], job: Job) -> tuple[Example, ...]:
    """Those that were written with the trigger in them; for the others, what BLIP says of what is trained on."""
    bare = [cut for cut in cuts if cut.source.name not in written]
    found = {name: job.wishes.forced(caption) for name, caption in written.items()}
    if bare:
        sentences = blip.described([cut.image for cut in bare], job)
        found |= {cut.source.name: job.wishes.opened(text) for cut, text in zip(bare, sentences, strict=True)}
    return tuple(
        Example(
            name=cut.source.name,
            image=cut.image,
            mask=cut.mask,
            caption=found[cut.source.name],
            original_size=cut.source.original,
            crop_top_left=cut.offset,
            size=cut.source.fit.size,
        )
        for cut in cuts
    )


@contextmanager
def _whole(folder: Path) -> Iterator[None]:
    """All that is written into a folder stays, or, where something is raised, nothing; a full disk is one sentence."""
    try:
        yield
    except BaseException as error:
        for name in (WORK, "images", "masks"):
            shutil.rmtree(folder / name, ignore_errors=True)
        (folder / FILE).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in FULL:
            raise DatasetError(f"the disk is full: {error.strerror}; make room for the prepared images") from error
        raise
