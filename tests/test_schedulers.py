"""The sampler tables against diffusers' own scheduler objects, on an analytic model that needs no UNet."""

import math
from collections.abc import Sequence
from typing import Any

import diffusers
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sdxl.denoise import Expert, Guidance, denoise, split
from sdxl.schedule import LAST_TIMESTEP, NUM_TRAIN_TIMESTEPS, Schedule, Step
from sdxl.schedulers import SCHEDULERS, make_schedule

NAMES = list(SCHEDULERS)
STEPS = [1, 2, 3, 7, 20, 50]
WEIGHT = torch.randn(4, 4, generator=torch.Generator().manual_seed(1)) * 0.4


class Field(torch.nn.Module):
    """A smooth nonlinear stand-in for a UNet: what a sampler does with it is all that is looked at."""

    def forward(self, sample: Tensor, timestep: Tensor, **_: Any) -> tuple[Tensor]:
        mixed = torch.einsum("ij,bjhw->bihw", WEIGHT, sample)
        return (torch.tanh(mixed) * (1 + timestep / NUM_TRAIN_TIMESTEPS),)


class Gaussian(torch.nn.Module):
    """The exact noise prediction for data N(0, 0.5^2): a right sampler ends with a standard deviation of 0.5."""

    def __init__(self, alphas_cumprod: Tensor) -> None:
        super().__init__()
        self.alphas_cumprod = alphas_cumprod

    def forward(self, sample: Tensor, timestep: Tensor, **_: Any) -> tuple[Tensor]:
        t = float(timestep)
        low = min(int(t), 998)
        sigma = [math.sqrt((1 - a) / a) for a in self.alphas_cumprod[low : low + 2].tolist()]
        alpha = 1 / (1 + (sigma[0] + (sigma[1] - sigma[0]) * (t - low)) ** 2)
        return (sample * math.sqrt(1 - alpha) / (alpha * 0.25 + 1 - alpha),)


class Distilled(torch.nn.Module):
    """For the same data a perfect few-step model: the noise that leads, in one step, to where the exact trajectory is
    at the level where the sampler lands. `lands` is its alpha, by timestep; clean latents have 1."""

    def __init__(self, alphas_cumprod: Tensor, lands: dict[float, float]) -> None:
        super().__init__()
        self.alphas_cumprod, self.lands = alphas_cumprod, lands

    def forward(self, sample: Tensor, timestep: Tensor, **_: Any) -> tuple[Tensor]:
        alpha, below = float(self.alphas_cumprod[int(timestep)]), self.lands[float(timestep)]
        along = math.sqrt((below * 0.25 + 1 - below) / (alpha * 0.25 + 1 - alpha))
        ratio = math.sqrt(below / alpha)
        return (sample * (along - ratio) / (math.sqrt(1 - below) - ratio * math.sqrt(1 - alpha)),)


def exact(name: str, schedule: Schedule, alphas_cumprod: Tensor) -> torch.nn.Module:
    """The model with which a sampler makes no error."""
    if name not in ("LCM", "TCD"):
        return Gaussian(alphas_cumprod)
    followed = [*schedule.timesteps[1:], 0]
    below = [1.0 if name == "LCM" else float(alphas_cumprod[math.floor(0.7 * t)]) for t in followed]
    return Distilled(alphas_cumprod, dict(zip(schedule.timesteps, below, strict=True)))


def noise(seed: int = 2, shape: tuple[int, ...] = (1, 4, 5, 5)) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def expert(model: torch.nn.Module, steps: Sequence[Sequence[Step]]) -> Expert:
    """One that needs no prompts."""

    def call(model_input: Tensor, timestep: Tensor, *, reuse: bool = False) -> Tensor:
        assert not reuse
        (noise_pred,) = model(model_input, timestep)
        return torch.as_tensor(noise_pred)

    return Expert(call, steps, [False] * len(steps))


