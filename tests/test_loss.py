"""The mathematics of a step."""

from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr
from hypothesis import given
from hypothesis import strategies as st

from trainer.loss import denoising_loss, draw, noisy, snr_weights


@pytest.fixture(scope="module")
def scheduler(request: pytest.FixtureRequest) -> Any:
    make: Any = DDPMScheduler.from_config
    return make(request.getfixturevalue("scheduler_config"))


def test_noise_is_added_as_the_scheduler_adds_it(scheduler: Any) -> None:
    latents, noise = torch.randn(5, 4, 8, 8), torch.randn(5, 4, 8, 8)
    timesteps = torch.tensor([0, 1, 500, 998, 999])
    expected = scheduler.add_noise(latents, noise, timesteps)
    assert torch.equal(noisy(latents, noise, scheduler.alphas_cumprod[timesteps]), expected)


@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_is_that_of_diffusers(scheduler: Any, gamma: float) -> None:
    timesteps = torch.arange(0, 1000, 37)
    snr: torch.Tensor = compute_snr(scheduler, timesteps)  # type: ignore[no-untyped-call]
    expected = torch.stack([snr, gamma * torch.ones_like(snr)], 1).min(1)[0] / snr
    assert torch.allclose(snr_weights(scheduler.alphas_cumprod[timesteps], gamma), expected, rtol=1e-5)


def test_gamma_0_weighs_all_the_same(scheduler: Any) -> None:
    assert torch.equal(snr_weights(scheduler.alphas_cumprod, 0.0), torch.ones(1000))


@given(st.integers(1, 8), st.integers(1, 8))
def test_a_small_mask_counts_as_much_as_a_large_one(height: int, width: int) -> None:
    """An error of 4 everywhere is an error of 4 under any mask: nothing is divided by what the mask leaves out."""
    noise = torch.randn(1, 4, 8, 8)
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :height, :width] = 1
    assert denoising_loss(noise + 2, noise, mask, torch.ones(1)) == pytest.approx(4, rel=1e-5)
    assert denoising_loss(noise + 2, noise, None, torch.ones(1)) == pytest.approx(4, rel=1e-5)


def test_what_is_masked_out_teaches_nothing() -> None:
    predicted = torch.randn(1, 4, 8, 8, requires_grad=True)
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    denoising_loss(predicted, torch.randn(1, 4, 8, 8), mask, torch.ones(1)).backward()  # type: ignore[no-untyped-call]
    assert predicted.grad is not None
    assert float(predicted.grad[..., 4:].abs().max()) == 0
    assert float(predicted.grad[..., :4].abs().min()) > 0


def test_pictures_of_a_batch_weigh_what_they_should() -> None:
    noise = torch.zeros(2, 4, 8, 8)
    predicted = torch.stack([torch.ones(4, 8, 8), 3 * torch.ones(4, 8, 8)])
    mask = torch.stack([torch.ones(1, 8, 8), torch.zeros(1, 8, 8)])
    mask[1, :, 0, 0] = 1
    assert denoising_loss(predicted, noise, mask, torch.tensor([1.0, 0.5])) == pytest.approx((1 + 4.5) / 2)


KEYS = st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 10**6), st.integers(0, 1))


@given(KEYS, KEYS)
def test_draws_depend_on_their_key_alone(one: tuple[int, ...], other: tuple[int, ...]) -> None:
    first = draw((1, 4, 4, 4), key=one, train_timesteps=1000, dropout=0.5)
    torch.rand(7)
    again = draw((1, 4, 4, 4), key=one, train_timesteps=1000, dropout=0.5)
    assert all(torch.equal(value, vars(again)[name]) for name, value in vars(first).items())
    if one != other:
        assert not torch.equal(first.noise, draw((1, 4, 4, 4), key=other, train_timesteps=1000, dropout=0.5).noise)


def test_draws_are_spread_as_they_should_be() -> None:
    found = draw((4000, 4, 2, 2), key=(1,), train_timesteps=1000, dropout=0.25)
    assert float(found.dropped.float().mean()) == pytest.approx(0.25, abs=0.03)
    assert float(found.timesteps.float().mean()) == pytest.approx(499.5, abs=15)
    assert int(found.timesteps.min()) < 5
    assert int(found.timesteps.max()) > 994
    for each in (found.noise, found.sample, found.offset):
        assert float(each.mean()) == pytest.approx(0, abs=0.03)
        assert float(each.std()) == pytest.approx(1, abs=0.03)
    assert not torch.equal(found.noise, found.sample)
