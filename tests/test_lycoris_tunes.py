"""`lycoris_tunes.py`: that what LyCORIS and PEFT merge is what they run, and where it is not."""

import copy
from dataclasses import replace

import pytest
from torch import Tensor, nn

from sdxl.models import Models
from tests import tunes
from tests.lycoris_tunes import CASES, NAMES, Tune, lycoris_files, peft_dora, unfused
from tests.test_tunes import NEAR, distance, seen
from tests.tunes import UNET

AT_ONE = [case for case in CASES if "oft" in case or "dora" in case]  # LyCORIS takes another way there


def folded(unet: nn.Module, tune: Tune) -> nn.Module:
    module = copy.deepcopy(unet)
    module.load_state_dict(tune.merged, strict=False)
    return module


@pytest.mark.parametrize(("case", "multiplier"), [*((case, 0.6) for case in CASES), *((case, 1.0) for case in AT_ONE)])
def test_lycoris_runs_what_it_merges(case: str, multiplier: float, models: Models) -> None:
    tune = lycoris_files(models.base, **CASES[case], multiplier=multiplier)
    wanted = seen(tune.attached)
    assert distance(seen(folded(models.base, tune)), wanted) < NEAR
    assert 0.03 < distance(seen(models.base), wanted) < 1


@pytest.mark.parametrize("algo", ["loha", "lokr"])
def test_lycoris_merges_alpha_twice(algo: str, models: Models) -> None:
    """LyCORIS 4.1.3: `get_weight` has alpha / rank in it, and `get_diff_weight` multiplies by it again."""
    plain = lycoris_files(models.base, algo, rank=2, alpha=0.5)
    assert distance(seen(folded(models.base, plain)), seen(plain.attached)) > 0.03
    # What it trains and runs has it once, a quarter here, where the merge has a sixteenth.
    once = {name: original(models, name) + 4 * (value - original(models, name)) for name, value in plain.merged.items()}
    assert distance(seen(folded(models.base, replace(plain, merged=once))), seen(plain.attached)) < NEAR


def original(models: Models, name: str) -> Tensor:
    return models.base.get_parameter(name).detach()


def test_the_file_of_full_is_the_change(models: Models) -> None:
    tune = lycoris_files(models.base, **CASES["full"], names="diffusers")
    for name, value in tune.merged.items():
        path, _, kind = name.rpartition(".")
        change = tune.tensors[f"{NAMES['diffusers'](path)}.{'diff' if kind == 'weight' else 'diff_b'}"]
        assert distance(original(models, name) + change, value) < NEAR


@pytest.mark.parametrize("name", NAMES)
def test_names(name: str, models: Models) -> None:
    tune = lycoris_files(models.base, "locon", names=name)
    paths = {NAMES[name](path) for path in tunes.layers(models.base, "conv too")}
    assert {key.split(".")[0] for key in tune.tensors} == paths


def test_shapes_of_dora_scales(models: Models) -> None:
    """One number per output (out, 1[, 1, 1]) or per input (1, in[, 1, 1])."""
    for on_output in (True, False):
        tensors = lycoris_files(models.base, "locon", dora_wd=True, wd_on_output=on_output, names="diffusers").tensors
        linear = tensors["lora_unet_up_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k.dora_scale"]
        conv = tensors["lora_unet_up_blocks_1_resnets_0_conv1.dora_scale"]
        assert linear.shape == ((64, 1) if on_output else (1, 160))
        assert conv.shape == ((64, 1, 1, 1) if on_output else (1, 160, 1, 1))


def test_peft_runs_the_dora_that_it_merges(models: Models) -> None:
    tune = peft_dora(models.base)
    wanted = seen(tune.attached)
    assert distance(seen(folded(models.base, tune)), wanted) < NEAR
    assert 0.03 < distance(seen(models.base), wanted) < 1
    resnet = "unet.up_blocks.1.resnets.0.{}.lora_magnitude_vector"
    assert tune.tensors[resnet.format("conv1")].shape == (1, 64, 1, 1)
    assert tune.tensors[resnet.format("time_emb_proj")].shape == (64,)


@pytest.mark.parametrize("scale", [1.0, 0.6, -0.5])
def test_peft_unfused_is_the_sum(scale: float, models: Models) -> None:
    lora = tunes.make_lora(models, where="everything", alpha=1.5)
    wanted = seen(tunes.merged(models.base, lora, UNET, scale))
    assert distance(seen(unfused(models.base, lora, scale)), wanted) < NEAR
