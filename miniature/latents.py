"""Scenes as a UNet sees them: latents, text embeddings, micro-conditioning; encoded once, kept on disk."""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from torch import Tensor
from tqdm import tqdm

from miniature.loop import replace
from miniature.models import SIDE, Vae, load
from miniature.text import TextEncoders, garnish
from miniature.vae import to_tensor
from miniature.world import Scene, caption, held_out, render, sample_scene

CHUNK = 64
SHARD = 3200
SQUARE, LANDSCAPE, PORTRAIT = (SIDE, SIDE), (160, 96), (96, 160)
CLEAN_SCORE, CLEAN_SPREAD = 6.0, 0.7


@dataclass(frozen=True)
class ShardPlan:
    """One folder of examples: its picture size (width, height) and whether its pictures are degraded."""

    name: str
    size: tuple[int, int]
    degraded: bool = False


PLANS = (
    *(ShardPlan(f"square-{i}", SQUARE) for i in range(8)),
    ShardPlan("landscape", LANDSCAPE),
    ShardPlan("portrait", PORTRAIT),
    ShardPlan("degraded-0", SQUARE, degraded=True),
    ShardPlan("degraded-1", SQUARE, degraded=True),
)


@dataclass(frozen=True)
class Example:
    """A picture, its caption, six time ids (original h w, crop top left, target h w), aesthetic score."""

    image: Image.Image
    caption: str
    time_ids: tuple[int, ...]
    score: float


def draw_example(rng: random.Random, plan: ShardPlan) -> Example:
    """A training example; held-out scenes never appear."""
    scene = sample_scene(rng)
    while held_out(scene):
        scene = sample_scene(rng)
    image, ids = _view(scene, rng, *plan.size)
    score = rng.gauss(CLEAN_SCORE, CLEAN_SPREAD)
    if plan.degraded:
        score = rng.uniform(1.5, 4.5)
        image = degrade(image, rng, strength=(5.0 - score) / 3.5)
    return Example(image, garnish(caption(scene, rng), rng), ids, score)


def _view(scene: Scene, rng: random.Random, width: int, height: int) -> tuple[Image.Image, tuple[int, ...]]:
    """The scene with SDXL's micro-conditioning (arXiv 2307.01952, section 2.2) made visible.

    A small original size is a blurred picture, a crop moves things up and left, a large one changes nothing.
    """
    draw = rng.random()
    if draw < 0.06:
        factor = rng.uniform(0.15, 0.6)
        small = (max(8, round(width * factor)), max(8, round(height * factor)))
        image = render(scene, rng, width, height).resize(small, Image.Resampling.BOX)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        return image, (small[1], small[0], 0, 0, height, width)
    if draw < 0.12:
        top, left = rng.randint(0, 40), rng.randint(0, 40)
        image = render(scene, rng, width, height, crop=(top, left))
        return image, (height, width, top, left, height, width)
    factor = rng.uniform(1, 8) if draw < 0.17 else 1.0
    return render(scene, rng, width, height), (
        round(height * factor),
        round(width * factor),
        0,
        0,
        height,
        width,
    )


def degrade(image: Image.Image, rng: random.Random, strength: float) -> Image.Image:
    """Blur, grain or blotches; strength in [0, 1]."""
    pixels = np.random.default_rng(rng.getrandbits(32))
    array: NDArray[Any] = np.asarray(image, np.float32)
    kind = rng.choice(("blur", "grain", "blotches", "both"))
    if kind in ("blur", "both"):
        array = np.asarray(image.filter(ImageFilter.GaussianBlur(0.6 + 2.2 * strength)), np.float32)
    if kind in ("grain", "both"):
        array = array + pixels.normal(0, 5 + 30 * strength, array.shape)
    if kind == "blotches":
        coarse = pixels.normal(0, 12 + 50 * strength, (rng.randint(6, 24), rng.randint(6, 24), 3))
        layers = [Image.fromarray(coarse[..., c].astype(np.float32)) for c in range(3)]
        spread = [np.asarray(layer.resize(image.size, Image.Resampling.BICUBIC)) for layer in layers]
        array = array + np.stack(spread, -1)
    return Image.fromarray(array.clip(0, 255).astype(np.uint8))


def encode_latents(work: Path, plans: tuple[ShardPlan, ...] = PLANS, count: int = SHARD) -> None:
    """Draws and encodes every shard that is not there yet; writes work/latents/<name>."""
    vae = load(AutoencoderKL, work / "vae")
    encoders = TextEncoders.load(work)
    for plan in plans:
        folder = work / "latents" / plan.name
        if not folder.exists():
            _encode_shard(folder, plan, count, vae, encoders)


@torch.no_grad()
def _encode_shard(folder: Path, plan: ShardPlan, count: int, vae: Vae, encoders: TextEncoders) -> None:
    rng = random.Random(f"latents {plan.name}")
    parts: dict[str, list[Tensor]] = {"latents": [], "embeds": [], "pooled": [], "ids": []}
    for begin in tqdm(range(0, count, CHUNK), desc=plan.name, mininterval=10):
        examples = [draw_example(rng, plan) for _ in range(min(CHUNK, count - begin))]
        latents = vae.encode(to_tensor(e.image for e in examples)).latent_dist.mean * vae.config.scaling_factor
        embeds, pooled = encoders.encode([e.caption for e in examples])
        parts["latents"].append(latents.half())
        parts["embeds"].append(embeds.half())
        parts["pooled"].append(pooled.half())
        parts["ids"].append(torch.tensor([[*e.time_ids, e.score] for e in examples]))
    fresh = folder.with_name(folder.name + ".new")
    fresh.mkdir(parents=True, exist_ok=True)
    for name, tensors in parts.items():
        np.save(fresh / f"{name}.npy", torch.cat(tensors).numpy())
    replace(fresh, folder)


@dataclass(frozen=True)
class Batch:
    """latents (B, 4, h, w), embeds (B, 77, 160), pooled (B, 96), ids (B, 7): time ids and aesthetic score."""

    latents: Tensor
    embeds: Tensor
    pooled: Tensor
    ids: Tensor


class Shards:
    """All encoded examples of one picture size, read through the page cache."""

    def __init__(self, folders: list[Path]) -> None:
        self.shards = [{p.stem: np.load(p, mmap_mode="r") for p in folder.glob("*.npy")} for folder in folders]

    def pick(self, batch: int) -> Batch:
        """A random batch."""
        parts: dict[str, list[Tensor]] = {name: [] for name in self.shards[0]}
        owners = torch.randint(0, len(self.shards), (batch,)).bincount(minlength=len(self.shards))
        for shard, count in zip(self.shards, owners.tolist(), strict=True):
            rows = torch.randint(0, len(shard["ids"]), (count,)).numpy()
            for name, tensors in parts.items():
                tensors.append(torch.from_numpy(np.asarray(shard[name][rows], np.float32)))
        return Batch(**{name: torch.cat(tensors) for name, tensors in parts.items()})