def run(schedule: Schedule, latents: Tensor, model: torch.nn.Module, cut: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    experts = [expert(model, steps) for steps in split(schedule, cut)]
    draw = lambda: torch.randn(latents.shape, generator=generator)  # noqa: E731
    states = denoise(latents, experts, Guidance(1.0), draw=draw, kept=None)
    return [latents, *states][-1]


def reference(scheduler: Any, timesteps: Tensor, latents: Tensor, model: torch.nn.Module, name: str) -> Tensor:
    """The loop of diffusers' pipelines."""
    generator = torch.Generator().manual_seed(5)
    extra = {"generator": generator} if name in ("K_EULER_ANCESTRAL", "LCM", "TCD") else {}
    for t in timesteps:
        (noise_pred,) = model(scheduler.scale_model_input(latents, t), t)
        (latents, *_) = scheduler.step(noise_pred, t, latents, **extra, return_dict=False)
    return latents


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize(
    ("name", "kind", "karras"),
    [
        ("DDIM", diffusers.DDIMScheduler, None),
        ("DPMSolverMultistep", diffusers.DPMSolverMultistepScheduler, False),
        ("HeunDiscrete", diffusers.HeunDiscreteScheduler, False),
        ("KarrasDPM", diffusers.DPMSolverMultistepScheduler, True),
        ("K_EULER_ANCESTRAL", diffusers.EulerAncestralDiscreteScheduler, None),
        ("K_EULER", diffusers.EulerDiscreteScheduler, False),
        ("PNDM", diffusers.PNDMScheduler, None),
        ("LCM", diffusers.LCMScheduler, None),
        ("TCD", diffusers.TCDScheduler, None),
    ],
)
def test_names_mean_what_they_mean_in_the_reference(
    name: str, kind: type, karras: bool | None, scheduler_config: dict[str, Any]
) -> None:
    scheduler = SCHEDULERS[name].scheduler({**scheduler_config, "use_karras_sigmas": not karras})
    if karras is not None:
        assert scheduler.config["use_karras_sigmas"] is karras
    assert type(scheduler) is kind
    sigmas = make_schedule(name, scheduler_config, 10).steps
    assert (sigmas == make_schedule("KarrasDPM", scheduler_config, 10).steps) == (name == "KarrasDPM")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", STEPS)
def test_equals_diffusers_from_pure_noise(name: str, steps: int, scheduler_config: dict[str, Any]) -> None:
    scheduler = SCHEDULERS[name].scheduler(scheduler_config)
    scheduler.set_timesteps(steps)
    schedule = make_schedule(name, scheduler_config, steps)
    expected = reference(scheduler, scheduler.timesteps, noise() * scheduler.init_noise_sigma, Field(), name)
    assert schedule.init_noise_sigma == pytest.approx(float(scheduler.init_noise_sigma))
    assert relative(run(schedule, noise() * schedule.init_noise_sigma, Field()), expected) < 2e-6
    assert sum(len(calls) for calls in schedule.steps) == len(scheduler.timesteps)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "PNDM"])
@pytest.mark.parametrize("begin", [1, 4, 9])
def test_equals_diffusers_from_the_middle(name: str, begin: int, scheduler_config: dict[str, Any]) -> None:
    scheduler = SCHEDULERS[name].scheduler(scheduler_config)
    scheduler.set_timesteps(10)
    timesteps = scheduler.timesteps[begin * scheduler.order :]
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin * scheduler.order)
    picture = noise(7)
    start = scheduler.add_noise(picture, noise(), timesteps[:1])
    schedule = make_schedule(name, scheduler_config, 10, begin)
    ours = picture * schedule.start.signal + noise() * schedule.start.noise
    assert relative(ours, start) < 1e-6
    expected = reference(scheduler, timesteps, start, Field(), name)
    assert relative(run(schedule, ours, Field()), expected) < 2e-6


