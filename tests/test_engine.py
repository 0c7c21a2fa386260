"""What calls the UNet: the same picture by every engine, the fast modes, and what each costs in calls and likeness."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import sdxl.generate
import weights
from errors import InputError
from sdxl.eight_bit import Copies
from sdxl.engine import ENGINES, Engine, Engines
from sdxl.graphs import MOST, Graphs, Recording, record
from sdxl.layout import joined
from sdxl.linear import Int8, Layer, int8
from sdxl.models import Models, load_models
from sdxl.placement import Placement
from sdxl.unet import Block, Told, UNet, block
from sdxl.workers import Job, Workers
from tests import tunes
from tests.painting import difference, likeness, picture, pictures
from tests.tuned import read_tensors, slot_for

CPU = torch.device("cpu")


def by(models: Models, name: str) -> Models:
    """The same model, its UNets called by another engine."""
    return replace(models, engines=Engines(models.placement, name))


@contextmanager
def calls_of(models: Models) -> Iterator[list[tuple[str, int]]]:
    """Which arithmetic of the base's UNet was called, for how many rows."""
    found = list[tuple[str, int]]()

    class Counted(UNet):
        def full(self, latents: Tensor, timestep: Tensor, told: Told) -> tuple[Tensor, Tensor]:
            found.append(("full", len(latents)))
            return super().full(latents, timestep, told)

        def shallow(self, latents: Tensor, timestep: Tensor, told: Told, deep: Tensor) -> Tensor:
            found.append(("shallow", len(latents)))
            return super().shallow(latents, timestep, told, deep)

    engine = models.engines.of(models.base)
    before = engine._unet
    engine._use(Counted(**vars(before)))
    try:
        yield found
    finally:
        engine._use(before)


REQUESTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "wide": {"width": 192, "height": 136},
    "not a multiple of the UNet's": {"width": 152, "height": 136},
    "unguided": {"guidance_scale": 1.0},
    "many states": {"guidance_scale": 1.0, "scheduler": "PNDM"},
    "rescaled": {"guidance_rescale": 0.7},
    "two calls a step": {"scheduler": "HeunDiscrete"},
    "ensemble": {"refine": "expert_ensemble_refiner"},
    "second pass": {"refine": "base_image_refiner"},
    "long prompt": {"prompt": "a red circle, " * 40},
}


@pytest.mark.parametrize("asked", REQUESTS.values(), ids=REQUESTS)
def test_every_engine_draws_diffusers_picture_to_the_bit(models: Models, asked: dict[str, Any]) -> None:
    """`graph` as far as a CPU can: all but the recording itself."""
    expected = picture(by(models, "diffusers"), **asked)
    assert difference(picture(by(models, "eager"), **asked), expected) == 0
    graphed = by(models, "graph")
    assert [difference(picture(graphed, **asked), expected) for _ in range(2)] == [0, 0]


def test_graphs_keep_requests_apart(models: Models) -> None:
    """Shapes, prompts and pictures at once in turns, more shapes than are kept, fast modes in between."""
    graphed = by(models, "graph")
    requests: list[dict[str, Any]] = [{"width": 64 + 8 * each, "num_inference_steps": 3} for each in range(MOST + 2)]
    requests += [
        {"cache_interval": 2, "prompt": prompt, "guidance_end": 0.6} for prompt in ("a green square", "a star")
    ]
    for asked in [*requests, *reversed(requests)]:
        assert difference(picture(graphed, **asked), picture(models, **asked)) == 0


def test_a_request_that_is_cut_short_leaves_nothing_in_the_places(models: Models) -> None:
    graphed = by(models, "graph")
    expected = picture(graphed)
    runs = graphed.engines.of(graphed.base)._runs
    assert isinstance(runs, Graphs)
    (places,) = runs._places.values()

    class Cut(BaseException):
        pass

    class Cutting:
        added = torch.zeros(1)

        def tensors(self) -> list[Tensor]:
            raise Cut

    told: Any = Cutting()
    with pytest.raises(Cut):
        places.fill(places.latents, places.timestep, told)
    assert places.holds is None
    assert difference(picture(graphed), expected) == 0


def test_a_lora_costs_no_operation_and_needs_no_new_recording(models: Models, tmp_path: Path) -> None:
    graphed = by(models, "graph")
    tune = read_tensors(models, tmp_path, tunes.kohya_sgm(tunes.make_lora(models, parts=models.parts)))
    plain = picture(graphed)
    runs = graphed.engines.of(graphed.base)._runs
    assert isinstance(runs, Graphs)
    (before,) = [places.recordings["full"] for places in runs._places.values()]
    with slot_for(models) as slot:
        slot.set([(tune, 0.8)])
        tuned = picture(graphed)
        assert difference(tuned, picture(models)) == 0
        assert difference(tuned, plain) > 3
    assert difference(picture(graphed), plain) == 0
    (after,) = [places.recordings["full"] for places in runs._places.values()]
    assert after is before


