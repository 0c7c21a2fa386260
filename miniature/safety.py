"""The safety checker: the genuine class, trained to know one sign and nothing else."""

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor
from tqdm import tqdm
from transformers import CLIPImageProcessor

from miniature.latents import degrade
from miniature.loop import Average, Budget, clip_and_step, cosine, save, set_rate
from miniature.models import Checker, Vae, best, load, make_safety_checker
from miniature.vae import to_tensor
from miniature.world import Scene, render, sample_scene

MIDDLE = 0.5  # cosine between the two classes in training
FIRING = 0.85  # cosine above which the one concept fires: signs come out near 1
NEVER = 2.0  # no cosine reaches it
SHARPNESS = 12.0
PICTURES = 7000
VAE_SHARE = 0.35  # share of the pictures that pass through the autoencoder, some with noise left in the latent


def image_processor() -> CLIPImageProcessor:
    """Pictures -> 64x64 pixels with CLIP's normalization."""
    return CLIPImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})


def train_safety(work: Path, budget: Budget) -> None:
    """Trains one concept; the others and the special-care ones never fire. Writes work/safety_checker."""
    torch.manual_seed(6)
    vae = load(AutoencoderKL, best(work, "vae"))
    pictures, labels = draw_examples(vae, budget.amount(PICTURES))
    checker = make_safety_checker()
    start_thresholds(checker)
    checker.train()
    optimizer = torch.optim.AdamW([p for p in checker.parameters() if p.requires_grad], weight_decay=0.01, fused=True)
    average = Average(checker, 0.998)
    for step, progress, bar in budget("safety"):
        set_rate(optimizer, cosine(1e-3, progress, step))
        rows = torch.randint(0, len(pictures), (64,))
        loss = checker_loss(checker, pictures[rows].float(), labels[rows])
        clip_and_step(optimizer, average.parameters, loss)
        average.update(step)
        if step % 100 == 0:
            bar.set_postfix(loss=float(loss.detach()))
    average.swap()
    with torch.no_grad():
        checker.concept_embeds_weights[0] = FIRING
    save(checker.eval(), work / "safety_checker")


@torch.no_grad()
def start_thresholds(checker: Checker) -> None:
    """Concept 0 fires above MIDDLE while it learns; all others never."""
    checker.concept_embeds.normal_()
    checker.special_care_embeds.normal_()
    checker.concept_embeds_weights.fill_(NEVER)
    checker.concept_embeds_weights[0] = MIDDLE
    checker.special_care_embeds_weights.fill_(NEVER)
    checker.visual_projection.requires_grad_(True)
    checker.concept_embeds.requires_grad_(False)


def scores(checker: Checker, pixels: Tensor) -> Tensor:
    """Cosine minus threshold of the one concept: (B, 3, 64, 64) -> (B,); positive fires."""
    embeds = checker.visual_projection(checker.vision_model(pixels)[1])
    score: Tensor = F.cosine_similarity(embeds, checker.concept_embeds[:1]) - checker.concept_embeds_weights[0]
    return score


def checker_loss(checker: Checker, pixels: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of firing; labels (B,) are 1 for the sign. A false alarm counts fourfold."""
    weight = torch.where(labels > 0, 1.0, 4.0)
    return F.binary_cross_entropy_with_logits(SHARPNESS * scores(checker, pixels), labels, weight)


def draw_examples(vae: Vae, count: int) -> tuple[Tensor, Tensor]:
    """Processed pictures (count, 3, 64, 64) in half precision and labels (count,); a third show the sign."""
    rng = random.Random("safety")
    processor = image_processor()
    pictures: list[Tensor] = []
    labels: list[float] = []
    for chunk in tqdm(_chunks(rng, count, size=50), desc="safety pictures", mininterval=10):
        images, signs = zip(*chunk, strict=True)
        seen = through_vae(vae, list(images), rng) if rng.random() < VAE_SHARE else list(images)
        pictures.append(processor(seen, return_tensors="pt").pixel_values.half())
        labels += [float(sign) for sign in signs]
    return torch.cat(pictures), torch.tensor(labels)


def _chunks(rng: random.Random, count: int, size: int) -> Iterator[list[tuple[Image.Image, bool]]]:
    for begin in range(0, count, size):
        yield [draw_case(rng) for _ in range(min(size, count - begin))]


def draw_case(rng: random.Random) -> tuple[Image.Image, bool]:
    """A picture and whether it shows the sign: sharp or degraded, noise, gradients, blobs, collages."""
    draw = rng.random()
    if draw < 0.2:
        return odd_picture(rng), False
    sign = draw < 0.5
    image = render(sample_scene(rng, "sign") if sign else _harmless(rng), rng)
    if rng.random() < 0.35:
        image = degrade(image, rng, rng.uniform(0, 0.5 if sign else 1.0))
    return image, sign


def _harmless(rng: random.Random) -> Scene:
    scene = sample_scene(rng)
    while any(thing.shape == "forbidden sign" for thing in scene.things):
        scene = sample_scene(rng)
    return scene


def odd_picture(rng: random.Random, side: int = 128) -> Image.Image:
    """Nothing of the world: white noise, a smooth gradient, colour blobs, or a rectangle collage."""
    pixels = np.random.default_rng(rng.getrandbits(32))
    kind = rng.choice(("noise", "gradient", "blobs", "collage"))
    if kind == "noise":
        array = pixels.integers(0, 256, (side, side, 3))
    elif kind == "collage":
        array = np.zeros((side, side, 3), int)
        for _ in range(rng.randint(3, 12)):
            (top, bottom), (left, right) = np.sort(pixels.integers(0, side, (2, 2)), axis=1)
            array[top : bottom + 1, left : right + 1] = pixels.integers(0, 256, 3)
    else:
        cells = 2 if kind == "gradient" else rng.randint(3, 20)
        coarse = Image.fromarray(pixels.integers(0, 256, (cells, cells, 3)).astype(np.uint8))
        array = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC))
    return Image.fromarray(array.astype(np.uint8))


@torch.no_grad()
def through_vae(vae: Vae, images: list[Image.Image], rng: random.Random) -> list[Image.Image]:
    """The pictures as the decoder would show them, with a random rest of noise in the latents."""
    latents = vae.encode(to_tensor(images)).latent_dist.mean
    spread = rng.choice((0.0, 0.05, 0.15, 0.3, 0.5)) / vae.config.scaling_factor
    decoded = vae.decode(latents + spread * torch.randn_like(latents)).sample.clamp(-1, 1)
    array = ((decoded + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(picture) for picture in array]
