"""A prediction: encode the text, start the latents, denoise (and refine), decode."""

import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from errors import InputError
from sdxl.denoise import Draw, Expert, Guidance, Kept, at_level, denoise, split
from sdxl.eight_bit import require
from sdxl.engine import Conditioning
from sdxl.finetune.tokens import LearnedTokens
from sdxl.models import Models, config_of
from sdxl.progress import Progress
from sdxl.request import Request
from sdxl.schedule import Schedule, Step
from sdxl.schedulers import make_schedule
from sdxl.text import PromptEmbeds

Steps = Sequence[Sequence[Step]]
T = TypeVar("T")


@dataclass(frozen=True)
class Pass:
    """One run from noise to clean latents: a schedule, shared out between the two UNets."""

    schedule: Schedule
    base: Steps
    refiner: Steps
    whole: bool  # from the very first step


def plan(models: Models, request: Request) -> list[Pass]:
    """The passes a request needs; their steps are what its progress counts. Raises InputError, computes nothing."""
    sampling = request.sampling
    if sampling.refine != "no_refiner" and not models.has_refiner:
        raise InputError(f"refine={sampling.refine!r} needs a refiner and this model has none; choose no_refiner.")
    require(sampling.quantization, models.placement)
    if sampling.cache_interval > 1 or sampling.quantization != "none":
        _require_own_arithmetic(models)
    make = partial(make_schedule, sampling.scheduler, models.scheduler_config, first_timestep=sampling.first_timestep)
    begin = 0 if request.canvas.image is None else sampling.begin()
    schedule = make(sampling.num_inference_steps, begin)
    fraction = sampling.high_noise_frac if sampling.refine == "expert_ensemble_refiner" else 1.0
    passes = [Pass(schedule, *split(schedule, fraction), whole=begin == 0)]
    if sampling.refine == "base_image_refiner":
        steps, begin = sampling.second_pass()
        second = make(steps, begin)
        passes.append(Pass(second, (), second.steps, whole=begin == 0))
    return passes


def _require_own_arithmetic(models: Models) -> None:
    if not models.engines.of(models.base).can_reuse:
        raise InputError(
            "cache_interval and quantization cannot be used here: the GPU has less than 12 GB, or the checkpoint's "
            "UNet is not SDXL's; leave them at 1 and none."
        )


def generate(
    models: Models,
    request: Request,
    passes: Sequence[Pass],
    progress: Progress,
    learned: LearnedTokens | None = None,
) -> Iterator[Image.Image]:
    """Yield the picture of each seed, as soon as it is done.

    Where `Models.at_once` is 1 each seed is computed for itself, and its picture is the same, bit for bit, whatever it
    was asked for together with. Several at once each have their own noise still, and differ in rounding alone.
    """
    with progress.stage("encode_text"):
        embeds = encode_text(models, request, learned)
    image, posterior = request.canvas.image, None
    if image is not None and not any(each.schedule.steps for each in passes):
        yield from (request.canvas.finish(image) for _ in request.seeds)  # strength 0 keeps it, unrounded by the VAE
        return
    if image is not None:
        with progress.stage("encode_image"):
            posterior = encode_image(models, image)
    for seeds in _together(models, request, len(embeds)):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        draw = partial(_draw, generators, _latent_shape(models, request), models.placement.device)
        with progress.stage("denoise"):
            image_latents = posterior.sample(draw) if posterior else None
            latents = paint(models, request, passes, embeds, image_latents, draw, progress)
        for each in torch.split(latents, 1):
            with progress.stage("decode"):
                picture = _with_room(models, partial(decode, models, each))
            yield request.canvas.finish(picture)


def _together(models: Models, request: Request, tokens: int) -> Iterator[Sequence[int]]:
    """The seeds, in groups that are computed at once: fewer of large pictures, which fill a GPU by themselves, and of
    long prompts, whose keys and values take 333 KB of SDXL's memory per picture and token."""
    area = models.native**2 / (request.canvas.width * request.canvas.height)
    most = max(1, int(models.placement.at_once * min(1.0, area, 4 * 77 / tokens)))
    yield from (request.seeds[at : at + most] for at in range(0, len(request.seeds), most))


