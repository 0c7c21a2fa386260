"""The table: on the screen, in results/, and on the page."""

import json
from collections.abc import Iterable, Sequence
from itertools import chain, groupby
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
PAGE = RESULTS.parent.parent / "docs" / "benchmarks.md"
BEGIN, END = "<!-- written by script/bench --publish -->", "<!-- end -->"
HEADER = ("", "A", "B", "unit", "B/A", "goal", "met", "change")

RowJson = dict[str, Any]
Run = dict[str, Any]


def number(value: float | None) -> str:
    """Three digits of a measurement, all of a count."""
    if value is None:
        return ""
    if float(value).is_integer() or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:#.3g}".rstrip(".")


def cells(row: RowJson, before: RowJson | None) -> tuple[str, ...]:
    """A row as text; the change is that of B/A, or of B where there is no ratio, since the run before."""
    met = {None: "", True: "yes", False: "NO"}[row["met"]]
    ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
    return (
        row["name"], number(row["a"]), number(row["b"]), row["unit"], ratio, row["goal"], met, change(row, before)
    )  # fmt: skip


def change(row: RowJson, before: RowJson | None) -> str:
    """In per cent; a count that is as it was says so."""
    if before is None:
        return "new"
    now, then = (each["b"] if each["ratio"] is None else each["ratio"] for each in (row, before))
    if now == then:
        return "="
    return f"{(now / then - 1) * 100:+.0f} %" if then > 0 else f"{then:.3g} → {now:.3g}"


def lines(rows: Sequence[RowJson], before: Run | None, *, markdown: bool) -> Iterable[str]:
    """The table, a heading for every group."""
    old = {(row["group"], row["name"]): row for row in before["rows"]} if before else {}
    groups = [(name, list(group)) for name, group in groupby(rows, lambda row: row["group"])]
    table = {name: [cells(row, old.get((row["group"], row["name"]))) for row in group] for name, group in groups}
    if markdown:
        for name, group in table.items():
            yield from ("", f"### {name}", "", "| | A | B | | B/A | goal | met |", "|---|--:|--:|---|--:|---|---|")
            yield from (f"| {' | '.join(row[:-1])} |" for row in group)
        return
    widths = [max(map(len, column)) for column in zip(HEADER, *chain(*table.values()), strict=True)]
    yield _aligned(HEADER, widths)
    for name, group in table.items():
        yield from ("", name)
        yield from (_aligned(row, widths) for row in group)


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    texts = [
        f"{text:>{width}}" if 0 < i < 3 else f"{text:<{width}}"
        for i, (text, width) in enumerate(zip(row, widths, strict=True))
    ]
    return "  ".join(texts).rstrip()


def last_run() -> Run | None:
    """The newest stored run."""
    runs = [json.loads(file.read_text()) for file in RESULTS.glob("cpu-*.json")]
    return max(runs, key=lambda run: str(run["date"]), default=None)


def store(run: Run) -> Path:
    """Into results/, under its date and commit."""
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"cpu-{run['date'][:10]}-{run['commit']}.json"
    file.write_text(json.dumps(run, indent=1) + "\n")
    return file


def facts(run: Run) -> Iterable[str]:
    """What was measured, where and when."""
    machine = run["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    yield f"{run['date']}, commit {run['commit']}{' with changes' if run['dirty'] else ''}, {run['seconds']:.0f} s"
    yield (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, "
        f"load average {machine['load_average']} at the start, {machine['threads']} thread for torch"
    )
    yield f"Python {machine['python']}, {versions}"


def publish(run: Run) -> None:
    """The run's table into docs/benchmarks.md, in the place that is marked there."""
    text = "\n".join([*(f"- {fact}" for fact in facts(run)), *lines(run["rows"], None, markdown=True)])
    put(text, BEGIN, END)


def put(text: str, begin: str, end: str) -> None:
    """What stands between two marks of the page."""
    before, rest = PAGE.read_text().split(begin)
    after = rest.split(end, 1)[1]
    PAGE.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}")
