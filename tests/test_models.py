"""Loading: every weight once, strictly, shared, and the same as diffusers loads it; and where modules are."""

import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file

import sdxl.reading
import weights
from errors import InputError, WeightsError
from sdxl.files import ModelFiles
from sdxl.models import Models, load_models
from sdxl.placement import Placement, placement_from
from tests.conftest import ROOT
from tests.painting import difference, picture
from tests.single_file import models as tiny_parts
from tests.single_file import narrow_config, write_checkpoint

MINIATURE = ROOT / "miniature" / "weights"
CPU = torch.device("cpu")


def load(files: ModelFiles | None = None, tier: str = "resident", **options: Any) -> Models:
    return load_models(files or weights.resolve("miniature"), Placement(CPU, tier), torch.float32, **options)


@pytest.fixture
def copy(tmp_path: Path) -> ModelFiles:
    """The miniature's base and refiner in a folder that a test may damage."""
    for name in ("base", "refiner"):
        shutil.copytree(MINIATURE / name, tmp_path / name)
    return ModelFiles(base=tmp_path / "base", refiner=tmp_path / "refiner")


def test_weights_equal_those_that_diffusers_loads(models: Models) -> None:
    pipelines: list[Any] = [StableDiffusionXLPipeline, StableDiffusionXLImg2ImgPipeline]
    base, refiner = (
        kind.from_pretrained(MINIATURE / name, dtype=torch.float32)
        for kind, name in zip(pipelines, ("base", "refiner"), strict=True)
    )
    pairs: list[tuple[Any, Any]] = [
        (models.text.text_encoder, base.text_encoder),
        (models.text.text_encoder_2, base.text_encoder_2),
        (models.base, base.unet),
        (models.vae, base.vae),
        (models.refiner, refiner.unet),
    ]
    for ours, theirs in pairs:
        mine, other = ours.state_dict(), theirs.state_dict()
        assert mine.keys() == other.keys()
        assert all(torch.equal(mine[name], other[name]) for name in mine)
        buffers = dict(theirs.named_buffers())
        assert all(torch.equal(buffer, buffers[name]) for name, buffer in ours.named_buffers())
        assert not any(parameter.requires_grad for parameter in ours.parameters())
        assert not ours.training


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The weight files as they are opened."""
    names: list[str] = []
    lock = threading.Lock()
    real = sdxl.reading.entries

    def counting(path: Path) -> Any:
        with lock:
            names.append(str(path.relative_to(MINIATURE)))
        return real(path)

    monkeypatch.setattr(sdxl.reading, "entries", counting)
    return names


def test_each_file_is_opened_once_and_none_twice_over(opened: list[str]) -> None:
    """The refiner's own copies of the second text encoder and the VAE are never read."""
    load()
    unet, encoder = "unet/diffusion_pytorch_model.safetensors", "model.safetensors"
    assert sorted(opened) == sorted(
        [
            f"base/{unet}",
            f"base/text_encoder/{encoder}",
            f"base/text_encoder_2/{encoder}",
            "base/vae/diffusion_pytorch_model.safetensors",
            f"refiner/{unet}",
            f"safety_checker/{encoder}",
        ]
    )


def test_the_refiner_can_wait_for_its_first_use(opened: list[str]) -> None:
    models = load(defer_refiner=True)
    assert models.has_refiner
    assert not any(name.startswith("refiner") for name in opened)
    picture(models, num_inference_steps=2)
    assert not any(name.startswith("refiner") for name in opened)
    asked: dict[str, Any] = {"refine": "expert_ensemble_refiner", "num_inference_steps": 2, "high_noise_frac": 0.5}
    made = picture(models, **asked)
    assert sum(name.startswith("refiner") for name in opened) == 1
    assert difference(made, picture(load(), **asked)) == 0


@pytest.mark.parametrize("tier", ["swap", "stream"])
def test_every_tier_gives_the_same_picture(tier: str, models: Models) -> None:
    """On a CPU the moves go nowhere, but they are made."""
    asked: dict[str, Any] = {"refine": "expert_ensemble_refiner", "num_inference_steps": 3, "high_noise_frac": 0.5}
    assert difference(picture(load(tier=tier), **asked), picture(models, **asked)) == 0


class Moved(torch.nn.Linear):
    """A real module that also notes where it is sent."""

    def __init__(self, name: str, moves: list[str]) -> None:
        super().__init__(2, 2)
        self.name, self.moves = name, moves

    def to(self, *args: Any, **kwargs: Any) -> "Moved":
        self.moves.append(f"{self.name} to {args[0]}")
        return super().to(*args, **kwargs)


def test_swap_keeps_only_the_working_part_on_the_device() -> None:
    moves: list[str] = []
    placement = Placement(torch.device("cpu", 0), "swap")  # a second name of the CPU, to tell the ways apart
    first, second = Moved("first", moves), Moved("second", moves)
    placement.use(first)
    placement.use(first)
    placement.use(second)
    placement.use(first, second)
    assert moves == ["first to cpu:0", "first to cpu", "second to cpu:0", "first to cpu:0"]


