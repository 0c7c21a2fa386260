"""An archive of pictures, ready to be trained on: the whole way."""

import hashlib
import json
import random
import resource
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from errors import DatasetError
from miniature.world import COLORS, Scene, Thing, render
from preprocess import examples, prepare
from preprocess.archive import unpack
from preprocess.crops import buckets
from preprocess.examples import Example, Prepared
from tests import tiny_helpers
from tests.conftest import ROOT
from tests.preparing import Log, encoded, left, no_helper, picture, wishes, zipped


@pytest.fixture(scope="module", params=["saved", "hub"])
def helpers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root, hub = tmp_path_factory.mktemp("helpers"), request.param == "hub"
    tiny_helpers.captioner(root / "captioner", hub=hub)
    tiny_helpers.segmenter(root / "segmenter", hub=hub)
    tiny_helpers.upscaler(root / "upscaler")
    return lambda part: root / part


def prepared(
    tmp_path: Path, files: dict[str, bytes], helper: Callable[[str], Path] = no_helper, **more: Any
) -> tuple[Prepared, Log]:
    tmp_path.mkdir(exist_ok=True)
    (tmp_path / "payload.zip").write_bytes(zipped(files))
    unpacked = unpack(tmp_path / "payload.zip", "infer", tmp_path / "out", check=lambda: None)
    log = Log()
    given = wishes(**more)
    found = prepare(unpacked, given, helper, tmp_path / "out", torch.device("cpu"), say=log, check=lambda: None)
    return found, log


def opened(path: Path | None) -> np.ndarray:
    assert path is not None
    with Image.open(path) as image:
        return np.asarray(image, dtype=float)


