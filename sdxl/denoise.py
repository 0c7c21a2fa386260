"""The loop: UNet calls along a `Schedule`, with any sampler, guided or not, masked or not.

Shapes: N pictures that are computed together, each by its own noise; h x w latents.

State and noise predictions are kept in float32 whatever the UNet computes in, so that half precision costs nothing
beyond the UNet itself. Nothing in the loop waits for the device.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count

import torch
from torch import Tensor

from sdxl.engine import Call
from sdxl.schedule import Level, Schedule, Step

Draw = Callable[[], Tensor]


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance (arXiv 2207.12598) in the steps from `start` to `end`, as shares of all steps (0..1);
    outside of them, as arXiv 2404.07724 proposes, and at a scale up to 1, the UNet works for the prompt alone."""

    scale: float
    rescale: float = 0.0  # 0..1, section 3.4 of arXiv 2305.08891
    start: float = 0.0
    end: float = 1.0

    def at(self, share: float) -> bool:
        """Whether the step that begins at this share of all is guided."""
        return self.scale > 1 and self.start <= share < self.end


@dataclass(frozen=True)
class Expert:
    """A UNet that knows the prompts, and the steps of the schedule that are its share, each guided or not."""

    call: Call
    steps: Sequence[Sequence[Step]]
    guided: Sequence[bool]


@dataclass(frozen=True)
class Kept:
    """The part of the picture that inpainting must leave alone: where `mask` is 0, the state is replaced by
    `image_latents` at the state's own noise level."""

    mask: Tensor  # (1, 1, h, w), 1 where the model paints
    image_latents: Tensor  # (N, 4, h, w)
    noise: Tensor  # (N, 4, h, w)

    def restore(self, latents: Tensor, level: Level) -> Tensor:
        """(N, 4, h, w) -> (N, 4, h, w)"""
        return torch.where(self.mask > 0, latents, at_level(self.image_latents, self.noise, level))


def at_level(latents: Tensor, noise: Tensor, level: Level) -> Tensor:
    """Clean latents brought to a noise level; any shape, same shape out."""
    return torch.add(latents * level.signal, noise, alpha=level.noise)


def denoise(
    latents: Tensor,
    experts: Iterable[Expert],
    guidance: Guidance,
    *,
    draw: Draw,
    kept: Kept | None,
    cache_interval: int = 1,
) -> Iterator[Tensor]:
    """Yield the state (N, 4, h, w), float32, after each denoising step; the last one is clean.

    `latents` is the state at the schedule's start. The multistep history runs through the experts, so two of them
    follow exactly the course of one. `draw` gives standard normal noise of the latents' shape. With a `cache_interval`
    above 1 the deep layers of a UNet work in every so-manyth call only.
    """
    states: deque[Tensor] = deque([latents], maxlen=2)
    noise_preds: deque[Tensor] = deque(maxlen=5)
    for expert in experts:
        calls = [call for step in expert.steps for call in step]
        told = torch.tensor([call.timestep for call in calls])
        timesteps = iter(told.to(latents.device, non_blocking=True).unbind())
        number = count()
        for step, guided in zip(expert.steps, expert.guided, strict=True):
            for call in step:
                model_input, reuse = states[0] * call.input_scale, next(number) % cache_interval > 0
                predict = partial(expert.call, timestep=next(timesteps), reuse=reuse)
                noise_preds.appendleft(guide(predict, model_input, guidance) if guided else predict(model_input))
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


def guide(predict: Callable[[Tensor], Tensor], model_input: Tensor, guidance: Guidance) -> Tensor:
    """Classifier-free guided noise prediction: (N, 4, h, w) -> (N, 4, h, w), float32."""
    negative, positive = predict(torch.cat([model_input, model_input])).chunk(2)
    guided = torch.lerp(negative, positive, guidance.scale)
    if guidance.rescale:
        rescaled = guided * (_std(positive) / _std(guided))
        guided = torch.lerp(guided, rescaled, guidance.rescale)
    return guided


def _std(noise_pred: Tensor) -> Tensor:
    """(B, 4, h, w) -> (B, 1, 1, 1)"""
    return noise_pred.std(dim=(1, 2, 3), keepdim=True)


def split(schedule: Schedule, fraction: float) -> tuple[Sequence[Sequence[Step]], Sequence[Sequence[Step]]]:
    """The base's and the refiner's share of a schedule: the first ends where `fraction` of the noise is gone."""
    count = schedule.handover(fraction)
    return schedule.steps[:count], schedule.steps[count:]
