"""A request never changes what a later one returns: after success, failure anywhere, or cancel at any step."""

import ctypes
import hashlib
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from cog import CancelationException
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from errors import SDXLError, UnsafeContentError
from predict import Predictor
from sdxl.schedulers import SCHEDULERS
from tests.predicting import predict, show

# What is asked again and again: one request of each kind that the reference let others spoil.
FREE: dict[str, Any] = {"disable_safety_checker": True}  # a picture of 4 steps may look like anything
PROBES: list[dict[str, Any]] = [
    {"seed": 11, "prompt": "a red circle on a blue background"},
    {"seed": 12, "scheduler": "DPMSolverMultistep", "refine": "expert_ensemble_refiner", **FREE},
    {"seed": 13, "scheduler": "K_EULER_ANCESTRAL", "refine": "base_image_refiner", "num_outputs": 2, **FREE},
    {"seed": 14, "image": "photo", "prompt_strength": 0.6, "scheduler": "PNDM", **FREE},
    {"seed": 15, "image": "photo", "mask": "mask", "mask_blur": 3, "refine": "expert_ensemble_refiner", **FREE},
]
PARTS = ("text_encoder", "text_encoder_2", "base", "refiner", "vae.encoder", "vae.decoder", "safety")


class Injected(Exception):
    """A failure that no code of ours expects."""


def make_files(folder: Path) -> dict[str, Path]:
    """What requests send."""
    Image.new("RGB", (96, 72), "green").save(folder / "photo.png")
    mask = Image.new("L", (96, 72), 0)
    mask.paste(255, (20, 20, 60, 50))
    mask.save(folder / "mask.png")
    (folder / "text.png").write_text("no picture")
    return {"photo": folder / "photo.png", "mask": folder / "mask.png", "text": folder / "text.png"}


def digests(predictor: Predictor) -> list[str]:
    """What the probes give, byte for byte."""
    found: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        files = make_files(Path(name))
        for probe in PROBES:
            sent = {key: files.get(str(value), value) for key, value in probe.items()}
            found += [hashlib.sha256(path.read_bytes()).hexdigest() for path in predict(predictor, **sent)]
    return found


def started() -> Predictor:
    """A predictor with the miniature, on one thread: the number of threads changes the last bit of a sum."""
    import os

    os.environ["SDXL_MODEL"] = "miniature"
    torch.set_num_threads(1)
    predictor = Predictor()
    predictor.setup()
    return predictor


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return started()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_files(tmp_path_factory.mktemp("inputs"))


def part_of(predictor: Predictor, name: str) -> torch.nn.Module:
    models = predictor.painter.models
    assert models.refiner is not None
    assert models.safety is not None
    return {
        "text_encoder": models.text.text_encoder,
        "text_encoder_2": models.text.text_encoder_2,
        "base": models.base.time_embedding,  # once a call, whichever engine makes it
        "refiner": models.refiner.time_embedding,
        "vae.encoder": models.vae.encoder,
        "vae.decoder": models.vae.decoder,
        "safety": models.safety.checker.vision_model,
    }[name]


@contextmanager
def raising(part: torch.nn.Module, error: BaseException, call: int) -> Iterator[None]:
    """The `call`-th forward of a real module (counted from 0) raises, as running out of memory would."""
    left = call

    def hook(*_: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise error

    handle = part.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


REQUESTS = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 99),
        "prompt": st.sampled_from(["a blue star", "(a cat)1.4 on red--", "a b c " * 60, "TOK <s0> 猫🐱"]),
        "negative_prompt": st.sampled_from(["", "green++"]),
        "scheduler": st.sampled_from(list(SCHEDULERS)),
        "refine": st.sampled_from(["no_refiner", "expert_ensemble_refiner", "base_image_refiner"]),
        "high_noise_frac": st.sampled_from([0.0, 0.5, 1.0]),
        "num_inference_steps": st.integers(1, 3),
        "guidance_scale": st.sampled_from([0, 1, 7.5]),
        "guidance_rescale": st.sampled_from([0, 0.7]),
        "apply_watermark": st.booleans(),
        "disable_safety_checker": st.booleans(),
        "output_format": st.sampled_from(["png", "jpg", "webp"]),
        "mode": st.sampled_from(["text", "image", "mask"]),
        "width": st.sampled_from([None, 64, 77, 160]),
    }
)
MISHAPS = st.one_of(
    st.just(("none", "", 0)),
    st.tuples(st.sampled_from(["fail", "cancel"]), st.sampled_from(PARTS), st.integers(0, 3)),
    st.sampled_from([("bad", "size", 0), ("bad", "image", 0), ("bad", "mask", 0), ("bad", "prompt", 0)]),
)
BAD: dict[str, dict[str, Any]] = {
    "size": {"width": 63},
    "image": {"image": "text"},
    "mask": {"image": None, "mask": "mask"},
    "prompt": {"prompt": "word " * 20_000},
}


def disturb(
    predictor: Predictor, files: dict[str, Path], request: dict[str, Any], mishap: tuple[str, str, int]
) -> None:
    kind, where, call = mishap
    asked = {name: value for name, value in request.items() if name != "mode"}
    asked |= {"text": {}, "image": {"image": "photo"}, "mask": {"image": "photo", "mask": "mask"}}[request["mode"]]
    asked |= BAD[where] if kind == "bad" else {}
    asked |= {name: files[asked[name]] for name in ("image", "mask") if asked.get(name)}
    error: BaseException = CancelationException() if kind == "cancel" else Injected()
    mischief: Callable[[], Any] = lambda: predict(predictor, **asked)  # noqa: E731
    if kind in ("fail", "cancel"):
        with (
            raising(part_of(predictor, where), error, call),
            suppress(Injected, CancelationException, UnsafeContentError),
        ):
            mischief()
    elif kind == "bad":
        with pytest.raises(SDXLError):
            mischief()
    else:
        with suppress(UnsafeContentError):
            mischief()


