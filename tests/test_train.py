"""train.py as Cog calls it: archives in, a tar out; what is wrong is one sentence, and nothing is left behind."""

import inspect
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cog import Path as CogPath
from PIL import Image
from safetensors.torch import load

import train
from errors import DatasetError, InputError, SDXLError
from miniature.world import render, sample_scene
from tests.conftest import ROOT
from tests.training import files

QUICK: dict[str, Any] = {
    "max_train_steps": 2,
    "train_batch_size": 1,
    "lora_rank": 2,
    "sample_prompts": "none",
    "seed": 0,
    "verbose": False,
}


def picture(size: tuple[int, int] = (128, 128)) -> bytes:
    import random

    order, stream = random.Random(3), io.BytesIO()
    render(sample_scene(order, "plain"), order, *size).save(stream, "PNG")
    return stream.getvalue()


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two pictures with captions."""
    members = {"a.png": picture(), "a.txt": b"a red TOK", "b.png": picture((160, 128)), "b.txt": b"a blue thing"}
    return zipped(tmp_path / "pictures.zip", members)


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The miniature, a cache and a folder for temporary files of our own."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("SDXL_MODEL", "miniature")
    monkeypatch.setenv("SDXL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    return temporary


def trained(archive: Path | str, **asked: Any) -> Path:
    """What Cog does: defaults for what is not asked, `cog.Path` for a file."""
    inputs = inspect.signature(train.train).parameters.items()
    defaults = {name: None if each.default.default is ... else each.default.default for name, each in inputs}
    given = CogPath(archive) if isinstance(archive, Path) else archive
    return Path(train.train(**{**defaults, **QUICK, **asked, "input_images": given}).weights)


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        return {each.name: archive.extractfile(each).read() for each in archive}  # type: ignore[union-attr]


def test_an_archive_becomes_weights(pictures: Path, surroundings: Path) -> None:
    found = members(trained(pictures))
    assert list(found)[:3] == ["lora.safetensors", "embeddings.pti", "special_params.json"]
    assert {
        "lora_kohya.safetensors",
        "lora_peft.safetensors",
        "TOK.safetensors",
        "captions.csv",
        "loss.png",
    } <= found.keys()
    assert json.loads(found["special_params.json"]) == {"TOK": "<s0><s1>"}
    assert found["captions.csv"].decode().splitlines()[1:] == [
        "a red TOK,a.png",
        '"a photo of TOK, a blue thing",b.png',
    ]
    report = json.loads(found["training_report.json"])
    assert len(report["losses"]) == 2
    last = trained(pictures)
    assert list(surroundings.iterdir()) == [last.parent]


def test_the_same_seed_gives_the_same_weights(pictures: Path) -> None:
    one, other = (members(trained(pictures)) for _ in range(2))
    for name in one:
        assert one[name] == other[name] or name == "training_report.json"  # which has the time


@pytest.mark.parametrize(("asked", "size"), [(None, 128), (64, 64), (96, 96)])
def test_resolution_is_what_is_trained(pictures: Path, asked: int | None, size: int) -> None:
    report = json.loads(members(trained(pictures, resolution=asked))["training_report.json"])
    assert [each["size"] for each in report["examples"]] == [[size, size]] * 2
    assert [each["original_size"] for each in report["examples"]] == [[128, 128], [128, 160]]


def test_default_learning_rates_are_for_the_width_of_the_model(pictures: Path) -> None:
    """1e-4 is what suits SDXL, 1,280 channels wide; the miniature has 96. What is given is taken as it is."""
    told = [json.loads(members(trained(pictures, lora_lr=rate))["training_report.json"]) for rate in (1e-4, 2e-4)]
    assert [each["settings"]["lora_lr"] for each in told] == [pytest.approx(1e-4 * 1280 / 96, rel=1e-4), 2e-4]
    assert [each["settings"]["ti_lr"] for each in told] == [pytest.approx(3e-4 * 1280 / 96, rel=1e-4)] * 2


def test_masks_of_prompts_and_of_ones_own(tmp_path: Path) -> None:
    archive = zipped(
        tmp_path / "masked.zip",
        {"a.png": picture(), "a.txt": b"a TOK", "b.png": picture(), "b.txt": b"a TOK", "b.mask.png": picture()},
    )
    told = json.loads(members(trained(archive, mask_target_prompts="a shape"))["training_report.json"])
    assert [each["mask"] for each in told["examples"]] == [True, True]
    plain = json.loads(members(trained(archive))["training_report.json"])
    assert [each["mask"] for each in plain["examples"]] == [False, True]
    assert told["losses"] != plain["losses"]


def test_a_word_of_ones_own(pictures: Path) -> None:
    """The default prefix means the word, whatever it is called."""
    found = members(trained(pictures, token_string="ZWX"))
    assert "ZWX.safetensors" in found
    assert b"a photo of ZWX, a red TOK,a.png" in found["captions.csv"].replace(b'"', b"")


def test_a_full_fine_tune(pictures: Path) -> None:
    found = members(trained(pictures, is_lora=False, unet_learning_rate=1e-4))
    assert list(found)[:3] == ["unet.safetensors", "embeddings.pti", "special_params.json"]
    assert len(load(found["unet.safetensors"])) > 300


def resumed(pictures: Path, monkeypatch: pytest.MonkeyPatch, after: int, **asked: Any) -> list[float]:
    """Stopped after some steps, and gone on with: the losses of the whole."""
    from trainer import run

    told, save = list[int](), run._keep

    def stop(*given: Any) -> None:
        save(*given)
        told.append(given[2])
        if len(told) == after:
            raise KeyboardInterrupt

    monkeypatch.setattr(run, "_keep", stop)
    with pytest.raises(KeyboardInterrupt):
        trained(pictures, checkpointing_steps=1, max_train_steps=4, **asked)
    monkeypatch.setattr(run, "_keep", save)
    report = members(trained(pictures, resume_from="last", max_train_steps=4, **asked))["training_report.json"]
    losses: list[float] = json.loads(report)["losses"]
    return losses


def test_the_last_checkpoint_is_gone_on_from(pictures: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With the seed that was drawn for it; and the checkpoint goes when the result is there."""
    whole = json.loads(members(trained(pictures, max_train_steps=4))["training_report.json"])["losses"]
    assert resumed(pictures, monkeypatch, 2) == whole
    assert list((tmp_path / "cache" / "trainings").iterdir()) == []
    assert len(resumed(pictures, monkeypatch, 3, seed=None)) == 4
    with pytest.raises(InputError, match="resume_from='last'"):
        trained(pictures, resume_from="last")


