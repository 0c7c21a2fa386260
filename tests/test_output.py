"""Files that hold the picture and how it was made, all or none."""

import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sdxl.output import (
    FORMATS,
    OutputFolders,
    Parameters,
    a1111_text,
    finish_images,
    read_parameters,
)
from sdxl.schedulers import SCHEDULERS
from sdxl.watermark import apply_watermark, matches
from sdxl.workers import Workers

WRITERS = Workers(2, "writer")
PARAMETERS: dict[str, object] = {
    "prompt": "a café, 漢字 🦄\nsecond line: with colon",
    "negative_prompt": "blurry",
    "width": 96,
    "seed": 2**63 - 1,
    "num_inference_steps": 50,
    "guidance_scale": 7.5,
    "scheduler": "K_EULER_ANCESTRAL",
    "prompt_strength": 0.8,
    "refine": "no_refiner",
    "lora": ["one, two", "three"],
    "nothing": None,
}


def picture(seed: int = 0, size: tuple[int, int] = (96, 64)) -> Image.Image:
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def pictures(count: int) -> list[tuple[Image.Image, Parameters]]:
    return [(picture(number), {**PARAMETERS, "seed": number}) for number in range(count)]


def save(
    made: Iterable[tuple[Image.Image, Parameters]],
    folder: Path,
    output_format: str = "png",
    quality: int = 95,
    **options: Any,
) -> list[Path]:
    options = {"watermark": False, "embed_parameters": True} | options
    return finish_images(made, folder, WRITERS, output_format=output_format, quality=quality, safety=None, **options)


@pytest.mark.parametrize("output_format", FORMATS)
def test_names_order_and_parameters(tmp_path: Path, output_format: str) -> None:
    made = pictures(12)
    paths = save(made, tmp_path, output_format)
    assert [path.name for path in paths] == [f"out-{number}.{output_format}" for number in range(12)]
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    for path, (image, parameters) in zip(paths, made, strict=True):
        assert read_parameters(path) == parameters
        with Image.open(path) as file:
            assert file.format == FORMATS[output_format]
            difference = np.abs(np.asarray(file.convert("RGB")).astype(int) - np.asarray(image))
        assert difference.mean() < 3
        if output_format == "png":
            assert not difference.any()


def test_lossless_webp(tmp_path: Path) -> None:
    [path] = save(pictures(1), tmp_path, "webp", 100)
    with Image.open(path) as file:
        assert file.convert("RGB").tobytes() == picture(0).tobytes()


def test_quality_counts(tmp_path: Path) -> None:
    for output_format in ("jpg", "webp"):
        sizes = [save(pictures(1), tmp_path, output_format, q)[0].stat().st_size for q in (0, 30, 60, 90, 100)]
        assert sizes == sorted(set(sizes))


@pytest.mark.parametrize("output_format", FORMATS)
def test_no_parameters_when_not_wanted(tmp_path: Path, output_format: str) -> None:
    for watermark in (False, True):
        [path] = save(pictures(1), tmp_path, output_format, 90, watermark=watermark, embed_parameters=False)
        assert read_parameters(path) == {}
        assert b"blurry" not in path.read_bytes()
        with Image.open(path) as file:
            assert not file.getexif()
            assert not {"parameters", "sdxl", "exif"} & set(file.info)


def test_the_watermark_is_in_the_file_and_nothing_else_changes(tmp_path: Path) -> None:
    made: list[tuple[Image.Image, Parameters]] = [(picture(n, (512, 512)), {}) for n in range(3)]
    paths = save(made, tmp_path, watermark=True)
    for path, (image, _) in zip(paths, made, strict=True):
        with Image.open(path) as file:
            assert file.tobytes() == apply_watermark(image).tobytes()
            assert matches(file) == matches(apply_watermark(image)) > 0.8


def test_the_watermark_can_leave_out_what_inpainting_keeps(tmp_path: Path) -> None:
    image, only = picture(0, (256, 256)), Image.new("L", (256, 256))
    only.paste(255, (0, 0, 256, 128))
    [path] = save([(image, {})], tmp_path, watermark=True, embed_parameters=False, watermark_only=only)
    with Image.open(path) as file:
        assert file.tobytes() == apply_watermark(image, only).tobytes()
        assert file.tobytes() != image.tobytes()


