"""The compiled blocks, by the real compiler: two graphs for all requests, kept in a file, and never in the way."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch._dynamo.utils import counters

import weights
from sdxl.compiled import Kind, OrPlain, example
from sdxl.engine import Engines
from sdxl.models import Models, load_models
from sdxl.placement import Placement
from sdxl.unet import block
from tests import tunes
from tests.painting import difference, likeness, picture, pictures
from tests.tuned import read_tensors, slot_for

# The compiler uses what torch itself deprecates
pytestmark = [pytest.mark.soak, pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")]

PLACEMENT = Placement(torch.device("cpu"), "resident")
CHANGES: list[dict[str, Any]] = [
    {},
    {"seed": 4},
    {"prompt": "a green star"},
    {"prompt": "a red circle, " * 40},
    {"num_inference_steps": 3},
    {"guidance_scale": 3.0},
    {"guidance_scale": 1.0},
    {"guidance_end": 0.5},
    {"cache_interval": 2},
    {"scheduler": "HeunDiscrete"},
    {"width": 192, "height": 136},
    {"width": 64, "height": 64},
]


class Behind(Engines):
    """`auto` as it is on a GPU."""

    @property
    def resolved(self) -> str:
        return "auto"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where compiled blocks are kept; nothing that was compiled before helps."""
    made = tmp_path_factory.mktemp("compiled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(made / "inductor"))
        yield made / "kept"


def graphs() -> int:
    """How many have been compiled in this process."""
    return int(counters["stats"]["unique_graphs"])


def fresh(folder: Path) -> Models:
    """A model of its own, behind whose requests the blocks are compiled."""
    engines = Behind(PLACEMENT, "auto", folder)
    return load_models(weights.resolve("miniature"), PLACEMENT, torch.float32, engines=engines)


def wait(models: Models) -> None:
    """Until the compiler is done, one way or the other."""
    for compiling in models.engines.of(models.base)._jobs.values():
        assert compiling is not None
        compiling.wait()


@pytest.fixture(scope="module")
def compiled(folder: Path) -> Models:
    made = fresh(folder)
    picture(made)
    wait(made)
    picture(made)
    assert graphs() == 2
    return made


def test_it_is_swapped_in_between_requests(models: Models, folder: Path, compiled: Models) -> None:
    """By a process that finds the file: nothing is compiled anew."""
    (kept,) = folder.iterdir()
    written = kept.stat().st_mtime_ns
    other = fresh(folder)
    assert difference(picture(other), picture(models)) == 0  # at once, by what is ready
    wait(other)
    assert other.engines.of(other.base)._unet.block is block
    assert difference(picture(other), picture(compiled)) == 0
    assert other.engines.of(other.base)._unet.block is not block
    assert [path.stat().st_mtime_ns for path in folder.iterdir()] == [written]


def test_two_graphs_and_no_other_whatever_changes(compiled: Models, models: Models, tmp_path: Path) -> None:
    before = graphs()
    for asked in CHANGES:
        assert difference(picture(compiled, **asked), picture(models, **asked)) <= 1, asked
    together = replace(compiled, placement=replace(compiled.placement, at_once=3))
    assert max(map(difference, pictures(together, (3, 4, 5)), pictures(models, (3, 4, 5)))) <= 1
    plain = picture(compiled)
    tune = read_tensors(
        models, tmp_path, tunes.kohya_sgm(tunes.make_lora(models, parts=models.parts, where="conv too", alpha=1.0))
    )
    for scale in (0.8, 0.4):
        with slot_for(compiled) as slot, slot_for(models) as other:
            slot.set([(tune, scale)])
            other.set([(tune, scale)])
            tuned = picture(compiled)
            assert difference(tuned, picture(models)) <= 1
            assert difference(tuned, plain) > 3
    assert difference(picture(compiled), plain) == 0
    assert graphs() == before


@pytest.mark.usefixtures("compiled")
def test_a_damaged_file_is_made_anew(folder: Path) -> None:
    (kept,) = folder.iterdir()
    kept.write_bytes(b"damaged")
    other = fresh(folder)
    wait(other)
    picture(other)
    assert other.engines.of(other.base)._unet.block is not block
    assert len(kept.read_bytes()) > 10_000


def test_what_it_was_not_compiled_for_is_not_its_end(caplog: pytest.LogCaptureFixture) -> None:
    """As where the compiler has made so many versions that it refuses one more."""
    arguments = example(Kind(32, 2), torch.device("cpu"), torch.float32)

    def refused(*_: object) -> Tensor:
        raise FailOnRecompileLimitHit("Hard failure")

    tried = OrPlain(refused)
    with torch.inference_mode():
        assert all(torch.equal(tried(*arguments), block(*arguments)) for _ in range(2))
    assert caplog.messages == ["The UNet is not compiled: FailOnRecompileLimitHit: Hard failure"]


@pytest.mark.parametrize("fault", ["no compiler", "no folder"])
def test_what_cannot_be_compiled_is_not_missed(
    fault: str, models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "kept"
    if fault == "no compiler":
        monkeypatch.setenv("CXX", "no-such-compiler")
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    else:
        folder.write_text("a file in its place")
    other = fresh(folder)
    with caplog.at_level(logging.WARNING):
        wait(other)
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("The UNet is not compiled: ")
    assert difference(picture(other), picture(models)) == 0


@pytest.mark.parametrize("quantization", ["int8", "fp8"])
def test_8_bits_are_compiled_once_they_are_asked_for(quantization: str, compiled: Models, models: Models) -> None:
    plain, before = picture(models, quantization=quantization), graphs()
    least = {"int8": 35, "fp8": 28}[quantization]  # dB: the last bit of an input decides on which side it is rounded
    assert likeness(picture(compiled, quantization=quantization), plain) > least  # by what is ready
    wait(compiled)
    found = picture(compiled, quantization=quantization)
    eight = compiled.engines.of(compiled.base)._eight
    assert eight is not None
    assert eight.unet.block is not block
    assert likeness(found, plain) > least
    made = graphs()
    assert made <= before + 2
    for asked in CHANGES[1:4]:
        expected = picture(models, quantization=quantization, **asked)
        assert likeness(picture(compiled, quantization=quantization, **asked), expected) > least
    picture(compiled, quantization=quantization, width=192, height=136)
    assert graphs() == made
