"""The files in what a job gave out: found in order, with a mark left in the place of each."""

import mimetypes
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from local.answers import Received
from local.outputs import EXTENSIONS

FILE = "file://"


@dataclass(frozen=True)
class Output:
    """A file that a job gave out."""

    path: Path
    name: str
    kind: str  # MIME type


@dataclass
class Outputs:
    """An output without its files: `value` has a mark, which is like no text of the output, for each of `files`."""

    value: Any = None
    files: list[Output] = field(default_factory=list)
    mark: str = field(default_factory=lambda: secrets.token_hex(16))

    @classmethod
    def of(cls, output: Any, results: Path | None) -> "Outputs":
        """Take out what coglet sent, and what it names below `results`, the folder in which a training leaves files:
        those of gigabytes do not go through JSON."""
        found = cls()
        found.value = found._without_files(output, results)
        return found

    def filled(self, urls: Mapping[int, str]) -> Any:
        """The output with URLs in the places of the files."""
        return _each(self.value, lambda text: urls[int(text.rpartition("-")[2])] if self._is_mark(text) else text)

    def _is_mark(self, text: str) -> bool:
        return text.startswith(f"{self.mark}-")

    def _without_files(self, value: Any, results: Path | None) -> Any:
        return _each(value, lambda leaf: self._taken(leaf, results))

    def _taken(self, leaf: Any, results: Path | None) -> Any:
        number = len(self.files)
        if isinstance(leaf, Received):
            ending = EXTENSIONS.get(leaf.kind) or mimetypes.guess_extension(leaf.kind) or ""
            self.files.append(Output(leaf.path, f"out-{number}{ending}", leaf.kind))
        elif isinstance(leaf, str) and (path := _named(leaf, results)):
            kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
            self.files.append(Output(path, path.name, kind))
        else:
            return leaf
        return f"{self.mark}-{number}"


def _named(text: str, results: Path | None) -> Path | None:
    """The file below `results` that a text names, if it does."""
    if results is None or not text.startswith(FILE) or len(text) > 4096 or "\0" in text:
        return None
    path = Path(unquote(text.removeprefix(FILE))).resolve()
    return path if path.is_relative_to(results.resolve()) and path.is_file() else None


def _each(value: Any, one: Callable[[Any], Any]) -> Any:
    """The same value with every leaf that may be a file replaced."""
    if isinstance(value, dict):
        return {key: _each(item, one) for key, item in value.items()}
    if isinstance(value, list):
        return [_each(item, one) for item in value]
    return one(value) if isinstance(value, str | Received) else value
