"""Where the device's time goes in a prediction: the largest kernels, in a text file for each engine."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.plan import Cell, Found, Line

LARGEST = 25
BUSY = "the device works, of the prediction's time"


def cell(engine: str) -> Cell:
    """Of one engine."""
    return Cell(f"profile, engine {engine}", 15, [Line(BUSY, "%")], partial(measure, engine))


def measure(engine: str, bench: Bench) -> Mapping[str, Found]:
    """A prediction of some steps, after one that nobody watched."""
    b, cuda = bench.package(engine), bench.device.type == "cuda"
    steps = bench.scale.profiled_steps
    b(**bench.asked(steps=steps))
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=kinds) as seen:
        b(**bench.asked(steps=steps))
    averages: Any = seen.key_averages()
    where = "device" if cuda else "cpu"
    table = averages.table(sort_by=f"self_{where}_time_total", row_limit=LARGEST, max_name_column_width=90)
    side = bench.scale.side
    title = f"engine {engine}, a prediction of {steps} steps at {side}x{side}; the {LARGEST} largest by time\n"
    (bench.out / f"profile-{engine}.txt").write_text(title + table + "\n")
    if not cuda:
        return {}
    busy = sum(each.self_device_time_total for each in averages if each.device_type == DeviceType.CUDA)
    return {BUSY: Found(None, busy / 1e4 / sum(b.stages.values()))}