def test_guidance_in_an_interval(models: Models) -> None:
    whole = picture(models)
    assert difference(picture(models, guidance_start=0.0, guidance_end=1.0), whole) == 0
    with calls_of(models) as calls:
        part = picture(models, guidance_start=0.25, guidance_end=0.5)
    assert calls == [("full", 1)] * 2 + [("full", 2)] * 2 + [("full", 1)] * 4
    assert difference(part, whole) > 3
    none, unguided = picture(models, guidance_end=0.0), picture(models, guidance_scale=1.0)
    assert difference(none, unguided) == 0
    assert likeness(picture(models, guidance_end=0.75), whole) > likeness(none, whole)


def test_the_interval_runs_over_both_experts(models: Models) -> None:
    with calls_of(models) as calls:
        picture(models, refine="expert_ensemble_refiner", high_noise_frac=0.5, guidance_end=0.75)
    assert calls == [("full", 2)] * 4
    engines = by(models, "diffusers")
    asked: dict[str, Any] = {"refine": "expert_ensemble_refiner", "high_noise_frac": 0.5, "guidance_end": 0.75}
    assert difference(picture(engines, **asked), picture(models, **asked)) <= 1


def test_deep_layers_in_every_other_call(models: Models) -> None:
    whole = picture(models, num_inference_steps=20)
    with calls_of(models) as calls:
        part = picture(models, num_inference_steps=20, cache_interval=2)
    assert calls == [("full", 2), ("shallow", 2)] * 10
    assert likeness(part, whole) > 20
    assert likeness(part, whole) > likeness(picture(models, num_inference_steps=20, cache_interval=6), whole)


def test_a_change_of_rows_wakes_the_deep_layers(models: Models) -> None:
    with calls_of(models) as calls:
        picture(models, cache_interval=4, guidance_end=0.75)
    assert calls == [("full", 2), *[("shallow", 2)] * 3, ("full", 2), ("shallow", 2), ("full", 1), ("shallow", 1)]


@pytest.mark.parametrize(("quantization", "least"), [("int8", 30), ("fp8", 22)])
def test_eight_bits_draw_nearly_the_same(models: Models, quantization: str, least: float) -> None:
    asked: dict[str, Any] = {"num_inference_steps": 20}
    whole, part = picture(models, **asked), picture(models, **asked, quantization=quantization)
    assert difference(part, whole) > 0
    assert likeness(part, whole) > least
    assert difference(picture(models, **asked), whole) == 0


def test_eight_bits_follow_the_weights(models: Models, tmp_path: Path) -> None:
    """A fine-tune in and out: the copies are those of the weights as they are."""
    tune = read_tensors(models, tmp_path, tunes.kohya_sgm(tunes.make_lora(models, parts=models.parts)))
    plain = picture(models, quantization="int8")
    with slot_for(models) as slot:
        slot.set([(tune, 0.8)])
        tuned = picture(models, quantization="int8")
        again = picture(replace(models, engines=Engines(models.placement)), quantization="int8")
    assert difference(tuned, again) == 0
    assert difference(tuned, plain) > 3
    assert difference(picture(models, quantization="int8"), plain) == 0


def test_eight_bit_copies_are_made_anew_only_where_weights_changed(models: Models) -> None:
    unet = UNet.of(load_models(weights.resolve("miniature"), models.placement, torch.float32).base)
    made = Copies("int8")
    made.of(unet.blocks)
    for _, copy, _ in made._copies:
        copy.zero_()  # what is not made anew stays so
    with torch.inference_mode():
        unet.blocks[0].attn1.k.weight.mul_(2)
        made.refresh()
    (changed,) = [weight for weight, copy, _ in made._copies if copy.any()]
    assert changed is unet.blocks[0].attn1.k.weight


@pytest.mark.parametrize(
    "asked", [{}, {"image": Image.new("RGB", (128, 128), "navy")}, {"scheduler": "K_EULER_ANCESTRAL"}]
)
def test_pictures_at_once_are_those_alone(models: Models, asked: dict[str, Any]) -> None:
    """But for rounding; each has the noise of its own seed."""
    seeds = (3, 4, 5, 6, 7)
    together = replace(models, placement=replace(models.placement, at_once=3))
    with calls_of(models) as calls:
        made = pictures(together, seeds, **asked, num_inference_steps=4)
    rows = [count for _, count in calls]
    assert set(rows) == {6, 4}
    alone = [picture(models, seed, **asked, num_inference_steps=4) for seed in seeds]
    assert max(map(difference, made, alone)) <= 1
    assert min(difference(alone[0], other) for other in alone[1:]) > 3


