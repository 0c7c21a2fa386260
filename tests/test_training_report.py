"""The archive of a training, and what lies in it for people: a report, captions, pictures."""

import csv
import json
import math
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from errors import WeightsError
from preprocess.examples import Example, Prepared
from tests.conftest import ROOT
from trainer.archive import pack
from trainer.files import whole
from trainer.pictures import loss_curve, sample_grid, smoothed, ticks, wrapped
from trainer.report import Course, captions, report, write_report

DATA = Prepared(
    (
        Example("a/1.jpg", Path("/x/0.png"), None, 'a photo of TOK, "große", red', (600, 400), (0, 8), (128, 96)),
        Example("b/1.jpg", Path("/x/1.png"), Path("/x/1m.png"), "TOK\nagain", (64, 64), (0, 0), (128, 128)),
    ),
    (("c.txt", "no picture c"), ("d.png", "damaged")),
    ("upscaled 1 picture",),
)
COURSE = Course([0.5, 0.25, math.nan], {"lora": [1e-4, 1e-4, 0.0]}, 2, {"caption": 1.23456, "train": 3.0}, "cpu")
SETTINGS = {"seed": 0, "lora_lr": 1e-4, "mask_target_prompts": None, "folder": Path("/x"), "size": (1, 2)}


def test_a_report_says_what_was_done(tmp_path: Path) -> None:
    write_report(tmp_path, DATA, SETTINGS, COURSE)
    told = json.loads((tmp_path / "training_report.json").read_text())
    assert told["settings"] == {
        "seed": 0, "lora_lr": 1e-4, "mask_target_prompts": None, "folder": "/x", "size": [1, 2]
    }  # fmt: skip
    assert set(told["versions"]) == {"sdxl", "torch", "diffusers", "transformers"}
    assert told["losses"] == [0.5, 0.25, None]
    assert told["learning_rates"] == {"lora": [1e-4, 1e-4, 0.0]}
    assert (told["steps"], told["pivot"], told["device"]) == (3, 2, "cpu")
    assert told["seconds"] == {"caption": 1.235, "train": 3.0}
    assert told["skipped"][1] == {"file": "d.png", "why": "damaged"}
    assert told["notes"] == ["upscaled 1 picture"]
    assert told["examples"][1] == {
        "name": "b/1.jpg",
        "caption": "TOK\nagain",
        "original_size": [64, 64],
        "crop_top_left": [0, 0],
        "size": [128, 128],
        "mask": True,
    }
    assert "/x/0.png" not in (tmp_path / "training_report.json").read_text()  # a path that is gone


