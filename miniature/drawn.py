"""Pictures as the base draws them, beside the pictures they should have been.

Guidance exaggerates: corners get horns, colours too strong. Trained on such pairs both UNets learn to take it back.
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from tqdm import tqdm

from miniature.latents import Batch, Shards, save_shard
from miniature.models import UNet, load
from miniature.text import TextEncoders
from miniature.unet import alphas

STRIDE = 50  # between timesteps, as in 20-step sampling
FIRST_STEPS = (10, 11, 12, 13, 14, 15)  # a picture noised to step x 50 keeps its layout
GUIDANCE = (4.0, 9.0)
PAIRS = 2048
CHUNK = 64


@torch.no_grad()
def draw_pairs(work: Path, name: str, seed: int, count: int = PAIRS) -> None:
    """Noises encoded scenes and lets the base in work/base finish them; writes work/latents/<name>."""
    torch.manual_seed(seed)
    unet = load(UNet2DConditionModel, work / "base")
    empty = TextEncoders.load(work).encode([""])
    shards = Shards(sorted((work / "latents").glob("square-*")))
    parts: dict[str, list[Tensor]] = {"latents": [], "drawn": [], "embeds": [], "pooled": [], "ids": []}
    for begin in tqdm(range(0, count, CHUNK), desc=name, mininterval=10):
        batch = shards.pick(min(CHUNK, count - begin))
        drawn = finish(unet, batch, empty, first=int(np.random.default_rng(seed + begin).choice(FIRST_STEPS)))
        for field, tensors in parts.items():
            value = drawn if field == "drawn" else getattr(batch, field)
            tensors.append(value if field == "ids" else value.half())
    save_shard(work / "latents" / name, {field: torch.cat(tensors) for field, tensors in parts.items()})


def finish(unet: UNet, batch: Batch, empty: tuple[Tensor, Tensor], first: int) -> Tensor:
    """Guided DDIM from step `first` of 20 down to the picture: latents (B, 4, h, w) -> (B, 4, h, w)."""
    count = len(batch.latents)
    cumulative = alphas()
    low, high = GUIDANCE
    guidance = low + (high - low) * torch.rand(count, 1, 1, 1)
    embeds = torch.cat([torch.zeros_like(batch.embeds), batch.embeds])
    pooled = torch.cat([torch.zeros_like(batch.pooled), batch.pooled])
    if torch.rand(()) < 0.7:  # an empty negative prompt is more usual than none
        embeds[:count], pooled[:count] = empty
    known = {"text_embeds": pooled, "time_ids": batch.ids[:, :6].repeat(2, 1)}
    kept = cumulative[first * STRIDE + 1]
    noisy = kept.sqrt() * batch.latents + (1 - kept).sqrt() * torch.randn_like(batch.latents)
    clean = batch.latents
    for step in range(first, -1, -1):
        kept = cumulative[step * STRIDE + 1]
        times = torch.full((2 * count,), step * STRIDE + 1)
        guess = unet(noisy.repeat(2, 1, 1, 1), times, encoder_hidden_states=embeds, added_cond_kwargs=known).sample
        without, with_text = guess.chunk(2)
        noise = without + guidance * (with_text - without)
        clean = (noisy - (1 - kept).sqrt() * noise) / kept.sqrt()
        following = cumulative[max(0, step - 1) * STRIDE + 1]
        noisy = following.sqrt() * clean + (1 - following).sqrt() * noise
    return clean
