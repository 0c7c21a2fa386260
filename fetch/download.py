"""Files over HTTP: each is whole and verified at its path, or not there at all.

While it comes, a file is NAME.part beside its place, and NAME.part.json says how far each piece has got. It
never claims more than was written: a process killed at any byte leaves something for the next to go on from.
A file moves to its path by rename after its length and digest were checked; what is at its path is whole.
"""

import json
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from threading import Lock

import requests

from errors import WeightsError
from fetch.answers import (
    CHUNK,
    LASTING,
    PASSING,
    Get,
    Item,
    Manner,
    Stated,
    Stop,
    arriving,
    ask,
    persistently,
    probe,
    validator_of,
)
from fetch.disk import Bar, digest_of, require_space

NOTHING = Stated(0, False, "", "")
ROUNDS = 3  # how often a file may change or arrive damaged before it is given up


@dataclass
class Transfer:
    """One file on its way."""

    item: Item
    get: Get
    manner: Manner
    bar: Bar
    stop: Stop
    room: Callable[[int], None]
    told: Stated = NOTHING
    done: list[int] = field(default_factory=list)  # bytes that each piece has
    unsaved: int = 0
    file: int = -1
    amiss: str = ""  # why the file must be fetched anew
    guard: Lock = field(default_factory=Lock)

    def __post_init__(self) -> None:
        self.item.path.parent.mkdir(parents=True, exist_ok=True)
        self.part = self.item.path.with_name(f"{self.item.path.name}.part")
        self.record = self.item.path.with_name(f"{self.item.path.name}.part.json")

    @property
    def left(self) -> int:
        return self.told.size - sum(self.done)

    def prepare(self) -> None:
        """Ask for the first byte, which tells size and digest; then go on from what is there, or start."""
        url, known = self.item.shown, self.item.size
        told = self._ask()
        if known not in (None, told.size):
            raise WeightsError(f"{url} has {told.size} bytes instead of {known}; check that address and proxies")
        if self.manner.limit is not None and told.size > self.manner.limit:
            raise WeightsError(f"{url} has {told.size} bytes; at most {self.manner.limit} are allowed")
        self.told, self.amiss = told, ""
        pieces = -(-told.size // self.manner.piece) if told.ranged else 1
        self.done = self._recorded(pieces) or [0] * pieces
        self.bar.add(sum(self.done), total=told.size)
        try:
            if self.file < 0:
                self.file = os.open(self.part, os.O_RDWR | os.O_CREAT, 0o644)
            os.ftruncate(self.file, told.size)
        except OSError as error:
            raise WeightsError(f"cannot write {self.part}: {error.strerror}; set SDXL_CACHE") from error

    def _ask(self) -> Stated:
        """What the server says of the file, once more if it has changed since the caller asked."""
        told = None if self.amiss else self.item.told
        told = told or probe(self.get, self.item, self.manner.patience, self.stop)
        return replace(told, digest=f"sha256:{self.item.sha256}") if self.item.sha256 else told

    def _recorded(self, pieces: int) -> list[int] | None:
        """How far each piece got before, if that was this very file."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            saved = json.loads(self.record.read_text())
            whole = self.part.stat().st_size == self.told.size and len(saved["done"]) == pieces
            if self.told.ranged and self.told.identity and whole and saved["of"] == self._of():
                return [min(max(0, int(n)), self._span(i)[1]) for i, n in enumerate(saved["done"])]
        return None

    def _of(self) -> list[str | int]:
        return [self.told.identity, self.told.size, self.manner.piece]

    def _span(self, index: int) -> tuple[int, int]:
        """(first byte, length) of a piece."""
        first = index * self.manner.piece
        return (first, min(self.manner.piece, self.told.size - first)) if self.told.ranged else (0, self.told.size)

    def save(self) -> None:
        """Write down how far each piece has got."""
        with self.guard:
            self.unsaved = 0
            if not self.told.digest:
                os.fdatasync(self.file)  # no digest would tell zeros from data after a power cut
            fresh = self.record.with_suffix(".new")
            fresh.write_text(json.dumps({"of": self._of(), "done": self.done}))
            fresh.replace(self.record)

    def fetch_piece(self, index: int) -> None:
        while self.done[index] < self._span(index)[1] and not self.amiss and not self.stop.is_set():
            persistently(partial(self._stream, index), self.item.shown, self.manner.patience, self.stop)

    def _stream(self, index: int) -> None:
        """One request for what a piece lacks; an interruption is a failure only where it brought little."""
        if not self.told.ranged:
            self._advance(index, -self.done[index])
        (first, length), begun = self._span(index), self.done[index]
        headers = {"Range": f"bytes={first + begun}-{first + length - 1}"} if self.told.ranged else {}
        if self.told.ranged and self.told.validator.startswith('"') and not self.told.digest:
            headers["If-Range"] = self.told.validator
        try:
            with ask(self.get, self.item, headers) as response:
                if not self._same(response, first + begun):
                    self.amiss = "changed while it was fetched"
                    return
                for data in arriving(response, self.manner.patience, self.stop):
                    self._write(index, data[: length - self.done[index]])
                    if self.done[index] == length or self.amiss or self.stop.is_set():
                        return
            raise ConnectionError(f"it broke off after {self.told.size - self.left} of {self.told.size} bytes")
        except PASSING as error:
            if not self.told.ranged or self.done[index] - begun < CHUNK or isinstance(error, LASTING):
                raise

    def _same(self, response: requests.Response, first: int) -> bool:
        """Whether an answer is of the file that the first one told of."""
        if not self.told.digest and validator_of(response) not in ("", self.told.validator):
            return False
        if not self.told.ranged:
            return response.headers.get("Content-Length") == str(self.told.size)
        wanted = rf"bytes {first}-\d+/{self.told.size}"
        return re.fullmatch(wanted, response.headers.get("Content-Range", "")) is not None

    def _write(self, index: int, data: bytes) -> None:
        at, view = self._span(index)[0] + self.done[index], memoryview(data)
        try:
            while view:
                written = os.pwrite(self.file, view, at)
                view, at = view[written:], at + written
            self._advance(index, len(data))
            if self.unsaved >= self.manner.save_every:
                self.save()
                self.room(self.left)
        except OSError as error:
            raise WeightsError(f"cannot write {self.part}: {error.strerror}; free space there") from error

    def _advance(self, index: int, count: int) -> None:
        with self.guard:
            self.done[index] += count
            self.unsaved += count
        self.bar.add(count)

    def finish(self) -> bool:
        """Check the digest and move the file into place; False: it must be fetched anew."""
        if not self.amiss and self.told.digest:
            found = digest_of(self.part, self.told.digest.partition(":")[0], stop=self.stop)
            if found != self.told.digest:
                self.amiss = f"is not the expected file: {found} instead of {self.told.digest}"
        if self.amiss:
            self.record.unlink(missing_ok=True)
            self.bar.add(-sum(self.done), total=-self.told.size)
            os.ftruncate(self.file, 0)
            return False
        os.fsync(self.file)
        self.part.replace(self.item.path)
        self.record.unlink(missing_ok=True)
        return True


def fetch(
    items: Sequence[Item],
    get: Get,
    *,
    label: str,
    manner: Manner | None = None,
    stop: Stop | None = None,
    room: Callable[[int], None] | None = None,
) -> list[Stated]:
    """Every item whole at its path, or WeightsError with what came kept; under the folder's lock.

    Returns what the servers said of the files that were missing, in their order. `stop` ends it with Stopped.
    `room` is asked for the bytes still to come, before the first and now and then, and raises where they do not fit.
    """
    missing = [item for item in items if not item.path.is_file()]
    if not missing:
        return []
    room = room or partial(require_space, missing[0].path.parent)
    with (stop or Stop()).cutting((own := Stop()).set):  # `own` also ends the other pieces when one fails
        return _fetch(missing, get, label, manner or Manner(), own, room)


def _fetch(
    items: list[Item], get: Get, label: str, manner: Manner, stop: Stop, room: Callable[[int], None]
) -> list[Stated]:
    bar = Bar(label)
    transfers = pending = [Transfer(item, get, manner, bar, stop, room) for item in items]
    pool = ThreadPoolExecutor(manner.workers, thread_name_prefix="download")
    try:
        for _ in range(ROUNDS):
            for future in as_completed([pool.submit(one.prepare) for one in pending]):
                future.result()
            room(sum(one.left for one in pending))
            pieces = [(one, index) for one in pending for index in range(len(one.done))]
            for future in as_completed([pool.submit(one.fetch_piece, index) for one, index in pieces]):
                future.result()
            stop.check()  # the pieces end without an error then
            pending = [one for one, whole in zip(pending, pool.map(Transfer.finish, pending), strict=True) if not whole]
            if not pending:
                return [one.told for one in transfers]
        raise WeightsError(f"{pending[0].item.shown} {pending[0].amiss}; try again or use another source")
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)
        bar.tqdm.close()
        for one in transfers:
            _leave(one)


def _leave(one: Transfer) -> None:
    """Close a transfer; what it has is recorded, nothing is left of one that has nothing."""
    if one.file < 0:
        return
    if one.part.exists() and one.told.ranged and one.told.identity and sum(one.done) and not one.amiss:
        with suppress(OSError):
            one.save()
    elif one.part.exists():
        one.part.unlink()
        one.record.unlink(missing_ok=True)
    os.close(one.file)
