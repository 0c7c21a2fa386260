"""Every line of the benchmark runs, and what can be counted is as it should be. No times: they belong to machines."""

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import report
from benchmarks.device import Emulated
from benchmarks.measure import TINY, Row, interleave
from benchmarks.memory import META, counted_memory
from sdxl.schedulers import SCHEDULERS


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def measured(group: str) -> dict[str, Row]:
    rows: list[Row] = importlib.import_module(f"benchmarks.{group}").rows(TINY)
    assert len({row.name for row in rows}) == len(rows)
    return {row.name: row for row in rows}


def test_the_loop_never_waits_for_the_device_and_gives_it_less_to_do() -> None:
    rows = measured("counts")
    waits = {name: rows[f"waits for the device, {name}"] for name in SCHEDULERS}
    assert {name: row.b for name, row in waits.items()} == dict.fromkeys(SCHEDULERS, 0)
    others = dict.fromkeys(SCHEDULERS, 0)
    assert {name: row.a for name, row in waits.items()} == others | {"DDIM": 6, "PNDM": 3, "LCM": 3, "TCD": 4}
    for name in SCHEDULERS:
        assert rows[f"device operations, {name}"].met
    assert rows["samplers whose loop fails on the meta device"].b == 0


def test_the_models_are_called_no_more_than_needed() -> None:
    rows = measured("calls")
    for row in rows.values():
        assert row.met, row
    for encoder in ("text encoder 1", "text encoder 2"):
        assert rows[f"{encoder}, forward passes, a new prompt"].b == 1
        assert rows[f"{encoder}, forward passes, the same prompt again"].b == 0
    assert rows["type conversions of the VAE per prediction"].b == 0
    for name in SCHEDULERS:
        row = rows[f"UNet calls, 20 steps, {name}"]
        assert row.a == row.b


def test_files_hold_the_pixels_of_the_reference() -> None:
    rows = measured("files")
    different = rows["pixels that differ from the library's encoder"].b
    assert different <= 1e-4 * 4 * TINY.side**2
    assert rows["largest difference"].b <= 1


def test_a_lora_costs_nothing_per_step_and_little_to_change() -> None:
    rows = measured("finetunes")
    name = "device operations per UNet call"
    bare, theirs = rows[f"{name}, no LoRA"].b, rows[f"{name}, no LoRA"].a
    assert theirs is not None
    assert bare < theirs
    for what, count in (("a LoRA", 1), ("three LoRAs", 3), ("a LoRA and its tokens in the prompt, miniature", 1)):
        row = rows[f"{name}, {what}"]
        assert row.b == bare
        assert row.a == theirs + count * 4 * 80, "two products, a scaling and a sum in each of 80 layers"
    traffic = rows["swap, memory traffic over reading and writing the weights once"].b
    assert 1 < traffic < 1.1
    assert rows["text encoders, forward passes, the same prompt with LoRA 1, 2, 1"].b == 0
    assert rows["memory, factors of a LoRA"].ratio == 1


def test_a_training_step_is_diffusers_own_for_less() -> None:
    rows = measured("training")
    assert len([row for row in rows.values() if "gradients of 1120 factors" in row.name and row.met]) == 2
    for name in ("device operations, after the pivot", "device operations, before the pivot"):
        assert rows[name].met
    for name in ("waits for the device, after the pivot", "waits for the device, before the pivot"):
        assert rows[name].b == 0
    name = "text encoders, forward passes"
    assert rows[f"{name}, 3 steps before the pivot"].b == 2 * 3
    assert rows[f"{name}, at the pivot: all captions, kept from then on"].b == 2
    assert rows[f"{name}, 2 steps after it"].b == 0
    assert rows["launches by the host, after the pivot, recorded"].b < 30
    peak = rows["peak memory, batch 4, 768 px, after the pivot"].b
    assert 7.1 < peak <= 27, "SDXL in 16 bits, its VAE in 32, is 7.1"


