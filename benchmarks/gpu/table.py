"""The rows of a run: on the screen, in a file, and on the page."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, groupby
from typing import Any

from benchmarks.report import number, put

BEGIN, END = "<!-- written by script/gpu --publish -->", "<!-- end of what script/gpu wrote -->"
HEADER = ("A", "B", "unit", "A/B", "goal", "met")
NOTHING = "no run yet"

RowJson = Mapping[str, Any]
Run = Mapping[str, Any]


def cells(row: RowJson) -> tuple[str, ...]:
    """All of a row but its name, as text; what is not measured says why in place of its numbers."""
    if row["status"] != "measured":
        return "", row["status"], "", "", row["goal"], ""
    met = {None: "", True: "yes", False: "NO"}[row["met"]]
    ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}{' (noise)' if row['noise'] else ''}"
    unit = f"{row['unit']}{', ' if row['unit'] and row['note'] else ''}{row['note']}"
    return number(row["a"]), number(row["b"]), unit, ratio, row["goal"], met


def facts(run: Run) -> list[str]:
    """What was measured, on which card, by which libraries."""
    machine = run["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    changes = " with changes" if run["dirty"] else ""
    return [
        f"{run['date']}, commit {run['commit']}{changes}, size {run['scale']}, {run['seconds']:.0f} s",
        f"{machine['card']}, {machine['cores']} cores, {machine['memory_gib']} GiB",
        f"Python {machine['python']}, {versions}",
        *run["remarks"],
    ]


def text(run: Run) -> str:
    """For a screen; cells of which nothing was measured last, a line each."""
    groups = {name: list(rows) for name, rows in groupby(run["rows"], lambda row: row["group"])}
    empty = {name: rows[0]["status"] for name, rows in groups.items() if len({row["status"] for row in rows}) == 1}
    empty = {name: status for name, status in empty.items() if status != "measured"}
    table = {name: [_shown(row) for row in rows] for name, rows in groups.items() if name not in empty}
    shown = [("", *HEADER), *chain(*table.values())]
    widths = [max(len(row[column]) for row in shown) for column in range(len(HEADER))]
    lines = [*facts(run), "", _aligned(shown[0], widths)]
    for name, rows in table.items():
        lines += ["", name, *(_aligned(row, widths) for row in rows)]
    return "\n".join([*lines, "", *(f"{name}: {status}" for name, status in empty.items()), "", sums(run["rows"])])


def _shown(row: RowJson) -> tuple[str, ...]:
    """With the reason at its end, where it makes no column wider."""
    if row["status"] == "measured":
        return row["name"], *cells(row)
    return row["name"], "", "", "", "", "", row["status"]


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join([*(f"{each:<{width}}" for each, width in zip(row, widths, strict=False)), row[-1]]).rstrip()


def sums(rows: Sequence[RowJson]) -> str:
    """One line over all."""
    measured = [row for row in rows if row["status"] == "measured"]
    goals = [row["met"] for row in measured if row["met"] is not None]
    failed = sum(row["status"].startswith("failed") for row in rows)
    return f"{len(measured)} of {len(rows)} lines measured, {failed} failed; {sum(goals)} of {len(goals)} goals met"


def markdown(runs: Sequence[Run], rows: Sequence[RowJson]) -> Iterable[str]:
    """For the page."""
    yield from (f"- {fact}" for run in runs for fact in facts(run))
    if not runs:
        yield f"- {NOTHING}"
    for group, members in groupby(rows, lambda row: row["group"]):
        yield from ("", f"### {group}", "", f"| | {' | '.join(HEADER)} |", "|---|--:|--:|---|--:|---|---|")
        yield from (f"| {' | '.join((row['name'], *cells(row)))} |" for row in members)


def together(runs: Sequence[Run], blank: Sequence[RowJson]) -> list[RowJson]:
    """The rows of `blank`, each from the last of the runs that measured it."""
    found = {_place(row): row for row in blank}
    for row in (row for run in runs for row in run["rows"] if _place(row) in found):
        if row["status"] == "measured" or found[_place(row)]["status"] != "measured":
            found[_place(row)] = row
    return list(found.values())


def _place(row: RowJson) -> tuple[str, str]:
    return row["group"], row["name"]


def publish(runs: Sequence[Run], blank: Sequence[RowJson]) -> None:
    """Into docs/benchmarks.md, in the place that is marked there."""
    put("\n".join(markdown(runs, together(runs, blank))), BEGIN, END)
