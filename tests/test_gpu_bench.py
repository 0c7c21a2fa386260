"""The GPU's benchmark goes all its ways at a tiny size on a CPU; what fails or finds no time says so in its place."""

import json
import os
import re
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks import report
from benchmarks.gpu import __main__ as program
from benchmarks.gpu import table, wheels
from benchmarks.gpu.plan import Cell, Found, Line, NotMeasuredError, run
from benchmarks.gpu.scale import TINY
from tests.conftest import ROOT

Json = dict[str, Any]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpu")
    before = dict(os.environ)
    program.main(["--size", "tiny", "--out", str(folder), "--seconds", "100000"])
    assert dict(os.environ) == before
    return folder


@pytest.fixture(scope="module")
def found(out: Path) -> Json:
    read: Json = json.loads((out / program.NUMBERS).read_text())
    return read


def test_every_line_is_there_and_nothing_fails(found: Json) -> None:
    lines = [(cell.name, line.name) for cell in program.all_cells(TINY) for line in cell.lines]
    assert len(set(lines)) == len(lines)
    assert [(row["group"], row["name"]) for row in found["rows"]] == lines
    for row in found["rows"]:
        assert re.match(r"measured$|not measured: .", row["status"]), row
        assert (row["b"] is None) == (row["status"] != "measured")


def test_all_but_what_needs_a_gpu_or_minutes_is_measured(found: Json) -> None:
    unmeasured = {row["group"] for row in found["rows"]} - {
        row["group"] for row in found["rows"] if row["status"] == "measured"
    }
    skipped = {cell.name for cell in program.all_cells(TINY) if any(word in cell.name for word in TINY.skipped)}
    on_a_gpu = {"waits, engine graph", "memory of the card, engine graph", "profile, engine graph"}
    assert unmeasured == skipped | on_a_gpu


def test_both_sides_draw_the_same_and_count_the_same(found: Json) -> None:
    rows = {(row["group"], row["name"]): row for row in found["rows"]}
    for other in ("eager", "diffusers"):
        assert rows["the same bits", f"values of the latents that differ between graph and {other}"]["b"] == 0
    far = rows["distance from float32, engine graph", "latents of 2 steps, distance from float32's"]
    assert far["b"] < 0.01, "per cent: both are float32 here"
    kinds = "prompts, seeds, steps, guidance and LoRAs"
    assert rows["compiled and recorded, engine graph", f"graphs compiled for other {kinds}"]["b"] == 0
    picture = {name: row for (group, name), row in rows.items() if group == "a picture, engine graph"}
    for side in ("a", "b"):
        whole = picture["denoising"][side] + picture["everything but the denoising"][side]
        assert whole == pytest.approx(1000 * picture["to its file"][side], rel=0.3), "stages add up"


def test_table_plots_and_profile_are_there(out: Path, found: Json) -> None:
    text = (out / "gpu.txt").read_text()
    for cell in program.all_cells(TINY):
        assert f"\n{cell.name}\n" in text or f"\n{cell.name}: not measured: " in text
    assert text.strip().endswith(table.sums(found["rows"]))
    for name in ("compared.png", "stages.png"):
        with Image.open(out / name) as image:
            assert len(image.convert("RGB").getcolors(2**24) or ()) > 50
    assert "scaled_dot_product" in (out / "profile-graph.txt").read_text()
    assert len(list(out.iterdir())) <= 8, "what a lent machine gives back"


def fail(_: object) -> dict[str, Found]:
    raise ValueError("on purpose\nand more")


def refuse(_: object) -> dict[str, Found]:
    raise NotMeasuredError("needs the moon")


def one(_: object) -> dict[str, Found]:
    return {"x": Found(2.0, 1.0, spread=0.1)}


