"""What this machine can do at most: products of matrices, copies, attention by each of torch's kernels."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.plan import Cell, Found, Line
from benchmarks.gpu.scale import Scale

NAME = "ceilings of this machine"
REPEATS, WARMUPS = 10, 3
BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
TERA = 1e12


def cells(scale: Scale) -> list[Cell]:
    """The one."""
    names = [*_products(scale), _copy(scale)]
    lines = [*(Line(name, "TFLOP/s") for name in names[:2]), Line(names[2], "TB/s, read and written")]
    lines += [Line(_attention(shape, name), "ms") for shape in scale.attentions for name in BACKENDS]
    return [Cell(NAME, 8, lines, measure)]


def _products(scale: Scale) -> list[str]:
    return [f"{name}, product of {scale.product} x {scale.product} matrices" for name in ("bfloat16", "float16")]


def _copy(scale: Scale) -> str:
    return f"copy of {scale.copied / 2**20:.0f} MiB on the device"


def _attention(shape: tuple[int, ...], name: str) -> str:
    return f"attention of {shape}, {name}"


def measure(bench: Bench) -> Mapping[str, Found]:
    """On random data; zeros are faster."""
    scale, device = bench.scale, bench.device
    found, (bfloat16, float16) = {}, _products(scale)
    for name, dtype in ((bfloat16, torch.bfloat16), (float16, torch.float16)):
        left, right = (torch.randn(scale.product, scale.product, device=device).to(dtype) for _ in range(2))
        rate = 2 * scale.product**3 / seconds(device, partial(torch.matmul, left, right)) / TERA
        found[name] = Found(None, rate)
    bench.kept["ceiling"] = found[bfloat16].b
    source = torch.randint(256, (scale.copied,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    found[_copy(scale)] = Found(None, 2 * scale.copied / seconds(device, lambda: target.copy_(source)) / TERA)
    for shape in scale.attentions:
        found |= _attentions(shape, device)
    return found


def _attentions(shape: tuple[int, ...], device: torch.device) -> dict[str, Found]:
    """Of the kernels that this machine has; the fastest says so."""
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    q, k, v = (torch.randn(shape, device=device).to(dtype) for _ in range(3))
    times = {}
    for name, backend in BACKENDS.items():
        try:
            times[name] = seconds(device, partial(_with, backend, q, k, v))
        except RuntimeError:  # this machine has no such kernel
            continue
    fastest = min(times, key=lambda name: times[name])
    return {
        _attention(shape, name): Found(None, each * 1000, note="the fastest" if name == fastest else "")
        for name, each in times.items()
    }


def _with(backend: SDPBackend, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with sdpa_kernel(backend):
        return scaled_dot_product_attention(q, k, v)


def seconds(device: torch.device, work: Callable[[], Any]) -> float:
    """Median of some calls, by the device's clock."""
    for _ in range(WARMUPS):
        work()
    if device.type != "cuda":
        found = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            work()
            found.append(time.perf_counter() - start)
        return median(found)
    make: Any = torch.cuda.Event
    events = [make(enable_timing=True) for _ in range(REPEATS + 1)]
    events[0].record()
    for event in events[1:]:
        work()
        event.record()
    torch.cuda.synchronize()
    return median(float(a.elapsed_time(b)) / 1000 for a, b in pairwise(events))
