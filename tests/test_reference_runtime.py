"""A tar of Replicate's trainer gives here what it gave in Replicate's old runtime: tests/golden/replicate.

There the LoRA is a second path beside each weight, the tokens are in tokenizers and tables, and the trigger is replaced
as a string; here everything is folded, and added beside. What comes out must not differ.
"""

import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from sdxl.finetune.formats import FineTune
from sdxl.generate import decode, encode_text, paint, plan
from sdxl.models import Models
from sdxl.progress import Progress
from sdxl.text import PromptEmbeds
from tests import tunes
from tests.golden.replicate.make import CASES, HERE, PROMPTS, Case, whole_unet
from tests.painting import difference, make_request, picture
from tests.tuned import read, slot_for

TOLD: dict[str, Any] = json.loads((HERE / "expected.json").read_text())
Expected = dict[str, Tensor]
NEAR = 2e-4  # of latents; rounding in another order makes 1e-5, a scale of 0.601 in place of 0.6 makes 3e-4


@pytest.fixture(scope="module")
def expected() -> Expected:
    return load_file(HERE / "expected.safetensors")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive, unpacked."""
    path = tmp_path_factory.mktemp("lora")
    with tarfile.open(HERE / "trained_model.tar") as archive:
        archive.extractall(path, filter="data")
    return path


@pytest.fixture(scope="module")
def fine_tunes(models: Models, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, FineTune]:
    """What was trained: a LoRA, and in its place a whole UNet; the tokens are the same."""
    whole = tmp_path_factory.mktemp("unet")
    for name in ("embeddings.pti", "special_params.json"):
        (whole / name).write_bytes((folder / name).read_bytes())
    tunes.save(whole, whole_unet(dict(models.base.named_parameters())), name="unet")
    return {"lora": read(models, folder), "unet": read(models, whole)}


def asked_for(case: Case) -> dict[str, Any]:
    request = TOLD["request"]
    return {"prompt": PROMPTS[case.prompt], **{key: value for key, value in request.items() if key != "seed"}}


def painted(models: Models, tune: FineTune | None, case: Case, noise: Tensor) -> tuple[PromptEmbeds, Tensor]:
    """What the UNet was told, and the last latents; the case's weights are in their places."""
    request = make_request(models, **asked_for(case))
    with torch.inference_mode(), Progress(0) as progress:
        embeds = encode_text(models, request, tune.learned if tune else None)
        return embeds, paint(models, request, plan(models, request), embeds, None, lambda: noise, progress)


def distance(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max())


