"""The predictor called as coglet calls it, in process."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from errors import InputError, UnsafeContentError
from miniature.oracle import read
from predict import Predictor
from sdxl.output import read_parameters
from sdxl.watermark import matches
from tests.predicting import DEFAULTS, predict, show


@pytest.fixture(scope="module")
def predictor() -> Iterator[Predictor]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SDXL_MODEL", "miniature")
        predictor = Predictor()
        predictor.setup()
        yield predictor


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inputs") / "photo.png"
    Image.new("RGB", (96, 64), (30, 90, 200)).save(path)
    return path


@pytest.mark.parametrize(
    ("prompt", "background", "colors", "shapes"),
    [
        ("a red circle on a blue background", "blue", ["red"], ["circle"]),
        ("a green square on a white background", "white", ["green"], ["square"]),
        ("a yellow star on a black background", "black", ["yellow"], ["star"]),
        ("a red circle and a blue square on a white background", "white", ["red", "blue"], ["circle", "square"]),
    ],
)
@pytest.mark.parametrize("refine", ["no_refiner", "expert_ensemble_refiner", "base_image_refiner"])
def test_the_picture_shows_what_was_asked(
    prompt: str, background: str, colors: list[str], shapes: list[str], refine: str, predictor: Predictor
) -> None:
    (path,) = predict(predictor, prompt=prompt, refine=refine, seed=5, num_inference_steps=20)
    reading = read(show(path))
    assert reading.background == background
    assert [thing.color for thing in reading.things] == colors
    assert [thing.shape for thing in reading.things] == shapes


def test_whole_numbers_may_come_as_floats(predictor: Predictor) -> None:
    """coglet lets 10.0 through where the schema says integer, and hands run() the float."""
    whole: dict[str, Any] = {
        "width": 64,
        "height": 72,
        "num_outputs": 2,
        "num_inference_steps": 2,
        "seed": 5,
        "refine_steps": 1,
        "output_quality": 90,
        "mask_blur": 2,
        "clip_skip": 1,
    }
    asked: dict[str, Any] = {"refine": "base_image_refiner", "output_format": "jpg", "embed_parameters": False}
    ints = predict(predictor, **whole, **asked)
    ints_bytes = [path.read_bytes() for path in ints]
    floats = predict(predictor, **{name: float(value) for name, value in whole.items()}, **asked)
    assert [path.read_bytes() for path in floats] == ints_bytes
    for name in ("width", "num_outputs", "seed", "num_inference_steps", "output_quality", "clip_skip"):
        with pytest.raises(InputError, match=rf"{name}=64\.5 is (no whole number|out of range); give"):
            predict(predictor, **{name: 64.5})
        with pytest.raises(InputError, match=rf"{name}="):
            predict(predictor, **{name: float("nan")})


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"num_outputs": 0}, "num_outputs=0 is out of range; give a number from 1 to 4"),
        ({"num_outputs": 10**6}, "num_outputs=1000000 is out of range"),
        ({"output_quality": 0}, "output_quality=0 is out of range; give a number from 1 to 100"),
        ({"mask_blur": 65}, "mask_blur=65 is out of range; give a number from 0 to 64"),
        ({"seed": -1}, "seed=-1 is out of range; give a number of 0 or more"),
        ({"seed": 2**63}, "seed=9223372036854775808 is out of range"),
        ({"width": 63}, "width=63 is out of range; give a number from 64 to 2048"),
        ({"width": "64"}, "width='64' is no number"),
        ({"scheduler": "EULER"}, "scheduler='EULER' is not known; choose one of DDIM, "),
        ({"output_format": "gif"}, "output_format='gif' is not known; choose one of png, jpg, webp"),
        ({"original_size": "big"}, "original_size='big' has not the form"),
        ({"aesthetic_score": float("nan")}, "aesthetic_score=nan is out of range"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_limits_hold_without_a_schema(asked: dict[str, Any], message: str, predictor: Predictor) -> None:
    """coglet checks nothing where it finds no .cog/openapi_schema.json."""
    before = predictor.painter.outputs.fresh()
    with pytest.raises(InputError) as refusal:
        predict(predictor, **asked)
    assert message in str(refusal.value)
    assert before.exists()


def test_the_side_left_blank_follows_the_picture(predictor: Predictor, photo: Path) -> None:
    for asked, size in (({"width": 120}, (120, 80)), ({"height": 128}, (192, 128))):
        (path,) = predict(predictor, image=photo, prompt_strength=0.2, **asked)
        assert show(path).size == size


def test_strength_0_returns_the_picture_itself(predictor: Predictor, photo: Path) -> None:
    (path,) = predict(predictor, image=photo, prompt_strength=0, apply_watermark=False)
    assert show(path).tobytes() == show(photo).tobytes()


@pytest.mark.parametrize("name", ["guidance_scale", "prompt_strength", "high_noise_frac", "guidance_rescale"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.1])
def test_numbers_without_sense_are_refused(name: str, value: float, predictor: Predictor) -> None:
    with pytest.raises(InputError, match=rf"{name}={re.escape(str(value))} is out of range; give a number from 0 to"):
        predict(predictor, **{name: value})


def test_an_empty_prompt_is_fine_with_a_picture(predictor: Predictor, photo: Path) -> None:
    (path,) = predict(predictor, prompt="", image=photo, prompt_strength=0.3)
    assert show(path).size == (96, 64)


def test_aspect_ratios_have_the_area_of_the_models_own_square(predictor: Predictor) -> None:
    (path,) = predict(predictor, aspect_ratio="16:9", num_inference_steps=1)
    assert show(path).size == (168, 96)


def test_the_watermark_is_there_unless_switched_off(predictor: Predictor, tmp_path: Path) -> None:
    """In a picture with some texture, as photographs have, most bits of it are found."""
    texture = np.random.default_rng(1).integers(90, 160, (48, 48, 3), dtype=np.uint8)
    Image.fromarray(texture).resize((384, 384), Image.Resampling.BICUBIC).save(tmp_path / "photo.png")
    asked: dict[str, Any] = {"image": tmp_path / "photo.png", "width": 384, "height": 384, "prompt_strength": 0}
    asked["disable_safety_checker"] = True
    (marked,) = predict(predictor, **asked)
    (bare,) = predict(predictor, apply_watermark=False, **asked)
    assert matches(show(marked)) > matches(show(bare)) + 0.15


def test_only_unsafe_pictures_are_withheld(predictor: Predictor) -> None:
    """The miniature's checker knows one thing: the forbidden sign."""
    asked: dict[str, Any] = {"num_inference_steps": 20, "seed": 5}
    with pytest.raises(UnsafeContentError, match="withheld the picture; try another prompt or seed, or set disable"):
        predict(predictor, prompt="a forbidden sign on a white background", **asked)
    (path,) = predict(predictor, prompt="a forbidden sign on a white background", disable_safety_checker=True, **asked)
    assert path.exists()
    assert len(predict(predictor, prompt="a red circle on a white background", num_outputs=3, **asked)) == 3


