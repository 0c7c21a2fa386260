"""From what the VAE gives to finished files: invisible watermark and PNG, four pictures."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.stable_diffusion_xl.watermark import WATERMARK_BITS, StableDiffusionXLWatermarker
from imwatermark import WatermarkEncoder
from PIL import Image
from torch import Tensor

from benchmarks.measure import Effort, Row, interleave, timing_row
from benchmarks.stand_ins import load
from sdxl.generate import decode
from sdxl.models import Models
from sdxl.output import finish_images
from sdxl.workers import Workers

GROUP = "post-processing of 4 pictures"
COUNT = 4
Pixels = npt.NDArray[np.uint8]


def rows(effort: Effort) -> list[Row]:
    """Wall time, CPU time, and whether the pictures are the same."""
    decoded = [_decoded(effort.side, seed) for seed in range(COUNT)]
    models, writers = replace(load(), vae=_vae(decoded)), Workers(os.cpu_count() or 1, "writer")
    with TemporaryDirectory() as name:
        folders = Path(name) / "a", Path(name) / "b"
        for folder in folders:
            folder.mkdir()
        reference = Reference()
        a, b = interleave(
            lambda: reference(torch.cat(decoded), folders[0]), lambda: _ours(models, writers, folders[1]), effort.rounds
        )
        theirs, ours = map(_pictures, folders)
        size, our_size = (sum(file.stat().st_size for file in folder.iterdir()) / 1e6 for folder in folders)
    library = [_encoded(picture) for picture in decoded]
    pixels = f"of {COUNT * effort.side**2}"
    what = f"{effort.side}x{effort.side}, watermark and PNG"
    return [
        timing_row(GROUP, f"{what}, wall", a.wall, b.wall, most_ratio=0.5),
        timing_row(GROUP, f"{what}, CPU", a.cpu, b.cpu),
        Row(GROUP, "pixels that differ from A's files", pixels, None, _different(theirs, ours), exact=True),
        Row(GROUP, "pixels that differ from the library's encoder", pixels, None, _different(library, ours), most=0,
            exact=True),
        Row(GROUP, "largest difference", "of 255 levels", None, _largest(library, ours), most=1, exact=True),
        Row(GROUP, "size of the 4 files", "MB", size, our_size, exact=True),
    ]  # fmt: skip


class Reference:
    """As in the diffusers pipeline and Replicate's cog-sdxl: mark all, then save one after another."""

    def __init__(self) -> None:
        watermarker: Any = StableDiffusionXLWatermarker
        self.watermarker = watermarker()
        self.processor = VaeImageProcessor(vae_scale_factor=8)

    def __call__(self, decoded: Tensor, folder: Path) -> None:
        """Write out-0.png, out-1.png, ..."""
        images = self.watermarker.apply_watermark(decoded)
        for number, image in enumerate(self.processor.postprocess(images, output_type="pil")):
            image.save(folder / f"out-{number}.png")


def _ours(models: Models, writers: Workers, folder: Path) -> None:
    latents = torch.zeros(1, 4, 1, 1)

    def pictures() -> Iterator[tuple[Image.Image, dict[str, Any]]]:
        for number in range(COUNT):
            yield decode(models, latents + number), {}

    with torch.inference_mode():
        finish_images(
            pictures(),
            folder,
            writers,
            safety=None,
            watermark=True,
            output_format="png",
            quality=95,
            embed_parameters=False,
        )


def _vae(decoded: list[Tensor]) -> Any:
    """A VAE whose answers are known: latents full of the number n give picture n."""

    def decode(latents: Tensor, **_: Any) -> tuple[Tensor]:
        return (decoded[int(latents[0, 0, 0, 0])],)

    return SimpleNamespace(decode=decode, dtype=torch.float32, config=SimpleNamespace(scaling_factor=1.0))


def _decoded(side: int, seed: int) -> Tensor:
    """(1, 3, side, side) in -1..1 as a VAE gives it: whole levels, with the 1/f spectrum of photographs."""
    random = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
    frequency[0, 0] = 1
    channels = []
    for _ in range(3):
        spectrum = np.fft.rfft2(random.standard_normal((side, side))) / frequency**1.5
        values = np.fft.irfft2(spectrum, s=(side, side))
        channels.append((values - values.mean()) / values.std() * 50 + 128)
    levels = np.clip(np.rint(np.stack(channels)), 0, 255).astype(np.float32)
    return torch.from_numpy(levels / 127.5 - 1)[None]


def _encoded(decoded: Tensor) -> Pixels:
    """What invisible-watermark itself makes of the same whole levels, as float32, which is what diffusers gives it."""
    levels = ((decoded[0] / 2 + 0.5) * 255).round().permute(1, 2, 0).numpy()
    encoder = WatermarkEncoder()
    encoder.set_watermark("bits", WATERMARK_BITS)
    marked: npt.NDArray[np.float32] = encoder.encode(np.ascontiguousarray(levels[..., ::-1]), "dwtDct")[..., ::-1]
    rounded: Pixels = np.clip(np.rint(marked), 0, 255).astype(np.uint8)
    return rounded


def _pictures(folder: Path) -> list[Pixels]:
    return [np.asarray(Image.open(file)) for file in sorted(folder.iterdir())]


def _different(a: list[Pixels], b: list[Pixels]) -> int:
    """How many pixels differ, in any channel."""
    return sum(int((first != second).any(axis=-1).sum()) for first, second in zip(a, b, strict=True))


def _largest(a: list[Pixels], b: list[Pixels]) -> int:
    """The largest difference of a channel, in levels."""
    return max(int(np.abs(first.astype(int) - second).max()) for first, second in zip(a, b, strict=True))