def slopes(width: int, height: int) -> Image.Image:
    """Red says how far right a pixel is, green how far down: 0 to 255."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(
        np.stack([255 * (x + 0.5) / width, 255 * (y + 0.5) / height, 0 * x], -1).round().astype(np.uint8)
    )


def where(example: Example) -> tuple[float, float]:
    """(top, left) of what is seen, in pixels of the resized whole, read off its slopes."""
    pixels = opened(example.image)
    height, width = example.original_size
    scale = max(example.size[0] / height, example.size[1] / width)
    return (
        pixels[..., 1].mean() / 255 * height * scale - example.size[0] / 2,
        pixels[..., 0].mean() / 255 * width * scale - example.size[1] / 2,
    )


@pytest.mark.parametrize("salience", [True, False])
@pytest.mark.parametrize("bucketed", [True, False])
@pytest.mark.parametrize("resolution", [64, 128, 512])
def test_what_sdxl_is_told_is_what_was_done(tmp_path: Path, resolution: int, salience: bool, bucketed: bool) -> None:
    """Micro-conditioning: the size as it came, what was cut off after resizing, the size that is trained."""
    sizes = {"wide": (1300, 700), "square": (600, 600), "tall": (560, 1700), "odd": (1037, 611)}
    mask = Image.new("L", (1300, 700))
    mask.paste("white", (1100, 200, 1200, 300))
    files = {f"{name}.png": encoded(slopes(*size)) for name, size in sizes.items()} | {"wide-mask.png": encoded(mask)}
    files |= {f"{name}.txt": b"slopes" for name in sizes}
    found, _ = prepared(
        tmp_path, files, resolution=resolution, crop_based_on_salience=salience, aspect_ratio_buckets=bucketed
    )
    assert [example.name for example in found.examples] == ["odd.png", "square.png", "tall.png", "wide.png"]
    for example in found.examples:
        width, height = sizes[example.name.removesuffix(".png")]
        assert example.original_size == (height, width)
        assert opened(example.image).shape == (*example.size, 3)
        assert example.size in (buckets(resolution) if bucketed and not salience else [(resolution, resolution)])
        top, left = where(example)
        tolerance = max(1.0, resolution / 128)  # a level of 255 is that many pixels
        assert abs(top - example.crop_top_left[0]) <= tolerance
        assert abs(left - example.crop_top_left[1]) <= tolerance
    wide = found.examples[3]
    seen = opened(wide.mask)
    assert seen.shape == wide.size
    if salience:  # what counts is in the middle, or as near to it as the edge allows
        assert seen.sum() / 255 == pytest.approx((100 * resolution / 700) ** 2, rel=0.1)


def test_the_mask_lies_over_its_picture(tmp_path: Path, helpers: Callable[[str], Path]) -> None:
    """Whatever the size: a mask of what is bright in a picture, cut, resized or enlarged with it."""
    files: dict[str, bytes] = {}
    for number, size in enumerate([(300, 200), (97, 64), (40, 90), (33, 33), (64, 64)]):
        image = Image.new("RGB", size)
        image.paste("white", (size[0] // 2, size[1] // 3, size[0] // 2 + 12, size[1] // 3 + 12))
        files |= {f"{number}.png": encoded(image), f"{number}-mask.png": encoded(image.convert("L"))}
        files[f"{number}.txt"] = b"white"
    for salience in (True, False):
        found, _ = prepared(tmp_path / str(salience), files, helpers, crop_based_on_salience=salience)
        for example in found.examples:
            if min(example.original_size) >= 64:
                assert np.abs(opened(example.image).mean(-1) - opened(example.mask)).mean() < 6
            assert opened(example.mask).max() > 200


def test_captions(tmp_path: Path, helpers: Callable[[str], Path]) -> None:
    files = {"a.png": picture("red"), "b.png": picture("blue"), "c.png": picture("green"), "d.png": picture("white")}
    files |= {"a.txt": b"a RED tok", "caption.csv": b"caption,image_file\nBlue,b.png\nlost,z.png\n"}
    found, log = prepared(tmp_path, files, helpers, triggers=("zwx", "TOK"))
    captions = {example.name: example.caption for example in found.examples}
    assert captions["a.png"] == "a RED TOK"
    assert captions["b.png"] == "a photo of TOK, Blue"
    for name in ("c.png", "d.png"):
        prefix, _, words = captions[name].partition(", ")
        assert prefix == "a photo of TOK"
        assert set(words.split()) <= set(tiny_helpers.WORDS[5:])
        assert words
    assert found.skipped == (("caption.csv", "line 3 is for 'z.png', which is not in the archive"),)
    assert "captions for 2 images" in log.lines
    assert "skipped: 'caption.csv' line 3 is for 'z.png', which is not in the archive" in log.lines


def test_each_picture_gets_the_caption_that_is_true_of_it(tmp_path: Path) -> None:
    """The miniature's own captioner, on more pictures than a batch, each of another colour."""
    scenes = {color: Scene("white" if color != "white" else "blue", (Thing("circle", color),)) for color in COLORS}
    files = {f"{color}.png": encoded(render(scene, random.Random(0))) for color, scene in scenes.items()}
    found, _ = prepared(tmp_path, files, lambda part: ROOT / "miniature" / "weights" / part, resolution=128)
    assert len(found.examples) == len(COLORS) > 4
    for example in found.examples:
        assert example.caption.startswith("a photo of TOK, a")
        assert f"{example.name.removesuffix('.png')} circle" in example.caption


def test_models_are_read_only_where_they_are_needed(tmp_path: Path, helpers: Callable[[str], Path]) -> None:
    asked: list[str] = []

    def helper(part: str) -> Path:
        asked.append(part)
        return helpers(part)

    whole = {"a.png": picture(), "a.txt": b"TOK"}
    prepared(tmp_path / "none", whole, helper)
    assert asked == []
    prepared(tmp_path / "large", whole | {"b.png": picture(size=(60, 60)), "b.txt": b"TOK"}, helper)
    assert asked == []  # a tenth is left to Lanczos
    found, _ = prepared(
        tmp_path / "all", whole | {"b.png": picture(size=(50, 50))}, helper, mask_target_prompts="a cat"
    )
    assert asked == ["segmenter", "upscaler", "captioner"]
    assert "enlarged by Swin2SR, smaller than what is trained: 'b.png'" in found.notes


def test_the_same_archive_gives_the_same_bytes(tmp_path: Path, helpers: Callable[[str], Path]) -> None:
    noise = [encoded(Image.effect_noise((90 + number, 50), 80)) for number in range(3)]
    files = {f"{number}.png": body for number, body in enumerate(noise)} | {"b.png": picture("blue", (40, 40))}

    def digest(folder: Path) -> str:
        found, _ = prepared(folder, files, helpers, mask_target_prompts="a red", crop_based_on_salience=True)
        parts = [path.read_bytes() for example in found.examples for path in (example.image, example.mask) if path]
        texts = [example.caption for example in found.examples] + list(found.notes)
        return hashlib.sha256(b"".join(parts) + json.dumps(texts).encode()).hexdigest()

    assert digest(tmp_path / "one") == digest(tmp_path / "two")


