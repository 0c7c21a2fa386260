"""A fresh process of one side, from the start of Python to its pictures.

`python -m benchmarks.gpu.started SIDE MODEL SCALE LORA` prints one JSON object: the seconds of each stage. What setup
says of its own stages stands in its log.
"""

import importlib
import io
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from benchmarks.gpu.scale import SCALES, Scale

IMPORTS, WEIGHTS, ALL = "imports", "weights", "all"
PICTURES = ("the first picture", "the second", "the first with a LoRA")
STAGES = (IMPORTS, "download", WEIGHTS, "engines", "fine-tunes", ALL, *PICTURES)
PROMPT = "a photo of a horse"
LIBRARIES = (
    "diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl",
    "diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl_img2img",
    "diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl_inpaint",
    "diffusers.pipelines.stable_diffusion.safety_checker",
)


def reference(model: str, scale: Scale, lora: str) -> dict[str, float]:
    """A: the libraries, the pipelines, and two pictures; it is asked for no LoRA."""
    del lora
    start = time.perf_counter()
    for module in LIBRARIES:
        importlib.import_module(module)
    found = {IMPORTS: time.perf_counter() - start}
    import torch

    from benchmarks.gpu.sides import Reference

    with tempfile.TemporaryDirectory() as out:
        start = time.perf_counter()
        make = Reference(Path(model), torch.device("cuda" if torch.cuda.is_available() else "cpu"), Path(out))
        found[WEIGHTS] = time.perf_counter() - start
        found[ALL] = found[IMPORTS] + found[WEIGHTS]
        for number, name in enumerate(PICTURES[:2]):
            start = time.perf_counter()
            make(prompt=PROMPT, steps=scale.steps, seed=number, size=(scale.side, scale.side))
            found[name] = time.perf_counter() - start
    return found


def package(model: str, scale: Scale, lora: str) -> dict[str, float]:
    """B, with the engine that a user has who names none."""
    os.environ |= {"SDXL_MODEL": model, "SDXL_LOCAL_FILES": lora}
    os.environ.pop("SDXL_ENGINE", None)
    start, log = time.perf_counter(), io.StringIO()
    from predict import Predictor

    predictor = Predictor()
    with redirect_stdout(log), redirect_stderr(log):
        predictor.setup()
    whole = time.perf_counter() - start
    found = {name: float(said) for name, said in re.findall(r"([\w-]+) ([\d.]+) s\b", log.getvalue()) if name in STAGES}
    found[ALL] = whole
    from tests.predicting import predict

    size = {"num_inference_steps": scale.steps, "width": scale.side, "height": scale.side}
    for number, name in enumerate(PICTURES):
        tuned = {"lora_weights": [lora]} if name == PICTURES[2] else {}
        start = time.perf_counter()
        with redirect_stdout(log), redirect_stderr(log):
            predict(predictor, prompt=PROMPT, seed=number, **size, **tuned)
        found[name] = time.perf_counter() - start
    return found


SIDES: dict[str, Callable[[str, Scale, str], dict[str, float]]] = {"reference": reference, "package": package}


if __name__ == "__main__":
    side, model, name, lora = sys.argv[1:]
    answer = SIDES[side](model, SCALES[name], lora)
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()
    os._exit(0)  # a compiler may be at work beside this
