"""Which size is worked at and which comes back, and which wishes are refused."""

from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from errors import InputError
from sdxl.sizes import ASPECT_RATIOS, aspect_size
from tests.test_canvas import array, assert_working_size, box_mask, canvas, made, picture


@pytest.mark.parametrize(
    ("width", "height", "working", "returned"),
    [
        (None, None, (128, 128), (128, 128)),
        (200, None, (200, 128), (200, 128)),
        (None, 64, (128, 64), (128, 64)),
        (201, 207, (208, 208), (201, 207)),
        (2048, 2048, (2048, 2048), (2048, 2048)),
    ],
)
def test_without_an_image(
    width: int | None, height: int | None, working: tuple[int, int], returned: tuple[int, int]
) -> None:
    work = canvas(width=width, height=height)
    assert (work.width, work.height) == working
    assert work.image is None
    assert work.mask is None
    assert work.finish(made(work)).tobytes() == made(work).crop((0, 0, *returned)).tobytes()


def test_the_table_holds_trained_sizes() -> None:
    for name, (width, height) in ASPECT_RATIOS.items():
        across, down = (int(part) for part in name.split(":"))
        assert width / height == pytest.approx(across / down, rel=0.04)
        assert width % 64 == height % 64 == 0
        assert 0.9 * 1024**2 <= width * height <= 1.03 * 1024**2
        assert ASPECT_RATIOS[f"{down}:{across}"] == (height, width)
        assert aspect_size(name, 1024) == (width, height)
        assert aspect_size(name, 128) == (width // 8, height // 8)
        work = canvas(native=1024, ratio=name)
        assert (work.width, work.height) == (width, height)
    assert aspect_size("16:9", 96) == (128, 72)


@pytest.mark.parametrize(
    ("native", "size", "working"),
    [
        (128, (128, 128), (128, 128)),
        (128, (181, 181), (184, 184)),  # the most that twice the native area allows
        (128, (182, 182), (128, 128)),
        (128, (400, 100), (256, 64)),
        (128, (400, 90), (288, 64)),  # no side below 64
        (1024, (1000, 2000), (1000, 2000)),
        (1024, (1441, 1441), (1448, 1448)),
        (1024, (4032, 3024), (1184, 888)),
        (1024, (3000, 200), (2048, 144)),
    ],
)
def test_an_image_alone(native: int, size: tuple[int, int], working: tuple[int, int]) -> None:
    work = canvas(picture(size), native=native)
    assert (work.width, work.height) == working
    assert_working_size(work)
    same = canvas(picture(size), native=native, ratio="match_input_image")
    assert array(same.image).tobytes() == array(work.image).tobytes()


def test_an_image_of_odd_size_is_padded_and_cropped_not_resampled() -> None:
    image = picture((101, 67))
    work = canvas(image)
    pixels = array(work.image)
    assert np.array_equal(pixels[:67, :101], array(image))
    assert (pixels[:67, 101:] == pixels[:67, 100:101]).all()
    assert (pixels[67:] == pixels[66:67]).all()
    assert work.image is not None
    assert work.finish(work.image).tobytes() == image.tobytes()


def test_a_large_image_without_a_mask_comes_back_at_the_working_size_without_padding() -> None:
    work = canvas(picture((600, 450)))
    assert (work.width, work.height) == (152, 112)
    assert work.finish(made(work)).size == (148, 111)


@pytest.mark.parametrize(
    ("width", "height", "ratio", "size"),
    [(200, 100, "custom", (200, 100)), (77, None, "custom", (77, 108)), (None, None, "16:9", (168, 96))],
)
def test_an_image_and_a_size_are_never_squeezed(
    width: int | None, height: int | None, ratio: str, size: tuple[int, int]
) -> None:
    circle = Image.radial_gradient("L").resize((300, 300)).convert("RGB")
    image = Image.new("RGB", (300, 420), "white")
    image.paste(circle, (0, 60))
    work = canvas(image, width=width, height=height, ratio=ratio)
    assert_working_size(work)
    result = work.finish(work.image if work.image is not None else image)
    assert result.size == size
    assert np.abs(array(result).astype(int) - array(ImageOps.fit(image, size, Image.Resampling.LANCZOS))).max() == 0
    dark = array(result)[..., 0] < 60
    across, down = dark.any(axis=0).sum(), dark.any(axis=1).sum()
    assert abs(int(across) - int(down)) <= 2, "a circle stays a circle"


REFUSED: dict[str, dict[str, Any]] = {
    "mask: there is no image to repaint": {"mask": picture((64, 64), mode="L")},
    "mask_padding=8 needs a mask": {"image": picture((64, 64)), "padding": 8},
    "aspect_ratio='16:9' and width=128 exclude each other": {"ratio": "16:9", "width": 128},
    "aspect_ratio='match_input_image' and height=99 exclude": {"ratio": "match_input_image", "height": 99},
    "aspect_ratio='match_input_image' needs an image": {"ratio": "match_input_image"},
    "aspect_ratio='7:5' is not known; choose one of custom, match_input_image, 1:1": {"ratio": "7:5"},
    "width=63 is out of range; give a number from 64 to 2048": {"width": 63},
    "height=2049 is out of range": {"height": 2049},
    "image: 63x64 pixels are fewer than 64 on a side; send width and height": {"image": picture((63, 64))},
    "image: 3000x70 pixels to work on are over 32 times as long as wide": {"image": picture((3000, 70))},
    "mask: no pixel is white": {"image": picture((64, 64)), "mask": Image.new("L", (64, 64), 127)},
    "mask_blur=60 leaves nothing": {
        "image": picture((128, 128)),
        "mask": box_mask((128, 128), (60, 60, 62, 62)),
        "blur": 60,
    },
    "mask_blur=-1 and mask_padding=None must be 0 or more": {"blur": -1},
}


@pytest.mark.parametrize("message", REFUSED)
def test_refused(message: str) -> None:
    with pytest.raises(InputError) as refusal:
        canvas(**REFUSED[message])
    assert str(refusal.value).startswith(message)
