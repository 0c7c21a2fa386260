"""Folding in place: nothing compiled notices, every tier of memory takes it, and what comes out is what went in."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import weights
from sdxl.finetune.changes import LowRank, fold
from sdxl.finetune.slot import Slot
from sdxl.models import Models, load_models
from sdxl.placement import Placement
from tests import tunes
from tests.painting import difference, picture
from tests.tuned import CPU, changed, read_tensors, slot_for, state

STEPS: dict[str, Any] = {"num_inference_steps": 3}


def test_nothing_is_compiled_anew(models: Models, tmp_path: Path) -> None:
    """Graphs were made without weights; with two LoRAs in turn, at two scales, no more are made, and they compute with
    the new weights."""
    tuned = [
        read_tensors(models, tmp_path / str(seed), tunes.kohya_sgm(tunes.make_lora(models, seed=seed)))
        for seed in (1, 2)
    ]
    compiled: Any = torch.compile(models.base, backend="eager")
    sample, timestep = torch.randn(2, 4, 16, 16), torch.tensor(7)
    conditions: dict[str, Any] = {
        "encoder_hidden_states": torch.randn(2, 77, 160),
        "added_cond_kwargs": {"text_embeds": torch.randn(2, 96), "time_ids": torch.ones(2, 6)},
        "return_dict": False,
    }
    dynamo: Any = torch._dynamo
    with torch.no_grad(), slot_for(models) as slot:
        dynamo.reset()
        before = compiled(sample, timestep, **conditions)[0]
        graphs = dynamo.utils.counters["stats"]["unique_graphs"]
        assert graphs >= 1
        for tune, scale in ((tuned[0], 0.6), (tuned[1], 0.6), (tuned[1], -1.0)):
            slot.set([(tune, scale)])
            after = compiled(sample, timestep, **conditions)[0]
            assert float((after - before).abs().max()) > 0.1
            torch.testing.assert_close(after, models.base(sample, timestep, **conditions)[0], rtol=0, atol=1e-5)
        slot.set([])
        assert torch.equal(compiled(sample, timestep, **conditions)[0], before)
        assert dynamo.utils.counters["stats"]["unique_graphs"] == graphs


@pytest.mark.parametrize("tier", ["swap", "stream"])
def test_every_tier_folds(models: Models, tmp_path: Path, tier: str) -> None:
    """Where a layer comes to the device for each call, what it comes from is changed."""
    lora = tunes.kohya_sgm(tunes.make_lora(models, parts=models.parts, where="conv too", alpha=1.0))
    plain = picture(models, **STEPS)
    with slot_for(models) as slot:
        slot.set([(read_tensors(models, tmp_path, lora), 0.8)])
        tuned = picture(models, **STEPS)
    other = load_models(weights.resolve("miniature"), Placement(CPU, tier), torch.float32)
    slot = Slot(other.parts, other.text.clear)
    slot.set([(read_tensors(models, tmp_path, lora), 0.8)])
    assert difference(picture(other, **STEPS), tuned) <= 1
    slot.set([])
    assert difference(picture(other, **STEPS), plain) <= 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [1e-6, 1.0, 300.0])
def test_half_precision_loses_nothing_but_the_last_rounding(dtype: torch.dtype, size: float) -> None:
    """However small or large the factors are written; against the fold in float64."""
    generator = torch.Generator().manual_seed(3)
    weight = (torch.randn(64, 96, generator=generator) * 0.05).to(dtype)
    up, down = torch.randn(64, 8, generator=generator) * size, torch.randn(8, 96, generator=generator) / size * 1e-3
    exact = weight.double() + 0.7 * up.double() @ down.double()
    out = weight.clone()
    fold(out, weight, [(LowRank(up, down, 1.0).rounded(dtype), 0.7)])
    nearest = exact.to(dtype)
    worst = float((out.double() - exact).abs().max())
    assert worst <= 1.3 * float((nearest.double() - exact).abs().max()) + 1e-7


@given(
    st.lists(
        st.tuples(st.sampled_from([0, 1, 2]), st.floats(-3, 3, allow_nan=False), st.booleans()), min_size=1, max_size=6
    )
)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_out_is_what_was_before(
    models: Models, tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, float, bool]]
) -> None:
    """Any course of folds, each alone or on top of another one, ends at the very weights."""
    folder = tmp_path_factory.mktemp("tunes")
    wheres = ("attention", "conv too", "everything")
    tuned = [
        read_tensors(models, folder / where, tunes.kohya_sgm(tunes.make_lora(models, where=where, rank=2, alpha=1.0)))
        for where in wheres
    ]
    before = state(models)
    with slot_for(models) as slot:
        for number, scale, more in steps:
            slot.set([(tuned[number], scale), *([(tuned[0], 0.5)] if more else [])])
        slot.set([])
        assert changed(models, before) == []