def _with_room(models: Models, work: Callable[[], T]) -> T:
    """What it returns. Where it runs out of memory, that of the recorded calls of the UNets is given up for it."""
    with suppress(torch.OutOfMemoryError):
        return work()
    models.engines.forget()
    return work()


@contextmanager
def memory_named(what: str, remedy: str) -> Iterator[None]:
    """Running out of GPU memory becomes a sentence; what the failed request held is given back for the next."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        traceback.clear_frames(error.__traceback__)
        torch.cuda.empty_cache()
        raise InputError(f"{what} need more memory than this GPU has free; {remedy}.") from None


def encode_text(models: Models, request: Request, learned: LearnedTokens | None = None) -> PromptEmbeds:
    """The prompts as both UNets read them."""
    prompts = request.prompts
    return models.text.encode(
        prompts.prompt,
        prompts.negative_prompt,
        prompts.prompt_2,
        prompts.negative_prompt_2,
        clip_skip=prompts.clip_skip,
        learned=learned,
    )


def paint(
    models: Models,
    request: Request,
    passes: Sequence[Pass],
    embeds: PromptEmbeds,
    image_latents: Tensor | None,
    draw: Draw,
    progress: Progress,
) -> Tensor:
    """Clean latents (N, 4, h, w), float32; `image_latents` (N, 4, h, w) are those of the input, if there is one."""
    latents = image_latents
    for index, each in enumerate(passes):
        noise = draw()
        kept = None
        if request.canvas.mask is not None and image_latents is not None:
            mask = _latent_mask(models, request)
            kept = Kept(mask, image_latents, noise)
            if index == 0:
                draw()  # diffusers encodes the masked picture as well, and draws for that
        latents = _start(each, latents, noise, inpaint_from_noise=kept is not None and index == 0)
        experts = _experts(models, request, each, embeds, len(noise))
        sampling = request.sampling
        states = denoise(
            latents, experts, guidance(request), draw=draw, kept=kept, cache_interval=sampling.cache_interval
        )
        for state in states:
            latents = state
            progress.step(len(state))
    assert latents is not None
    return latents


def _latent_shape(models: Models, request: Request) -> tuple[int, int, int, int]:
    factor = models.vae_scale_factor
    return (
        1,
        int(config_of(models.base).in_channels),
        request.canvas.height // factor,
        request.canvas.width // factor,
    )


def _draw(generators: Sequence[torch.Generator], shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Standard normal noise (N, 4, h, w), of each picture by its own generator, on the CPU: the same on every card."""
    noise = torch.empty((len(generators), *shape[1:]), pin_memory=device.type == "cuda")
    for each, generator in zip(torch.split(noise, 1), generators, strict=True):
        torch.randn(shape, generator=generator, out=each)
    return noise.to(device, non_blocking=True)


def _start(each: Pass, latents: Tensor | None, noise: Tensor, *, inpaint_from_noise: bool) -> Tensor:
    """The state at the start of a pass: pure noise, or the picture so far at the schedule's first noise level.

    As in diffusers, image to image at full strength still starts from the (drowned) picture, inpainting does not.
    """
    if latents is None or (each.whole and inpaint_from_noise):
        return noise * each.schedule.init_noise_sigma
    return at_level(latents, noise, each.schedule.start)


def guidance(request: Request) -> Guidance:
    """As the request wants it."""
    sampling = request.sampling
    return Guidance(sampling.guidance_scale, sampling.guidance_rescale, sampling.guidance_start, sampling.guidance_end)


