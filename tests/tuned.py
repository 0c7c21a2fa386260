"""Fine-tunes in tests: read a folder, fold it into the shared miniature, and prove that it is out again."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdxl.files import TunedFiles
from sdxl.finetune.formats import FineTune, Reader
from sdxl.finetune.slot import Slot
from sdxl.models import Models
from tests import tunes

CPU = torch.device("cpu")


def state(models: Models) -> dict[str, Tensor]:
    """A copy of every weight that a fine-tune could change."""
    return {
        f"{part}.{name}": tensor.clone()
        for part, module in models.parts.items()
        for name, tensor in module.state_dict().items()
    }


def changed(models: Models, before: dict[str, Tensor]) -> list[str]:
    """The weights that are not what they were, to the bit."""
    return [name for name, tensor in state(models).items() if not torch.equal(tensor, before[name])]


@contextmanager
def slot_for(models: Models) -> Iterator[Slot]:
    """A slot that is empty again afterwards; the models are shared by all tests."""
    before = state(models)
    slot = Slot(models.parts, models.text.clear)
    try:
        yield slot
    finally:
        slot.set([])
        assert changed(models, before) == []


def read(models: Models, folder: Path, name: str = "") -> FineTune:
    """The fine-tune whose files lie in a folder."""
    content = b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())
    files = TunedFiles(hashlib.sha256(content).hexdigest(), folder, name, "the file")
    return Reader.of(models.parts, CPU, torch.float32).read(files)


def read_tensors(models: Models, folder: Path, tensors: dict[str, Tensor], **metadata: str) -> FineTune:
    """A fine-tune of one file with these tensors."""
    tunes.save(folder, tensors, metadata or None)
    return read(models, folder)


def weight_of(models: Models, part: str, path: str, parameter: str = "weight") -> Tensor:
    """A parameter of the model."""
    found: Any = models.parts[part].get_submodule(path)
    weight: Tensor = getattr(found, parameter)
    return weight