def test_what_anyone_holds_is_memory() -> None:
    with counted_memory() as live:
        weight = torch.empty(1000, requires_grad=True, device=META)
        loss = weight.exp().sum()
        assert live.bytes == 4000 + 4000 + 4, "autograd holds what exp gave"
        loss.backward()  # type: ignore[no-untyped-call]
        del loss
        assert live.bytes == 4000 + 4000, "the weight and its gradient"
        assert live.peak >= 4000 + 4000 + 4 + 4000
        weight.grad = None
        held = weight[:10].view(2, 5)
        del weight
        assert live.bytes == 4000, "a view holds all of it"
        del held
    assert live.bytes == 0


def test_engines_differ_in_cost_alone() -> None:
    rows = measured("engine")
    exact = [row for name, row in rows.items() if name.startswith("pixels that differ")]
    assert len(exact) == 2
    assert all(row.b == 0 for row in exact)
    for name in ("guidance_end 0.5", "cache_interval 2", "int8"):
        assert rows[f"likeness, {name}"].b > 15


@pytest.mark.parametrize("group", ["loop", "pictures"])
def test_times_are_taken(group: str) -> None:
    assert all(row.b > 0 for row in measured(group).values())


def test_setup_reads_every_byte_once() -> None:
    rows = measured("startup")
    assert rows["how often a file of weights is opened, at most"].b == 1
    assert rows["bytes read over bytes needed"].b <= 1.05


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_server_is_asked() -> None:
    rows = measured("http")
    assert rows["the smallest prediction, wall: in process (A), by POST (B)"].b > 0


def test_both_sides_take_turns() -> None:
    order: list[str] = []
    a, b = interleave(lambda: order.append("a"), lambda: order.append("b"), 4)
    assert "".join(order) == "ab" + "abbaabba"
    assert len(a.cpu) == len(b.wall) == 4


@pytest.mark.parametrize(
    "fetch",
    [
        lambda there: there.sum().item(),
        lambda there: bool((there > 0).any()),
        lambda there: there.to("cpu"),
        lambda there: there.cpu(),
        lambda there: there.numpy(),
        lambda there: there.tolist(),
        lambda there: torch.arange(9.0)[there.long()],
        lambda there: there[there > 0],
        lambda there: there.equal(there + 1),
    ],
)
@pytest.mark.parametrize("inference", [True, False])
def test_every_way_to_wait_is_seen(fetch: Any, inference: bool) -> None:
    with torch.inference_mode(inference), Emulated() as book:
        here, there = torch.ones(3), torch.ones(3).to(torch.device("cpu"))
        fetch(here)
        assert (book.syncs, book.uploads) == (0, 1)
        fetch(there)
        assert book.syncs == 1


@pytest.mark.parametrize("inference", [True, False])
def test_work_is_counted_views_are_not(inference: bool) -> None:
    with torch.inference_mode(inference), Emulated() as book:
        there = torch.ones(2, 3).to(torch.device("cpu"))
        view = there[0].expand(4, 3).chunk(2)[1]
        assert book.ops == 0
        (view.contiguous() * 2).half().half()
        assert (book.ops, book.syncs) == (3, 0)


def test_a_run_is_stored_compared_and_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(report, "PAGE", tmp_path / "page.md")
    machine = {"cpu": "C", "cores": 2, "memory_gib": 4, "load_average": 1, "threads": 1, "python": "3", "versions": {}}
    run = {"date": "2026-11-21 06:00 UTC", "commit": "abc", "dirty": False, "seconds": 1.0, "machine": machine}
    first = Row("group", "time", "ms", 10.0, 4.0, most_ratio=0.5)
    assert report.last_run() is None
    report.store(run | {"rows": [first.as_json()]})
    before = report.last_run()
    assert before is not None
    second = Row("group", "time", "ms", 10.0, 6.0, most_ratio=0.5)
    text = "\n".join(report.lines([second.as_json()], before, markdown=False))
    assert "B/A ≤ 0.5  NO" in text
    assert text.endswith("+50 %")
    (tmp_path / "page.md").write_text(f"above\n{report.BEGIN}\nold\n{report.END}\nbelow\n")
    report.publish(before)
    page = (tmp_path / "page.md").read_text()
    assert page.startswith("above\n")
    assert page.endswith("below\n")
    assert "| time | 10 | 4 | ms | 0.40 | B/A ≤ 0.5 | yes |" in page
    assert "old" not in page