def test_captions_come_back_as_they_were(tmp_path: Path) -> None:
    write_report(tmp_path, DATA, SETTINGS, COURSE)
    with (tmp_path / "captions.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert rows == [{"caption": each.caption, "image_file": each.name} for each in DATA.examples]


@given(st.lists(st.tuples(st.text(st.characters(codec="utf-8", exclude_characters="\0\r")), st.text("ab/\"',.\n"))))
def test_captions_of_any_kind(texts: list[tuple[str, str]]) -> None:
    examples = tuple(Example(name, Path("/x"), None, text, (1, 1), (0, 0), (8, 8)) for text, name in texts)
    rows = list(csv.reader(captions(Prepared(examples, (), ())).splitlines(keepends=True)))
    assert rows[0] == ["caption", "image_file"]
    assert json.loads(json.dumps(report(Prepared(examples, (), ()), {}, COURSE)))["steps"] == 3


def some_files(folder: Path) -> Path:
    for name in (
        "special_params.json",
        "z.png",
        "samples/1.png",
        "lora.safetensors",
        "embeddings.pti",
        "TOK.safetensors",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def test_an_archive_is_the_same_bytes(tmp_path: Path) -> None:
    """Uncompressed, what the reference runtime reads first, and nothing of this machine in it."""
    for name in ("one", "two"):
        pack(some_files(tmp_path / name), tmp_path / f"{name}.tar")
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()
    with tarfile.open(tmp_path / "one.tar", "r:") as archive:
        members = archive.getmembers()
        assert [member.name for member in members] == [
            *("lora.safetensors", "embeddings.pti", "special_params.json"),
            *("TOK.safetensors", "samples/1.png", "z.png"),
        ]
        assert {(member.mtime, member.uid, member.uname, member.isreg()) for member in members} == {(0, 0, "", True)}
        for member in members:
            content = archive.extractfile(member)
            assert content is not None
            assert content.read().decode() == member.name


FULL = """
import resource, sys
from pathlib import Path
import torch
from errors import WeightsError
from trainer.archive import pack
from trainer.files import save_tensors
folder = Path(sys.argv[1])
save_tensors(folder / "in" / "big.safetensors", {"a": torch.zeros(50_000)}, {}, torch.float32)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
for write in (
    lambda: pack(folder / "in", folder / "out.tar"),
    lambda: save_tensors(folder / "out.safetensors", {"a": torch.zeros(50_000)}, {}, torch.float32),
):
    try:
        write()
    except WeightsError as error:
        print(error)
"""


def test_a_full_disk_is_one_sentence_and_nothing_is_left(tmp_path: Path) -> None:
    """A limit on the size of files stands for it: the system refuses to write on, in the middle of a file."""
    run = subprocess.run([sys.executable, "-c", FULL, tmp_path], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == [
        f"{name} cannot be written in {tmp_path} (file too large); make room there and train again."
        for name in ("out.tar", "out.safetensors")
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_cancel_leaves_nothing(tmp_path: Path) -> None:
    """Nor does it take what was there before."""
    path = tmp_path / "a.tar"
    path.write_bytes(b"before")

    def cancelled() -> None:
        with whole(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cancelled()
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_none_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WeightsError, match=r"out.tar cannot be written in .*file exists"):
        pack(some_files(tmp_path / "in"), tmp_path / "file" / "out.tar")


def colors(image: Image.Image) -> set[tuple[int, int, int]]:
    return set(image.convert("RGB").get_flattened_data())  # type: ignore[arg-type]


def blue(image: Image.Image) -> list[tuple[int, int]]:
    """The pixels of the running mean."""
    found = []
    for y in range(image.height):
        for x in range(image.width):
            r, g, b = image.getpixel((x, y))  # type: ignore[misc]
            if abs(r - 0x43) + abs(g - 0x38) + abs(b - 0xCA) < 40:
                found.append((x, y))
    return found


def test_a_curve_falls_as_the_losses_do() -> None:
    image = loss_curve([1.0 - step / 200 for step in range(100)], pivot=50)
    points = blue(image)
    left, right = (pick(points) for pick in (min, max))
    assert left[0] < 100
    assert right[0] > 900
    assert right[1] - left[1] > 100  # further down
    amber = [pixel for pixel in colors(image) if abs(pixel[0] - 0xD9) + abs(pixel[1] - 0x77) + abs(pixel[2] - 6) < 40]
    assert amber
    assert loss_curve([1.0] * 9, 9).tobytes() == loss_curve([1.0] * 9, 0).tobytes()  # a pivot that is none is not shown


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 1e6) | st.just(math.nan) | st.just(math.inf), max_size=12), st.integers(0, 14))
@example([5e-324], 0)
def test_a_curve_of_anything(losses: list[float], pivot: int) -> None:
    image = loss_curve(losses, pivot)
    assert image.size == (960, 480)
    assert len(colors(image)) > 1


@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=200))
def test_the_running_mean_is_one(losses: list[float]) -> None:
    mean = smoothed(losses)
    assert mean[0] == losses[0]
    assert len(mean) == len(losses)
    assert all(min(losses) * (1 - 1e-9) <= each <= max(losses) * (1 + 1e-9) for each in mean)


@given(st.floats(1e-9, 1e9))
def test_ticks_are_few_and_inside(high: float) -> None:
    found = ticks(0, high)
    assert 3 <= len(found) <= 8
    assert found[0] == 0
    assert found[-1] <= high * (1 + 1e-9)


def test_a_grid_shows_every_picture() -> None:
    red, green, grey = (
        Image.new("RGB", size, color) for size, color in (((90, 60), "red"), ((60, 60), "lime"), ((30, 60), "#123456"))
    )
    grid = sample_grid(
        {"training pictures": [red], "before": [red, green], "after": [grey, grey]}, ["a photo of TOK", "TOK"]
    )
    assert {(255, 0, 0), (0, 255, 0), (0x12, 0x34, 0x56)} <= colors(grid)
    assert grid.width == 2 * (90 + 12) + 12
    more = sample_grid({"before": [red], "after": [red]}, ["a caption of many words that goes over several lines " * 3])
    assert more.height > sample_grid({"before": [red], "after": [red]}, ["TOK"]).height
    assert sample_grid({"before": []}, []).width > 0


def test_captions_fit_their_columns() -> None:
    from PIL import ImageFont

    font = ImageFont.load_default(14)
    text = "a photo of TOK and a " + "very" * 40 + " long word"
    lines = wrapped(text, 120, font)
    assert all(font.getlength(line) <= 120 for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