def test_a1111_text() -> None:
    lines = a1111_text(PARAMETERS, (96, 64)).split("\n")
    assert lines[:3] == ["a café, 漢字 🦄", "second line: with colon", "Negative prompt: blurry"]
    assert lines[3] == (
        f"Steps: 50, Sampler: Euler a, CFG scale: 7.5, Seed: {2**63 - 1}, Size: 96x64, "
        "Denoising strength: 0.8, refine: no_refiner, lora: \"['one, two', 'three']\""
    )
    assert len(lines) == 4
    assert a1111_text({"prompt": "a", "seed": 1}, (8, 9)) == "a\nSeed: 1, Size: 8x9"
    assert all("Sampler: None" not in a1111_text({"scheduler": name}, (8, 8)) for name in SCHEDULERS)


def test_where_other_tools_look(tmp_path: Path) -> None:
    text = a1111_text(PARAMETERS, (96, 64))
    made: list[tuple[Image.Image, Parameters]] = [(picture(), PARAMETERS)]
    with Image.open(save(made, tmp_path, "png")[0]) as file:
        assert file.info["parameters"] == text
    for output_format in ("jpg", "webp"):
        with Image.open(save(made, tmp_path, output_format)[0]) as file:
            comment = file.getexif().get_ifd(0x8769)[0x9286]
        assert comment == b"UNICODE\0" + text.encode("utf-16-be")


@pytest.mark.parametrize("output_format", FORMATS)
@pytest.mark.parametrize("length", [30_000, 200_000])
def test_a_very_long_prompt_does_not_cost_the_picture(tmp_path: Path, output_format: str, length: int) -> None:
    long = {"prompt": "w" * length}
    [path] = save([(picture(), long)], tmp_path, output_format)
    whole = output_format == "png" or length < 65_000
    assert read_parameters(path) == (long if whole else {})


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(FORMATS)),
    st.dictionaries(
        st.text(st.characters(codec="utf-8"), min_size=1),
        st.none() | st.booleans() | st.integers() | st.text(st.characters()) | st.floats(allow_nan=False),
    ),
)
def test_any_parameters_come_back(
    tmp_path_factory: pytest.TempPathFactory, output_format: str, parameters: dict[str, object]
) -> None:
    made: list[tuple[Image.Image, Parameters]] = [(picture(size=(8, 8)), parameters)]
    [path] = save(made, tmp_path_factory.mktemp("out"), output_format)
    assert read_parameters(path) == parameters


def test_a_failing_picture_takes_the_others_with_it(tmp_path: Path) -> None:
    def stream() -> Iterator[tuple[Image.Image, Parameters]]:
        yield from pictures(3)
        raise KeyboardInterrupt

    threads = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        save(stream(), tmp_path, watermark=True)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(TypeError):
        save([*pictures(3), (picture(), {1j: "no key of JSON"})], tmp_path)  # type: ignore[dict-item]
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError):
        save(pictures(2), tmp_path / "absent")
    assert threading.active_count() <= threads


def test_a_picture_is_written_while_the_next_is_made(tmp_path: Path) -> None:
    def stream() -> Iterator[tuple[Image.Image, Parameters]]:
        yield picture(), {}
        for _ in range(500):
            if (tmp_path / "out-0.png").exists():
                break
            threading.Event().wait(0.01)
        else:
            raise AssertionError("the first picture waits for the second")
        yield picture(), {}

    paths = save(stream(), tmp_path, watermark=True)
    assert len(paths) == 2


def test_folders_of_earlier_predictions_go() -> None:
    remover = Workers(1, "remover")
    folders = OutputFolders(remover)
    made = [folders.fresh() for _ in range(4)]
    remover.submit(lambda: None).result()  # after what was asked for before
    assert [folder.exists() for folder in made] == [False, False, True, True]
    assert len(set(made)) == 4
