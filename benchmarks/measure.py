"""Rows of the table, and how time is taken on a machine that others use too."""

import gc
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any, TypeVar

T = TypeVar("T")
MODULES = {"pillow": "PIL", "invisible-watermark": "imwatermark"}  # where a package's module has another name


@dataclass(frozen=True)
class Effort:
    """How much to measure. The tests use less than a benchmark does."""

    rounds: int  # timed calls of each side
    loop_steps: int
    picture_steps: int
    side: int  # of the pictures that are written to files
    divisor: int  # of SDXL's width, for the model whose weights outweigh the imports
    requests: int


FULL = Effort(rounds=10, loop_steps=50, picture_steps=20, side=1024, divisor=4, requests=50)
TINY = Effort(rounds=1, loop_steps=6, picture_steps=2, side=256, divisor=32, requests=2)


@dataclass(frozen=True)
class Row:
    """One line of the table. A is the reference, B this package; the goal is `B <= most_ratio * A` and `B <= most`."""

    group: str
    name: str
    unit: str
    a: float | None
    b: float
    most_ratio: float | None = None
    most: float | None = None
    exact: bool = False  # the same on every machine
    spread: float | None = None  # distance of A's quartiles over its median; a smaller difference is noise

    @property
    def ratio(self) -> float | None:
        """B / A, if that says something."""
        return self.b / self.a if self.a else None

    @property
    def met(self) -> bool | None:
        """Whether the goal is reached; None without one."""
        limits = [self.most] if self.most is not None else []
        if self.most_ratio is not None and self.a is not None:
            limits.append(self.most_ratio * self.a)
        return all(self.b <= limit for limit in limits) if limits else None

    @property
    def goal(self) -> str:
        """The goal in words, empty without one."""
        parts = []
        if self.most_ratio is not None:
            parts.append("B ≤ A" if self.most_ratio == 1 else f"B/A ≤ {self.most_ratio:g}")
        if self.most is not None:
            parts.append(f"B {'=' if self.most == 0 else '≤'} {self.most:g}")
        return ", ".join(parts)

    def as_json(self) -> dict[str, Any]:
        """All fields and what follows from them."""
        return asdict(self) | {"ratio": self.ratio, "goal": self.goal, "met": self.met}


@dataclass(frozen=True)
class Times:
    """Seconds of every timed call of one side."""

    cpu: list[float]
    wall: list[float]


def timed(call: Callable[[], object]) -> tuple[float, float]:
    """(CPU seconds of this process with all its threads, wall seconds) of one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return time.process_time() - cpu, time.perf_counter() - wall


def interleave(a: Callable[[], object], b: Callable[[], object], rounds: int) -> tuple[Times, Times]:
    """Time both, in the order A B B A A B B A ..., after one call of each that does not count."""
    both = Times([], []), Times([], [])
    a(), b()
    gc.collect()
    gc.disable()  # else the garbage of one call is paid for by another
    for number in range(rounds):
        for side in (0, 1) if number % 2 == 0 else (1, 0):
            cpu, wall = timed((a, b)[side])
            both[side].cpu.append(cpu)
            both[side].wall.append(wall)
    gc.enable()
    return both


def spread(values: list[float]) -> float | None:
    """Distance of the quartiles over the median; None for a single value."""
    if len(values) < 2:
        return None
    low, _, high = quantiles(values, n=4)
    return (high - low) / median(values)


def timing_row(
    group: str,
    name: str,
    a: list[float],
    b: list[float],
    *,
    per: float = 1,
    unit: str = "ms",
    most_ratio: float | None = None,
    most: float | None = None,
) -> Row:
    """Medians of seconds as milliseconds (or seconds), each divided by `per`."""
    scale = (1000 if unit == "ms" else 1) / per
    return Row(group, name, unit, median(a) * scale, median(b) * scale, most_ratio, most, spread=spread(a))


def read_status(name: str) -> int:
    """A field of /proc/self/status, such as VmHWM, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(name)


def machine() -> dict[str, Any]:
    """What the numbers were taken on."""
    import os
    import platform
    from importlib.metadata import version
    from importlib.util import find_spec

    import torch

    info = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in info if line.startswith("model name")), "unknown")
    packages = ("torch", "diffusers", "transformers", "safetensors", "pillow", "invisible-watermark", "cog")
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "load_average": round(os.getloadavg()[0], 1),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages if find_spec(MODULES.get(name, name))},
    }


def last_json(text: str) -> dict[str, Any]:
    """The JSON object in the last line of a process's output."""
    found: dict[str, Any] = json.loads(text.strip().splitlines()[-1])
    return found
