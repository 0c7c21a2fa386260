"""How often the models are called, and how often the VAE changes its type."""

import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.nn import Module
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import weights
from benchmarks.measure import Effort, Row
from benchmarks.stand_ins import HALF, Sides, counted, load, pipeline
from sdxl.generate import encode_text
from sdxl.schedulers import SCHEDULERS
from tests.painting import PROMPT, make_request, picture

GROUP = "calls"
STEPS = 20


def rows(effort: Effort) -> list[Row]:
    """Counts, the same on every machine."""
    return [*text_encoders(), vae_conversions(effort), *unet_calls()]


def text_encoders() -> list[Row]:
    """Forward passes for a prompt with its negative prompt, asked for twice."""
    models = load()
    pipe = pipeline(models)

    def a() -> None:
        pipe.encode_prompt(PROMPT, negative_prompt="")

    def b() -> None:
        with torch.inference_mode():
            encode_text(models, make_request(models))

    encoders: dict[str, Module] = {
        "text encoder 1": models.text.text_encoder,
        "text encoder 2": models.text.text_encoder_2,
    }
    theirs, ours = ([_forwards(encoders, call) for _ in range(2)] for call in (a, b))
    questions = (("a new prompt", 1), ("the same prompt again", 0))
    return [
        Row(GROUP, f"{name}, forward passes, {what}", "", a_calls[name], b_calls[name], most=most, exact=True)
        for (what, most), a_calls, b_calls in zip(questions, theirs, ours, strict=True)
        for name in encoders
    ]


def _forwards(modules: dict[str, Module], call: Callable[[], None]) -> dict[str, int]:
    hooks = {name: counted(module) for name, module in modules.items()}
    call()
    for _, remove in hooks.values():
        remove()
    return {name: len(calls) for name, (calls, _) in hooks.items()}


def unet_calls() -> list[Row]:
    """UNet calls of a picture."""
    sides = Sides(load())
    found = []
    for name in SCHEDULERS:
        counts = []
        for side in (sides.a, sides.b):
            sides.calls.clear()
            side(name, STEPS)
            counts.append(len(sides.calls))
        a, b = counts
        found.append(Row(GROUP, f"UNet calls, {STEPS} steps, {name}", "", a, b, most_ratio=1, exact=True))
    return found


def vae_conversions(effort: Effort) -> Row:
    """How often all weights of the VAE change their type in a prediction with float16, as on a GPU, for a VAE that says
    of itself, as that of SDXL 1.0 does, that it overflows there."""
    with TemporaryDirectory() as folder:
        copy = Path(folder) / "model"
        shutil.copytree(weights.resolve("miniature").base.parent, copy)
        for config in copy.glob("*/vae/config.json"):
            config.write_text(json.dumps(json.loads(config.read_text()) | {"force_upcast": True}))
        models = load(str(copy), HALF)
        with _conversions(models.vae) as b:
            picture(models, num_inference_steps=effort.picture_steps)
        pipe = pipeline(models)
        pipe.vae.to(HALF)
        with warnings.catch_warnings(), _conversions(pipe.vae) as a:
            warnings.simplefilter("ignore")  # diffusers' own loop calls what diffusers deprecates
            pipe(PROMPT, num_inference_steps=effort.picture_steps, width=128, height=128)
    whole = sum(1 for _ in models.vae.parameters())
    return Row(GROUP, "type conversions of the VAE per prediction", "", sum(a) / whole, sum(b) / whole, most=0,
               exact=True)  # fmt: skip


@contextmanager
def _conversions(module: Module) -> Iterator[list[int]]:
    """A list that gets a 1 for each parameter of the module that is converted."""
    parameters = {id(parameter) for parameter in module.parameters()}
    found: list[int] = []

    class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            converts = func.overloadpacket.__name__ in ("_to_copy", "to") and (kwargs or {}).get("dtype", args[1:])
            if converts and any(id(value) in parameters for value in tree_leaves(args[:1])):
                found.append(1)
            return func(*args, **(kwargs or {}))

    with Watch():  # type: ignore[no-untyped-call]
        yield found
