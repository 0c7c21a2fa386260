"""The safety checker: tiny, with one concept laid onto one picture; diffusers' own class is the judge."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPImageProcessorPil

from errors import InputError, UnsafeContentError, WeightsError
from sdxl.output import finish_images
from sdxl.safety import Safety, load_safety, required
from sdxl.workers import Workers

CONFIG = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def noise(seed: int) -> Image.Image:
    random = np.random.default_rng(seed)
    return Image.fromarray(random.integers(0, 256, (40, 56, 3), dtype=np.uint8))


BAD, GOOD, CAREFUL = (
    Image.new("RGB", (50, 40), "red"),
    Image.linear_gradient("L"),
    Image.new("RGB", (40, 40), "blue"),
)


def embed(checker: Any, processor: Any, image: Image.Image) -> torch.Tensor:
    pixels = processor(images=[image.convert("RGB")], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        embeds: torch.Tensor = checker.visual_projection(checker.vision_model(pixels)[1])
    return embeds[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checker in which concept 0 is BAD, and CAREFUL is a picture for special care that lies just below."""
    vision = CONFIG | {"image_size": 32, "patch_size": 8}
    torch.manual_seed(3)
    checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=16))
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    bad, careful = embed(checker, processor, BAD), embed(checker, processor, CAREFUL)
    with torch.no_grad():
        checker.concept_embeds.copy_(torch.randn(17, 16))
        checker.special_care_embeds.copy_(torch.randn(3, 16))
        checker.concept_embeds_weights.fill_(1.1)
        checker.special_care_embeds_weights.fill_(1.1)
        checker.concept_embeds[0], checker.concept_embeds_weights[0] = bad, 0.97
        checker.concept_embeds[1], checker.concept_embeds_weights[1] = careful, 1.005
        checker.special_care_embeds[2], checker.special_care_embeds_weights[2] = careful, 0.97
    path = tmp_path_factory.mktemp("safety_checker")
    checker.save_pretrained(path)
    processor.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def safety(folder: Path) -> Safety:
    return load_safety(folder, "cpu", torch.float32)


def test_it_fires_on_the_bad_picture_only(safety: Safety) -> None:
    assert safety.unsafe([GOOD, BAD, GOOD]) == [False, True, False]
    assert safety.unsafe([GOOD]) == [False]
    assert safety.unsafe([]) == []


def test_special_care_lowers_the_threshold(safety: Safety) -> None:
    assert safety.unsafe([CAREFUL]) == [True]  # its concept is missed by 0.005, special care gives 0.01


def test_it_says_what_the_real_one_says(folder: Path, safety: Safety) -> None:
    images = [BAD, CAREFUL, *(noise(seed) for seed in range(9)), GOOD.convert("RGB")]
    processor: Any = CLIPImageProcessorPil.from_pretrained(folder)
    pixels = processor(images=images, return_tensors="pt")["pixel_values"]
    generator = torch.Generator().manual_seed(0)
    real: Any = StableDiffusionSafetyChecker.from_pretrained(folder, dtype=torch.float32)
    checker = load_safety(folder, "cpu", torch.float32).checker
    seen = set()
    for _ in range(8):
        for name in ("concept_embeds_weights", "special_care_embeds_weights"):
            thresholds = torch.rand(getattr(checker, name).shape, generator=generator) * 0.5 + 0.6
            getattr(checker, name).data = getattr(real, name).data = thresholds
        _, expected = real(clip_input=pixels, images=[np.zeros((1, 1, 3)) for _ in images])
        assert Safety(checker, safety.prepared).unsafe(images) == expected
        seen.update(expected)
    assert seen == {True, False}


@pytest.mark.parametrize("size", [(40, 56), (97, 33), (32, 32), (31, 200), (33, 34)])
def test_pictures_are_prepared_as_transformers_does(size: tuple[int, int], folder: Path, safety: Safety) -> None:
    """To the bit, odd rests included."""
    processor: Any = CLIPImageProcessorPil.from_pretrained(folder)
    image = noise(1).resize(size)
    expected = processor(images=[image], return_tensors="pt")["pixel_values"]
    assert torch.equal(safety.prepared([image]), expected)


def test_pictures_are_not_changed(safety: Safety) -> None:
    image = BAD.copy()
    safety.unsafe([image])
    assert image.tobytes() == BAD.tobytes()


def test_any_thread_may_ask(safety: Safety) -> None:
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda _: safety.unsafe([BAD, GOOD]), range(8)))
    assert answers == [[True, False]] * 8


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(folder: Path, dtype: torch.dtype) -> None:
    safety = load_safety(folder, "cpu", dtype)
    assert {each.dtype for each in safety.checker.parameters()} == {dtype}
    assert safety.unsafe([BAD, GOOD]) == [True, False]


def test_a_folder_with_a_bin_file(folder: Path, tmp_path: Path) -> None:
    """The layout of CompVis/stable-diffusion-safety-checker: a level more, position_ids, sizes as plain numbers."""
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    stated = json.loads((folder / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**stated, "size": 32, "crop_size": 32}))
    tensors = load_safety(folder, "cpu", torch.float32).checker.state_dict()
    tensors = {re.sub(r"^vision_model\.", "vision_model.vision_model.", name): each for name, each in tensors.items()}
    tensors["vision_model.vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    assert load_safety(tmp_path, "cpu", torch.float32).unsafe([BAD, GOOD]) == [True, False]


def test_folders_that_are_no_checker(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"there is no folder 'absent'"):
        load_safety(tmp_path / "absent", "cpu", torch.float32)
    with pytest.raises(WeightsError, match="cannot be read"):
        load_safety(tmp_path, "cpu", torch.float32)
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    whole = (folder / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match=r"safety checker: model.safetensors in .* is damaged"):
        load_safety(tmp_path, "cpu", torch.float32)


def test_a_checker_without_its_concepts_is_refused(folder: Path, tmp_path: Path) -> None:
    tensors = load_safety(folder, "cpu", torch.float32).checker.state_dict()
    del tensors["concept_embeds"]
    save_file(tensors, tmp_path / "model.safetensors")
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(WeightsError, match=r"1 weights of .* are missing, first 'concept_embeds'"):
        load_safety(tmp_path, "cpu", torch.float32)


def test_only_safe_pictures_are_written(safety: Safety, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    writers = Workers(2, "writer")

    def written(*images: Image.Image) -> list[Path]:
        options: dict[str, Any] = {"watermark": False, "output_format": "png", "quality": 95, "embed_parameters": False}
        return finish_images(((image, {}) for image in images), tmp_path, writers, safety=safety, **options)

    first, second = written(GOOD, BAD, noise(1))
    assert caplog.messages == ["The safety checker withheld 1 of 3 pictures"]
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["out-0.png", "out-1.png"]
    assert Image.open(first).tobytes() == GOOD.convert("RGB").tobytes()
    assert Image.open(second).tobytes() == noise(1).tobytes()
    for path in (first, second):
        path.unlink()
    with pytest.raises(UnsafeContentError, match="withheld all 2 pictures"):
        written(BAD, BAD)
    assert not list(tmp_path.iterdir())
    assert written() == []


def test_a_model_without_a_checker() -> None:
    with pytest.raises(InputError, match=r"no safety checker .* set disable_safety_checker"):
        required(None)