def test_a_result_with_checkpoints_is_gone_on_from(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More steps for a training that is over; with other settings it would be another."""
    whole = json.loads(members(trained(pictures, max_train_steps=3, pivot=1))["training_report.json"])["losses"]
    path = tmp_path / "first.tar"
    path.write_bytes(trained(pictures, save_checkpoints=True, pivot=1).read_bytes())
    monkeypatch.setenv("SDXL_LOCAL_FILES", str(path))
    report = members(trained(pictures, max_train_steps=3, pivot=1, resume_from=str(path)))["training_report.json"]
    assert json.loads(report)["losses"] == whole
    for asked, words in (
        ({"lora_rank": 3}, "lora_rank=3"),
        ({"seed": 5}, "seed=5"),
        ({"resolution": 64}, "resolution=64"),
        ({"class_prompt": "a star"}, "class_prompt='a star'"),
    ):
        with pytest.raises(InputError, match=words):
            trained(pictures, pivot=1, resume_from=str(path), **asked)
    plain = tmp_path / "plain.tar"
    plain.write_bytes(trained(pictures).read_bytes())
    monkeypatch.setenv("SDXL_LOCAL_FILES", str(plain))
    with pytest.raises(InputError, match="save_checkpoints"):
        trained(pictures, resume_from=str(plain))


def linked(path: Path) -> Path:
    """A tar whose picture is a link to a file of this machine, and beside it a real one."""
    with tarfile.open(path, "w") as archive:
        link = tarfile.TarInfo("x.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return path


def outside(path: Path) -> Path:
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo("../../x.png")
        member.size = len(picture())
        archive.addfile(member, io.BytesIO(picture()))
    return path


def locked(path: Path) -> Path:
    """A zip whose first member says that it is encrypted."""
    content = bytearray(zipped(path, {"a.png": picture()}).read_bytes())
    for magic, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        content[content.index(magic) + at] |= 1
    path.write_bytes(content)
    return path


def bomb(path: Path) -> Path:
    return zipped(path, {f"{number}.png": bytes(40 << 20) for number in range(7)})


def text(path: Path) -> Path:
    path.write_text("no archive at all")
    return path


ARCHIVES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "no archive": (text, "input_images is"),
    "encrypted": (locked, "password"),
    "bomb": (bomb, "unpacks to far more"),
    "links only": (linked, "holds no image"),
    "outside": (outside, "outside of its folder"),
    "no image": (lambda path: zipped(path, {"notes.txt": b"hello"}), "holds no image"),
    "one pixel": (lambda path: zipped(path, {"a.png": picture((1, 1))}), "1x1"),
    "no picture inside": (lambda path: zipped(path, {"a.png": b"PNG?"}), "a.png"),
    "empty": (lambda path: (path.write_bytes(b"") and path) or path, "empty"),
}


@pytest.mark.parametrize("kind", ARCHIVES)
def test_a_bad_archive_is_one_sentence_before_any_model(
    tmp_path: Path, surroundings: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The model that would be loaded afterwards is not there: nobody gets that far."""
    monkeypatch.setenv("SDXL_MODEL", str(tmp_path / "missing"))
    make, words = ARCHIVES[kind]
    with pytest.raises((DatasetError, InputError), match=words) as raised:
        trained(make(tmp_path / "images.zip"))
    assert "\n" not in str(raised.value)
    assert list(surroundings.iterdir()) == []


INPUTS: list[tuple[dict[str, Any], str]] = [
    ({"caption_prefix": "a photo of a dog"}, "caption_prefix"),
    ({"token_string": " "}, "token_string"),
    ({"max_train_steps": -1}, "max_train_steps=-1"),
    ({"lora_lr": 10}, "lora_lr=10"),
    ({"ti_lr": -0.1}, "ti_lr=-0.1"),
    ({"unet_learning_rate": float("nan")}, "unet_learning_rate"),
    ({"resolution": 100}, "resolution"),
    ({"resolution": 10_000}, "resolution=10000"),
    ({"train_batch_size": 0}, "train_batch_size=0"),
    ({"seed": -1}, "seed=-1"),
    ({"lora_rank": 0}, "lora_rank=0"),
    ({"lr_scheduler": "wild"}, "lr_scheduler='wild'"),
    ({"optimizer": "sgd"}, "optimizer='sgd'"),
    ({"input_images_filetype": "tar"}, "input_images_filetype"),
    ({"clipseg_temperature": 0}, "clipseg_temperature=0"),
    ({"lora_lr": 0, "ti_lr": 0}, "lora_lr=0 and ti_lr=0"),
    ({"resume_from": "last"}, "resume_from='last'"),
    ({"class_prompt": "a photo of tok"}, "class_prompt says 'TOK'"),
]


@pytest.mark.parametrize(("asked", "words"), INPUTS, ids=str)
def test_a_bad_input_is_one_sentence_before_any_model(
    pictures: Path,
    surroundings: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    asked: dict[str, Any],
    words: str,
) -> None:
    monkeypatch.setenv("SDXL_MODEL", str(tmp_path / "missing"))
    with pytest.raises(InputError, match=words) as raised:
        trained(pictures, **asked)
    assert "\n" not in str(raised.value)
    assert list(surroundings.iterdir()) == []


@pytest.mark.parametrize("given", ["/etc/passwd", "pictures.zip", ""])
def test_a_path_of_this_machine_is_not_read(given: str) -> None:
    with pytest.raises(InputError, match="input_images"):
        trained(given)


def test_captions_for_absent_files_and_bad_pictures_are_told(tmp_path: Path) -> None:
    """And the rest is trained on."""
    archive = zipped(
        tmp_path / "mixed.zip",
        {
            "good.png": picture(),
            "bad.png": b"no picture",
            "tiny.png": picture((4, 4)),
            "caption.csv": b"caption,image_file\na TOK,good.png\nnothing,absent.png\n",
            "__MACOSX/._good.png": b"\0",
        },
    )
    found = members(trained(archive))
    skipped = json.dumps(json.loads(found["training_report.json"])["skipped"])
    for name in ("bad.png", "tiny.png", "absent.png"):
        assert name in skipped
    assert found["captions.csv"] == b"caption,image_file\na TOK,good.png\n"


FULL_DISK = """
import resource, signal, sys
sys.path.insert(0, {root!r})
from pathlib import Path
from tests import test_train
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
try:
    test_train.trained(Path({archive!r}))
except Exception as error:
    print(type(error).__name__, error)
"""


def test_a_full_disk_is_one_sentence(pictures: Path, tmp_path: Path) -> None:
    """No file may have more than 60 kB: pictures still fit, weights do not."""
    temporary = tmp_path / "little"
    temporary.mkdir()
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FULL_DISK.format(root=str(ROOT), archive=str(pictures))],
        env={**os.environ, "TMPDIR": str(temporary), "SDXL_MODEL": "miniature", "SDXL_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    last = run.stdout.strip().splitlines()[-1]
    assert last.startswith("WeightsError lora.safetensors cannot be written"), run.stdout
    assert files(temporary) == {}


def test_errors_are_the_users_to_mend() -> None:
    assert issubclass(DatasetError, SDXLError)


def test_pictures_of_all_shapes_in_buckets(tmp_path: Path) -> None:
    archive = zipped(
        tmp_path / "shapes.zip",
        {
            f"{name}.png": picture(size)
            for name, size in (("wide", (256, 128)), ("tall", (96, 160)), ("square", (128, 128)))
        }
        | {f"{name}.txt": b"a TOK" for name in ("wide", "tall", "square")},
    )
    report = json.loads(members(trained(archive, crop_based_on_salience=False))["training_report.json"])
    sizes = {each["name"]: each["size"] for each in report["examples"]}
    assert sizes["square.png"] == [128, 128]
    assert sizes["wide.png"][0] < sizes["wide.png"][1]
    assert sizes["tall.png"][0] > sizes["tall.png"][1]
    assert all(height * width <= 128 * 128 * 1.1 for height, width in sizes.values())


def test_the_loss_is_a_picture(pictures: Path) -> None:
    with Image.open(io.BytesIO(members(trained(pictures))["loss.png"])) as image:
        assert image.width > 300
