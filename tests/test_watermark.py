"""The watermark against the library that defines it."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from diffusers.pipelines.stable_diffusion_xl.watermark import WATERMARK_BITS
from hypothesis import given, settings
from hypothesis import strategies as st
from imwatermark import WatermarkDecoder, WatermarkEncoder
from imwatermark.maxDct import EmbedMaxDct
from PIL import Image

from sdxl.watermark import BITS, apply_watermark, matches, read_watermark

Pixels = npt.NDArray[np.uint8]


def picture(width: int, height: int, seed: int = 0, cell: int = 24) -> Image.Image:
    """Smooth colours with a little grain."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (height // cell + 2, width // cell + 2, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    return Image.fromarray(np.clip(smooth + random.normal(0, 2, smooth.shape), 0, 255).astype(np.uint8))


def bgr(image: Image.Image) -> npt.NDArray[np.float32]:
    return np.asarray(image)[:, :, ::-1].astype(np.float32)


def theirs(image: Image.Image) -> Pixels:
    """What the library makes of it; EmbedMaxDct is its dwtDct without the limit of 256x256."""
    marked = EmbedMaxDct(WATERMARK_BITS, wmLen=48).encode(bgr(image))
    rounded: Pixels = np.clip(np.rint(marked), 0, 255).astype(np.uint8)[:, :, ::-1]
    return rounded


GREY = picture(320, 256).convert("L").convert("RGB")
CASES = {
    "large": picture(1024, 1024),
    "wide": picture(1344, 768, seed=1),
    "odd": picture(517, 771),
    "small": picture(128, 128),
    "smallest": picture(64, 64),
    "multiple of 4, not of 8": picture(84, 92),
    "grey": GREY,
    "saturated": Image.fromarray((np.asarray(picture(256, 256)) > 127).astype(np.uint8) * 255),
    "white": Image.new("RGB", (256, 256), "white"),
    "red": Image.new("RGB", (256, 264), "red"),
}


def assert_same(image: Image.Image) -> None:
    ours, library = np.asarray(apply_watermark(image)).astype(int), theirs(image).astype(int)
    assert (ours == library).all(axis=2).mean() >= 0.999
    assert np.abs(ours - library).max() <= 1


@pytest.mark.parametrize("name", CASES)
def test_same_pixels_as_the_library(name: str) -> None:
    assert_same(CASES[name])


@settings(max_examples=30, deadline=None)
@given(st.integers(64, 300), st.integers(64, 300), st.integers(0, 99), st.sampled_from([5, 24, 200]))
def test_same_pixels_as_the_library_at_any_size(width: int, height: int, seed: int, cell: int) -> None:
    assert_same(picture(width, height, seed, cell))


def test_the_public_encoder_is_the_one_compared_with() -> None:
    image = CASES["large"]
    encoder = WatermarkEncoder()
    encoder.set_watermark("bits", WATERMARK_BITS)
    assert np.array_equal(np.rint(encoder.encode(bgr(image), "dwtDct")).clip(0, 255)[:, :, ::-1], theirs(image))


def test_the_message_is_that_of_diffusers() -> None:
    assert BITS.tolist() == WATERMARK_BITS


@pytest.mark.parametrize("name", ["large", "wide", "grey"])
def test_the_library_reads_every_bit(name: str) -> None:
    marked = apply_watermark(CASES[name])
    assert WatermarkDecoder("bits", 48).decode(bgr(marked), "dwtDct").tolist() == [bit == 1 for bit in BITS]
    assert matches(marked) == 1.0


@pytest.mark.parametrize("name", CASES)
def test_we_read_what_the_library_reads(name: str) -> None:
    for image in (CASES[name], apply_watermark(CASES[name])):
        assert read_watermark(image) == EmbedMaxDct([], wmLen=48).decode(bgr(image)).astype(int).tolist()


def test_an_unmarked_picture_does_not_match() -> None:
    assert all(matches(picture(512, 512, seed)) < 0.8 for seed in range(5))


def test_it_survives_jpeg(tmp_path: Path) -> None:
    apply_watermark(CASES["large"]).save(tmp_path / "marked.jpg", quality=95)
    with Image.open(tmp_path / "marked.jpg") as image:
        assert matches(image) >= 0.9


def test_it_cannot_be_seen() -> None:
    image = CASES["large"]
    change = np.asarray(apply_watermark(image)).astype(float) - np.asarray(image)
    assert 10 * np.log10(255**2 / np.mean(change**2)) > 35
    assert not change[..., 0].any(), "the red channel carries nothing"


@pytest.mark.parametrize("size", [(3, 200), (4, 4), (1, 1), (8, 8), (100, 5)])
def test_a_picture_too_small_for_bits_passes(size: tuple[int, int]) -> None:
    assert apply_watermark(Image.new("RGB", size, "teal")).size == size
    assert len(read_watermark(Image.new("RGB", size))) == 48


def test_kept_pixels_of_an_inpainting_stay() -> None:
    image, only = picture(512, 512), Image.new("L", (512, 512))
    only.paste(1, (100, 0, 512, 400))
    part, whole = np.asarray(apply_watermark(image, only)), np.asarray(apply_watermark(image))
    assert np.array_equal(part, np.where(np.asarray(only)[..., None] > 0, whole, np.asarray(image)))
    assert matches(apply_watermark(image, only)) > 0.8


def test_the_input_stays_as_it_is() -> None:
    image = picture(256, 256)
    before = image.tobytes()
    apply_watermark(image)
    assert image.tobytes() == before
