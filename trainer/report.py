"""What was trained on, with what, and how it went, for people to read: captions.csv and training_report.json."""

from __future__ import annotations

import csv
import io
import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path

from preprocess.examples import Example, Prepared
from trainer.files import whole

LIBRARIES = ("torch", "diffusers", "transformers")
PROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"
PLACES = ("image", "mask")  # fields of an example that are paths on this machine


@dataclass(frozen=True)
class Course:
    """How a training went.

    losses          of each step
    learning_rates  what learns -> its learning rate at each step
    pivot           how many steps the token rows learned
    seconds         stage -> how long it took
    device          in words
    """

    losses: Sequence[float]
    learning_rates: Mapping[str, Sequence[float]]
    pivot: int
    seconds: Mapping[str, float]
    device: str


def write_report(folder: Path, data: Prepared, settings: Mapping[str, object], course: Course) -> None:
    """Both files. `settings` are all that decided the training, its seed among them. WeightsError on a full disk."""
    with whole(folder / "captions.csv") as file:
        file.write(captions(data).encode())
    with whole(folder / "training_report.json") as file:
        file.write((json.dumps(report(data, settings, course), indent=1, ensure_ascii=False) + "\n").encode())


def captions(data: Prepared) -> str:
    """As a training archive takes them: caption,image_file."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("caption", "image_file"))
    rows.writerows((example.caption, example.name) for example in data.examples)
    return text.getvalue()


def report(data: Prepared, settings: Mapping[str, object], course: Course) -> dict[str, object]:
    """What JSON can hold. A loss that is no number is null; a setting that JSON does not know is as it is printed."""
    rates = {name: list(map(_number, each)) for name, each in course.learning_rates.items()}
    return {
        "settings": {name: _plain(value) for name, value in settings.items()},
        "versions": versions(),
        "device": course.device,
        "seconds": {stage: round(each, 3) for stage, each in course.seconds.items()},
        "steps": len(course.losses),
        "pivot": course.pivot,
        "losses": list(map(_number, course.losses)),
        "learning_rates": rates,
        "examples": [_told(example) for example in data.examples],
        "skipped": [{"file": file, "why": why} for file, why in data.skipped],
        "notes": list(data.notes),
    }


def versions() -> dict[str, str]:
    """Of this package and of what it trains with."""
    own = tomllib.loads(PROJECT.read_text())["project"]
    return {own["name"]: own["version"]} | {name: version(name) for name in LIBRARIES}


def _told(example: Example) -> dict[str, object]:
    told = {each.name: _plain(getattr(example, each.name)) for each in fields(example) if each.name not in PLACES}
    return told | {"mask": example.mask is not None}


def _plain(value: object) -> object:
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, list | tuple):
        return list(map(_plain, value))
    return value if value is None or isinstance(value, str | int) else str(value)


def _number(value: float) -> float | None:
    """With as many digits as say something."""
    return float(f"{value:.6g}") if math.isfinite(value) else None