def test_a_cell_that_fails_stops_no_other() -> None:
    lines = [Line("x", "s", ratio=1.5), Line("y", most=1)]
    cells = [Cell("a", 0, lines, fail), Cell("b", 0, lines, refuse), Cell("c", 1e6, lines, one)]
    cells += [Cell("d", 0, lines, one), Cell("e", 0, lines, one)]
    unwanted = {"d": "not asked for"}
    rows = [
        row
        for part in run(cells, None, time.monotonic() + 60, lambda cell: unwanted.get(cell.name, ""))
        for row in part
    ]
    said = {(row["group"], row["name"]): row["status"] for row in rows}
    assert said["a", "x"] == said["a", "y"] == "failed: ValueError: on purpose"
    assert said["b", "x"] == "not measured: needs the moon"
    assert said["c", "y"] == "not measured: no time was left"
    assert said["d", "x"] == "not measured: not asked for"
    assert said["e", "y"].startswith("not measured: ")
    measured = rows[-2]
    assert (measured["status"], measured["ratio"], measured["met"], measured["noise"]) == ("measured", 2, True, False)


@pytest.mark.parametrize(
    ("line", "a", "b", "met"),
    [
        (Line("x", ratio=1.7), 1.8, 1.0, True),
        (Line("x", ratio=1.7), 1.6, 1.0, False),
        (Line("x", ratio=1.7, most=1.5), 3.4, 1.6, False),
        (Line("x", least=65), None, 64.0, False),
        (Line("x", most=0), None, 0.0, True),
        (Line("x"), 1.0, 2.0, None),
        (Line("x", ratio=1.7), None, 2.0, None),
    ],
)
def test_goals(line: Line, a: float | None, b: float, met: bool | None) -> None:
    assert line.met(Found(a, b)) is met


def a_run(rows: list[Json], card: str) -> Json:
    machine = {"card": card, "cores": 16, "memory_gib": 128, "python": "3.12.3", "versions": {"torch": "2.11.0"}}
    facts = {"date": "2026-11-26 06:00 UTC", "commit": "abc", "dirty": False, "seconds": 9.0, "scale": "full"}
    return facts | {"machine": machine, "remarks": [], "rows": rows}


def test_runs_are_published_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"above\n{table.BEGIN}\nold\n{table.END}\nbelow\n")
    monkeypatch.setattr(report, "PAGE", page)
    blank = program.blank_rows()
    numbers = {"status": "measured", "a": 2.7, "b": 1.35, "ratio": 2.0, "met": True}
    place = next(number for number, row in enumerate(blank) if row["name"] == "to its file")
    first = [row | (numbers if number == place else {}) for number, row in enumerate(blank)]
    second = [row | {"status": "failed: OutOfMemoryError"} for row in blank]
    for name, rows in (("1", first), ("2", second)):
        (tmp_path / name).write_text(json.dumps(a_run(rows, f"card {name}")))
    program.main(["--publish", str(tmp_path / "1"), str(tmp_path / "2")])
    text = page.read_text()
    assert text.startswith("above\n")
    assert text.endswith("below\n")
    assert "| to its file | 2.70 | 1.35 | s | 2.00 | A/B ≥ 1.7, B ≤ 1.5 | yes |" in text
    assert "card 1" in text
    assert "card 2" in text
    assert "failed: OutOfMemoryError" in text
    assert "old" not in text


def test_the_page_has_every_line() -> None:
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    part = page[page.index(table.BEGIN) : page.index(table.END)]
    for row in program.blank_rows():
        assert f"### {row['group']}\n" in part, "run script/gpu --publish"
        assert f"| {row['name']} |" in part, "run script/gpu --publish"


def test_only_the_rest_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells = program.all_cells(TINY)
    rows = [{"group": cell.name, "status": "measured"} for cell in cells if "waits" not in cell.name]
    (tmp_path / "before.json").write_text(json.dumps({"rows": rows}))
    program.main(["--size", "tiny", "--out", str(tmp_path / "out"), "--rest", str(tmp_path / "before.json")])
    after = json.loads((tmp_path / "out" / program.NUMBERS).read_text())["rows"]
    begun = {row["group"] for row in after if "not asked for" not in row["status"] and "left out" not in row["status"]}
    assert begun == {"ceilings of this machine", "waits, engine graph"}
    assert "waits, engine graph" in capsys.readouterr().out


def test_the_wheels_are_those_that_the_project_pins(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = wheels.wanted()
    assert f"diffusers=={version('diffusers')}" in wanted
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in wanted)
    assert "diffusers" not in " ".join(wheels.missing())
    monkeypatch.setattr(wheels, "version", lambda _: "0.1")
    assert wheels.missing() == wanted
