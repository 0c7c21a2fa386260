"""Few-step weights: how they are told from others, and what a prediction with them does."""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import LatentConsistencyModelPipeline, UNet2DConditionModel
from PIL import Image

from errors import InputError, WeightsError
from predict import Predictor
from sdxl.few_step import KINDS, LCM, named, of_model
from sdxl.models import Models, config_of, load_models
from sdxl.output import read_parameters
from sdxl.placement import Placement
from sdxl.request import DEFAULTS, Sampling
from tests import tuned, tunes
from tests.painting import SAMPLING, difference, picture
from tests.predicting import DEFAULTS as SIGNATURE
from tests.predicting import predict, show
from tests.test_state import started
from weights import MINIATURE, resolve

UNASKED = Sampling(**SAMPLING | DEFAULTS)
OFFICIAL = {
    "LCM: 4 steps, LCM, guidance 1": [
        "latent-consistency/lcm-lora-sdxl",
        "huggingface.co/latent-consistency/lcm-lora-sdxl/resolve/main/pytorch_lora_weights.safetensors",
        "LCM_LoRA_Weights_SDXL",
        "sdxl_lcm_lora_v1",
    ],
    "SDXL-Lightning: 2 steps, K_EULER trailing, guidance 0": ["sdxl_lightning_2step_lora"],
    "SDXL-Lightning: 4 steps, K_EULER trailing, guidance 0": [
        "ByteDance/SDXL-Lightning/sdxl_lightning_4step_lora.safetensors",
        "sdxl_lightning_4step",
        "SDXL-Lightning-4steps-LoRA-fp16",
    ],
    "SDXL-Lightning: 8 steps, K_EULER trailing, guidance 0": [
        "https://example.com/w/sdxl_lightning_8step_unet.safetensors?download=true"
    ],
    "Hyper-SD: 1 step, TCD, guidance 0": ["Hyper-SDXL-1step-lora"],
    "Hyper-SD: 1 step, LCM from 800, guidance 0": ["Hyper-SDXL-1step-Unet", "Hyper-SDXL-1step-Unet-Comfyui.fp16"],
    "Hyper-SD: 2 steps, DDIM trailing, guidance 0": ["Hyper-SDXL-2steps-lora"],
    "Hyper-SD: 8 steps, DDIM trailing, guidance 0": ["ByteDance/Hyper-SD/Hyper-SDXL-8steps-lora.safetensors"],
    "Hyper-SD: 8 steps, DDIM trailing, guidance 5": ["Hyper-SDXL-8steps-CFG-lora"],
    "Hyper-SD: 12 steps, DDIM trailing, guidance 5": ["Hyper-SDXL-12steps-CFG-lora"],
    "TCD: 4 steps, TCD, guidance 0": ["h1t/TCD-SDXL-LoRA", "tcd_sdxl_lora"],
    "DMD2: 4 steps, LCM trailing, guidance 0": ["dmd2_sdxl_4step_lora_fp16", "tianweiy/DMD2"],
    "DMD2: 1 step, LCM from 399, guidance 0": ["dmd2_sdxl_1step_unet_fp16"],
    "SDXL-Turbo: 1 step, K_EULER_ANCESTRAL trailing, guidance 0": [
        "stabilityai/sdxl-turbo",
        "/models/sd_xl_turbo_1.0_fp16.safetensors",
        "sd_xl_turbo_lora_v1",
    ],
}
ORDINARY = [
    *("hyperrealism", "Hyperrealistic_SDXL_v3", "hyper_sdxl_detail", "hyperpunk-xl", "hyper_sdxl_12_stepsisters"),
    *("turbo", "turbocharger", "sdxl_turbocharger", "SDXL-Turbo-Porsche-911", "porsche_911_turbo_sdxl"),
    *("Lightning McQueen", "lightning_mcqueen_sdxl", "SDXL Lightning Strike", "sdxl-lightning-bolts-8k"),
    *("Lightning_and_Thunder_4", "zeus-lightning-xl", "sdxl_lightning_4stepped_towers"),
    *("LCMuseum", "lcmstyle_xl", "owner/lcm", "lcmlora", "TCDesigns_XL", "tcd", "admd2000", "owner/dmd2k"),
    *("4step_staircase", "one-step-at-a-time-sdxl", "pytorch_lora_weights", "examples/heart.tar"),
    *("data:... (1234 bytes)", "civitai.com/model-versions/4321", ""),
]


