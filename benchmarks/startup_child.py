"""One fresh process that imports one side and then loads a model again and again, each time in a fork of itself.

`python -m benchmarks.startup_child SIDE SMALL MODEL DTYPE FORKS` prints one JSON object. The models are folders with
base/ and refiner/ that this process may drop from the page cache. What is imported late, while loading, is found by
loading SMALL in a first fork and imported early by the others, so that loading is loading on both sides.
"""

import gc
import importlib
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.measure import read_status

Load = Callable[[Path, str], list[Any]]


def ours() -> Load:
    """This package: everything that setup() imports and does."""
    import torch

    importlib.import_module("painter")
    from sdxl.models import load_models
    from sdxl.placement import Placement

    resolve = importlib.import_module("weights").resolve

    def load(model: Path, dtype: str) -> list[Any]:
        placement = Placement(torch.device("cpu"), "resident")
        models = load_models(resolve(str(model)), placement, getattr(torch, dtype))
        encoders = [models.text.text_encoder, models.text.text_encoder_2]
        checker = [models.safety.checker] if models.safety else []
        return [*encoders, models.vae, models.base, models.refiner, *checker]

    return load


def reference(*, share: bool) -> Load:
    """Replicate's cog-sdxl: four pipelines. `share` is its way; without it nothing is passed from one to the next."""
    import torch
    from diffusers import StableDiffusionXLImg2ImgPipeline as Img2Img
    from diffusers import StableDiffusionXLInpaintPipeline as Inpaint
    from diffusers import StableDiffusionXLPipeline as Text2Img
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPImageProcessorPil

    pipelines: list[Any] = [Text2Img, Img2Img, Inpaint]
    text_to_image, image_to_image, inpaint = pipelines

    def load(model: Path, dtype: str) -> list[Any]:
        options: dict[str, Any] = {"torch_dtype": getattr(torch, dtype), "local_files_only": True}
        text = text_to_image.from_pretrained(model / "base", **options)
        parts = dict(text.components)
        image_to_image(**parts)
        inpaint(**parts)
        shared = {"text_encoder_2": text.text_encoder_2, "vae": text.vae} if share else {}
        refiner = image_to_image.from_pretrained(model / "refiner", **options, **shared)
        modules = [text.text_encoder, text.text_encoder_2, text.vae, text.unet]
        modules += [refiner.text_encoder_2, refiner.vae, refiner.unet]
        if (folder := model / "safety_checker").is_dir():
            modules.append(StableDiffusionSafetyChecker.from_pretrained(folder, **options))
            CLIPImageProcessorPil.from_pretrained(folder)
        return modules

    return load


SIDES: dict[str, Callable[[], Load]] = {
    "ours": ours,
    "reference": lambda: reference(share=True),
    "unshared": lambda: reference(share=False),
}


def touch(modules: list[Any]) -> None:
    """Read a byte of every page of the weights, as moving them to a GPU does: until then a mapped file is a promise."""
    import torch

    for module in modules:
        for value in module.state_dict().values():
            if value.is_contiguous():
                value.flatten().view(torch.uint8)[:: os.sysconf("SC_PAGE_SIZE")].sum()


def in_fork(work: Callable[[], Any]) -> Any:
    """The result of `work`, done in a copy of this process."""
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        code = 1
        try:
            os.write(write, json.dumps(work()).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(write)
    with os.fdopen(read) as pipe:
        answer = pipe.read()
    if os.waitpid(child, 0)[1] != 0:
        raise RuntimeError("loading failed in a fork; its error is above")
    return json.loads(answer)


def late_imports(load: Callable[[], object]) -> list[str]:
    """The modules that loading imports."""

    def work() -> list[str]:
        before = set(sys.modules)
        load()
        return [name for name in sys.modules if name not in before and not name.startswith("_")]

    found: list[str] = in_fork(work)
    return found


def cpu_seconds(load: Callable[[], object]) -> float:
    """Of loading."""
    start = time.process_time()
    load()
    return time.process_time() - start


def count_openings() -> Counter[str]:
    """How often each file of weights is opened by Python or by safetensors, which nothing may have imported."""
    opened: Counter[str] = Counter()
    safetensors: Any = importlib.import_module("safetensors")
    safe_open = safetensors.safe_open

    def opening(file: Any, *args: Any, **kwargs: Any) -> Any:
        opened[os.fspath(file)] += 1
        return safe_open(file, *args, **kwargs)

    def audit(event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and str(args[0]).endswith(".safetensors"):
            opened[str(args[0])] += 1

    safetensors.safe_open = opening
    sys.addaudithook(audit)
    return opened


def reads(model: Path, load: Callable[[], list[Any]], opened: Counter[str]) -> dict[str, int]:
    """Bytes that come from the disk, and how often a file of weights is opened, at most."""
    for file in sorted(model.rglob("*.safetensors")):
        with file.open("rb") as dropped:
            os.posix_fadvise(dropped.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    opened.clear()
    before = _from_disk()
    touch(load())
    return {"read": _from_disk() - before, "most_opened": max(opened.values())}


def _from_disk() -> int:
    for line in Path("/proc/self/io").read_text().splitlines():
        if line.startswith("read_bytes:"):
            return int(line.split()[1])
    raise KeyError("read_bytes")


def main(side: str, small: str, folder: str, dtype: str, forks: str) -> dict[str, Any]:
    """All numbers of one side; without forks only its memory."""
    model = Path(folder)
    start = time.process_time()
    opened = count_openings()
    load_from = SIDES[side]()
    for name in late_imports(lambda: load_from(Path(small), dtype)):
        with suppress(ImportError):  # some packages take their own modules out of reach again
            importlib.import_module(name)
    found: dict[str, Any] = {"import": time.process_time() - start, "baseline": read_status("VmRSS")}
    gc.collect()  # what importing leaves behind is no cost of loading
    gc.freeze()

    def load() -> list[Any]:
        return load_from(model, dtype)

    found["load"] = [in_fork(lambda: cpu_seconds(load)) for _ in range(int(forks))]
    if small == folder:
        found |= in_fork(lambda: reads(model, load, opened))
    touch(load())
    return found | {"peak": read_status("VmHWM")}


if __name__ == "__main__":
    answer = main(*sys.argv[1:])
    sys.stdout.write(json.dumps(answer) + "\n")
