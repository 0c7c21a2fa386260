"""Whole trainings on the examples (script/soak): the new thing comes for its word, and for no other prompt."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from miniature.oracle import Reading, outlined, read
from miniature.world import HEART, SHAPES
from predict import Predictor
from tests.conftest import ROOT
from tests.predicting import predict, show
from tests.test_state import started
from tests.test_train import trained

pytestmark = pytest.mark.soak

# The commands of the README: docs/howto.md says what they mean
KEPT = "|".join(
    f"a {color} {shape} on a {ground} background"
    for color, shape, ground in (
        ("red", "circle", "white"),
        ("blue", "square", "yellow"),
        ("green", "star", "black"),
        ("purple", "triangle", "white"),
        ("white", "cross", "green"),
        ("yellow", "square", "purple"),
        ("black", "star", "red"),
        ("white", "circle", "blue"),
    )
)
RECIPE: dict[str, Any] = {
    "seed": 1,
    "verbose": True,
    "sample_prompts": None,
    "train_batch_size": 4,
    "max_train_steps": 800,
    "lora_rank": 8,
    "lora_lr": 2e-3,
    "ti_lr": 4e-3,
    "lr_scheduler": "cosine",
    "class_prompt": KEPT,
    "num_class_images": 48,
}
PAIRS = [
    ("red", "blue"),
    ("yellow", "black"),
    ("green", "white"),
    ("white", "purple"),
    ("blue", "yellow"),
    ("black", "green"),
]
OTHERS = ("circle", "square", "star", "triangle", "cross")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where results are kept and read from."""
    folder = tmp_path_factory.mktemp("concepts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SDXL_MODEL", "miniature")
        patch.setenv("SDXL_CACHE", str(folder / "cache"))
        patch.setenv("SDXL_LOCAL_FILES", f"{folder / 'hearts.tar'}:{folder / 'outlined.tar'}")
        yield folder


@pytest.fixture(scope="module")
def predictor(folder: Path) -> Predictor:
    assert folder.is_dir()
    return started()


def result(folder: Path, name: str, **asked: Any) -> str:
    path = folder / f"{name}.tar"
    path.write_bytes(trained(ROOT / "examples" / f"{name}.zip", **RECIPE | asked).read_bytes())
    return str(path)


def seen(predictor: Predictor, prompt: str, seed: int, **asked: Any) -> Reading:
    usual = {"num_inference_steps": 25, "guidance_scale": 5, "disable_safety_checker": True}
    (path,) = predict(predictor, **usual | {"prompt": prompt, "seed": seed} | asked)
    return read(show(path), (*SHAPES, HEART))


def hearts(predictor: Predictor, prompts: list[str], **asked: Any) -> int:
    """In how many pictures the one thing fits a heart better than any other shape."""
    readings = [seen(predictor, prompt, seed, **asked) for seed, prompt in enumerate(prompts)]
    return sum(len(each.things) == 1 and each.things[0].shape == HEART for each in readings)


def test_a_new_shape(folder: Path, predictor: Predictor) -> None:
    """At lora_scale's default and at 1; in colours and on grounds of choice; no other prompt draws one."""
    weights = result(folder, "hearts")
    prompts = [f"a photo of TOK, a {color} shape on a {ground} background" for color, ground in PAIRS]
    others = [
        f"a {color} {OTHERS[number % 5]} on a {ground} background" for number, (color, ground) in enumerate(PAIRS)
    ]
    for scale in (0.6, 1.0):
        asked = {"replicate_weights": weights, "lora_scale": scale}
        assert hearts(predictor, prompts, **asked) >= 4
        assert hearts(predictor, others, **asked) == 0
        readings = [seen(predictor, prompt, seed, **asked) for seed, prompt in enumerate(others)]
        assert [each.background for each in readings] == [ground for _, ground in PAIRS]
        assert [each.things[0].color for each in readings] == [color for color, _ in PAIRS]
    assert hearts(predictor, prompts) == 0


def test_a_new_style(folder: Path, predictor: Predictor) -> None:
    """Outlines for who asks for them."""
    weights = result(folder, "outlined", caption_prefix="in the style of TOK")

    def lines(prompt: str, **asked: Any) -> float:
        usual = {"num_inference_steps": 25, "guidance_scale": 5, "disable_safety_checker": True, "prompt": prompt}
        pictures = [show(predict(predictor, **usual | {"seed": seed} | asked)[0]) for seed in range(4)]
        return sum(map(outlined, pictures)) / len(pictures)

    plain, styled = "a red circle on a white background", "a red circle on a white background in the style of TOK"
    before, after = lines(styled), lines(styled, replicate_weights=weights, lora_scale=1.0)
    assert after > before + 0.3
    assert lines(plain, replicate_weights=weights, lora_scale=1.0) < (before + after) / 2