def test_a_repeat_is_the_same_and_equals_a_fresh_process(predictor: Predictor, fresh: list[str]) -> None:
    assert digests(predictor) == fresh
    assert digests(predictor) == fresh


@given(st.lists(st.tuples(REQUESTS, MISHAPS), min_size=1, max_size=4))
@settings(
    deadline=None,
    max_examples=12,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_any_requests_leave_no_trace(
    predictor: Predictor, fresh: list[str], files: dict[str, Path], history: list[tuple[dict[str, Any], Any]]
) -> None:
    for request, mishap in history:
        disturb(predictor, files, request, mishap)
    assert digests(predictor) == fresh


def forwards(part: torch.nn.Module, action: Callable[[], object]) -> int:
    """How often a module is called by an action."""
    count = 0

    def hook(*_: Any) -> None:
        nonlocal count
        count += 1

    handle = part.register_forward_pre_hook(hook)
    action()
    handle.remove()
    return count


@pytest.mark.parametrize("refine", ["expert_ensemble_refiner", "base_image_refiner"])
@pytest.mark.parametrize("scheduler", list(SCHEDULERS))
def test_cancel_at_every_step_leaves_no_trace(
    scheduler: str, refine: str, predictor: Predictor, fresh: list[str]
) -> None:
    asked: dict[str, Any] = {"scheduler": scheduler, "refine": refine, "num_inference_steps": 4, "refine_steps": 2}
    asked |= {"high_noise_frac": 0.5, "disable_safety_checker": True}
    for name in ("base", "refiner"):
        part = part_of(predictor, name)
        count = forwards(part, lambda: predict(predictor, **asked))
        assert count >= 2
        for call in range(count):
            with raising(part, CancelationException(), call), pytest.raises(CancelationException):
                predict(predictor, **asked)
    assert digests(predictor) == fresh


def cancelled(predictor: Predictor, delay: float, asked: dict[str, Any]) -> tuple[bool, int]:
    """Cancel a prediction as coglet does, from another thread, after `delay` seconds.

    Whether it was cancelled (it may have been done before), and how many UNet calls began afterwards.
    """
    outcome: list[bool] = []
    sent = threading.Event()
    late = 0

    def count(*_: Any) -> None:
        nonlocal late
        late += sent.is_set()

    def run() -> None:
        try:
            predict(predictor, **asked)
        except CancelationException:
            outcome.append(True)
        except SDXLError:
            outcome.append(False)
        else:
            outcome.append(False)

    thread = threading.Thread(target=run)
    handle = predictor.painter.models.base.time_embedding.register_forward_pre_hook(count)
    thread.start()
    time.sleep(delay)
    assert thread.ident is not None
    sent.set()
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(CancelationException))
    thread.join(60)
    handle.remove()
    assert not thread.is_alive(), "the worker hangs"
    return bool(outcome and outcome[0]), late


def test_cancels_at_any_moment_take_effect_within_one_step(predictor: Predictor, fresh: list[str]) -> None:
    """The exception arrives at whatever Python is doing: drawing the bar, handing a picture to a writer, encoding."""
    order = random.Random(11)
    quick: dict[str, Any] = {"num_inference_steps": 3, "num_outputs": 3, "disable_safety_checker": True}
    long: dict[str, Any] = {"num_inference_steps": 400, "disable_safety_checker": True}
    for number in range(60):
        asked = long if number % 3 == 0 else quick
        was_cancelled, late = cancelled(predictor, order.uniform(0.0, 0.4), asked)
        assert late <= 1 or not was_cancelled
        assert was_cancelled or asked is quick
    assert digests(predictor) == fresh


def test_weights_are_never_written(predictor: Predictor, files: dict[str, Path]) -> None:
    def summary() -> list[int]:
        modules = [part_of(predictor, name) for name in PARTS]
        return [tensor._version for module in modules for tensor in module.state_dict(keep_vars=True).values()]

    before = summary()
    predict(predictor, image=files["photo"], mask=files["mask"], refine="expert_ensemble_refiner", **FREE)
    assert summary() == before


def test_only_the_last_predictions_files_stay(predictor: Predictor) -> None:
    first = predict(predictor, num_outputs=2, **FREE)
    for _ in range(4):
        last = predict(predictor, **FREE)
    assert all(path.exists() for path in last)
    assert not any(path.exists() for path in first)


def test_what_fails_leaves_no_file(predictor: Predictor) -> None:
    kept = {path for path in predictor.painter.outputs.root.rglob("*") if path.is_file()}
    with raising(part_of(predictor, "vae.decoder"), Injected(), 1), pytest.raises(Injected):
        predict(predictor, num_outputs=3, **FREE)
    assert {path for path in predictor.painter.outputs.root.rglob("*") if path.is_file()} <= kept


def test_pictures_can_be_shown(predictor: Predictor) -> None:
    (path,) = predict(predictor, width=100, height=72, **FREE)
    assert show(path).size == (100, 72)
