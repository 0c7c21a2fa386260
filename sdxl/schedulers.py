"""The nine samplers as tables of plain numbers.

Every sampler that SDXL is used with is linear: what follows a UNet call is a weighted sum of the last states, the
last noise predictions and, for some, fresh noise. So a schedule is computed once, on the CPU, as a list of `Step`s
whose weights are Python floats, and one loop (`sdxl.denoise`) serves all of them: no device sync, no scheduler object
to share or to leave altered for the next request, and a hand-over from base to refiner is a change of UNet in the
middle of one table, at the right timestep, scale and history by construction.

The timesteps and sigmas are diffusers' own (`set_timesteps`), built from the checkpoint's scheduler config every
time; only the update rules are written out here, each beside the paper it comes from.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from sdxl.narrow import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    TCDScheduler,
)
from sdxl.schedule import NUM_TRAIN_TIMESTEPS, Level, Schedule, Step, Steps

DISTILLED_STEPS = 50  # among the timesteps of so many steps a consistency model was distilled
BETAS = ("beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr")
TCD_GAMMA = 0.3  # 0: no fresh noise, 1: nothing else; eta in diffusers


def _sigma_level(sigma: float) -> Level:
    return Level(1.0, sigma)


def _karras_scale(sigma: float) -> float:
    """c_in of Karras et al. (2022), arXiv 2206.00364, for unit-variance data."""
    return 1 / math.sqrt(sigma**2 + 1)


def _euler(scheduler: Any, begin: int) -> Steps:
    """Euler's method on the probability-flow ODE: Algorithm 2 of arXiv 2206.00364 without churn."""
    sigmas, timesteps = scheduler.sigmas.tolist(), scheduler.timesteps.tolist()
    return [
        (Step(timesteps[i], _karras_scale(s), (1.0,), (sigmas[i + 1] - s,), _sigma_level(sigmas[i + 1])),)
        for i, s in enumerate(sigmas[:-1])
        if i >= begin
    ]


def _euler_ancestral(scheduler: Any, begin: int) -> Steps:
    """Euler to sigma_down, then fresh noise up to the next sigma (k-diffusion's ancestral step).

    The last step adds none, yet draws: what the generator gives a later refiner pass stays as in diffusers.
    """
    sigmas, timesteps = scheduler.sigmas.tolist(), scheduler.timesteps.tolist()
    steps: Steps = []
    for i in range(begin, len(timesteps)):
        sigma, sigma_next = sigmas[i], sigmas[i + 1]
        sigma_up = math.sqrt(sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2)
        sigma_down = math.sqrt(sigma_next**2 - sigma_up**2)
        step = Step(
            timesteps[i],
            _karras_scale(sigma),
            (1.0,),
            (sigma_down - sigma,),
            _sigma_level(sigma_next),
            fresh_noise=sigma_up,
        )
        steps.append((step,))
    return steps


def _heun(scheduler: Any, begin: int) -> Steps:
    """Heun's second-order method: Algorithm 1 of arXiv 2206.00364; the last step, to sigma 0, is Euler's."""
    sigmas = scheduler.sigmas.tolist()
    sigmas = [sigmas[0], *sigmas[1:-1:2], sigmas[-1]]  # diffusers keeps every inner one twice
    timesteps = scheduler.timesteps.tolist()[::2]
    steps: Steps = []
    for i in range(begin, len(timesteps)):
        sigma, sigma_next = sigmas[i], sigmas[i + 1]
        dt, after = sigma_next - sigma, _sigma_level(sigma_next)
        predictor = Step(timesteps[i], _karras_scale(sigma), (1.0,), (dt,), after)
        if sigma_next == 0:
            steps.append((predictor,))
            continue
        corrector = Step(timesteps[i + 1], _karras_scale(sigma_next), (0.0, 1.0), (dt / 2, dt / 2), after)
        steps.append((predictor, corrector))
    return steps


def _alpha_level(alpha_cumprod: float) -> Level:
    return Level(math.sqrt(alpha_cumprod), math.sqrt(1 - alpha_cumprod))


def _previous_alpha(scheduler: Any, timestep: int) -> float:
    """alpha_cumprod one stride below `timestep`; below 0 it is the config's final one."""
    previous = timestep - scheduler.config.num_train_timesteps // scheduler.num_inference_steps
    return float(scheduler.alphas_cumprod[previous] if previous >= 0 else scheduler.final_alpha_cumprod)


def _ddim(scheduler: Any, begin: int) -> Steps:
    """Formula (12) of arXiv 2010.02502 with eta = 0."""
    steps: Steps = []
    for timestep in scheduler.timesteps.tolist()[begin:]:
        now = _alpha_level(float(scheduler.alphas_cumprod[timestep]))
        after = _alpha_level(_previous_alpha(scheduler, timestep))
        ratio = after.signal / now.signal
        steps.append((Step(timestep, 1.0, (ratio,), (after.noise - ratio * now.noise,), after),))
    return steps


