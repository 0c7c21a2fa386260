"""An answer of coglet's, read as it comes: a file in it goes to the disk at once, since it may be a gigabyte."""

import binascii
import json
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

# A quote without a backslash before `data:` begins a string: what ends one is never followed by a letter.
START = re.compile(rb'(?<!\\)"data:([^",\\]*);base64,')
LONGEST = 300  # bytes of a data: URL before its content


class AnswerError(Exception):
    """The answer is no JSON, or a file in it is damaged; the message is for the user."""


@dataclass(frozen=True)
class Received:
    """A file of the answer, and its MIME type."""

    path: Path
    kind: str


def read(parts: Iterable[bytes], folder: Path) -> Any:
    """The JSON that parts make, with a `Received` for every data: URL in base64; the files lie in folder."""
    reader = _Reader(folder)
    try:
        for part in parts:
            reader.feed(part)
        return reader.end()
    finally:
        reader.close()


class _Reader:
    def __init__(self, folder: Path) -> None:
        self._folder, self._mark = folder, secrets.token_hex(16)  # no text of the answer is like it
        self._files: dict[str, Received] = {}
        self._text, self._rest = bytearray(), bytearray()
        self._file: IO[bytes] | None = None

    def feed(self, part: bytes) -> None:
        """Take in what came; at most LONGEST bytes of it wait for more."""
        self._rest += part
        while self._content(self._file) if self._file else self._start():
            pass

    def end(self) -> Any:
        """What it all was."""
        if self._file:
            raise AnswerError("the answer ends in the middle of a file")
        try:
            return self._filled(json.loads(self._text + self._rest))
        except ValueError as error:
            raise AnswerError("the answer is no JSON object; is it a Cog?") from error

    def _start(self) -> bool:
        """Move on to the content of the next file; False when there is none yet."""
        match = START.search(self._rest)
        if match is None:
            known = max(0, len(self._rest) - LONGEST)
            self._text += self._rest[:known]
            del self._rest[:known]
            return False
        name = f"{self._mark}-{len(self._files)}"
        self._files[name] = Received(self._folder / name, match[1].decode(errors="replace").partition(";")[0])
        self._file = self._files[name].path.open("wb")
        self._text += self._rest[: match.start()] + f'"{name}"'.encode()
        del self._rest[: match.end()]
        return True

    def _content(self, file: IO[bytes]) -> bool:
        """Decode what there is of a file; False when there is more to come."""
        stop = self._rest.find(b'"')
        known = stop if stop >= 0 else len(self._rest) // 4 * 4
        try:
            file.write(binascii.a2b_base64(self._rest[:known], strict_mode=True))
        except binascii.Error as error:
            raise AnswerError(f"an output is damaged: {error}") from error
        del self._rest[: known + (stop >= 0)]
        if stop >= 0:
            self.close()
        return stop >= 0

    def close(self) -> None:
        """No more of the file that is open, if any."""
        if self._file:
            self._file.close()
            self._file = None

    def _filled(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self._filled(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self._filled(item) for item in value]
        if not isinstance(value, str):
            return value
        return self._files.get(value, value)
