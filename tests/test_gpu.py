"""What only a card can show. Run with `pytest -m gpu`; the last ones want SDXL 1.0's weights (SDXL_MODEL=sdxl-1.0)."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import weights
from errors import InputError
from sdxl.engine import Engines
from sdxl.generate import encode_text, paint, plan
from sdxl.graphs import Graphs
from sdxl.linear import KINDS
from sdxl.models import Models, load_models
from sdxl.placement import GIB, Placement
from sdxl.progress import Progress
from sdxl.unet import block
from tests import tunes
from tests.painting import difference, make_request, picture, pictures
from tests.test_training import begun
from tests.training import SQUARE, files, job, trained
from tests.tuned import read_tensors, slot_for
from trainer.loop import training_steps
from trainer.run import exact, recorder_for, run

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


def called(engine: str, tmp_path: Path, at_once: int = 1) -> Models:
    placement = Placement(torch.device("cuda"), "resident", at_once)
    engines = Engines(placement, engine, tmp_path)
    return load_models(weights.resolve("miniature"), placement, torch.float16, engines=engines)


@pytest.mark.parametrize("asked", [{}, {"guidance_scale": 1.0, "scheduler": "PNDM"}, {"width": 152, "height": 136}])
def test_graphs_draw_the_same_bits(asked: dict[str, Any], tmp_path: Path) -> None:
    graphed, eager = called("graph", tmp_path), called("eager", tmp_path)
    for prompt in ("a red circle", "a green square", "a red circle"):
        assert difference(*(picture(each, prompt=prompt, **asked) for each in (graphed, eager))) == 0
    runs = graphed.engines.of(graphed.base)._runs
    assert isinstance(runs, Graphs)
    assert not runs._failed


def test_compiled_blocks_draw_nearly_the_same(tmp_path: Path) -> None:
    """No further from float32 than twice what float16 is."""
    compiled = called("compile", tmp_path)
    compiled.engines.prepare(compiled.base)
    found = psnr(picture(compiled), picture(called("eager", tmp_path)))
    assert compiled.engines.of(compiled.base)._unet.block is not block
    assert found > 30


def test_the_loop_waits_for_nothing(tmp_path: Path) -> None:
    """But for the step before the last, so that the bar tells the truth (`Progress.step`)."""
    graphed = called("graph", tmp_path)
    picture(graphed)
    request = make_request(graphed)
    passes = plan(graphed, request)
    with torch.inference_mode(), Progress(0) as progress:
        embeds = encode_text(graphed, request)
        noise = torch.randn(1, 4, 16, 16, device="cuda")
        torch.cuda.set_sync_debug_mode("error")
        try:
            paint(graphed, request, passes, embeds, None, lambda: noise, progress)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_pictures_at_once_on_a_card(tmp_path: Path) -> None:
    together, alone = called("graph", tmp_path, at_once=4), called("graph", tmp_path)
    made = zip(pictures(together, (3, 4, 5, 6, 7)), pictures(alone, (3, 4, 5, 6, 7)), strict=True)
    assert min(psnr(*pair) for pair in made) > 30


@pytest.mark.parametrize("quantization", ["int8", "fp8"])
def test_eight_bits_on_a_card(quantization: str, models: Models, tmp_path: Path) -> None:
    if torch.cuda.get_device_capability() < KINDS[quantization].capability:
        with pytest.raises(InputError, match="choose another"):
            picture(called("graph", tmp_path), quantization=quantization)
        return
    assert psnr(picture(called("graph", tmp_path), quantization=quantization), picture(models)) > 20


@pytest.mark.skipif(os.environ.get("SDXL_MODEL") != "sdxl-1.0", reason="needs SDXL 1.0 (SDXL_MODEL=sdxl-1.0)")
@pytest.mark.parametrize(("tier", "limit"), [("resident", 20), ("swap", 12), ("stream", 8)])
@pytest.mark.usefixtures("peak")
def test_memory_of_each_tier(tier: str, limit: float) -> None:
    made = picture(on_card(tier, "sdxl-1.0"), refine="expert_ensemble_refiner")
    assert np.asarray(made).std() > 5, "a flat picture: NaN or an overflow in the VAE"
    assert torch.cuda.max_memory_allocated() <= limit * GIB


@pytest.mark.parametrize("is_lora", [True, False])
def test_trainings_on_a_card(is_lora: bool, tmp_path: Path) -> None:
    """In 16 bits beside float32: the same bytes twice, and the losses of the CPU, nearly."""
    asked: dict[str, Any] = {"is_lora": is_lora, "max_train_steps": 6, "unet_learning_rate": 1e-4, "masks": True}
    one, other = (trained(tmp_path / name, **asked) for name in ("one", "other"))
    same = {name: content == other[name] for name, content in one.items() if name.endswith((".safetensors", ".pti"))}
    assert all(same.values()), same
    losses = json.loads(one["training_report.json"])["losses"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        expected = json.loads(trained(tmp_path / "cpu", **asked)["training_report.json"])["losses"]
    assert losses == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(
    "asked", [{}, {"pivot": 0.0, "masks": True}, {"count": 6, "sizes": (SQUARE, (96, 160)), "max_train_steps": 16}]
)
def test_recorded_steps_on_a_card(asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes of a training whose steps are launched one by one; and they were recorded."""
    said = list[str]()
    made = job(tmp_path / "recorded", **{"max_train_steps": 8} | asked)
    run(made, said.append, lambda: None)
    assert said == []
    monkeypatch.setenv("SDXL_ENGINE", "eager")
    plain = trained(tmp_path / "plain", **{"max_train_steps": 8} | asked)
    for name, content in files(made.out).items():
        assert content == plain[name] or not name.endswith((".safetensors", ".pti")), name


def test_a_training_waits_for_nothing(tmp_path: Path) -> None:
    """Neither before the pivot nor after it; but for the recording itself, in the second step of each half. By then the
    encoders have left the card."""
    training, models = begun(tmp_path / "job", max_train_steps=12, pivot=0.5)
    training.recorder = recorder_for(training.config, training.ranks, models.placement.device, pytest.fail)
    assert training.recorder is not None
    with exact():
        for done, _loss in training_steps(training, 0):
            torch.cuda.set_sync_debug_mode("error" if 2 <= done % 6 <= 5 else "default")
    torch.cuda.set_sync_debug_mode("default")
    assert models.text.text_encoder.device.type == "cpu"
    training.finish()


@pytest.mark.skipif(os.environ.get("SDXL_MODEL") != "sdxl-1.0", reason="needs SDXL 1.0")
@pytest.mark.usefixtures("peak")
def test_a_training_of_sdxl_fits(tmp_path: Path) -> None:
    """768 px in batches of 4, rank 32, without checkpointing: 27 GB and less."""
    made = job(tmp_path / "job", sizes=((768, 768),), train_batch_size=4, lora_rank=32, lora_lr=1e-4, ti_lr=3e-4)
    run(replace(made, files=weights.resolve("sdxl-1.0")), print, lambda: None)
    assert torch.cuda.max_memory_allocated() <= 27 * 10**9
