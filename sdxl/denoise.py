"""The loop: UNet calls along a `Schedule`, for one picture, with any sampler, guided or not, masked or not.

State and noise predictions are kept in float32 whatever the UNet computes in, so that half precision costs nothing
beyond the UNet itself. Nothing in the loop waits for the device.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sdxl.schedulers import Level, Schedule, Step

Draw = Callable[[], Tensor]


@dataclass(frozen=True)
class Conditioning:
    """What a UNet is told beside the latents. B is 2 (negative, positive) with guidance, else 1."""

    prompt_embeds: Tensor  # (B, T, D)
    text_embeds: Tensor  # (B, P) pooled
    time_ids: Tensor  # (B, 6) sizes and crop for the base, (B, 5) sizes, crop and score for the refiner
    guidance_scale: float
    guidance_rescale: float  # 0..1, section 3.4 of arXiv 2305.08891


@dataclass(frozen=True)
class Expert:
    """A UNet with its conditioning and the steps of the schedule that are its share."""

    unet: torch.nn.Module
    conditioning: Conditioning
    steps: Sequence[Sequence[Step]]


@dataclass(frozen=True)
class Kept:
    """The part of the picture that inpainting must leave alone: where `mask` is 0, the state is replaced by
    `image_latents` at the state's own noise level."""

    mask: Tensor  # (1, 1, h, w), 1 where the model paints
    image_latents: Tensor  # (1, 4, h, w)
    noise: Tensor  # (1, 4, h, w)

    def restore(self, latents: Tensor, level: Level) -> Tensor:
        """(1, 4, h, w) -> (1, 4, h, w)"""
        return torch.where(self.mask > 0, latents, at_level(self.image_latents, self.noise, level))


def at_level(latents: Tensor, noise: Tensor, level: Level) -> Tensor:
    """Clean latents brought to a noise level; any shape, same shape out."""
    return torch.add(latents * level.signal, noise, alpha=level.noise)


def denoise(latents: Tensor, experts: Iterable[Expert], *, draw: Draw, kept: Kept | None) -> Iterator[Tensor]:
    """Yield the state (1, 4, h, w), float32, after each denoising step; the last one is clean.

    `latents` is the state at the schedule's start. The multistep history runs through the experts, so two of them
    follow exactly the course of one. `draw` gives standard normal noise of the latents' shape.
    """
    states: deque[Tensor] = deque([latents], maxlen=2)
    noise_preds: deque[Tensor] = deque(maxlen=5)
    for expert in experts:
        calls = [call for step in expert.steps for call in step]
        timesteps = iter(torch.tensor([call.timestep for call in calls], device=latents.device).unbind())
        for step in expert.steps:
            for call in step:
                model_input = states[0] * call.input_scale
                noise_preds.appendleft(predict_noise(expert.unet, model_input, next(timesteps), expert.conditioning))
                states.appendleft(_advance(call, states, noise_preds, draw))
                if kept is not None:
                    states[0] = kept.restore(states[0], call.after)
            yield states[0]


def _advance(call: Step, states: Sequence[Tensor], noise_preds: Sequence[Tensor], draw: Draw) -> Tensor:
    """The linear update of `call`; newest state and prediction first."""
    terms = [*zip(call.latents, states, strict=False), *zip(call.noise_preds, noise_preds, strict=False)]
    (weight, first), *rest = [(weight, tensor) for weight, tensor in terms if weight]
    latents = first if weight == 1 else first * weight
    for weight, tensor in rest:
        latents = torch.add(latents, tensor, alpha=weight)
    return latents if call.fresh_noise is None else torch.add(latents, draw(), alpha=call.fresh_noise)


def predict_noise(unet: torch.nn.Module, model_input: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
    """Classifier-free guided noise prediction. model_input (1, 4, h, w) -> (1, 4, h, w), float32."""
    batch = conditioning.prompt_embeds.shape[0]
    noise_pred: Tensor = unet(
        model_input.expand(batch, -1, -1, -1).to(conditioning.prompt_embeds.dtype),
        timestep,
        encoder_hidden_states=conditioning.prompt_embeds,
        added_cond_kwargs={"text_embeds": conditioning.text_embeds, "time_ids": conditioning.time_ids},
        return_dict=False,
    )[0].float()
    if batch == 1:
        return noise_pred
    negative, positive = noise_pred.chunk(2)
    guided = torch.lerp(negative, positive, conditioning.guidance_scale)
    if conditioning.guidance_rescale:
        rescaled = guided * (_std(positive) / _std(guided))
        guided = torch.lerp(guided, rescaled, conditioning.guidance_rescale)
    return guided


def _std(noise_pred: Tensor) -> Tensor:
    """(B, 4, h, w) -> (B, 1, 1, 1)"""
    return noise_pred.std(dim=(1, 2, 3), keepdim=True)


def split(schedule: Schedule, fraction: float) -> tuple[Sequence[Sequence[Step]], Sequence[Sequence[Step]]]:
    """The base's and the refiner's share of a schedule: the first ends where `fraction` of the noise is gone."""
    count = schedule.handover(fraction)
    return schedule.steps[:count], schedule.steps[count:]
