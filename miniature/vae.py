"""The autoencoder: a start that GroupNorm cannot blind, training, whitening, a decoder phase."""

import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor, nn

from miniature.loop import Average, Budget, clip_and_step, cosine, save, set_rate
from miniature.models import LATENT_SCALE, Vae, load, make_vae
from miniature.world import render, sample_scene

CROP = 64
PICTURES = 3000
COLOR_CHANNELS = 12  # four per colour: plus, minus and two constants
HANDOVER_NOISE = 0.06  # standard deviation of what a denoiser leaves in unit-variance latents


def to_tensor(images: Iterable[Image.Image]) -> Tensor:
    """RGB pictures of one size -> (B, 3, H, W) in [-1, 1]."""
    stack = np.stack([np.asarray(image) for image in images])
    return torch.from_numpy(stack).permute(0, 3, 1, 2).float() / 127.5 - 1


def edge_loss(decoded: Tensor, target: Tensor) -> Tensor:
    """L1 + 4 L2 + gradient L1: both (B, 3, H, W) in [-1, 1]."""
    difference = decoded - target
    slopes = (difference.diff(dim=2).abs().mean() + difference.diff(dim=3).abs().mean()) / 2
    return difference.abs().mean() + 4 * difference.square().mean() + slopes


def psnr(vae: Vae, pictures: Tensor) -> float:
    """Reconstruction quality in dB of uint8 pictures (N, 3, H, W)."""
    with torch.no_grad():
        target = pictures.float() / 127.5 - 1
        decoded = vae.decode(vae.encode(target).latent_dist.mean).sample.clamp(-1, 1)
        return float(10 * torch.log10(4 / F.mse_loss(decoded, target)))