# Adams-Bashforth weights of the newest noise predictions, by how many there are: formula (13) of arXiv 2202.09778.
_ADAMS_BASHFORTH = {
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


def _pndm(scheduler: Any, begin: int) -> Steps:
    """Pseudo linear multistep (PLMS), arXiv 2202.09778, warmed up by one Heun-like step.

    diffusers keeps that warm-up at the top of the full schedule only, so a start in the middle (image to image,
    refiner) goes astray there; here any start warms up.
    """
    timesteps = scheduler.timesteps.tolist()
    timesteps = timesteps[:1] + timesteps[2:]  # the second is there twice
    steps: Steps = []
    for i in range(begin, len(timesteps)):
        alpha = float(scheduler.alphas_cumprod[timesteps[i]])
        alpha_next = _previous_alpha(scheduler, timesteps[i])
        after = _alpha_level(alpha_next)
        # Formula (9): the transfer part of the pseudo numerical method.
        keep = math.sqrt(alpha_next / alpha)
        denominator = alpha * math.sqrt(1 - alpha_next) + math.sqrt(alpha * (1 - alpha) * alpha_next)
        push = -(alpha_next - alpha) / denominator
        first = Step(timesteps[i], 1.0, (keep,), (push,), after)
        count = i - begin
        if count == 0 and i + 1 < len(timesteps):
            again = Step(timesteps[i + 1], 1.0, (0.0, keep), (push / 2, push / 2), after)
            steps.append((first, again))
        elif count == 0:
            steps.append((first,))
        else:
            weights = list(_ADAMS_BASHFORTH[min(count + 1, 4)])
            if count <= 3:  # the warm-up's second prediction is no part of the history
                weights.insert(count, 0.0)
            steps.append((Step(timesteps[i], 1.0, (keep,), tuple(push * w for w in weights), after),))
    return steps


def _unit_variance_level(sigma: float) -> Level:
    return Level(_karras_scale(sigma), sigma * _karras_scale(sigma))


def _dpm_solver(scheduler: Any, begin: int) -> Steps:
    """DPM-Solver++(2M), midpoint form: arXiv 2211.01095, Algorithm 2; first order at the start and at sigma 0."""
    sigmas, timesteps = scheduler.sigmas.tolist(), scheduler.timesteps.tolist()
    levels = [_unit_variance_level(sigma) for sigma in sigmas]
    lambdas = [math.log(level.signal / level.noise) if level.noise else math.inf for level in levels]
    steps: Steps = []
    for i in range(begin, len(timesteps)):
        now, after = levels[i], levels[i + 1]
        h = lambdas[i + 1] - lambdas[i]
        gain = after.signal * (1 - math.exp(-h))
        # clean prediction m_k = (x_k - noise_k * eps_k) / signal_k; the update is a * x + b0 * m_0 + b1 * m_1
        weights = [gain]
        if i > begin and after.noise:
            half_ratio = h / (lambdas[i] - lambdas[i - 1]) / 2
            weights = [gain * (1 + half_ratio), -gain * half_ratio]
        history = [levels[i - k] for k in range(len(weights))]
        latents = [b / level.signal for b, level in zip(weights, history, strict=True)]
        noise_preds = [-b * level.noise / level.signal for b, level in zip(weights, history, strict=True)]
        latents[0] += after.noise / now.noise
        steps.append((Step(timesteps[i], 1.0, tuple(latents), tuple(noise_preds), after),))
    return steps


def _lcm(scheduler: Any, begin: int) -> Steps:
    """Multistep sampling of a latent consistency model, arXiv 2310.04378.

    Each step is a guess of the clean latents, then fresh noise up to the next level; after the last one nothing.
    """
    timesteps, alphas = scheduler.timesteps.tolist()[begin:], scheduler.alphas_cumprod.tolist()
    steps: Steps = []
    for timestep, following in zip(timesteps, [*timesteps[1:], None], strict=False):
        now = _alpha_level(alphas[timestep])
        after = Level(1.0, 0.0) if following is None else _alpha_level(alphas[following])
        skip, out = scheduler.get_scalings_for_boundary_condition_discrete(timestep)
        clean = after.signal * out / now.signal
        fresh = None if following is None else after.noise
        steps.append((Step(timestep, 1.0, (clean + after.signal * skip,), (-clean * now.noise,), after, fresh),))
    return steps


def _tcd(scheduler: Any, begin: int) -> Steps:
    """Strategic stochastic sampling of a trajectory consistency model, arXiv 2402.19159.

    Each step goes along the trajectory to below the next level, then up to it by fresh noise.
    """
    timesteps, alphas = scheduler.timesteps.tolist()[begin:], scheduler.alphas_cumprod.tolist()
    steps: Steps = []
    for timestep, following in zip(timesteps, [*timesteps[1:], 0], strict=False):
        now, after = _alpha_level(alphas[timestep]), _alpha_level(alphas[following])
        below = _alpha_level(alphas[math.floor((1 - TCD_GAMMA) * following)])
        keep, up = after.signal / now.signal, after.signal / below.signal
        fresh = None if len(steps) == len(timesteps) - 1 else math.sqrt(1 - up**2)
        steps.append((Step(timestep, 1.0, (keep,), (up * below.noise - keep * now.noise,), after, fresh),))
    return steps


def _sigma_start(scheduler: Any, timestep: float, index: int) -> Level:
    del timestep
    return _sigma_level(float(scheduler.sigmas[index]))


def _heun_start(scheduler: Any, timestep: float, index: int) -> Level:
    del timestep
    return _sigma_level(float(scheduler.sigmas[max(0, 2 * index - 1)]))


def _alpha_start(scheduler: Any, timestep: float, index: int) -> Level:
    del index
    return _alpha_level(float(scheduler.alphas_cumprod[int(timestep)]))


def _dpm_start(scheduler: Any, timestep: float, index: int) -> Level:
    del timestep
    return _unit_variance_level(float(scheduler.sigmas[index]))


def _configured(scheduler: Any, count: int, first: int | None) -> None:
    """As the scheduler's config spaces them, which for a `first` is "trailing": from 999 on."""
    del first
    scheduler.set_timesteps(count)


def _with_betas(kind: Callable[..., Any], config: Mapping[str, Any], **_: Any) -> Any:
    """A scheduler that takes nothing from the config but the noise of each timestep: it warns of all that it does not
    know, and its distillation knew no other settings."""
    return kind(**{name: config[name] for name in BETAS if name in config}, original_inference_steps=DISTILLED_STEPS)


def _distilled(scheduler: Any, count: int, first: int | None) -> None:
    """Among those of the distillation, or among all if they are more; or evenly down from `first`."""
    scheduler.set_timesteps(count, original_inference_steps=None if count <= DISTILLED_STEPS else NUM_TRAIN_TIMESTEPS)
    if first is not None:
        scheduler.timesteps = torch.tensor([round((first + 1) * (1 - k / count)) - 1 for k in range(count)])


@dataclass(frozen=True)
class _Sampler:
    scheduler: Callable[..., Any]  # of the checkpoint's config
    steps: Callable[[Any, int], Steps]
    start: Callable[[Any, float, int], Level]
    space: Callable[[Any, int, int | None], None] = _configured


# Every flag that one name sets is set for all that know it: nothing is inherited from an earlier request.
_DPM = partial(DPMSolverMultistepScheduler.from_config, use_karras_sigmas=False)
_KARRAS = partial(DPMSolverMultistepScheduler.from_config, use_karras_sigmas=True)
SCHEDULERS: dict[str, _Sampler] = {
    "DDIM": _Sampler(partial(DDIMScheduler.from_config, clip_sample=False), _ddim, _alpha_start),
    "DPMSolverMultistep": _Sampler(_DPM, _dpm_solver, _dpm_start),
    "HeunDiscrete": _Sampler(partial(HeunDiscreteScheduler.from_config, use_karras_sigmas=False), _heun, _heun_start),
    "KarrasDPM": _Sampler(_KARRAS, _dpm_solver, _dpm_start),
    "K_EULER_ANCESTRAL": _Sampler(EulerAncestralDiscreteScheduler.from_config, _euler_ancestral, _sigma_start),
    "K_EULER": _Sampler(partial(EulerDiscreteScheduler.from_config, use_karras_sigmas=False), _euler, _sigma_start),
    "PNDM": _Sampler(partial(PNDMScheduler.from_config, skip_prk_steps=True), _pndm, _alpha_start),
    "LCM": _Sampler(partial(_with_betas, LCMScheduler), _lcm, _alpha_start, _distilled),
    "TCD": _Sampler(partial(_with_betas, TCDScheduler), _tcd, _alpha_start, _distilled),
}


def make_schedule(
    name: str, config: Mapping[str, Any], num_inference_steps: int, begin: int = 0, first_timestep: int | None = None
) -> Schedule:
    """The course of sampler `name` over `num_inference_steps` (1..999), without its first `begin` (0..all) steps.

    `config` is the checkpoint's scheduler/scheduler_config.json. With a `first_timestep` the steps lie evenly below it
    ("trailing" in arXiv 2305.08891); the older seven begin at 999 then, whatever it is. None: as the config says.
    """
    sampler = SCHEDULERS[name]
    scheduler = sampler.scheduler(config, **({} if first_timestep is None else {"timestep_spacing": "trailing"}))
    sampler.space(scheduler, num_inference_steps, first_timestep)
    steps = sampler.steps(scheduler, begin)
    if steps:  # DDIM, PNDM and TCD end a trace of noise above zero; what follows is the decoder, so it counts as clean
        *before, last = steps[-1]
        steps[-1] = (*before, replace(last, after=Level(1.0, 0.0)))
    timesteps = tuple(calls[0].timestep for calls in steps)
    start = sampler.start(scheduler, timesteps[0], begin) if steps else Level(1.0, 0.0)
    return Schedule(tuple(steps), timesteps, start, float(scheduler.init_noise_sigma))