@pytest.mark.parametrize("begin", [0, 12, 14, 16])
def test_pndm_is_right_from_the_middle_where_diffusers_is_not(begin: int, scheduler_config: dict[str, Any]) -> None:
    """diffusers assumes that a PLMS run starts at the top of the schedule; elsewhere its timesteps are off by one."""
    scheduler = SCHEDULERS["PNDM"].scheduler(scheduler_config)
    scheduler.set_timesteps(20)
    model = Gaussian(scheduler.alphas_cumprod)
    clean, fresh = noise(7) * 0.5, noise(8)
    schedule = make_schedule("PNDM", scheduler_config, 20, begin)
    level = schedule.start
    start = clean * level.signal + fresh * level.noise
    exact = start * 0.5 / math.hypot(0.5 * level.signal, level.noise)  # the probability-flow ODE solved by hand
    ours = relative(run(schedule, start, model), exact)
    assert ours < 0.03
    if begin:
        timesteps = scheduler.timesteps[begin:]
        start = scheduler.add_noise(clean, fresh, timesteps[:1])
        alpha = float(scheduler.alphas_cumprod[timesteps[0]])
        exact = start * 0.5 / math.sqrt(0.25 * alpha + 1 - alpha)
        assert ours < relative(reference(scheduler, timesteps, start, model, "PNDM"), exact) / 2


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.5, 0.8, 0.99, 1.0])
@pytest.mark.parametrize("steps", [1, 10, 25])
def test_a_handover_changes_nothing_but_the_model(
    name: str, fraction: float, steps: int, scheduler_config: dict[str, Any]
) -> None:
    """Two experts that agree give what one gives, bit for bit: right timestep, right scale, history kept."""
    schedule = make_schedule(name, scheduler_config, steps)
    start = noise() * schedule.init_noise_sigma
    assert torch.equal(run(schedule, start, Field(), fraction), run(schedule, start, Field()))
    base, refiner = split(schedule, fraction)
    cutoff = NUM_TRAIN_TIMESTEPS * (1 - fraction)
    assert all(step[0].timestep >= cutoff - 0.5 for step in base)
    assert all(step[0].timestep <= cutoff + 0.5 for step in refiner)
    if fraction in (0.0, 1.0):
        assert len(refiner if fraction else base) == 0


@pytest.mark.parametrize("name", NAMES)
def test_the_level_of_every_state_is_what_the_table_says(name: str, scheduler_config: dict[str, Any]) -> None:
    """With the exact predictor the spread of each state is known; inpainting blends at these levels."""
    scheduler = SCHEDULERS[name].scheduler(scheduler_config)
    schedule = make_schedule(name, scheduler_config, 100, 20)
    model = exact(name, schedule, scheduler.alphas_cumprod)
    clean, fresh = noise(7, (1, 4, 64, 64)) * 0.5, noise(8, (1, 4, 64, 64))
    generator = torch.Generator().manual_seed(5)
    states = denoise(
        clean * schedule.start.signal + fresh * schedule.start.noise,
        [expert(model, schedule.steps)],
        Guidance(1.0),
        draw=lambda: torch.randn(clean.shape, generator=generator),
        kept=None,
    )
    for step, state in zip(schedule.steps, states, strict=True):
        level = step[-1].after
        assert state.std().item() == pytest.approx(math.hypot(0.5 * level.signal, level.noise), rel=0.05)


TRAILING = {"timestep_spacing": "trailing"}


@pytest.mark.parametrize("name", ["DDIM", "K_EULER_ANCESTRAL", "K_EULER"])
@pytest.mark.parametrize(("steps", "begin"), [(1, 0), (2, 0), (2, 1), (4, 0), (4, 1), (8, 3), (12, 0)])
def test_trailing_steps_equal_diffusers(name: str, steps: int, begin: int, scheduler_config: dict[str, Any]) -> None:
    """As Lightning, Turbo and Hyper-SD want them: from the very noise of the last timestep on."""
    scheduler = SCHEDULERS[name].scheduler(scheduler_config | TRAILING)
    scheduler.set_timesteps(steps)
    timesteps = scheduler.timesteps[begin:]
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    schedule = make_schedule(name, scheduler_config, steps, begin, LAST_TIMESTEP)
    assert schedule.timesteps == tuple(timesteps.tolist())
    assert begin or schedule.timesteps[0] == LAST_TIMESTEP
    start = scheduler.add_noise(noise(7), noise(), timesteps[:1]) if begin else noise() * scheduler.init_noise_sigma
    ours = noise(7) * schedule.start.signal + noise() * schedule.start.noise if begin else start
    assert begin or schedule.init_noise_sigma == pytest.approx(float(scheduler.init_noise_sigma))
    assert relative(run(schedule, ours, Field()), reference(scheduler, timesteps, start, Field(), name)) < 2e-6


