"""Base and refiner: noise prediction on cached latents."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from miniature.latents import Batch, Shards
from miniature.loop import Average, Budget, clip_and_step, cosine, save, set_rate
from miniature.models import TEXT_WIDTHS, UNet, load, make_base, make_refiner
from miniature.text import TextEncoders

TRAIN_STEPS = 1000
OFFSET_NOISE = 0.1
WEIGHT_LIMIT = 8.0
REFINED_STEPS = 200  # the refiner works below this timestep: SDXL hands over at 0.8
SAVE_EVERY = 500
BATCH = 32
SCORES = (1.5, 7.0)


def alphas() -> Tensor:
    """Cumulative alphas of SDXL's schedule, (1000,)."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, TRAIN_STEPS) ** 2
    return (1 - betas).cumprod(0)


def base_times(batch: int) -> Tensor:
    """Uniform timesteps (B,)."""
    return torch.randint(0, TRAIN_STEPS, (batch,))


def refiner_times(batch: int) -> Tensor:
    """Timesteps (B,): mostly those the refiner is used for, some above, where image-to-image may start."""
    low = torch.randint(0, REFINED_STEPS, (batch,))
    return torch.where(torch.rand(batch) < 0.8, low, torch.randint(REFINED_STEPS, 340, (batch,)))


def base_weights(cumulative: Tensor) -> Tensor:
    """(1 + 1/SNR), limited: equal care for the noise and for the picture; mean 1."""
    weights = (1 / cumulative).clamp(max=WEIGHT_LIMIT)
    return weights / weights.mean()


@dataclass(frozen=True)
class Recipe:
    """How one UNet is trained."""

    name: str
    make: Callable[[], UNet]
    times: Callable[[int], Tensor]
    weights: Callable[[Tensor], Tensor]
    first_width: int  # where its text embedding begins: the refiner sees encoder 2 only
    columns: tuple[int, ...]  # which of Batch.ids it is conditioned on
    groups: dict[str, float]  # shard name pattern -> share of the batches
    start: str | None  # the UNet of the work folder it goes on from
    dropped: float  # share of the texts left out: half are zero, half those of an empty prompt
    peak: float  # learning rate
    span: float  # how much of the cosine is run: less than 1 where a polish goes on
    seed: int


BASE = Recipe(
    name="base",
    make=make_base,
    times=base_times,
    weights=base_weights,
    first_width=0,
    columns=(0, 1, 2, 3, 4, 5),
    groups={"square-*": 0.88, "landscape": 0.06, "portrait": 0.06},
    start=None,
    dropped=0.1,
    peak=1e-3,
    span=0.54,
    seed=4,
)
BASE_POLISH = replace(
    BASE,
    name="base-polished",
    start="base",
    peak=5e-4,
    span=1.0,
    seed=7,
)
REFINER = Recipe(
    name="refiner",
    make=make_refiner,
    times=refiner_times,
    weights=torch.ones_like,
    first_width=TEXT_WIDTHS[0],
    columns=(0, 1, 2, 3, 6),
    groups={"square-*": 0.68, "degraded-*": 0.22, "landscape": 0.05, "portrait": 0.05},
    start=None,
    dropped=0.1,
    peak=1e-3,
    span=0.7,
    seed=5,
)
REFINER_POLISH = replace(
    REFINER,
    name="refiner-polished",
    start="refiner",
    dropped=0.3,
    peak=5e-4,
    span=1.0,
    seed=8,
)


class Loss:
    """Noise-prediction error of one recipe."""

    def __init__(self, recipe: Recipe, encoders: TextEncoders) -> None:
        self.recipe = recipe
        self.cumulative = alphas()
        self.weights = recipe.weights(self.cumulative)
        self.empty = encoders.encode([""])

    def __call__(self, unet: UNet, batch: Batch) -> Tensor:
        """Draws noise and timesteps; mean weighted squared error."""
        count = len(batch.pooled)
        embeds, pooled, ids = self.without_some(batch)
        noise = torch.randn_like(batch.latents) + OFFSET_NOISE * torch.randn(count, 4, 1, 1)
        times = self.recipe.times(count)
        kept = self.cumulative[times].view(-1, 1, 1, 1)
        guessed = unet(
            kept.sqrt() * batch.latents + (1 - kept).sqrt() * noise,
            times,
            encoder_hidden_states=embeds[..., self.recipe.first_width :],
            added_cond_kwargs={"text_embeds": pooled, "time_ids": ids},
        ).sample
        loss: Tensor = ((guessed - noise).square().mean((1, 2, 3)) * self.weights[times]).mean()
        return loss

    def without_some(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Text embeddings, pooled embeddings and ids of a batch, some without their text.

        Without text the aesthetic score says nothing: else guidance would push away from low scores too.
        """
        dropped = self.recipe.dropped
        draw = torch.rand(len(batch.pooled))
        embeds, pooled, ids = batch.embeds.clone(), batch.pooled.clone(), batch.ids.clone()
        embeds[draw < dropped / 2], pooled[draw < dropped / 2] = 0.0, 0.0
        blank = (draw >= dropped / 2) & (draw < dropped)
        embeds[blank], pooled[blank] = self.empty
        ids[draw < dropped, 6] = torch.empty(int((draw < dropped).sum())).uniform_(*SCORES)
        return embeds, pooled, ids[:, self.recipe.columns]


def train_unet(work: Path, budget: Budget, recipe: Recipe) -> None:
    """Trains one UNet by its recipe; writes the averaged weights to work/<name>, now and then and at the end."""
    torch.manual_seed(recipe.seed)
    folder = work / recipe.name
    unet = load(UNet2DConditionModel, work / recipe.start) if recipe.start else recipe.make()
    unet.train()
    loss_of = Loss(recipe, TextEncoders.load(work))
    groups = [Shards(sorted((work / "latents").glob(pattern))) for pattern in recipe.groups]
    shares = torch.tensor(list(recipe.groups.values()))
    optimizer = torch.optim.AdamW(unet.parameters(), betas=(0.9, 0.98), weight_decay=1e-3, fused=True)
    average = Average(unet, 0.999)
    running = 1.0
    for step, progress, bar in budget(recipe.name):
        set_rate(optimizer, cosine(recipe.peak, recipe.span * progress, step))
        loss = loss_of(unet, groups[int(torch.multinomial(shares, 1))].pick(BATCH))
        clip_and_step(optimizer, unet.parameters(), loss)
        average.update(step)
        running += 0.01 * (float(loss.detach()) - running)
        if step % 100 == 0:
            bar.set_postfix(loss=running)
        if step % SAVE_EVERY == SAVE_EVERY - 1:
            save_average(unet, average, folder)
    save_average(unet, average, folder)


def save_average(unet: UNet, average: Average, folder: Path) -> None:
    """Writes the averaged weights; training goes on with its own."""
    average.swap()
    save(unet, folder)
    average.swap()
