"""A step of a training (B), against the recipe of diffusers' own SDXL LoRA script (A).

Time and operations: SDXL's every layer at a fraction of its width, where what is left is the work of the host. Memory:
SDXL's own size, in tensors without data.
"""

import copy
import json
import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from benchmarks import wide_model
from benchmarks.device import Book, Emulated
from benchmarks.measure import TINY, Effort, Row, interleave, timing_row
from benchmarks.memory import META, Live, counted_memory
from benchmarks.training_sides import BASE, Reference, adapted, begin, both, models_of, narrow, picture, settings
from preprocess.examples import Example
from sdxl.models import Models
from sdxl.modules import blank, fill
from tests.training import job
from trainer.loop import training_steps
from trainer.loss import draw
from trainer.recorded import Recorder, Work
from trainer.run import run

GROUP = "training step"
CAPTION, PLAIN = "a photo of TOK", "a photo of a heart"  # the second gives both sides the same tokens
AFTER, BEFORE = {"ti_lr": 0.0}, {"pivot": 1.0}  # tokens that never learn, tokens that learn to the end
RANK, FULL_RANK = 4, 32
BATCH = 4
SIDE = 64  # pixels
COURSE = 6  # steps of a whole training
MOST_TIME, MOST_GRADIENT, MOST_GB = 0.6, 1e-5, 27.0
GB = 1e9


