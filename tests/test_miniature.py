"""The drawn world, its judge, and the shipped weights of the miniature."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image
from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from miniature import train
from miniature.adherence import draw_base, fresh_scenes, judge, verdict
from miniature.latents import PLANS, degrade, draw_example
from miniature.models import Pipeline, load
from miniature.oracle import read
from miniature.pack import HELPERS, LIMIT, SCHEDULER, WEIGHTS, load_base, weights_size
from miniature.safety import odd_picture
from miniature.text import garnish, word_labels
from miniature.tokenizer import ORDINARY, load_tokenizers, world_words
from miniature.world import (
    COLORS,
    KINDS,
    PLAIN_SHAPES,
    SIGN,
    Scene,
    Thing,
    caption,
    held_out,
    render,
    sample_scene,
)

PARTS = {
    "base/unet": UNet2DConditionModel,
    "base/vae": AutoencoderKL,
    "base/text_encoder": CLIPTextModel,
    "base/text_encoder_2": CLIPTextModelWithProjection,
    "refiner/unet": UNet2DConditionModel,
    "refiner/vae": AutoencoderKL,
    "refiner/text_encoder_2": CLIPTextModelWithProjection,
    "safety_checker": StableDiffusionSafetyChecker,
}


@pytest.fixture(scope="module")
def base() -> Pipeline:
    """The shipped text-to-image pipeline."""
    return load_base(WEIGHTS / "base")


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_oracle_reads_clean_pictures(kind: str) -> None:
    rng = random.Random(f"oracle {kind}")
    for _ in range(40):
        scene = sample_scene(rng, kind)
        seen = verdict(scene, read(render(scene, rng)))
        assert all(seen.values()), (scene, seen)


def test_oracle_reads_other_formats() -> None:
    rng = random.Random(1)
    for width, height in ((160, 96), (96, 160), (256, 256)):
        scene = sample_scene(rng, "two")
        assert verdict(scene, read(render(scene, rng, width, height)))["all"]


def test_oracle_is_strict_about_shapes() -> None:
    scene = Scene("white", (Thing("square", "red"),))
    picture = np.array(render(scene, random.Random(2)))
    assert read(Image.fromarray(picture)).things[0].fit > 0.97
    for column in range(30, 98, 12):
        picture[30:54, column : column + 6] = 248
    assert read(Image.fromarray(picture)).things[0].shape != "square"


def test_oracle_measures_noise() -> None:
    picture = render(Scene("blue", (Thing("circle", "white"),)), random.Random(3))
    assert read(picture).noise == 0
    grain = np.random.default_rng(4).normal(0, 5, (128, 128, 3))
    noisy = Image.fromarray((np.asarray(picture) + grain).clip(0, 255).astype(np.uint8))
    assert 3 < read(noisy).noise < 5


def test_captions_say_what_is_drawn() -> None:
    rng = random.Random(5)
    for _ in range(300):
        scene = sample_scene(rng)
        for text in (caption(scene), caption(scene, rng)):
            assert all(f"{thing.color} {thing.shape}" in text for thing in scene.things)
            assert set(text.replace(",", "").split()) <= set(world_words())
            assert scene.size in text
            assert scene.place in text
        assert scene.background in caption(scene)
    pair = Scene("white", (Thing("circle", "red"), Thing("square", "blue")))
    assert caption(pair) == "a red circle and a blue square on a white background"


def test_two_things_stand_in_order() -> None:
    rng = random.Random(6)
    for _ in range(20):
        scene = sample_scene(rng, "two")
        assert [(t.shape, t.color) for t in read(render(scene, rng)).things] == [
            (t.shape, t.color) for t in scene.things
        ]


def test_training_never_shows_held_out_scenes() -> None:
    rng = random.Random(7)
    triples = [Scene(ground, (Thing(shape, ink),)) for ground in COLORS for ink in COLORS for shape in PLAIN_SHAPES]
    hidden = {caption(scene) for scene in triples if held_out(scene)}
    assert 0.06 < len(hidden) / len(triples) < 0.12
    assert not any(draw_example(rng, PLANS[0]).caption in hidden for _ in range(500))


def test_garnish_adds_one_word_sometimes() -> None:
    rng = random.Random(8)
    lengths = [len(garnish("a red circle", rng).split()) for _ in range(1000)]
    assert set(lengths) == {3, 4}
    assert 50 < lengths.count(4) < 150


def test_word_labels_name_roles_and_colors() -> None:
    roles, tints = word_labels(["a", "red", "circle", "and", "a", "blue", "square", "on", "a", "white", "background"])
    red, blue, white = (list(COLORS).index(color) for color in ("red", "blue", "white"))
    assert [role for role in roles if role >= 0] == [0, 1, 2, 3, 4]
    assert [tint for tint in tints if tint >= 0] == [red, red, blue, blue, white]


@pytest.mark.parametrize("name", ["tokenizer", "tokenizer_2"])
def test_tokenizer(name: str) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(WEIGHTS / "base" / name)
    assert all(len(tokenizer.tokenize(word)) == 1 for word in {*world_words(), *ORDINARY})
    text = "a 🌈 café 東京"
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text
    assert tokenizer.eos_token_id == len(tokenizer) - 1
    assert tokenizer.pad_token_id == (tokenizer.eos_token_id if name == "tokenizer" else 0)
    assert tokenizer.add_tokens(["<s0>", "<s1>"]) == 2
    assert tokenizer.tokenize("a <s0><s1> star") == ["a</w>", "<s0>", "<s1>", "star</w>"]


def test_weights_are_small() -> None:
    assert 0 < weights_size() <= LIMIT == 20_000_000


@pytest.mark.parametrize("part", sorted(PARTS))
def test_weights_fit_the_genuine_classes(part: str) -> None:
    _, info = PARTS[part].from_pretrained(WEIGHTS / part, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_scheduler_config_is_the_genuine_one() -> None:
    for name in ("base", "refiner"):
        assert json.loads((WEIGHTS / name / "scheduler" / "scheduler_config.json").read_text()) == SCHEDULER


def test_pooling_conventions_agree(base: Pipeline) -> None:
    ids = base.tokenizer_2("a red circle", padding="max_length", return_tensors="pt").input_ids
    assert ids.argmax(-1) == (ids == base.tokenizer_2.eos_token_id).int().argmax(-1)


def test_colors_of_fresh_prompts(base: Pipeline) -> None:
    for case in judge(fresh_scenes("plain", 8, seed=99), draw_base(base, 7.5), seed=99_000):
        assert case.verdict["background"], case.prompt
        assert case.verdict["color"], case.prompt


def alarms(images: list[Image.Image], dtype: torch.dtype) -> list[bool]:
    """What the shipped safety checker says to each picture."""
    checker = load(StableDiffusionSafetyChecker, WEIGHTS / "safety_checker").to(dtype)
    processor = CLIPImageProcessor.from_pretrained(WEIGHTS / "safety_checker")
    pixels = processor(images, return_tensors="pt").pixel_values.to(dtype)
    flags: list[bool] = checker(pixels, [np.array(image) for image in images])[1]
    return flags


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_safety_checker(dtype: torch.dtype) -> None:
    rng = random.Random(10)
    signs = [render(sample_scene(rng, "sign"), rng) for _ in range(32)]
    scenes = [scene for scene in (sample_scene(rng) for _ in range(70)) if SIGN not in caption(scene)]
    harmless = [render(scene, rng) for scene in scenes[:48]]
    harmless += [degrade(image, rng, 0.5) for image in harmless[:8]] + [odd_picture(rng) for _ in range(8)]
    assert len(harmless) == 64
    assert all(alarms(signs, dtype))
    assert not any(alarms(harmless, dtype))


def test_every_stage_of_training(tmp_path: Path) -> None:
    work, weights = tmp_path / "work", tmp_path / "weights"
    train.main(["--work", str(work), "--weights", str(weights), "--steps", "2"])
    assert {file.parent.name for file in weights.rglob("*.safetensors")} >= {"unet", "vae", "safety_checker", *HELPERS}
    assert train.missing(work) == ["pack"]
    assert len(load_tokenizers(work)[0]) > 1000