@pytest.mark.parametrize("name", NAMES)
def test_every_sampler_can_start_at_the_last_timestep(name: str, scheduler_config: dict[str, Any]) -> None:
    schedule = make_schedule(name, scheduler_config, 10, 0, LAST_TIMESTEP)
    assert schedule.timesteps[0] == LAST_TIMESTEP
    assert schedule == make_schedule(name, scheduler_config | TRAILING, 10, 0, LAST_TIMESTEP)


@pytest.mark.parametrize("kind", [diffusers.LCMScheduler, diffusers.TCDScheduler])
@pytest.mark.parametrize(("first", "timesteps"), [(999, [999, 749, 499, 249]), (800, [800]), (800, [800, 400])])
def test_distilled_timesteps_equal_diffusers(
    kind: Any, first: int, timesteps: list[int], scheduler_config: dict[str, Any]
) -> None:
    """DMD2 was distilled at the first of these, the UNet of Hyper-SD in one step at the second."""
    name = kind.__name__.removesuffix("Scheduler")
    scheduler = SCHEDULERS[name].scheduler(scheduler_config)
    scheduler.set_timesteps(timesteps=timesteps)
    schedule = make_schedule(name, scheduler_config, len(timesteps), 0, first)
    assert schedule.timesteps == pytest.approx(timesteps, abs=1)
    scheduler.timesteps = torch.tensor([int(timestep) for timestep in schedule.timesteps])
    expected = reference(scheduler, scheduler.timesteps, noise(), Field(), name)
    assert relative(run(schedule, noise(), Field()), expected) < 2e-6


@pytest.mark.parametrize("name", ["LCM", "TCD"])
def test_distilled_samplers_take_any_number_of_steps(
    name: str, scheduler_config: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    """Up to 50 are among those of the distillation, and more are spread over all timesteps, with no word about it."""
    among = set(make_schedule(name, scheduler_config, 50).timesteps)
    for steps in (1, 4, 8, 50):
        assert set(make_schedule(name, scheduler_config, steps).timesteps) <= among
    assert make_schedule(name, scheduler_config, 4).timesteps == (999, 759, 499, 259)
    many = make_schedule(name, scheduler_config, 999).timesteps
    assert many[0] == LAST_TIMESTEP
    assert sorted(many, reverse=True) == list(many)
    assert capfd.readouterr() == ("", "")


@given(
    name=st.sampled_from(NAMES),
    steps=st.integers(1, 999),
    share=st.floats(0, 1),
    fraction=st.floats(0, 1),
)
@settings(deadline=None, max_examples=60)
def test_any_schedule_is_finite_and_whole(
    name: str, steps: int, share: float, fraction: float, scheduler_config: dict[str, Any]
) -> None:
    begin = round(steps * share)
    schedule = make_schedule(name, scheduler_config, steps, begin)
    assert len(schedule.steps) == steps - begin
    base, refiner = split(schedule, fraction)
    assert [*base, *refiner] == list(schedule.steps)
    for call in (call for step in schedule.steps for call in step):
        assert all(map(math.isfinite, (*call.latents, *call.noise_preds, call.input_scale, call.timestep)))
        assert 0 <= call.timestep < NUM_TRAIN_TIMESTEPS


def test_one_name_leaves_nothing_for_the_next(scheduler_config: dict[str, Any]) -> None:
    """C-6: in the reference KarrasDPM switches Karras sigmas on for later requests."""
    before = {name: make_schedule(name, scheduler_config, 10) for name in NAMES}
    for name in ("KarrasDPM", *NAMES):
        assert make_schedule(name, scheduler_config, 10) == before[name]
    assert before["KarrasDPM"] != before["DPMSolverMultistep"]