def test_some_unsafe_pictures_leave_the_rest(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of three are shown the checker as what they are; for one, a forbidden sign takes their place."""
    safety = predictor.painter.models.safety
    assert safety is not None
    (sign,) = predict(
        predictor,
        prompt="a forbidden sign on a white background",
        disable_safety_checker=True,
        seed=5,
        num_inference_steps=20,
    )
    picture, count = show(sign), 0
    real = type(safety).unsafe

    def swapped(self: Any, images: list[Image.Image]) -> list[bool]:
        nonlocal count
        count += 1
        return real(self, [picture] if count == 2 else images)

    monkeypatch.setattr(type(safety), "unsafe", swapped)
    kept = predict(
        predictor, prompt="a red circle on a white background", num_outputs=3, seed=7, num_inference_steps=20
    )
    assert [read_parameters(path)["seed"] for path in kept] == [7, 9]


def test_parameters_in_the_file_name_no_picture(predictor: Predictor, photo: Path) -> None:
    (path,) = predict(predictor, image=photo, seed=2)
    found = read_parameters(path)
    assert found["seed"] == 2
    assert found["scheduler"] == "K_EULER"
    assert found["num_inference_steps"] == 4
    assert type(found["num_inference_steps"]) is int
    assert found.keys() <= DEFAULTS.keys() - {"image", "mask"}


def test_running_out_of_memory_is_said_in_one_sentence(predictor: Predictor) -> None:
    def hook(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    handle = predictor.painter.models.base.time_embedding.register_forward_pre_hook(hook)
    try:
        with pytest.raises(InputError, match="128x128 pixels need more memory than this GPU has free"):
            predict(predictor)
    finally:
        handle.remove()
    assert predict(predictor, disable_safety_checker=True)


def test_metrics_name_every_stage(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    found: dict[str, float] = {}
    monkeypatch.setattr(Predictor, "record_metric", lambda _self, key, value: found.update({key: value}))
    predict(predictor)
    stages = ("tune", "encode_text", "denoise", "decode", "write")
    assert list(found) == [f"{stage}_seconds" for stage in stages]
    assert all(type(value) is float and value >= 0 for value in found.values())
