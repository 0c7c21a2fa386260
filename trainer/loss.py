"""The mathematics of a step, as pure functions: noise and timesteps come in, so that a test can fix them."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Draws:
    """All that is random in a step, drawn before it: float32.

    sample (B, 4, h, w) for the VAE's posterior, noise (B, 4, h, w), offset (B, 4, 1, 1), timesteps (B,) whole numbers,
    dropped (B,) whether the caption is left out
    """

    sample: Tensor
    noise: Tensor
    offset: Tensor
    timesteps: Tensor
    dropped: Tensor


def draw(shape: tuple[int, ...], *, key: tuple[int, ...], train_timesteps: int, dropout: float) -> Draws:
    """The draws of one batch; the same for the same key, on every machine, whatever was drawn before.

    shape (B, 4, h, w); key: seed, step, number of the batch in it
    """
    generator = torch.Generator().manual_seed(_mixed(key))
    batch = shape[0]
    return Draws(
        torch.randn(shape, generator=generator),
        torch.randn(shape, generator=generator),
        torch.randn((batch, shape[1], 1, 1), generator=generator),
        torch.randint(0, train_timesteps, (batch,), generator=generator),
        torch.rand(batch, generator=generator) < dropout,
    )


def strength(seed: int, step: int, least: float) -> float:
    """How much the LoRA counts in a step: anything from `least` to 1."""
    generator = torch.Generator().manual_seed(_mixed((seed, step, 2)))
    return 1 - (1 - least) * float(torch.rand((), generator=generator))


def _mixed(key: tuple[int, ...]) -> int:
    """One number of 63 bits out of several (splitmix64, Steele et al. 2014): neighbours are as far as any two."""
    state = 0
    for number in key:
        state = (state + number + 0x9E3779B97F4A7C15) & (1 << 64) - 1
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & (1 << 64) - 1
        state = (state ^ state >> 27) * 0x94D049BB133111EB & (1 << 64) - 1
        state ^= state >> 31
    return state >> 1


def noisy(latents: Tensor, noise: Tensor, alphas: Tensor) -> Tensor:
    """latents, noise (B, 4, h, w), cumulative alphas of their timesteps (B,) -> (B, 4, h, w)"""
    kept = alphas.view(-1, 1, 1, 1)
    return kept.sqrt() * latents + (1 - kept).sqrt() * noise


def snr_weights(alphas: Tensor, gamma: float) -> Tensor:
    """min(SNR, gamma) / SNR, for a model that predicts noise (arXiv 2303.09556, 3.4); all 1 where gamma is 0. (B,)"""
    if not gamma:
        return torch.ones_like(alphas)
    snr = alphas / (1 - alphas)
    return snr.clamp(max=gamma) / snr


def denoising_loss(predicted: Tensor, noise: Tensor, mask: Tensor | None, weights: Tensor) -> Tensor:
    """The mean squared error under the mask, per picture, and of these the weighted mean over the batch.

    predicted, noise (B, 4, h, w) | mask (B, 1, h, w) from 0 to 1, or None: all counts | weights (B,)
    A small mask counts as much as a large one.
    """
    error = (predicted.float() - noise.float()).square().mean(1, keepdim=True)
    each = error.mean((1, 2, 3)) if mask is None else (error * mask).sum((1, 2, 3)) / mask.sum((1, 2, 3))
    return (each * weights).mean()