def train_vae(work: Path, budget: Budget) -> None:
    """Trains encoder and decoder, whitens the latents; writes work/vae."""
    torch.manual_seed(1)
    pictures = draw_pictures(seed=1, count=budget.amount(PICTURES))
    vae = make_vae()
    start_linear(vae)
    vae.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(vae.parameters(), betas=(0.9, 0.99), weight_decay=1e-4, fused=True)
    average = Average(vae, 0.998)
    for step, progress, bar in budget("vae"):
        set_rate(optimizer, cosine(1e-3, progress, step))
        target = crops(pictures, batch=8)
        posterior = vae.encode(target).latent_dist
        decoded = vae.decode(posterior.sample()).sample
        loss = edge_loss(decoded, target) + 2e-4 * posterior.kl().mean() / (CROP // 8) ** 2
        clip_and_step(optimizer, vae.parameters(), loss)
        average.update(step)
        if step % 100 == 0:
            bar.set_postfix(loss=float(loss.detach()), db=psnr(vae, pictures[:16]))
    average.swap()
    vae.eval()
    whiten(vae, pictures[:600])
    save(vae, work / "vae")


def train_decoder(work: Path, budget: Budget) -> None:
    """Trains only the decoder, on latents with the noise a denoiser leaves; writes work/vae-polished."""
    torch.manual_seed(2)
    pictures = draw_pictures(seed=2, count=budget.amount(PICTURES))
    vae = load(AutoencoderKL, work / "vae")
    vae.requires_grad_(False)
    learning = nn.ModuleList([vae.decoder, vae.post_quant_conv]).requires_grad_(True)
    vae.train()
    optimizer = torch.optim.AdamW(learning.parameters(), betas=(0.9, 0.99), weight_decay=1e-4, fused=True)
    average = Average(learning, 0.998)
    for step, progress, bar in budget("decoder"):
        set_rate(optimizer, cosine(1e-3, progress, step))
        target = crops(pictures, batch=8)
        latents = vae.encode(target).latent_dist.mean
        spread = HANDOVER_NOISE / LATENT_SCALE * torch.rand(len(latents), 1, 1, 1)
        loss = edge_loss(vae.decode(latents + spread * torch.randn_like(latents)).sample, target)
        clip_and_step(optimizer, learning.parameters(), loss)
        average.update(step)
        if step % 100 == 0:
            bar.set_postfix(loss=float(loss.detach()), db=psnr(vae, pictures[:16]))
    average.swap()
    vae.requires_grad_(True)
    save(vae.eval(), work / "vae-polished")


def draw_pictures(seed: int, count: int) -> Tensor:
    """Random scenes as uint8 (count, 3, 128, 128)."""
    rng = random.Random(seed)
    stack = np.stack([np.asarray(render(sample_scene(rng), rng)) for _ in range(count)])
    return torch.from_numpy(stack).permute(0, 3, 1, 2).contiguous()


def crops(pictures: Tensor, batch: int) -> Tensor:
    """Random (batch, 3, 64, 64) cuts in [-1, 1] of uint8 pictures."""
    side = pictures.shape[-1] - CROP
    picks = torch.randint(0, len(pictures), (batch,)).tolist()
    corners = torch.randint(0, side + 1, (batch, 2)).tolist()
    cuts = [pictures[i, :, y : y + CROP, x : x + CROP] for i, (y, x) in zip(picks, corners, strict=True)]
    return torch.stack(cuts).float() / 127.5 - 1


@torch.no_grad()
def start_linear(vae: Vae) -> None:
    """Starts as 'mean colour of 8x8 pixels, spread again' beside small random weights.

    From the usual random start GroupNorm hides flat colour and training stays at the mean picture.
    """
    for module in vae.modules():
        if type(module).__name__ == "ResnetBlock2D":
            _pass_through(module)
    _colors_in(vae.encoder.conv_in)
    _colors_in(vae.decoder.conv_in)
    for block in vae.encoder.down_blocks:
        if block.downsamplers:
            _diagonal(block.downsamplers[0].conv, [(0, 0), (0, 1), (1, 0), (1, 1)])
    for block in vae.decoder.up_blocks:
        if block.upsamplers:
            _diagonal(block.upsamplers[0].conv, [(1, 1)])
    for quant in (vae.quant_conv, vae.post_quant_conv):
        nn.init.dirac_(quant.weight)
        nn.init.zeros_(quant.bias)
    _colors_out(vae.encoder.conv_out)
    vae.encoder.conv_out.weight[4:] *= 0.1
    vae.encoder.conv_out.bias[4:] = -4.0
    _colors_out(vae.decoder.conv_out)


def _pass_through(resnet: Any) -> None:
    nn.init.zeros_(resnet.conv2.weight)
    nn.init.zeros_(resnet.conv2.bias)
    if resnet.conv_shortcut is not None:
        weight = resnet.conv_shortcut.weight
        kept = min(weight.shape[:2])
        weight.mul_(0.5)
        weight[:kept] = 0
        weight[range(kept), range(kept)] = 1.0
        resnet.conv_shortcut.bias[:kept] = 0


def _colors_in(conv: Any) -> None:
    conv.weight[:COLOR_CHANNELS] = 0
    for color in range(3):
        plus = 4 * color
        conv.weight[plus, color, 1, 1] = 1.0
        conv.weight[plus + 1, color, 1, 1] = -1.0
        conv.bias[plus : plus + 4] = torch.tensor([0.0, 0.0, 2.0, -2.0])


def _diagonal(conv: Any, taps: list[tuple[int, int]]) -> None:
    kept = min(*conv.weight.shape[:2], COLOR_CHANNELS)
    conv.weight.mul_(0.5)
    conv.weight[:kept] = 0
    conv.bias[:kept] = 0
    for y, x in taps:
        conv.weight[range(kept), range(kept), y, x] = 1 / len(taps)


def _colors_out(conv: Any) -> None:
    conv.weight[:3] = 0
    conv.bias[:3] = 0
    for color in range(3):
        conv.weight[color, 4 * color, 1, 1] = 1.5
        conv.weight[color, 4 * color + 1, 1, 1] = -1.5


@torch.no_grad()
def whiten(vae: Vae, pictures: Tensor) -> None:
    """Folds whitening into the 1x1 convolutions: uncorrelated latents of deviation 1 / scaling_factor."""
    means = [vae.encode(part.float() / 127.5 - 1).latent_dist.mean for part in torch.split(pictures, 50)]
    flat = torch.cat(means).permute(0, 2, 3, 1).reshape(-1, 4)
    center = flat.mean(0)
    variance, axes = torch.linalg.eigh(torch.cov(flat.T))
    forward = (axes / variance.sqrt()).T / LATENT_SCALE
    backward = axes * variance.sqrt() * LATENT_SCALE
    quant, post = vae.quant_conv, vae.post_quant_conv
    weight, bias = quant.weight[:4, :, 0, 0].clone(), quant.bias[:4].clone()
    quant.weight.zero_()
    quant.weight[:4, :, 0, 0] = forward @ weight
    quant.bias[:4] = forward @ (bias - center)
    quant.bias[4:] = -10.0  # log-variance: sampling and mode agree to 0.001 of the latents' deviation
    weight = post.weight[:, :, 0, 0].clone()
    post.weight[:, :, 0, 0] = weight @ backward
    post.bias += weight @ center
