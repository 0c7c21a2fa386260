"""Small pictures, four times larger: in tiles, without a trace of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Swin2SRForImageSuperResolution

from errors import WeightsError
from preprocess import upscale
from preprocess.upscale import Upscaler
from tests import tiny_helpers
from tests.preparing import job


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_helpers.upscaler(tmp_path_factory.mktemp("upscaler"))


def drawn(width: int, height: int) -> Image.Image:
    """Different everywhere, and smooth."""
    y, x = np.mgrid[:height, :width]
    waves = [127 + 120 * np.sin(x / (5 + band) + y / (9 - band)) for band in range(3)]
    return Image.fromarray(np.stack(waves, -1).astype(np.uint8))


@torch.inference_mode()
def at_once(folder: Path, image: Image.Image) -> np.ndarray:
    """The whole picture in one piece, whose sides are whole windows."""
    model: Any = Swin2SRForImageSuperResolution.from_pretrained(folder)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
    result: np.ndarray = (model(pixels).reconstruction[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    return result


@pytest.mark.parametrize("size", [(32, 40), (33, 47), (127, 32), (129, 35)])
def test_exactly_four_times(tmp_path: Path, folder: Path, size: tuple[int, int]) -> None:
    large = Upscaler(job(tmp_path, lambda _: folder))(drawn(*size))
    assert large.size == (4 * size[0], 4 * size[1])
    assert large.mode == "RGB"


@pytest.mark.parametrize(("size", "tile"), [((48, 64), 32), ((96, 72), 32), ((72, 96), 24), ((200, 40), 128)])
def test_no_seam_shows(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], tile: int
) -> None:
    monkeypatch.setattr(upscale, "TILE", tile)
    image = drawn(*size)
    tiled = np.asarray(Upscaler(job(tmp_path, lambda _: folder))(image), dtype=int)
    whole = at_once(folder, image)
    assert whole.shape == tiled.shape
    assert whole.std() > 3  # there is something to see
    assert np.abs(tiled - whole).max() <= 1


def test_nothing_of_the_padding_is_left(tmp_path: Path, folder: Path) -> None:
    """C-61: a picture whose sides are no whole windows lies where it lay, not shifted."""
    upscaler, image = Upscaler(job(tmp_path, lambda _: folder)), drawn(64, 64)
    whole, part = (np.asarray(upscaler(each), dtype=int) for each in (image, image.crop((0, 0, 51, 43))))
    assert np.abs(whole[:120, :150] - part[:120, :150]).max() <= 1


def test_a_cancel_is_seen_between_tiles(tmp_path: Path, folder: Path) -> None:
    class Cancelled(Exception):
        pass

    calls = []

    def check() -> None:
        calls.append(1)
        if len(calls) == 2:
            raise Cancelled

    given = job(tmp_path, lambda _: folder)
    object.__setattr__(given, "check", check)
    with pytest.raises(Cancelled):
        Upscaler(given)(drawn(300, 40))


def test_one_that_enlarges_otherwise(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tiny_helpers.upscaler(tmp_path_factory.mktemp("twice"), times=2)
    with pytest.raises(WeightsError, match="the upscaler enlarges 2 times; choose one that does 4 times"):
        Upscaler(job(tmp_path, lambda _: other))