def far(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, measured by the largest value."""
    return distance(ours, theirs) / float(theirs.abs().max())


def as_image(expected: Expected, case: int) -> Image.Image:
    return Image.fromarray(expected[f"case {case}.picture"].numpy())


def require_embeds(embeds: PromptEmbeds, expected: Expected, prompt: int) -> None:
    assert distance(embeds.prompt_embeds, expected[f"prompt {prompt}.prompt_embeds"]) < 1e-5
    assert distance(embeds.pooled_prompt_embeds, expected[f"prompt {prompt}.pooled"]) < 1e-5
    assert distance(embeds.negative_prompt_embeds, expected["negative.prompt_embeds"]) < 1e-5
    assert distance(embeds.negative_pooled_prompt_embeds, expected["negative.pooled"]) < 1e-5


def test_the_proof_is_of_these_cases() -> None:
    assert tuple(TOLD["prompts"]) == PROMPTS
    assert tuple(Case(**case) for case in TOLD["cases"]) == CASES
    versions = TOLD["versions"]
    assert (versions["diffusers"], versions["transformers"]) == ("0.25.0", "4.31.0")


@pytest.mark.parametrize("number", range(len(CASES)))
def test_a_tar_gives_what_it_gave(
    number: int, models: Models, expected: Expected, fine_tunes: dict[str, FineTune]
) -> None:
    case = CASES[number]
    tune = fine_tunes.get(case.weights)
    scale = 1.0 if case.lora_scale is None else case.lora_scale
    with slot_for(models) as slot:
        slot.set([(tune, scale)] if tune else [])
        embeds, latents = painted(models, tune, case, expected["noise"])
        with torch.inference_mode():
            shown = decode(models, latents)
    require_embeds(embeds, expected, case.prompt)
    assert far(latents, expected[f"case {number}.latents"]) < NEAR
    assert difference(shown, as_image(expected, number)) <= 1


def test_no_layer_is_left_out(folder: Path, fine_tunes: dict[str, FineTune]) -> None:
    """Some of them change so little that latents would hardly tell."""
    assert 2 * len(fine_tunes["lora"].changes) == len(load_file(folder / "lora.safetensors")) == 160


def test_a_seed_is_the_same_picture(models: Models, expected: Expected, fine_tunes: dict[str, FineTune]) -> None:
    """Its noise too, and the whole way to the picture."""
    tune, case = fine_tunes["lora"], CASES[0]
    with slot_for(models) as slot:
        slot.set([(tune, 0.6)])
        shown = picture(models, seed=TOLD["request"]["seed"], learned=tune.learned, **asked_for(case))
    assert difference(shown, as_image(expected, 0)) <= 1


def test_prompts_are_read_as_they_were(models: Models, expected: Expected, fine_tunes: dict[str, FineTune]) -> None:
    """Triggers beside punctuation, twice, and tokens by their own names; this one was not painted."""
    number = len(PROMPTS) - 1
    assert number not in {case.prompt for case in CASES}
    require_embeds(models.text.encode(PROMPTS[number], "", learned=fine_tunes["lora"].learned), expected, number)


def test_at_scale_0_a_plain_prompt_is_the_base(
    models: Models, expected: Expected, fine_tunes: dict[str, FineTune]
) -> None:
    """To the bit, there and here, though the tokens are loaded."""
    plain, base = CASES.index(Case("lora", 2, 0.0)), CASES.index(Case("base", 2))
    assert torch.equal(expected[f"case {plain}.latents"], expected[f"case {base}.latents"])
    tune = fine_tunes["lora"]
    _, without = painted(models, None, CASES[base], expected["noise"])
    with slot_for(models) as slot:
        slot.set([(tune, 0.0)])
        _, latents = painted(models, tune, CASES[plain], expected["noise"])
    assert torch.equal(latents, without)


def off_scale(tune: FineTune) -> tuple[FineTune, float]:
    return tune, 0.59


def without_rows(tune: FineTune) -> tuple[FineTune, float]:
    return replace(tune, learned=None), 0.6


def one_layer_less(tune: FineTune) -> tuple[FineTune, float]:
    first = min(tune.changes, key=lambda target: target.layer)
    return replace(tune, changes={target: change for target, change in tune.changes.items() if target != first}), 0.6


def pooled_at_the_end(tune: FineTune) -> tuple[FineTune, float]:
    assert tune.learned is not None
    learned = replace(tune.learned, pooled_at="end")
    return replace(tune, learned=learned), 0.6


@pytest.mark.parametrize("wrong", [off_scale, without_rows, one_layer_less, pooled_at_the_end])
def test_what_is_a_little_wrong_is_seen(
    wrong: Callable[[FineTune], tuple[FineTune, float]],
    models: Models,
    expected: Expected,
    fine_tunes: dict[str, FineTune],
) -> None:
    """Each of these would break the comparison above."""
    tune, scale = wrong(fine_tunes["lora"])
    with slot_for(models) as slot:
        slot.set([(tune, scale)])
        _, latents = painted(models, tune, CASES[0], expected["noise"])
    assert far(latents, expected["case 0.latents"]) > 5 * NEAR


def test_pooled_vectors_are_read_at_the_token(
    expected: Expected, models: Models, fine_tunes: dict[str, FineTune]
) -> None:
    """There, what follows the last token did not count; so these weights were trained, so they are read here."""
    learned = fine_tunes["lora"].learned
    assert learned is not None
    cut, whole = (models.text.encode(text, "", learned=learned) for text in ("a photo of TOK", PROMPTS[0]))
    assert distance(cut.pooled_prompt_embeds, expected["prompt 0.pooled"]) < 1e-5
    assert distance(cut.prompt_embeds, whole.prompt_embeds) > 0.1
    at_end = models.text.encode(PROMPTS[0], "", learned=replace(learned, pooled_at="end"))
    assert distance(at_end.pooled_prompt_embeds, expected["prompt 0.pooled"]) > 0.1


def test_what_was_trained_shows(expected: Expected) -> None:
    """Or all this would prove nothing."""
    for tuned, scale in (("lora", 0.6), ("lora", 1.0), ("unet", None)):
        for prompt in range(3 if tuned == "lora" else 1):
            number, plain = CASES.index(Case(tuned, prompt, scale)), CASES.index(Case("lora", prompt, 0.0))
            ours, theirs = (np.asarray(as_image(expected, each)).astype(int) for each in (number, plain))
            assert np.abs(ours - theirs).max() > 40
            assert np.abs(ours - theirs).mean() > 2


def test_our_tar_is_the_trainers(models: Models, folder: Path, tmp_path: Path) -> None:
    """What tests/tunes.py writes has the names, shapes and types of the old library's own processors."""
    lora = tunes.make_lora(models, rank=4)
    rows = load_file(folder / "embeddings.pti")
    path = tunes.replicate_tar(tmp_path / "a.tar", lora, (rows["text_encoders_0"], rows["text_encoders_1"]))
    with tarfile.open(path) as archive:
        archive.extractall(tmp_path, filter="data")

    def told(path: Path) -> dict[str, tuple[torch.Size, torch.dtype]]:
        return {name: (value.shape, value.dtype) for name, value in load_file(path).items()}

    assert told(tmp_path / "lora.safetensors") == told(folder / "lora.safetensors")
    for name in ("embeddings.pti", "special_params.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
