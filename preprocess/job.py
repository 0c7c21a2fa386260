"""What every step of the preparation is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from preprocess.wishes import Wishes

WORK = "work"  # the folder of what lies between the steps

Say = Callable[[str], None]  # a line for the user's log
Check = Callable[[], None]  # raises when the training was cancelled
Helper = Callable[[str], Path]  # the folder of a model: "captioner", "segmenter", "upscaler"


@dataclass(frozen=True)
class Job:
    """One preparation: what is wished, where it works, and what it has to tell afterwards."""

    wishes: Wishes
    helper: Helper
    folder: Path
    device: torch.device
    say: Say
    check: Check
    skipped: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def skip(self, name: str, why: str) -> None:
        """A file that is not used, and why not: "is …"."""
        self.skipped.append((name, why))
        self.say(f"skipped: {name!r} {why}")

    def note(self, text: str) -> None:
        """Something done that the user may want to know."""
        self.notes.append(text)
        self.say(text)

    def place(self, *parts: str) -> Path:
        """A path in the folder, whose parents exist."""
        path = self.folder.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path
