"""The two sides of `benchmarks/finetunes.py`: PEFT's layers beside the weights (A), and this package's slot (B)."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import wide_model
from benchmarks.stand_ins import pipeline
from sdxl.files import TunedFiles
from sdxl.finetune.formats import FineTune, Reader
from sdxl.finetune.slot import Slot
from sdxl.models import Models
from tests import tunes

RANK = 32
SCALE = 0.6


class Sides:
    """Both sides around the same modules, and three LoRAs in files; two learned tokens lie beside the first."""

    def __init__(self, models: Models, folder: Path, rank: int) -> None:
        self.models = models
        self.unet: Any = models.base
        self.pipe = pipeline(models)
        self.slot = Slot(models.parts, models.text.clear)
        layers: dict[str, Any] = dict(tunes.layers(self.unet, "attention"))
        self.weights: dict[str, Tensor] = {path: layer.weight for path, layer in layers.items()}
        self.touched = sum(weight.nbytes for weight in self.weights.values())
        self.folders = [folder / str(number) for number in range(3)]
        for number, each in enumerate(self.folders):
            tunes.save(each, tunes.peft_diffusers(self._lora(number, rank)))
        widths = (("clip_l", models.text.text_encoder), ("clip_g", models.text.text_encoder_2))
        rows = {name: torch.randn(2, encoder.config.hidden_size) for name, encoder in widths}
        tunes.save(self.folders[0], rows, name="tokens")
        self.tunes: list[FineTune] = []

    def _lora(self, seed: int, rank: int) -> tunes.Lora:
        """Factors in 16 bit, as most files have them."""
        generator = torch.Generator().manual_seed(seed)

        def factor(*shape: int) -> Tensor:
            return ((torch.rand(shape, generator=generator) - 0.5) * 0.02).half()

        return {
            ("unet", path): tunes.Factors(factor(rank, weight.shape[1]), factor(weight.shape[0], rank), None)
            for path, weight in self.weights.items()
        }

    def read(self, number: int) -> FineTune:
        """B: what a file means, ready to be folded in."""
        reader = Reader.of(self.models.parts, torch.device("cpu"), self.unet.dtype)
        return reader.read(TunedFiles(str(number) * 64, self.folders[number], "TOK", "a LoRA"))

    def fold(self, *numbers: int) -> None:
        """B: LoRAs that were read before, and no others."""
        self.tunes = self.tunes or [self.read(number) for number in range(3)]
        self.slot.set([(self.tunes[number], SCALE) for number in numbers])

    def attach(self, *numbers: int) -> None:
        """A: files into layers of their own, in use with those that are there already."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT's, of a second adapter
            for number in numbers:
                file = {"weight_name": "lora.safetensors", "adapter_name": f"number_{number}"}
                self.pipe.load_lora_weights(str(self.folders[number]), **file)
            names = list(self.unet.peft_config)
            self.pipe.set_adapters(names, [SCALE] * len(names))

    def swap(self, number: int) -> None:
        """A: a LoRA comes, and goes again; between two that is the same work as a change."""
        self.attach(number)
        self.pipe.unload_lora_weights()


def wide(models: Models, divisor: int, folder: Path) -> Sides:
    """The sides around SDXL's own UNet at a fraction of its width, in bfloat16."""
    unet = wide_model.unet(divisor, torch.bfloat16)
    return Sides(replace(models, base=unet), folder / str(divisor), RANK)