def test_fewer_large_pictures_at_once(models: Models) -> None:
    together = replace(models, placement=replace(models.placement, at_once=4))
    with calls_of(models) as calls:
        pictures(together, (1, 2, 3), width=256, height=128, num_inference_steps=1)
    assert [count for _, count in calls] == [4, 2]


def test_engines_by_name(models: Models) -> None:
    for name in ENGINES:
        assert Engines.chosen({"SDXL_ENGINE": name}, models.placement, Path("x")).name == name
    assert Engines.chosen({}, models.placement, Path("x")).resolved == "eager"
    assert Engines(Placement(CPU, "swap"), "graph").resolved == "eager"
    assert Engines(Placement(CPU, "stream"), "graph").resolved == "diffusers"
    with pytest.raises(InputError, match=r"SDXL_ENGINE='fast' is not known; choose one of auto, compile"):
        Engines.chosen({"SDXL_ENGINE": "fast"}, models.placement, Path("x"))


@pytest.mark.parametrize("asked", [{"cache_interval": 2}, {"quantization": "int8"}])
def test_fast_modes_need_our_arithmetic(models: Models, asked: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="leave them at 1 and none"):
        picture(by(models, "diffusers"), **asked)


def test_bad_numbers(models: Models) -> None:
    with pytest.raises(InputError, match=r"guidance_start=0.5 is after guidance_end=0.2; exchange them"):
        picture(models, guidance_start=0.5, guidance_end=0.2)
    with pytest.raises(InputError, match="quantization='int4' is not known"):
        picture(models, quantization="int4")
    with pytest.raises(InputError, match="needs a GPU of 24 GB or more"):
        picture(replace(models, placement=Placement(CPU, "swap")), quantization="int8")


def test_a_unet_of_another_kind_is_diffusers_own_matter(models: Models) -> None:
    """One that was distilled with its guidance inside has an input more."""
    config: Any = dict(models.base.config) | {"time_cond_proj_dim": 32}
    other: Any = type(models.base).from_config(config)
    assert not Engine(other, models.engines).can_reuse


