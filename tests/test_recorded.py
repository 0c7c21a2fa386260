"""Recorded steps: the same bytes as those that are launched one by one, over places that stay where they are. What a
CPU cannot show, the recording itself, is in tests/test_gpu.py."""

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.device import Emulated
from tests.test_training import StopError, begun, losses, weights_of
from tests.training import SQUARE, files, job, trained
from trainer import recorded
from trainer.loop import training_steps
from trainer.recorded import Recorder, Work
from trainer.run import recorder_for, run

CPU = torch.device("cpu")
KINDS: dict[str, dict[str, Any]] = {
    "both halves": {"max_train_steps": 6},
    "sizes and masks": {"max_train_steps": 6, "count": 2, "sizes": (SQUARE, (96, 160)), "masks": True, "pivot": 1.0},
    "class pictures": {
        "class_prompts": ("a red circle",), "num_class_images": 1, "gradient_accumulation_steps": 2, "ema_decay": 0.9,
        "max_train_steps": 2, "pivot": 0.0, "train_batch_size": 1,
    },
    "tokens alone": {"lora_lr": 0, "max_grad_norm": 0.0},
    "LoRA alone": {"ti_lr": 0, "lora_feed_forward": True, "noise_offset": 0.1, "train_batch_size": 1},
}  # fmt: skip


def ignore(_: str) -> None:
    pass


@pytest.mark.parametrize("kind", KINDS)
def test_recorded_steps_give_the_same_bytes(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = trained(tmp_path / "plain", **KINDS[kind])
    monkeypatch.setenv("SDXL_ENGINE", "graph")
    same = trained(tmp_path / "recorded", **KINDS[kind])
    assert losses(same) == losses(plain)
    assert weights_of(same) == weights_of(plain)


def test_a_recorded_training_is_gone_on_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = trained(tmp_path / "whole", max_train_steps=6)
    monkeypatch.setenv("SDXL_ENGINE", "graph")
    done = iter(range(100))

    def check() -> None:
        if next(done) == 4 + 3:  # the four pictures are encoded first
            raise StopError

    made = job(tmp_path / "part", max_train_steps=6)
    with pytest.raises(StopError):
        run(made, ignore, check)
    rest = job(tmp_path / "rest", max_train_steps=6, resume=made.checkpoint)
    run(rest, ignore, lambda: None)
    assert weights_of(files(rest.out)) == weights_of(whole)


class Watched(Recorder):
    """One that notes what each call is given."""

    def __init__(self, **_: Any) -> None:
        super().__init__(CPU, ignore)
        self.seen = list[tuple[Hashable, list[int]]]()

    def __call__(self, kind: Hashable, work: Work, inputs: Sequence[Tensor]) -> Tensor:
        def watched(*given: Tensor) -> Tensor:
            self.seen.append((kind, [each.data_ptr() for each in given]))
            return work(*given)

        return super().__call__(kind, watched, inputs)


def test_every_batch_of_a_kind_is_read_from_the_same_places(tmp_path: Path) -> None:
    """But for the first, which runs as it is; with other places for another size, and new ones after the pivot."""
    watched = Watched()
    asked: dict[str, Any] = {
        "count": 6,
        "sizes": (SQUARE, (96, 160)),
        "max_train_steps": 14,
        "pivot": 0.5,
        "train_batch_size": 1,
    }
    training, _ = begun(tmp_path / "job", **asked)
    training.recorder = watched
    list(training_steps(training, 0))
    before, after = watched.seen[:7], watched.seen[7:]
    for seen in (before, after):
        for kind in {kind for kind, _ in seen}:
            _first, *others = (places for each, places in seen if each == kind)
            assert len(others) >= 2
            assert all(places == others[0] for places in others)
    assert len({kind for kind, _ in watched.seen}) == 2


class Booked(Recorder):
    """One that looks into the book of the device."""

    def __init__(self, book: Any) -> None:
        super().__init__(CPU, ignore)
        self.book, self.uploads = book, list[int]()

    def __call__(self, kind: Hashable, work: Work, inputs: Sequence[Tensor]) -> Tensor:
        before = self.book.uploads
        loss = super().__call__(kind, work, inputs)
        self.uploads.append(self.book.uploads - before)
        return loss


@pytest.mark.parametrize("pivot", [0.0, 1.0])
def test_nothing_waits_for_the_device_and_nothing_comes_from_the_host_meanwhile(pivot: float, tmp_path: Path) -> None:
    """Either would make a recording impossible, or wrong."""
    training, models = begun(tmp_path / "job", max_train_steps=4, pivot=pivot, masks=True)
    modules = [*models.parts.values(), models.vae]
    buckets = [list(vars(each).values()) for each in training.latents._buckets.values()]
    captions = training.captions
    with Emulated() as book:
        book.mark([[*module.parameters(), *module.buffers()] for module in modules])
        book.mark([training.learning, buckets, captions._ids, captions._places, training.alphas])
        training.recorder = booked = Booked(book)
        waits = [book.syncs for _ in training_steps(training, 0)]
    assert waits == [0, 0, 0, 0]
    assert booked.uploads == [0, 0, 0, 0]
    assert book.uploads > 0


def doubled(x: Tensor) -> Tensor:
    return 2 * x


def test_what_cannot_be_recorded_goes_on_unrecorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one line, and the same results."""

    def refused(*_: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nand more of it")

    monkeypatch.setattr(recorded, "_record", refused)
    said = list[str]()
    recorder = Recorder(CPU, said.append)
    assert [float(recorder("kind", doubled, [torch.tensor(float(number))])) for number in range(5)] == [0, 2, 4, 6, 8]
    assert said == [
        "steps are not recorded, and take a little longer: operation not permitted when stream is capturing"
    ]


def test_recordings_make_room_for_a_kind_that_finds_none() -> None:
    """Where there are none it is the batch that is too large."""
    said, full = list[str](), [True]

    def fits_later(x: Tensor) -> Tensor:
        if full.pop():
            full.append(False)
            raise torch.OutOfMemoryError("no memory")
        full.append(False)
        return 3 * x

    recorder = Recorder(CPU, said.append)
    with pytest.raises(torch.OutOfMemoryError):
        recorder("first", fits_later, [torch.ones(())])
    full[:] = [True]
    for _ in range(3):
        assert float(recorder("small", doubled, [torch.ones(())])) == 2
    assert float(recorder("large", fits_later, [torch.ones(())])) == 3
    assert float(recorder("small", doubled, [torch.ones(())])) == 2
    assert len(said) == 1


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        ({}, True),
        ({"is_lora": False}, False),
        ({"gradient_checkpointing": True}, False),
    ],
    ids=str,
)
def test_what_is_recorded(asked: dict[str, Any], wanted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training, _ = begun(tmp_path / "job", **asked)
    for name in ("auto", "eager", "diffusers", "compile"):
        monkeypatch.setenv("SDXL_ENGINE", name)
        assert recorder_for(training.config, training.ranks, CPU, ignore) is None
    monkeypatch.setenv("SDXL_ENGINE", "graph")
    assert (recorder_for(training.config, training.ranks, CPU, ignore) is not None) == wanted