def _experts(models: Models, request: Request, each: Pass, embeds: PromptEmbeds, count: int) -> Iterator[Expert]:
    """The UNets that have steps in this pass, in order, each brought to the device just before it works."""
    total = len(each.schedule.steps)
    shares, wanted = (place / total for place in range(total)), guidance(request)
    guided = [wanted.at(share) for share in shares]
    for name, steps, at in (("base", each.base, 0), ("refiner", each.refiner, len(each.base))):
        if steps:
            unet = models.base if name == "base" else models.refiner
            assert unet is not None
            models.placement.use(unet)
            own = embeds if name == "base" else embeds.for_refiner(int(config_of(unet).cross_attention_dim))
            part = guided[at : at + len(steps)]
            told = _conditioning(unet, request, own, models.placement.device, count, guided=any(part))
            yield Expert(models.engines.of(unet).begin(told, request.sampling.quantization), steps, part)


def _conditioning(
    unet: torch.nn.Module, request: Request, embeds: PromptEmbeds, device: torch.device, count: int, *, guided: bool
) -> Conditioning:
    """Of `count` pictures."""
    prompt_embeds, text_embeds = embeds.prompt_embeds, embeds.pooled_prompt_embeds
    positive, negative = time_ids(config_of(unet), text_embeds.shape[-1], request)
    ids = [positive]
    if guided:
        prompt_embeds = torch.cat([embeds.negative_prompt_embeds, prompt_embeds])
        text_embeds = torch.cat([embeds.negative_pooled_prompt_embeds, text_embeds])
        ids = [negative, positive]
    sizes = torch.tensor(ids, dtype=prompt_embeds.dtype).to(device, non_blocking=True)
    tensors = (prompt_embeds.to(device), text_embeds.to(device), sizes)
    return Conditioning(*(tensor.repeat_interleave(count, 0) if count > 1 else tensor for tensor in tensors))


def time_ids(config: Any, pooled_width: int, request: Request) -> tuple[list[float], list[float]]:
    """The micro-conditioning of a UNet, positive and negative: the base reads six numbers (original size, crop,
    target size), the refiner five (original size, crop, aesthetic score); its config says which.
    """
    count = (config.projection_class_embeddings_input_dim - pooled_width) // config.addition_time_embed_dim
    micro = request.micro
    size = (request.canvas.height, request.canvas.width)
    original = micro.original_size or size
    crop = micro.crop_top_left or (0, 0)
    target = micro.target_size or size
    negative_original = micro.negative_original_size or original
    negative_crop = micro.negative_crop_top_left or crop
    if count == 5:
        return (
            [*original, *crop, micro.aesthetic_score],
            [*negative_original, *negative_crop, micro.negative_aesthetic_score],
        )
    return [*original, *crop, *target], [
        *negative_original,
        *negative_crop,
        *(micro.negative_target_size or target),
    ]


@dataclass(frozen=True)
class Posterior:
    """What the VAE makes of a picture: (1, 4, h, w) each, float32, in the scale that the UNets work in."""

    mean: Tensor
    std: Tensor

    def sample(self, draw: Draw) -> Tensor:
        """One sample of it, as latents."""
        return self.mean + self.std * draw()


def encode_image(models: Models, image: Image.Image) -> Posterior:
    """An RGB picture whose sides are multiples of 8."""
    vae = models.vae
    models.placement.use(vae)
    pixels = torch.from_numpy(np.asarray(image, dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
    found = vae.encode(pixels.to(models.placement.device, vae.dtype)).latent_dist
    factor = float(config_of(vae).scaling_factor)
    return Posterior(found.mean.float() * factor, found.std.float() * factor)


def _latent_mask(models: Models, request: Request) -> Tensor:
    """(1, 1, h, w): 1 for every latent under which the mask has a pixel of 128 or more."""
    mask = torch.from_numpy(np.asarray(request.canvas.mask, dtype=np.float32))[None, None]
    painted = torch.nn.functional.max_pool2d((mask >= 128).float(), models.vae_scale_factor)
    return painted.to(models.placement.device, non_blocking=True)


def decode(models: Models, latents: Tensor) -> Image.Image:
    """(1, 4, h, w) -> an RGB picture of 8h x 8w."""
    vae = models.vae
    models.placement.use(vae)
    pixels = vae.decode((latents / config_of(vae).scaling_factor).to(vae.dtype), return_dict=False)[0].float()
    levels = ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(levels[0].permute(1, 2, 0).cpu().numpy())