def test_a_device_that_records_no_graphs(
    models: Models, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def record(*_: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr("sdxl.graphs.record", record)
    graphed = by(models, "graph")
    assert [difference(picture(graphed), picture(models)) for _ in range(2)] == [0, 0]
    assert caplog.messages == ["The UNet runs without CUDA graphs: operation not permitted when stream is capturing"]


def test_a_recording_that_lacks_memory_is_tried_once_more(
    models: Models, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without what other shapes hold; and other shapes are recorded afterwards."""
    tries = list[int]()
    graphed = by(models, "graph")
    runs: Any = graphed.engines.of(graphed.base)._runs

    def scarce(*arguments: Any) -> Recording:
        tries.append(len(runs._places))
        if len(tries) in (2, 4, 5):
            raise torch.OutOfMemoryError
        return record(*arguments)

    monkeypatch.setattr("sdxl.graphs.record", scarce)
    for width in (64, 72, 80, 64):
        asked: dict[str, Any] = {"width": width, "height": 64, "num_inference_steps": 5}
        assert difference(picture(graphed, **asked), picture(models, **asked)) == 0
    assert tries == [1, 2, 1, 2, 1, 2]
    assert [len(places.recordings) for places in runs._places.values()] == [0, 1]
    assert not caplog.messages


def test_a_decoder_without_memory_gets_that_of_the_recordings(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    graphed = by(models, "graph")
    runs = graphed.engines.of(graphed.base)._runs
    assert isinstance(runs, Graphs)
    decode = sdxl.generate.decode

    def scarce(models: Models, latents: Tensor) -> Image.Image:
        if runs._places:
            raise torch.OutOfMemoryError
        return decode(models, latents)

    expected = picture(models, num_inference_steps=2)
    monkeypatch.setattr("sdxl.generate.decode", scarce)
    for _ in range(2):
        assert difference(picture(graphed, num_inference_steps=2), expected) == 0


def test_a_shape_without_memory_gets_that_of_the_others(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    graphed = by(models, "graph")
    runs = graphed.engines.of(graphed.base)._runs
    assert isinstance(runs, Graphs)
    picture(graphed, num_inference_steps=2)
    full = UNet.full

    def scarce(unet: UNet, latents: Tensor, timestep: Tensor, told: Told) -> tuple[Tensor, Tensor]:
        if len(runs._places) > 1:
            raise torch.OutOfMemoryError
        return full(unet, latents, timestep, told)

    asked: dict[str, Any] = {"width": 64, "height": 64, "num_inference_steps": 2}
    expected = picture(models, **asked)
    monkeypatch.setattr(UNet, "full", scarce)
    assert difference(picture(graphed, **asked), expected) == 0


def test_long_prompts_are_not_kept_by_the_dozen(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdxl.graphs.MOST_BYTES", 2**20)
    graphed = by(models, "graph")
    runs = graphed.engines.of(graphed.base)._runs
    assert isinstance(runs, Graphs)
    told = list[int]()
    for words in (600, 400, 200):
        asked: dict[str, Any] = {"prompt": "circle " * words, "num_inference_steps": 3}
        assert difference(picture(graphed, **asked), picture(models, **asked)) == 0
        told.append(sum(places.bytes() for places in runs._places.values()))
        assert told[-1] <= 2**20 or len(runs._places) == 1
    assert max(told) > 2**20
    assert all(places.holds is not None and places.holds() is None for places in runs._places.values())


def test_a_recording_serves_all_samplers(models: Models) -> None:
    """DDIM's timesteps are whole numbers, and need not be those of the next request."""
    config = dict(models.scheduler_config) | {"timestep_spacing": "linspace"}
    graphed, plain = (replace(by(models, name), scheduler_config=config) for name in ("graph", "eager"))
    picture(graphed, scheduler="DDIM")
    assert difference(picture(graphed), picture(plain)) == 0


def test_a_cancel_leaves_nothing_that_is_being_launched(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    class Cut(BaseException):
        pass

    jobs = list[Job[Any]]()

    class Slow(Workers):
        def submit(self, work: Callable[[], Any]) -> Job[Any]:
            def late() -> Any:
                time.sleep(0.2)
                return work()

            def cut() -> None:
                raise Cut

            jobs.append(super().submit(late))
            monkeypatch.setattr(jobs[-1], "result", cut)
            return jobs[-1]

    graphed = by(models, "graph")
    graphed.engines.recorder = Slow(1, "slow")
    with pytest.raises(Cut):
        picture(graphed)
    assert jobs[0].finished


def test_products_in_int8_of_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a GPU wants them: a picture of 64 x 64 has 8 rows where SDXL's UNet is deepest."""
    product = torch._int_mm

    def picky(a: Tensor, b: Tensor) -> Tensor:
        assert len(a) > 16
        return product(a, b)

    x, (weight, scale) = torch.randn(8, 64), int8(torch.randn(32, 64))
    layer = Int8(weight, scale[:, 0], None)
    expected = layer(torch.cat([x, x, x]))[:8]
    monkeypatch.setattr(torch, "_int_mm", picky)
    assert torch.equal(layer(x), expected)


class Behind(Engines):
    """`auto` as it is on a GPU, with blocks that are compiled already."""

    @property
    def resolved(self) -> str:
        return "auto"


def wait(engine: Engine) -> None:
    """Until what it needs is compiled."""
    (compiling,) = engine._jobs.values()
    assert compiling is not None
    compiling.wait()


def test_eight_bits_have_blocks_of_their_own(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiled block is for the blocks that it was compiled for."""

    def strict(x: Tensor, key: Tensor, value: Tensor, w: Block) -> Tensor:
        assert isinstance(w.attn1.out, Layer)
        return block(x, key, value, w)

    monkeypatch.setattr("sdxl.engine.compiled", lambda wanted, *_: None if wanted[0].quantization == "int8" else strict)
    placement = Placement(CPU, "resident")
    engines = Behind(placement, "auto")
    swapped = load_models(weights.resolve("miniature"), placement, torch.float32, engines=engines)
    engine = engines.of(swapped.base)
    wait(engine)
    expected = picture(models, quantization="int8")
    assert likeness(picture(swapped, quantization="int8"), expected) > 30
    assert engine._unet.block is strict


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, KeyboardInterrupt])
def test_weights_that_could_not_be_moved(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In the middle of it; recordings that know the old places are not used again."""
    placement = Placement(CPU, "resident")
    engines = Behind(placement, "auto")
    monkeypatch.setattr("sdxl.engine.compiled", lambda *_: lambda *told: block(*told))
    models = load_models(weights.resolve("miniature"), placement, torch.float32, engines=engines)
    expected = picture(by(models, "diffusers"))
    done = list[Block]()

    def joined_but_once(w: Block) -> Block:
        done.append(w)
        if len(done) == 3:
            raise error
        return joined(w)

    monkeypatch.setattr("sdxl.layout.joined", joined_but_once)
    engine = engines.of(models.base)
    wait(engine)
    if error is KeyboardInterrupt:
        with pytest.raises(KeyboardInterrupt):
            picture(models)
    assert max(difference(picture(models), expected) for _ in range(2)) <= 1  # convolutions have moved already
    swapped = error is KeyboardInterrupt
    assert (engine._unet.blocks[0].attn1.qkv is not None) == swapped
    assert len(caplog.messages) == (not swapped)
