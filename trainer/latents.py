"""Prepared pictures as what the UNet is trained on: encoded once, kept on the device, picked by number."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d

from preprocess.examples import Example
from sdxl.generate import encode_image
from sdxl.models import Models

Size = tuple[int, int]


@dataclass(frozen=True)
class Batch:
    """latents (B, 4, h, w), mask (B, 1, h, w) or None: all counts, time_ids (B, 6), all float32"""

    latents: Tensor
    mask: Tensor | None
    time_ids: Tensor


@dataclass(frozen=True)
class _Bucket:
    """All pictures of one size: mean and std of the VAE's posterior (N, 4, h, w), mask (N, 1, h, w), ids (N, 6)."""

    mean: Tensor
    std: Tensor
    mask: Tensor | None
    time_ids: Tensor


class Latents:
    """Of all pictures, by their size."""

    def __init__(self, models: Models, examples: Sequence[Example], check: Callable[[], None]) -> None:
        self.sizes: list[Size] = [each.size for each in examples]
        self._places: list[int] = []
        self._buckets: dict[Size, _Bucket] = {}
        parts: dict[Size, list[tuple[Tensor, Tensor, Tensor, Tensor | None]]] = {}
        for example in examples:
            check()
            members = parts.setdefault(example.size, [])
            self._places.append(len(members))
            members.append(_encoded(models, example))
        for size, members in parts.items():
            means, stds, ids, masks = zip(*members, strict=True)
            self._buckets[size] = _Bucket(torch.cat(means), torch.cat(stds), _stacked(masks), torch.cat(ids))

    def shape(self, numbers: Sequence[int]) -> tuple[int, int, int, int]:
        """(B, 4, h, w) of a batch of pictures of one size."""
        channels, height, width = self._buckets[self.sizes[numbers[0]]].mean.shape[1:]
        return len(numbers), channels, height, width

    def places(self, numbers: Sequence[int]) -> Tensor:
        """Where pictures are among those of their size, (B,), on the host."""
        return torch.tensor([self._places[number] for number in numbers])

    def batch(self, size: Size, places: Tensor, sample: Tensor) -> Batch:
        """Pictures of a size, the latents drawn from their posteriors: places (B,), sample (B, 4, h, w), there."""
        bucket = self._buckets[size]
        return Batch(
            torch.addcmul(bucket.mean[places], bucket.std[places], sample),
            None if bucket.mask is None else bucket.mask[places],
            bucket.time_ids[places],
        )


def time_ids(example: Example) -> list[float]:
    """SDXL's micro-conditioning: original size, crop, target size, each (height, width); arXiv 2307.01952, 2.2."""
    return [float(number) for pair in (example.original_size, example.crop_top_left, example.size) for number in pair]


def _encoded(models: Models, example: Example) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    with Image.open(example.image) as image, torch.no_grad():
        posterior = encode_image(models, image.convert("RGB"))
    ids = torch.tensor([time_ids(example)], device=posterior.mean.device)
    if example.mask is None:
        return posterior.mean, posterior.std, ids, None
    with Image.open(example.mask) as image:
        mask = torch.from_numpy(np.asarray(image.convert("L"), np.float32) / 255)[None, None]
    mask = avg_pool2d(mask, models.vae_scale_factor).to(ids.device)
    return posterior.mean, posterior.std, ids, mask if float(mask.max()) > 0 else None


def _stacked(masks: Sequence[Tensor | None]) -> Tensor | None:
    """None where no picture has one; a picture without one counts as a whole."""
    some = next((mask for mask in masks if mask is not None), None)
    return None if some is None else torch.cat([torch.ones_like(some) if mask is None else mask for mask in masks])