@pytest.mark.parametrize(("expected", "name"), [(line, name) for line, names in OFFICIAL.items() for name in names])
def test_official_names_say_what_is_set(expected: str, name: str) -> None:
    """The advice of each model's card, for a request that asks for nothing."""
    recipe = named(name)
    assert recipe is not None
    assert f"{recipe.title}: {UNASKED.fitted(recipe).said()}" == expected


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_names_say_nothing(name: str) -> None:
    assert named(name) is None
    assert named(f"https://huggingface.co/owner/{name}.safetensors") is None


@pytest.mark.parametrize(
    ("name", "config", "kind"),
    [
        ("sdxl-1.0", {}, None),
        ("/models/base", {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "trailing"}, None),
        ("/models/fast", {"_class_name": "LCMScheduler"}, "lcm"),
        ("/models/fast", {"_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "trailing"}, "turbo"),
        ("/models/sdxl_lightning_4step.safetensors", {"_class_name": "EulerDiscreteScheduler"}, "lightning"),
    ],
)
def test_a_model_says_it_by_name_or_scheduler(name: str, config: dict[str, str], kind: str | None) -> None:
    recipe = of_model(name, config)
    assert (recipe.kind if recipe else None) == kind


def test_what_counts_as_unasked_is_the_signature_s_default() -> None:
    assert {name: SIGNATURE[name] for name in DEFAULTS} == DEFAULTS


@pytest.mark.parametrize("guidance_scale", [0.0, 1.0])
def test_up_to_one_is_no_guidance(guidance_scale: float, models: Models) -> None:
    """Half the work, the same picture: the negative prompt is not looked at."""
    batches: list[int] = []

    def count(_: Any, args: tuple[torch.Tensor, ...]) -> None:
        batches.append(len(args[0]))

    handle = models.base.time_embedding.register_forward_pre_hook(count)
    try:
        ours = picture(models, num_inference_steps=4, guidance_scale=guidance_scale, negative_prompt="red")
    finally:
        handle.remove()
    assert batches == [1, 1, 1, 1]
    assert difference(ours, picture(models, num_inference_steps=4, guidance_scale=0.5)) == 0


LORAS = ("sdxl_lightning_4step_lora", "lcm_lora_sdxl", "hyperrealism", "sdxl_lightning_1step_x0", "header")
FREE: dict[str, Any] = {"seed": 5, "disable_safety_checker": True, "apply_watermark": False} | DEFAULTS


@pytest.fixture(scope="module", autouse=True)
def sources(tmp_path_factory: pytest.TempPathFactory, models: Models) -> Iterator[dict[str, str]]:
    """The same LoRA under several names; of the last only the header tells."""
    folder = tmp_path_factory.mktemp("weights")
    tensors = tunes.kohya_sgm(tunes.make_lora(models, seed=2))
    for name in LORAS:
        tunes.save(folder, tensors, {"ss_output_name": "lcm-lora-sdxl"} if name == "header" else None, name)
    found = {name: str(folder / f"{name}.safetensors") for name in LORAS}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SDXL_CACHE", str(folder / "cache"))
        patch.setenv("SDXL_LOCAL_FILES", os.pathsep.join(found.values()))
        yield found


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return started()  # after `sources`, which every test of this module is in


def drawn(predictor: Predictor, name: str, **asked: Any) -> tuple[Image.Image, dict[str, Any]]:
    """The picture with a LoRA, and what its file says."""
    (path,) = predict(predictor, **FREE | {"lora_weights": [name]} | asked)
    return show(path), read_parameters(path)


def settings(parameters: dict[str, Any]) -> tuple[Any, ...]:
    names = ("few_step", "scheduler", "num_inference_steps", "guidance_scale", "first_timestep")
    return tuple(parameters.get(name) for name in names)


def test_weights_bring_their_settings(
    predictor: Predictor, sources: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    _, parameters = drawn(predictor, sources["sdxl_lightning_4step_lora"])
    assert settings(parameters) == ("lightning", "K_EULER", 4, 0, 999)
    assert "SDXL-Lightning: 4 steps, K_EULER trailing, guidance 0\n" in capsys.readouterr().out
    image, parameters = drawn(predictor, sources["lcm_lora_sdxl"])
    assert settings(parameters) == ("lcm", "LCM", 4, 1, None)
    told, parameters = drawn(predictor, sources["header"])
    assert settings(parameters) == ("lcm", "LCM", 4, 1, None)
    by_hand, parameters = drawn(
        predictor,
        sources["hyperrealism"],
        scheduler="LCM",
        num_inference_steps=4,
        guidance_scale=1.0,
    )
    assert settings(parameters) == ("auto", "LCM", 4, 1, None)
    assert difference(image, by_hand) == difference(told, by_hand) == 0


def test_what_is_asked_for_stays(predictor: Predictor, sources: dict[str, str]) -> None:
    asked = {"num_inference_steps": 2, "guidance_scale": 1.5, "scheduler": "DDIM"}
    _, parameters = drawn(predictor, sources["sdxl_lightning_4step_lora"], **asked)
    assert settings(parameters) == ("lightning", "DDIM", 2, 1.5, 999)


def test_off_and_a_kind_by_hand(predictor: Predictor, sources: dict[str, str]) -> None:
    """A name that tells nothing can be told; one that tells can be silenced, and is nothing but a LoRA then."""
    _, parameters = drawn(predictor, sources["hyperrealism"], few_step="tcd")
    assert settings(parameters) == ("tcd", "TCD", 4, 0, None)
    quick = {"num_inference_steps": 3}
    silenced, parameters = drawn(predictor, sources["lcm_lora_sdxl"], few_step="off", **quick)
    assert settings(parameters) == ("off", "K_EULER", 3, 7.5, None)
    assert difference(silenced, drawn(predictor, sources["hyperrealism"], **quick)[0]) == 0
    _, parameters = drawn(predictor, sources["sdxl_lightning_4step_lora"], lora_scales=[0.0], **quick)
    assert settings(parameters) == ("auto", "K_EULER", 3, 7.5, None)


def test_as_replicate_weights_they_count_whole(predictor: Predictor, sources: dict[str, str]) -> None:
    """They were distilled at 1; lora_scale's default is for subjects, and any other value is a wish."""
    alone: dict[str, Any] = {"lora_weights": None, "replicate_weights": sources["lcm_lora_sdxl"]}
    image, parameters = drawn(predictor, "", **alone)
    assert [each["scale"] for each in parameters["weights"]] == [1.0]
    assert difference(image, drawn(predictor, sources["lcm_lora_sdxl"])[0]) == 0
    for asked, scale in (({"lora_scale": 0.7}, 0.7), ({"few_step": "off", "num_inference_steps": 2}, 0.6)):
        _, parameters = drawn(predictor, "", **alone | asked)
        assert [each["scale"] for each in parameters["weights"]] == [scale]


@pytest.mark.parametrize(
    ("name", "asked", "message"),
    [
        ("hyperrealism", {"few_step": "lcm", "refine": "base_image_refiner"}, "the refiner needs many steps"),
        ("lcm_lora_sdxl", {"refine": "expert_ensemble_refiner"}, "the refiner needs many steps"),
        ("sdxl_lightning_1step_x0", {}, "predicts the picture and not the noise"),
        ("hyperrealism", {"few_step": "fast"}, "few_step='fast' is not known; choose one of auto, off, lcm"),
    ],
)
def test_refusals(
    name: str, asked: dict[str, Any], message: str, predictor: Predictor, sources: dict[str, str]
) -> None:
    with pytest.raises(InputError, match=message):
        drawn(predictor, sources[name], **asked)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_draws_and_changes_pictures_and_repaints(kind: str, predictor: Predictor, tmp_path: Path) -> None:
    """Without weights of its kind too: what it is set to is all that the input says."""
    Image.new("RGB", (128, 128), (200, 40, 40)).save(tmp_path / "photo.png")
    Image.new("L", (128, 128), 255).save(tmp_path / "mask.png")
    photo, mask = tmp_path / "photo.png", tmp_path / "mask.png"
    for given in ({}, {"image": photo}, {"image": photo, "mask": mask}):
        (path,) = predict(predictor, **FREE | {"few_step": kind} | given)
        assert read_parameters(path)["few_step"] == kind


def distilled(models: Models) -> torch.nn.Module:
    """The miniature's UNet as one that reads the guidance scale, with a random way to read it."""
    torch.manual_seed(3)
    kind: Any = UNet2DConditionModel
    unet: torch.nn.Module = kind.from_config({**config_of(models.base), "time_cond_proj_dim": 32})
    unet.load_state_dict(models.base.state_dict(), strict=False)
    torch.nn.init.normal_(unet.get_parameter("time_embedding.cond_proj.weight"), std=0.3)
    return unet.eval()


@torch.no_grad()
def test_a_whole_lcm_unet_has_its_guidance_built_in(models: Models, tmp_path: Path) -> None:
    """Exactly what diffusers computes for guidance 8 of `latent-consistency/lcm-sdxl`."""
    unet: Any = distilled(models)
    tune = tuned.read_tensors(models, tmp_path, unet.state_dict())
    assert tune.recipe == LCM
    assert tune.whole
    embed: Any = LatentConsistencyModelPipeline.get_guidance_scale_embedding
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(1, 4, 16, 16, generator=generator)
    config = config_of(unet)
    pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    told: dict[str, Any] = {
        "encoder_hidden_states": torch.randn(1, 77, config.cross_attention_dim, generator=generator),
        "added_cond_kwargs": {
            "text_embeds": torch.randn(1, pooled, generator=generator),
            "time_ids": torch.full((1, 6), 128.0),
        },
    }
    expected = unet(latents, torch.tensor(499), timestep_cond=embed(None, torch.tensor([7.0]), 32), **told).sample
    with tuned.slot_for(models) as slot:
        slot.set([(tune, 1.0)])
        found: Any = models.base(latents, torch.tensor(499), **told)
        assert torch.allclose(found.sample, expected, atol=1e-4)
        slot.set([])
        plain: Any = models.base(latents, torch.tensor(499), **told)
    assert (plain.sample - expected).abs().max() > 0.05


def test_a_model_with_such_a_unet_is_refused(tmp_path: Path) -> None:
    """It would draw without being told the scale that it waits for, and nobody would know why so badly."""
    base = shutil.copytree(MINIATURE / "base", tmp_path / "base")
    config = json.loads((base / "unet" / "config.json").read_text())
    (base / "unet" / "config.json").write_text(json.dumps({**config, "time_cond_proj_dim": 32}))
    with pytest.raises(WeightsError, match="a whole LCM that reads the guidance scale"):
        load_models(resolve(str(tmp_path)), Placement(torch.device("cpu"), "resident"), torch.float32)


def test_half_of_such_a_unet_is_refused(models: Models, tmp_path: Path) -> None:
    state = {name: tensor for name, tensor in distilled(models).state_dict().items() if "linear_1.bias" not in name}
    with pytest.raises(WeightsError, match="linear_1'; the file is incomplete"):
        tuned.read_tensors(models, tmp_path, state)


def test_a_recipe_asks_for_nothing_twice() -> None:
    """Applied to what it has already set, it changes nothing."""
    once = UNASKED.fitted(LCM)
    assert (
        once.fitted(LCM)
        == once
        == replace(UNASKED, few_step="lcm", scheduler="LCM", num_inference_steps=4, guidance_scale=1.0)
    )
    assert UNASKED.fitted(None) == UNASKED
