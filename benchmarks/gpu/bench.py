"""What all cells share: the model's folder, both sides around it, and what one cell leaves for another."""

import gc
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu import model
from benchmarks.gpu.plan import NotMeasuredError
from benchmarks.gpu.scale import Scale, Size
from benchmarks.gpu.sides import Package, Reference
from benchmarks.measure import interleave

SHARED_MEMORY = Path("/dev/shm")
ROOM = 20e9  # bytes for the model, LoRAs and what is compiled
LORAS = 2


@dataclass(frozen=True)
class Compared:
    """Seconds of every timed call of both sides, and of their stages."""

    a: list[float]
    b: list[float]
    a_stages: list[Mapping[str, float]]
    b_stages: list[Mapping[str, float]]

    def stage(self, side: str, name: str) -> float:
        """Median of a stage; "rest" is what no stage took: the watermark, the safety checker, the files."""
        calls = self.a if side == "a" else self.b
        stages = self.a_stages if side == "a" else self.b_stages
        if name != "rest":
            return median(each[name] for each in stages)
        return median(wall - sum(each.values()) for wall, each in zip(calls, stages, strict=True))


@dataclass
class Bench:
    """One run's."""

    scale: Scale
    device: torch.device
    folder: Path
    out: Path
    kept: dict[str, float] = field(default_factory=dict)  # numbers that other cells need
    latents: dict[tuple[str, int, int], Tensor] = field(default_factory=dict)  # B's by engine, steps and seed
    seeds: Iterator[int] = field(default_factory=count)
    _package: tuple[str, Package] | None = None

    @cached_property
    def model(self) -> Path:
        """Written at first use."""
        folder = self.folder / "model"
        self.kept["parameters"] = model.write(folder, self.scale.divisor, self.device)
        return folder

    @cached_property
    def loras(self) -> list[Path]:
        """Files, written at first use."""
        return model.write_loras(self.folder / "loras", self.model, self.scale.rank, LORAS)

    @cached_property
    def reference(self) -> Reference:
        """A, loaded at first use and kept."""
        before = allocated()
        found = Reference(self.model, self.device, self.folder)
        self.kept["reference bytes"] = allocated() - before
        return found

    def package(self, engine: str) -> Package:
        """B with this engine; the one before goes."""
        if self._package is None or self._package[0] != engine:
            extra = {} if self.reference.marked else {"apply_watermark": False}
            self.drop()
            os.environ |= {"SDXL_MODEL": str(self.model), "SDXL_ENGINE": engine}
            os.environ["SDXL_LOCAL_FILES"] = os.pathsep.join(map(str, self.loras))
            self._package = engine, Package.ready(**extra)
        return self._package[1]

    def drop(self) -> None:
        """Give back what B holds."""
        self._package = None
        gc.unfreeze()  # its setup has frozen what it loaded
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def asked(self, *, steps: int | None = None, size: Size | None = None) -> dict[str, Any]:
        """Inputs that both sides take, of another prompt each time, so that nothing is remembered."""
        number = next(self.seeds)
        side = self.scale.side
        return {
            "prompt": f"a photo of an astronaut riding a horse, number {number}",
            "seed": number,
            "steps": steps or self.scale.steps,
            "size": size or (side, side),
        }

    def compare(
        self,
        engine: str,
        rounds: int,
        *,
        lora: Path | None = None,
        steps: int | None = None,
        size: Size | None = None,
        warmups: int = 0,
        **both: Any,
    ) -> Compared:
        """Pictures of both sides in the order A B B A, after one of each, and `warmups` more, that do not count."""
        b = self.package(engine)
        stages: tuple[list[Mapping[str, float]], ...] = ([], [])

        def call(side: int, make: Callable[..., object], **more: Any) -> None:
            make(**self.asked(steps=steps, size=size), **both, **more)
            stages[side].append((self.reference if side == 0 else b).stages)

        def a_call() -> None:
            call(0, self.reference)

        def b_call() -> None:
            call(1, b, lora=lora)

        with self.reference.tuned(lora):
            for _ in range(warmups):
                a_call()
                b_call()
            a_times, b_times = interleave(a_call, b_call, rounds)
        return Compared(a_times.wall, b_times.wall, stages[0][-rounds:], stages[1][-rounds:])


def allocated() -> int:
    """Bytes of tensors on the GPU; 0 without one."""
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else 0


def needs_gpu() -> None:
    """What only a GPU has."""
    if not torch.cuda.is_available():
        raise NotMeasuredError("needs a GPU")


@contextmanager
def opened(scale: Scale, out: Path) -> Iterator[Bench]:
    """A bench with a folder of its own, in memory where there is room; nothing of it stays, the environment neither."""
    roomy = SHARED_MEMORY.is_dir() and shutil.disk_usage(SHARED_MEMORY).free > ROOM
    before = dict(os.environ)
    with tempfile.TemporaryDirectory(prefix="sdxl-gpu-", dir=SHARED_MEMORY if roomy else None) as name:
        folder = Path(name)
        os.environ |= {
            "SDXL_CACHE": str(folder / "cache"),
            "SDXL_OFFLINE": "1",
            "HF_HUB_OFFLINE": "1",
            "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
            "TRITON_CACHE_DIR": str(folder / "triton"),
        }
        for variable in ("SDXL_OFFLOAD", "SDXL_BATCH", "SDXL_DEFER_REFINER"):
            os.environ.pop(variable, None)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        out.mkdir(parents=True, exist_ok=True)
        bench = Bench(scale, device, folder, out)
        try:
            yield bench
        finally:
            bench.drop()
            os.environ.clear()
            os.environ |= before
