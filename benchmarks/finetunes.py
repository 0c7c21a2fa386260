"""LoRAs folded into the weights (B), against PEFT's layers beside them, as diffusers' guide has it (A).

On SDXL 1.0's own UNet, where there is memory for it, with made-up weights in bfloat16: rank 32 in its 560 attention
projections, from local files as diffusers writes them.
"""

import gc
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from benchmarks.device import Emulated
from benchmarks.measure import TINY, Effort, Row, interleave, timed, timing_row
from benchmarks.stand_ins import counted, load
from benchmarks.traffic import Traffic
from benchmarks.tuned_sides import SCALE, Sides, wide
from sdxl.engine import Conditioning, Engines
from sdxl.finetune.slot import Slot
from sdxl.generate import encode_text
from sdxl.models import Models
from sdxl.placement import Placement
from tests.painting import PROMPT, make_request

GROUP = "fine-tuned weights"
SMALL_RANK = 4
NEEDED = 11e9  # bytes of memory: SDXL's UNet, the pristine copies, LoRAs of both sides, and room
FIRST_ROUNDS = 3
MOST_TRAFFIC = 2.0
MOST_TIME = 0.2
MB = 1e6


def rows(effort: Effort) -> list[Row]:
    """What a prompt does on the miniature, all else on the large UNet; the tests have the miniature for both."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        small = Sides(load(), folder / "small", SMALL_RANK)
        large = small if effort.rounds == 1 else _large(small.models, effort, folder)
        first = first_use(large, effort.rounds)  # before anything else has warmed A up
        table = [*with_layers(large), with_tokens(small), repeated_prompt(small), *traffic(large)]
        rounds = -(-effort.rounds // 2)
        table += times(large, rounds)
        del large
        gc.collect()
        if effort.rounds > 1:  # as many layers with next to no weight: what is left is the work of the host
            table += times(wide(small.models, TINY.divisor, folder), rounds)
    return [*table, *first]


def _large(models: Models, effort: Effort, folder: Path) -> Sides:
    """SDXL's own size where there is memory for it."""
    line = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable:"))
    available = int(line.split()[1]) * 1024
    return wide(models, 1 if available > NEEDED else effort.divisor, folder)


def with_layers(sides: Sides) -> list[Row]:
    """What a LoRA costs while it is there: device operations of a call of the large UNet, and memory."""
    config = sides.unet.config
    inputs = torch.randn(2, 77, config.cross_attention_dim), torch.randn(2, _pooled_width(config))
    bare, b = count(sides.unet, *inputs), []
    for numbers in ((), (0,), (0, 1, 2)):
        sides.fold(*numbers)
        b.append(count(sides.unet, *inputs, engine="eager"))
    sides.fold()
    sides.attach(0)
    factors = sum(value.nbytes for name, value in sides.unet.named_parameters() if ".lora_" in name)
    a = [count(sides.unet, *inputs)]
    sides.attach(1, 2)
    a.append(count(sides.unet, *inputs))
    sides.pipe.unload_lora_weights()
    kept = sum(tensor.nbytes for change in sides.tunes[0].changes.values() for tensor in change.tensors())
    pristine = sum(weight.nbytes for weight in sides.slot._pristine.values())
    name = "device operations per UNet call"
    return [
        Row(GROUP, f"{name}, no LoRA", "", bare, b[0], most_ratio=1, exact=True),
        Row(GROUP, f"{name}, a LoRA", "", a[0], b[1], most=b[0], exact=True),
        Row(GROUP, f"{name}, three LoRAs", "", a[1], b[2], most=b[0], exact=True),
        Row(GROUP, "memory, factors of a LoRA", "MB", factors / MB, kept / MB, exact=True),
        Row(GROUP, "memory, pristine copies of the weights that LoRAs changed", "MB", 0, pristine / MB, exact=True),
    ]


def with_tokens(sides: Sides) -> Row:
    """The same of the miniature, from a prompt with learned tokens."""

    def inputs(prompt: str, learned: Any = None) -> tuple[Tensor, Tensor]:
        embeds = encode_text(sides.models, make_request(sides.models, prompt=prompt), learned)
        return embeds.prompt_embeds.repeat(2, 1, 1), embeds.pooled_prompt_embeds.repeat(2, 1)

    bare = count(sides.unet, *inputs(PROMPT), engine="eager")
    sides.fold(0)
    told = inputs(f"{PROMPT}, TOK", sides.tunes[0].learned)
    b = count(sides.unet, *told, engine="eager")
    sides.fold()
    sides.attach(0)
    a = count(sides.unet, *told)
    sides.pipe.unload_lora_weights()
    name = "device operations per UNet call, a LoRA and its tokens in the prompt, miniature"
    return Row(GROUP, name, "", a, b, most=bare, exact=True)


