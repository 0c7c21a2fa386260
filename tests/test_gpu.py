"""What only a card can show. Run with `pytest -m gpu`; the last ones want SDXL 1.0's weights (SDXL_MODEL=sdxl-1.0)."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import weights
from sdxl.models import Models, load_models
from sdxl.placement import GIB, Placement
from tests import tunes
from tests.painting import difference, picture
from tests.tuned import read_tensors, slot_for

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def on_card(tier: str, model: str = "miniature") -> Models:
    return load_models(weights.resolve(model), Placement(torch.device("cuda"), tier), torch.float16)


@pytest.fixture
def peak() -> None:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


def psnr(a: Image.Image, b: Image.Image) -> float:
    error = np.mean((np.asarray(a, float) - np.asarray(b, float)) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


@pytest.mark.parametrize("scheduler", ["K_EULER", "DPMSolverMultistep", "PNDM"])
def test_half_precision_gives_the_cpus_picture(scheduler: str, models: Models) -> None:
    assert psnr(picture(on_card("resident"), scheduler=scheduler), picture(models, scheduler=scheduler)) > 30


@pytest.mark.parametrize("tier", ["swap", "stream"])
def test_every_tier_gives_the_same_picture(tier: str) -> None:
    made = [picture(on_card(each), refine="expert_ensemble_refiner") for each in (tier, "resident")]
    assert difference(*made) <= 1


@pytest.mark.parametrize("tier", ["resident", "swap", "stream"])
def test_fine_tunes_on_a_card(tier: str, models: Models, tmp_path: Path) -> None:
    """The picture of the CPU, and out again to the bit."""
    other = on_card(tier)
    tune = read_tensors(models, tmp_path, tunes.kohya_sgm(tunes.make_lora(models, parts=models.parts)))
    plain = picture(other)
    with slot_for(other) as slot:
        slot.set([(tune, 0.6)])
        tuned = picture(other)
    with slot_for(models) as slot:
        slot.set([(tune, 0.6)])
        assert psnr(tuned, picture(models)) > 30
    assert difference(picture(other), plain) == 0


@pytest.mark.skipif(os.environ.get("SDXL_MODEL") != "sdxl-1.0", reason="needs SDXL 1.0 (SDXL_MODEL=sdxl-1.0)")
@pytest.mark.parametrize(("tier", "limit"), [("resident", 20), ("swap", 12), ("stream", 8)])
@pytest.mark.usefixtures("peak")
def test_memory_of_each_tier(tier: str, limit: float) -> None:
    made = picture(on_card(tier, "sdxl-1.0"), refine="expert_ensemble_refiner")
    assert np.asarray(made).std() > 5, "a flat picture: NaN or an overflow in the VAE"
    assert torch.cuda.max_memory_allocated() <= limit * GIB