def test_a_move_that_is_cut_short_loses_no_module() -> None:
    """A cancel while a module comes to the card must not leave it there for good."""
    moves: list[str] = []
    placement = Placement(torch.device("cpu", 0), "swap")
    first, second = Moved("first", moves), Moved("second", moves)
    real, first.to = first.to, raise_now  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        placement.use(first)
    first.to = real  # type: ignore[method-assign]
    placement.use(second)
    assert moves == ["first to cpu", "second to cpu:0"]


def raise_now(*_: Any, **__: Any) -> Any:
    raise KeyboardInterrupt


def test_an_unknown_tier_is_refused() -> None:
    with pytest.raises(InputError, match="SDXL_OFFLOAD='some' is not known; choose one of resident, swap, stream"):
        placement_from({"SDXL_OFFLOAD": "some"})


def rewrite(file: Path, change: Any) -> None:
    tensors = load_file(file)
    save_file(change(tensors), file)


def test_damage_is_named(copy: ModelFiles) -> None:
    unet = copy.base / "unet" / "diffusion_pytorch_model.safetensors"
    whole = unet.read_bytes()
    unet.write_bytes(whole[:1000])
    with pytest.raises(WeightsError, match=r"diffusion_pytorch_model.safetensors in base/unet is damaged"):
        load(copy)
    unet.write_bytes(whole)
    rewrite(unet, lambda tensors: {name: tensor for name, tensor in tensors.items() if name != "conv_in.weight"})
    with pytest.raises(WeightsError, match=r"1 weights of UNet2DConditionModel are missing, first 'conv_in.weight'"):
        load(copy)
    unet.write_bytes(whole)
    rewrite(unet, lambda tensors: {**tensors, "extra.weight": torch.zeros(1)})
    with pytest.raises(WeightsError, match=r"1 weights fit no layer of UNet2DConditionModel, first 'extra.weight'"):
        load(copy)
    unet.unlink()
    with pytest.raises(WeightsError, match=r"base/unet holds no .safetensors file"):
        load(copy)
    (copy.base / "unet" / "config.json").write_text("{")
    with pytest.raises(WeightsError, match=r"base/unet/config.json cannot be read"):
        load(copy)


def test_checkpoints_that_predict_something_else_are_refused(copy: ModelFiles) -> None:
    path = copy.base / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prediction_type": "v_prediction"}))
    with pytest.raises(WeightsError, match="predicts 'v_prediction'"):
        load(copy)


def test_old_names_and_shards(copy: ModelFiles, models: Models) -> None:
    """Files from before 2023: a level more in text encoders, other names in the VAE's attention; and shards."""
    encoder = copy.base / "text_encoder" / "model.safetensors"
    rewrite(
        encoder, lambda tensors: {f"text_model.{name.removeprefix('text_model.')}": t for name, t in tensors.items()}
    )
    rewrite(
        encoder, lambda tensors: {**tensors, "text_model.embeddings.position_ids": torch.arange(77, dtype=torch.int64)}
    )
    unet = copy.base / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(unet)
    names = sorted(tensors)
    for number, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), 1):
        file = unet.with_name(f"diffusion_pytorch_model.fp16-0000{number}-of-00002.safetensors")
        save_file({name: tensors[name] for name in part}, file)
    unet.write_bytes(b"the full precision file must not be read when there is an fp16 one")
    assert difference(picture(load(copy)), picture(models)) == 0


def test_another_vae_takes_the_place_of_the_models_own(copy: ModelFiles, models: Models) -> None:
    folder = copy.base.parent / "vae"
    shutil.copytree(copy.base / "vae", folder)
    rewrite(
        folder / "diffusion_pytorch_model.safetensors",
        lambda tensors: {**tensors, "decoder.conv_out.bias": tensors["decoder.conv_out.bias"] + 0.5},
    )
    assert difference(picture(load(replace(copy, vae=folder))), picture(models)) > 10


def test_a_model_without_refiner_serves_without(copy: ModelFiles, models: Models) -> None:
    alone = load(replace(copy, refiner=None))
    assert not alone.has_refiner
    assert alone.native == 128
    assert difference(picture(alone), picture(models)) == 0


def test_one_file_is_loaded_without_network(tmp_path: Path) -> None:
    """A checkpoint with the original names; every weight arrives where it belongs."""
    config = narrow_config(weights.CONFIGS / "base", tmp_path / "config")
    file = tmp_path / "checkpoint.safetensors"
    torch.manual_seed(1)
    write_checkpoint(tiny_parts(config), file)
    models = load(ModelFiles(base=file, config=config))
    assert picture(models, num_inference_steps=1, width=64, height=64).size == (64, 64)
