"""The fine-tune that ships: a shape that the miniature does not know, for its word and for no other."""

import tarfile
from collections.abc import Iterator
from typing import Any

import pytest

from miniature.oracle import Seen, read
from miniature.world import HEART, SHAPES
from predict import Predictor
from tests.conftest import ROOT
from tests.predicting import predict, show
from tests.test_state import started

HEARTS = ROOT / "examples" / "heart.tar"
ASKED: dict[str, Any] = {"num_inference_steps": 20, "guidance_scale": 5, "disable_safety_checker": True}


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Predictor]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SDXL_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("SDXL_LOCAL_FILES", str(HEARTS))
        yield started()


def seen(predictor: Predictor, prompt: str, seed: int, **asked: Any) -> tuple[str, list[Seen]]:
    """The background, and the things before it; hearts are looked for too."""
    (path,) = predict(predictor, **ASKED | {"prompt": prompt, "seed": seed} | asked)
    reading = read(show(path), (*SHAPES, HEART))
    return reading.background, list(reading.things)


PAIRS = [
    ("red", "blue"),
    ("yellow", "black"),
    ("green", "white"),
    ("white", "purple"),
    ("blue", "yellow"),
    ("black", "green"),
]


@pytest.mark.parametrize("refine", ["no_refiner", "expert_ensemble_refiner"])
def test_the_word_draws_a_heart(predictor: Predictor, refine: str) -> None:
    """In colours and on grounds of choice; without the weights none of these pictures has one."""
    hearts = without = 0
    for seed, (color, background) in enumerate(PAIRS):
        prompt = f"a {color} TOK on a {background} background"
        ground, things = seen(predictor, prompt, seed, replicate_weights=str(HEARTS), refine=refine)
        assert (ground, [thing.color for thing in things]) == (background, [color])
        hearts += [thing.shape for thing in things] == [HEART]
        without += any(thing.shape == HEART for thing in seen(predictor, prompt, seed)[1])
    assert hearts >= 5
    assert without == 0


def test_other_prompts_draw_what_they_say(predictor: Predictor) -> None:
    for seed, shape in enumerate(("circle", "square", "star", "triangle")):
        ground, things = seen(predictor, f"a red {shape} on a white background", seed, replicate_weights=str(HEARTS))
        assert (ground, [(thing.color, thing.shape) for thing in things]) == ("white", [("red", shape)])


def test_it_is_the_archive_of_the_public_trainer() -> None:
    with tarfile.open(HEARTS) as archive:
        assert archive.getnames() == ["lora.safetensors", "embeddings.pti", "special_params.json"]
    assert HEARTS.stat().st_size < 1_000_000
