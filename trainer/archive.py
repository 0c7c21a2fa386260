"""A folder -> one archive, the same bytes for the same files."""

from __future__ import annotations

import tarfile
from pathlib import Path

from trainer.files import whole

# What the reference runtime reads comes first.
FIRST = ("lora.safetensors", "unet.safetensors", "embeddings.pti", "special_params.json")


def pack(folder: Path, path: Path) -> None:
    """All files of a folder, and of those in it, as an uncompressed tar without a time or an owner: whole or not there.

    WeightsError if the disk does not hold it.
    """
    files = sorted((file for file in folder.rglob("*") if file.is_file()), key=lambda file: _place(file, folder))
    with whole(path) as target, tarfile.open(fileobj=target, mode="w") as archive:
        for file in files:
            member = tarfile.TarInfo(file.relative_to(folder).as_posix())
            member.size = file.stat().st_size
            with file.open("rb") as content:
                archive.addfile(member, content)


def _place(file: Path, folder: Path) -> tuple[int, str]:
    name = file.relative_to(folder).as_posix()
    return FIRST.index(name) if name in FIRST else len(FIRST), name