def test_another_process_reads_it(tmp_path: Path) -> None:
    files = {"ü/a.png": picture(), "ü/a.txt": b"T\xc3\xb6k", "ü/a-mask.png": picture("white"), "x.mov": b"x"}
    found, _ = prepared(tmp_path, files)
    assert examples.read(tmp_path / "out") == found
    shutil.copytree(tmp_path / "out", tmp_path / "moved")
    moved = examples.read(tmp_path / "moved")
    assert moved.skipped == found.skipped == (("x.mov", "is no image and no captions, by its ending"),)
    (example,), (before,) = moved.examples, found.examples
    assert example.image.is_file()
    assert example == replace(
        before, image=tmp_path / "moved" / "images" / "00000.png", mask=tmp_path / "moved" / "masks" / "00000.png"
    )
    assert left(tmp_path / "out") == [
        *(f"archive/{name}" for name in ("00000.png", "00001.txt", "00002.png")),
        "examples.json",
        "images/00000.png",
        "masks/00000.png",
    ]


def test_what_is_cut_off_is_said(tmp_path: Path) -> None:
    found, _ = prepared(tmp_path, {"a.png": picture(size=(900, 100)), "a.txt": b"TOK"})
    assert found.notes == ("73% of 'a.png' is outside of its 96x40 crop",)


def test_a_mask_that_shrinks_to_nothing(tmp_path: Path) -> None:
    """Nothing would be learned of its picture, and a loss divided by nothing is no number."""
    mask = Image.new("L", (2000, 2000))
    mask.putpixel((77, 1500), 255)
    files = {"a.png": picture(size=(2000, 2000)), "a.txt": b"TOK", "a-mask.png": encoded(mask)}
    found, _ = prepared(tmp_path, files)
    assert found.examples[0].mask is None
    assert found.notes == ("nothing that counts in 'a.png' lies in its crop; all of it counts",)


def test_one_bad_image_is_no_reason_to_stop(tmp_path: Path) -> None:
    files = {"a.png": picture(), "a.txt": b"TOK one", "b.png": b"x", "b.txt": b"TOK two", "c.png": picture(size=(1, 1))}
    found, _ = prepared(tmp_path, files)
    assert [(example.name, example.caption) for example in found.examples] == [("a.png", "TOK one")]
    assert [name for name, _ in found.skipped] == ["b.png", "c.png", "b.txt"]


@pytest.mark.parametrize("calls", [1, 3, 5])
def test_a_cancelled_one_leaves_nothing(tmp_path: Path, calls: int) -> None:
    class Cancelled(Exception):
        pass

    seen = []

    def check() -> None:
        seen.append(1)
        if len(seen) == calls:
            raise Cancelled

    files = {"a.png": picture(), "a.txt": b"TOK", "b.png": picture(), "b.txt": b"TOK"}
    (tmp_path / "payload.zip").write_bytes(zipped(files))
    unpacked = unpack(tmp_path / "payload.zip", "infer", tmp_path / "in", check=lambda: None)
    with pytest.raises(Cancelled):
        prepare(unpacked, wishes(), no_helper, tmp_path / "out", torch.device("cpu"), say=Log(), check=check)
    assert left(tmp_path / "out") == []


def test_a_disk_that_is_full(tmp_path: Path) -> None:
    noise = encoded(Image.merge("RGB", [Image.effect_noise((512, 512), 90 + number) for number in range(3)]))
    (tmp_path / "payload.zip").write_bytes(zipped({"a.png": noise, "a.txt": b"TOK"}))
    unpacked = unpack(tmp_path / "payload.zip", "infer", tmp_path / "in", check=lambda: None)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))  # as a disk that takes no more
    try:
        with pytest.raises(DatasetError, match="the disk is full: File too large; make room for the prepared images"):
            prepare(
                unpacked,
                wishes(resolution=512),
                no_helper,
                tmp_path / "out",
                torch.device("cpu"),
                say=Log(),
                check=lambda: None,
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert left(tmp_path / "out") == []