def count(unet: Any, states: Tensor, pooled: Tensor, engine: str = "diffusers") -> int:
    """Device operations of a call for a small picture by one of `sdxl.engine`; their number is the same for any."""
    latents, ids = torch.randn(2, 4, 16, 16), torch.zeros(2, 6)
    values = [each.to(unet.dtype) for each in (latents, states, pooled, ids)]
    latents, *told = values
    when = torch.tensor(500.0)
    with torch.no_grad(), Emulated() as book:
        book.mark([*values, when])
        call = Engines(Placement(latents.device, "resident"), engine).of(unet).begin(Conditioning(*told))
        before = book.ops  # what is done once a request
        call(latents, when)
    return book.ops - before - 1  # the result in float32


def _pooled_width(config: Any) -> int:
    return int(config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim)


def repeated_prompt(sides: Sides) -> Row:
    """A prompt with its negative prompt, asked for with one LoRA, another, and the first again; known from before."""
    encoders: tuple[Module, ...] = (sides.models.text.text_encoder, sides.models.text.text_encoder_2)

    def a(number: int) -> None:
        sides.attach(number)
        sides.pipe.encode_prompt(PROMPT, negative_prompt="")
        sides.pipe.unload_lora_weights()

    def b(number: int) -> None:
        sides.fold(number)
        encode_text(sides.models, make_request(sides.models), None)

    counts = dict[str, int]()
    for letter, side in (("a", a), ("b", b)):
        side(0)  # B knows the prompt from here on
        hooks = [counted(encoder) for encoder in encoders]
        for number in (0, 1, 0):
            side(number)
        counts[letter] = sum(len(calls) for calls, _ in hooks)
        for _, remove in hooks:
            remove()
    sides.fold()
    name = "text encoders, forward passes, the same prompt with LoRA 1, 2, 1"
    return Row(GROUP, name, "", counts["a"], counts["b"], most=0, exact=True)


def traffic(sides: Sides) -> list[Row]:
    """Of a swap, over that of reading and writing the changed weights once. Counted per operation: what ATen does
    inside of addmm, which on a CPU copies first and then adds in place, is in a row of its own."""
    sides.fold(0)
    with Traffic() as a:
        sides.swap(1)
    with Traffic() as b:
        sides.fold(1)
    least = 2 * sides.touched
    name = "swap, memory traffic over reading and writing the weights once"
    parts, all_a, all_b = ", with the copy inside addmm", a.bytes + a.hidden, b.bytes + b.hidden
    return [
        Row(GROUP, name, "", a.bytes / least, b.bytes / least, most=MOST_TRAFFIC, exact=True),
        Row(GROUP, name + parts, "", all_a / least, all_b / least, exact=True),
    ]


def times(sides: Sides, rounds: int) -> list[Row]:
    """A LoRA in the place of another: A reads its file, B has it in memory. And what any change of all these weights
    takes, on this machine: they are copied once."""
    theirs, ours = cycle((0, 1)), cycle((0, 1))
    sides.fold(1)
    a, b = interleave(lambda: sides.swap(next(theirs)), lambda: sides.fold(next(ours)), rounds)
    copies = []
    for _ in range(rounds):
        sides.fold(0)
        copies.append(timed(sides.fold))
    what = f"swap, {len(sides.weights)} layers, {sides.touched / MB:,.0f} MB"
    return [
        timing_row(GROUP, f"{what}, CPU time", a.cpu, b.cpu, most_ratio=MOST_TIME),
        timing_row(GROUP, f"{what}, wall", a.wall, b.wall, most_ratio=MOST_TIME),
        timing_row(GROUP, f"{what}, only copied (B), CPU time", a.cpu, [cpu for cpu, _ in copies]),
    ]


def first_use(sides: Sides, rounds: int) -> list[Row]:
    """From a local file to a model that uses it, which for B includes the pristine copies."""
    a, b = list[tuple[float, float]](), list[tuple[float, float]]()
    for _ in range(min(rounds, FIRST_ROUNDS)):
        a.append(timed(lambda: sides.attach(0)))
        sides.pipe.unload_lora_weights()
        slot = Slot(sides.models.parts, sides.models.text.clear)
        b.append(timed(lambda slot=slot: slot.set([(sides.read(0), SCALE)])))  # type: ignore[misc]
        slot.set([])
        del slot  # and its copies, before there are others
    (a_cpu, a_wall), (b_cpu, b_wall) = (map(list, zip(*side, strict=True)) for side in (a, b))
    return [
        timing_row(GROUP, "first use of a file, CPU time", a_cpu, b_cpu),
        timing_row(GROUP, "first use of a file, wall", a_wall, b_wall),
    ]
