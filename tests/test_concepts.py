"""Whole trainings on the examples (script/soak): the new thing comes for its word, and for no other prompt."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from miniature.oracle import outlined, read
from miniature.world import HEART, SHAPES
from predict import Predictor
from tests.conftest import ROOT
from tests.predicting import predict, show
from tests.test_examples import PAIRS
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


def drawn(predictor: Predictor, prompts: list[str], **asked: Any) -> list[Image.Image]:
    """A picture of each, with a seed of its own."""
    usual = {"num_inference_steps": 25, "guidance_scale": 5, "disable_safety_checker": True}
    every = (predict(predictor, **usual | {"prompt": each, "seed": seed} | asked) for seed, each in enumerate(prompts))
    return [show(path) for (path,) in every]


def is_heart(image: Image.Image) -> bool:
    """Whether there is one thing, and a heart fits it better than any other shape."""
    heart, other = (read(image, shapes).things for shapes in ((HEART,), SHAPES))
    return len(heart) == 1 and heart[0].fit > other[0].fit


def tints(images: list[Image.Image]) -> list[tuple[str, str]]:
    """The colour of the first thing, and the ground."""
    readings = [read(image) for image in images]
    return [(each.things[0].color if each.things else "", each.background) for each in readings]


def test_a_new_shape(folder: Path, predictor: Predictor) -> None:
    """At lora_scale's default and at 1; in colours and on grounds of choice; no other prompt draws one."""
    weights = result(folder, "hearts")
    prompts = [f"a photo of TOK, a {color} shape on a {ground} background" for color, ground in PAIRS]
    others = [
        f"a {color} {OTHERS[number % 5]} on a {ground} background" for number, (color, ground) in enumerate(PAIRS)
    ]
    assert not any(map(is_heart, drawn(predictor, prompts)))
    for scale in (0.6, 1.0):
        asked = {"replicate_weights": weights, "lora_scale": scale}
        hearts, rest = drawn(predictor, prompts, **asked), drawn(predictor, others, **asked)
        assert sum(map(is_heart, hearts)) >= 4
        assert not any(map(is_heart, rest))
        assert tints(hearts) == tints(rest) == PAIRS


def test_a_new_style(folder: Path, predictor: Predictor) -> None:
    """Outlines for who asks for them."""
    weights = result(folder, "outlined", caption_prefix="in the style of TOK")

    plain = [f"a {color} square on a {ground} background" for color, ground in PAIRS if "black" not in (color, ground)]
    styled = [f"{prompt} in the style of TOK" for prompt in plain]
    before = lines(drawn(predictor, styled))
    after = lines(drawn(predictor, styled, replicate_weights=weights))
    unasked = lines(drawn(predictor, plain, replicate_weights=weights))
    assert after > before + 0.3
    assert unasked < (before + after) / 2


def lines(images: list[Image.Image]) -> float:
    """How far things have black outlines, 0 to 1."""
    return sum(map(outlined, images)) / len(images)