def rows(effort: Effort) -> list[Row]:
    """All of them; the tests leave out what has no goal and takes long."""
    whole = effort.rounds > 1
    models = narrow(TINY.divisor)
    with TemporaryDirectory() as name:
        folder = Path(name)
        examples = picture(folder, SIDE, CAPTION)
        found = times(models, examples, effort.rounds)
        if whole:
            found.append(wider(TINY.divisor // 2, picture(folder, 2 * SIDE, CAPTION), effort.rounds))
        found += operations(models, examples)
        found += encoders(folder / "course")
        found += gradients(models, picture(folder, SIDE, PLAIN))
        found += memory(folder, whole=whole)
    return found


def times(models: Models, examples: Sequence[Example], rounds: int) -> list[Row]:
    """CPU time of a step: of all of it, of the UNet and optimiser alone, and while tokens learn, which A's never do."""
    a, training = both(copy.deepcopy(models), settings(RANK, 1, **AFTER), examples)
    with torch.no_grad():
        latents, embeds = a.encoded(), a.embeds()
    after = _next(training_steps(training, 0))
    before = _next(training_steps(begin(copy.deepcopy(models), settings(RANK, 1, **BEFORE), examples), 0))
    cases: tuple[tuple[str, Callable[[], None], Callable[[], object], float | None], ...] = (
        ("after the pivot", a.step, after, MOST_TIME),
        ("after the pivot, A without VAE and text encoders", lambda: a.step(latents, embeds), after, None),
        ("before the pivot", a.step, before, MOST_TIME),
    )
    found = []
    for name, reference, ours, most in cases:
        theirs, own = interleave(reference, ours, rounds)
        found.append(timing_row(GROUP, f"CPU time, {name}", theirs.cpu, own.cpu, most_ratio=most))
    return found


def wider(divisor: int, examples: Sequence[Example], rounds: int) -> Row:
    """The same after the pivot where arithmetic counts for more."""
    a, training = both(narrow(divisor), settings(RANK, 1, **AFTER), examples)
    theirs, own = interleave(a.step, _next(training_steps(training, 0)), rounds)
    name = "CPU time, after the pivot, twice the width and twice the side"
    return timing_row(GROUP, name, theirs.cpu, own.cpu, most_ratio=MOST_TIME)


def operations(models: Models, examples: Sequence[Example]) -> list[Row]:
    """What a step gives a device to do, and how often it waits for it, after the pivot and before."""
    theirs = copy.deepcopy(models)
    adapted(theirs.base, RANK)
    with Emulated() as book:
        book.mark(_tensors(theirs))
        a = _work(book, Reference(theirs, settings(RANK, 1, **AFTER), examples).step)
    found = []
    before, after = _halves(copy.deepcopy(models), examples, lambda _: None)
    *_, launched = _halves(copy.deepcopy(models), examples, _Launched)
    found.append(Row(GROUP, "launches by the host, after the pivot, recorded", "", a[0], launched[0], exact=True))
    for name, b, most in (("after the pivot", after, MOST_TIME), ("before the pivot", before, 1.0)):
        found += [
            Row(GROUP, f"device operations, {name}", "", a[0], b[0], most_ratio=most, exact=True),
            Row(GROUP, f"waits for the device, {name}", "", a[1], b[1], most=0, exact=True),
        ]
    return found


class _Launched(Recorder):
    """Takes out of the book what a recording launches, all but the one launch of itself."""

    def __init__(self, book: Book) -> None:
        super().__init__(torch.device("cpu"), print)
        self._book = book

    def __call__(self, kind: Hashable, work: Work, inputs: Sequence[Tensor]) -> Tensor:
        def once(*given: Tensor) -> Tensor:
            before = self._book.ops
            loss = work(*given)
            self._book.ops = before + 1
            return loss

        return super().__call__(kind, once, inputs)


def _halves(
    models: Models, examples: Sequence[Example], recorder: Callable[[Book], Recorder | None]
) -> list[tuple[int, int]]:
    """Operations and waits of a step before the pivot and of one after it."""
    with Emulated() as book:
        book.mark(_tensors(models))
        training = begin(models, settings(RANK, 1, max_train_steps=4, pivot=0.5), examples)
        training.recorder = recorder(book)
        book.mark(training.learning)
        step = _next(training_steps(training, 0))
        return [_work(book, step), _work(book, step)]


def encoders(folder: Path) -> list[Row]:
    """Forward passes of both text encoders in a whole training of the miniature, by trainer.run."""
    made, after = job(folder, max_train_steps=COURSE, sample_prompts=()), list[int]()
    with _Tables(Path(made.files.base)) as tables:
        run(made, lambda _: None, lambda: after.append(tables.read))  # it looks for a cancel after every step
    pivot = made.config.pivot_step(COURSE)
    first, *steps = after[-COURSE - 1 :]
    left = COURSE - pivot - 1
    return [
        Row(GROUP, f"text encoders, forward passes, {pivot} steps before the pivot", "", 2 * pivot,
            steps[pivot - 1] - first, most_ratio=1, exact=True),
        Row(GROUP, "text encoders, forward passes, at the pivot: all captions, kept from then on", "", 2,
            steps[pivot] - steps[pivot - 1], exact=True),
        Row(GROUP, f"text encoders, forward passes, {left} steps after it", "", 2 * left,
            steps[-1] - steps[pivot], most=0, exact=True),
    ]  # fmt: skip


class _Tables(TorchFunctionMode):
    """Counts how often a table of tokens is read: each pass through a text encoder begins with that."""

    def __init__(self, base: Path) -> None:
        super().__init__()
        self.read = 0
        self._tokens = json.loads((base / "text_encoder" / "config.json").read_text())["vocab_size"]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        table = args[1] if func is torch.nn.functional.embedding else None
        self.read += table is not None and len(table) == self._tokens
        return func(*args, **(kwargs or {}))


def gradients(models: Models, examples: Sequence[Example]) -> list[Row]:
    """Of every factor, with the same weights and draws, against A's. In float32 rounding makes as much of a difference,
    of A from itself in float64 too."""
    a, b = _gradients(models, examples, torch.float32)
    a_exact, b_exact = _gradients(models, examples, torch.float64)
    name = f"gradients of {len(a)} factors"
    exact, whole = _worst(b_exact, a_exact), _distance(b, a)
    return [
        Row(GROUP, f"{name}, float64, the worst: B from A", "", None, exact, most=MOST_GRADIENT),
        Row(GROUP, f"{name}, float32, all together: B from A", "", None, whole, most=MOST_GRADIENT),
        Row(GROUP, f"{name}, float32, the worst: from A in float64", "", _worst(a, a_exact), _worst(b, a_exact)),
    ]


def _gradients(
    models: Models, examples: Sequence[Example], dtype: torch.dtype
) -> tuple[dict[tuple[str, int], Tensor], dict[tuple[str, int], Tensor]]:
    """A's and B's by (layer, 0 for down or 1 for up): of a step of each, of one picture twice with other noise."""
    models = copy.deepcopy(models)
    for module in (*models.parts.values(), models.vae):
        module.to(dtype)
    a, training = both(models, settings(RANK, 2, max_grad_norm=0.0, min_lora_scale=1.0, **AFTER), examples)
    flat, theirs = training.learner.parameters[0], a.factors()
    flat.data.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    for name, factors in training.learner.lora().items():
        for mine, value in zip(theirs[name], factors, strict=True):
            mine.data.copy_(value)
    numbers, key = [0, 0], (training.config.seed, 0, 0)
    draws = draw(training.latents.shape(numbers), key=key, train_timesteps=len(training.alphas), dropout=0.0)
    latents = training.latents.batch(examples[0].size, training.latents.places(numbers), draws.sample).latents
    loss = a.loss(latents, draws.noise, draws.timesteps, a.embeds())
    loss.backward()  # type: ignore[no-untyped-call]
    next(training_steps(training, 0))
    assert flat.grad is not None
    flat.data.copy_(flat.grad)  # so that `lora` sorts them by layer
    ours = training.learner.lora()
    places = [(name, side) for name in theirs for side in (0, 1)]
    return (
        {(name, side): theirs[name][side].grad.double() for name, side in places},
        {(name, side): ours[name][side].double() for name, side in places},
    )


def _worst(found: Mapping[tuple[str, int], Tensor], right: Mapping[tuple[str, int], Tensor]) -> float:
    """The largest difference in a factor over its largest number."""
    return max(float((found[key] - right[key]).abs().max() / right[key].abs().max()) for key in right)


def _distance(found: Mapping[tuple[str, int], Tensor], right: Mapping[tuple[str, int], Tensor]) -> float:
    """The norm of all differences over that of all numbers."""
    off, size = (math.sqrt(sum(float(each.square().sum()) for each in values)) for values in (
        [found[key] - right[key] for key in right], right.values()
    ))  # fmt: skip
    return off / size


def memory(folder: Path, *, whole: bool) -> list[Row]:
    """The most that lives at any time of a step of SDXL itself, with both text encoders and the VAE, bfloat16."""
    small, large = (picture(folder, side, CAPTION) for side in (768, 1024))
    with counted_memory() as live:
        models = models_of(_without_data, META)
        before, after = _peaks(live, models, small, max_train_steps=2)
        found = [
            _memory_row("768 px, before the pivot", before, MOST_GB),
            _memory_row("768 px, after the pivot", after, MOST_GB),
        ]
        if whole:
            (thrifty,) = _peaks(live, models, small, gradient_checkpointing=True, **AFTER)
            (larger,) = _peaks(live, models, large, **AFTER)
            found.append(_memory_row("768 px, gradient_checkpointing, after the pivot", thrifty, None))
            found.append(_memory_row("1024 px, after the pivot", larger, None))
            adapted(models.base, FULL_RANK)
            found[1] = replace(found[1], a=_reference_peak(live, models, small))
    return found


def _memory_row(what: str, b: float, most: float | None) -> Row:
    return Row(GROUP, f"peak memory, batch {BATCH}, {what}", "GB", None, b, most=most, exact=True)


def _without_data(part: str) -> torch.nn.Module:
    """As trainer.run has it on a GPU, and A's script too: the VAE of SDXL 1.0 overflows in 16 bits."""
    dtype = torch.float32 if part == "vae" else torch.bfloat16
    module: torch.nn.Module = blank(BASE / part, wide_model.MAKERS[part])
    state = ((name, torch.empty(value.shape, dtype=dtype, device=META)) for name, value in module.state_dict().items())
    return fill(module, state)


def _peaks(live: Live, models: Models, examples: Sequence[Example], **asked: float) -> list[float]:
    """Of each step of this trainer; the first with what the optimiser keeps, and with the making of the latents."""
    live.peak = live.bytes
    training = begin(models, settings(FULL_RANK, BATCH, **({"max_train_steps": 1} | asked)), examples)
    _fill_state(training.optimizer, training.learning)
    found = []
    for _ in training_steps(training, 0):
        found.append(live.peak / GB)
        live.peak = live.bytes
    training.finish()
    return found


def _reference_peak(live: Live, models: Models, examples: Sequence[Example]) -> float:
    """Of A with mixed_precision="bf16", at the least: what autocast makes float32 of on a GPU is not in it."""
    live.peak = live.bytes
    a = Reference(models, settings(FULL_RANK, BATCH, **AFTER), examples)
    _fill_state(a.optimizer, a.learning)
    a.step()
    return live.peak / GB


def _fill_state(optimizer: torch.optim.Optimizer, learning: Iterable[Tensor]) -> None:
    """What the optimiser keeps, as after a first step."""
    for group in optimizer.param_groups:
        group["fused"] = None  # torch has no such kernel for the meta device
    for parameter in learning:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()


def _next(steps: Iterator[object]) -> Callable[[], object]:
    return lambda: next(steps)


def _tensors(models: Models) -> list[Tensor]:
    """All that lies on the device before a training begins."""
    modules = (*models.parts.values(), models.vae)
    return [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]


def _work(book: Book, step: Callable[[], object]) -> tuple[int, int]:
    """Of the second of two steps: the first of all makes the optimiser's state, the first after the pivot the texts."""
    step()
    before = book.ops, book.syncs
    step()
    return book.ops - before[0], book.syncs - before[1]
