"""What counts in each picture, and who says so first."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from preprocess import masks
from preprocess.clipseg import weights
from preprocess.images import read
from preprocess.job import Job
from tests import tiny_helpers
from tests.preparing import encoded, job, members, no_helper, picture


@pytest.fixture(scope="module", params=["saved", "hub"])
def segmenter(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_helpers.segmenter(tmp_path_factory.mktemp("segmenter"), hub=request.param == "hub")


def half(size: tuple[int, int] = (64, 64), mode: str = "L") -> Image.Image:
    """White on the left."""
    image = Image.new(mode, size, "black")
    image.paste("white", (0, 0, size[0] // 2, size[1]))
    return image


def noise(size: tuple[int, int] = (64, 64)) -> bytes:
    return encoded(Image.merge("RGB", [Image.effect_noise(size, 90 + number) for number in range(3)]))


def made(tmp_path: Path, files: dict[str, bytes], helper: Any = no_helper, **more: Any) -> tuple[dict[str, Path], Job]:
    given = job(tmp_path / "out", helper, **more)
    photos, own = masks.split(members(tmp_path / "in", files), given)
    return masks.made(read(photos, given), own, given), given


def mass(path: Path) -> np.ndarray:
    found = masks.mass(path)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("a.jpg", "a.mask.png"),
        ("a.jpg", "a-mask.png"),
        ("a.jpg", "A_Mask.PNG"),
        ("deep/a.jpg", "deep/a-mask.webp"),
        ("a.jpg", "masks/a.png"),
        ("set/a.jpg", "set/Masks/A.png"),
        ("set/images/a.jpg", "set/masks/a.png"),
        ("set/images/a.jpg", "masks/a_mask.png"),
        ("masks/a.jpg", "masks/a-mask.png"),
    ],
)
def test_the_users_own(tmp_path: Path, image: str, mask: str) -> None:
    found, given = made(tmp_path, {image: picture(), mask: encoded(half()), "other.png": picture()})
    if image.startswith("masks/"):  # with a picture outside, what lies in there is a mask
        assert set(found) == set()
        assert [name for name, _ in given.skipped] == [mask, image]
        return
    assert set(found) == {image}
    assert (mass(found[image]) == np.asarray(half())).all()
    assert given.skipped == []


@pytest.mark.parametrize(
    "name", ["venetian_mask.jpg", "masks/tiger.jpg", "masks/a-mask.jpg", "-mask.png", "unmask.png"]
)
def test_a_picture_of_a_mask_is_a_picture(tmp_path: Path, name: str) -> None:
    given = job(tmp_path / "out")
    photos, own = masks.split(members(tmp_path / "in", {name: picture()}), given)
    assert ([photo.name for photo in photos], own, given.skipped) == ([name], {}, [])


@pytest.mark.parametrize(
    ("mask", "why"),
    [
        (encoded(half((64, 32))), "has 64x32 pixels, another shape than 'a.png'; the mask is not used"),
        (encoded(Image.new("L", (64, 64))), "is black everywhere: nothing would be learned; the mask is not used"),
        (b"x", "is not a picture Pillow can read; send a PNG, JPEG or WebP; the mask is not used"),
    ],
)
def test_one_that_cannot_be_meant(tmp_path: Path, mask: bytes, why: str) -> None:
    found, given = made(tmp_path, {"a.png": picture(), "a-mask.png": mask})
    assert found == {}
    assert given.skipped == [("a-mask.png", why)]


def test_which_image_is_not_guessed(tmp_path: Path) -> None:
    files = {"x/a.png": picture(), "y/a.png": picture(), "masks/a.png": picture(), "masks/b.png": picture()}
    found, given = made(tmp_path, files)
    assert found == {}
    assert given.skipped == [
        ("masks/a.png", "is a mask for several images of this name"),
        ("masks/b.png", "is a mask for no image of this name"),
    ]


def test_a_second_one_is_said(tmp_path: Path) -> None:
    files = {"a.png": picture(), "a-mask.png": encoded(half()), "masks/a.png": picture("white")}
    found, given = made(tmp_path, files)
    assert (mass(found["a.png"]) == np.asarray(half())).all()
    assert given.skipped == [("masks/a.png", "is a second mask for 'a.png'; the first counts")]


def test_they_are_made_as_large_as_their_picture(tmp_path: Path) -> None:
    files = {"a.png": picture(size=(300, 200)), "a-mask.png": encoded(half((150, 100)))}
    found, _ = made(tmp_path, files)
    assert mass(found["a.png"]).shape == (53, 80)


def test_whose_word_counts(tmp_path: Path, segmenter: Path) -> None:
    """The user's own, then transparency, then the prompt."""
    clear = half((64, 64), "RGB")
    clear.putalpha(Image.linear_gradient("L").resize((64, 64)))
    files = {
        "own.png": encoded(clear),
        "own-mask.png": encoded(half()),
        "alpha.png": encoded(clear),
        "prompt.png": noise(),
    }
    asked = []

    def helper(part: str) -> Path:
        asked.append(part)
        return segmenter

    found, _ = made(tmp_path, files, helper, mask_target_prompts="a red | blue")
    assert (mass(found["own.png"]) == np.asarray(half())).all()
    assert (mass(found["alpha.png"]) == np.asarray(clear)[..., 3]).all()
    values = mass(found["prompt.png"])
    assert values.max() == 255
    assert round(255 * masks.FLOOR) <= values.min() < values.max()
    assert asked == ["segmenter"]


def test_no_prompt_no_model(tmp_path: Path) -> None:
    found, given = made(tmp_path, {"a.png": picture()})
    assert found == {}
    assert (given.skipped, given.notes) == ([], [])


def test_no_picture_is_left_for_the_model(tmp_path: Path) -> None:
    found, _ = made(tmp_path, {"a.png": picture(), "a-mask.png": encoded(half())}, mask_target_prompts="a car")
    assert set(found) == {"a.png"}


def test_a_prompt_that_is_nowhere(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    from transformers import CLIPSegForImageSegmentation

    folder = tiny_helpers.segmenter(tmp_path_factory.mktemp("blind"))
    model: Any = CLIPSegForImageSegmentation.from_pretrained(folder)
    with torch.no_grad():
        for weight in model.decoder.transposed_convolution.parameters():
            weight.zero_()
        model.decoder.transposed_convolution.bias.fill_(-9.0)
    model.save_pretrained(folder)
    found, given = made(tmp_path, {"a.png": noise()}, lambda _: folder, mask_target_prompts="a car|a bus")
    assert found == {}
    assert given.notes == ["'a.png' shows no 'a car' and no 'a bus'; all of it counts"]


def test_several_prompts_are_joined_and_heat_softens() -> None:
    logits = torch.full((2, 4, 4), -6.0)
    logits[0, 0, 0], logits[1, 3, 3] = 4.0, 2.0
    sharp, usual, soft = (weights(logits, (4, 4), temperature) for temperature in (0.1, 1.0, 100.0))
    assert usual[0, 0] == 1
    assert usual[3, 3] == pytest.approx(1 / (1 + np.exp(-2)) * (1 + np.exp(-4)), rel=1e-5)
    assert sharp[0, 3] < usual[0, 3] < soft[0, 3]
    assert sharp[0, 3] < 1e-9
    assert soft.min() > 0.9
    assert weights(logits, (8, 12), 1.0).shape == (8, 12)
