"""Fine-tunes kept on disk: each whole or absent, named by its content, the least recently used evicted first.

    lock             held for moments, by whoever claims, adds or evicts
    index.json       which entry a source, or what a server said of a file, led to; both as digests
    incoming/NAME/   what one process fetches; it holds NAME/lock, and what no process holds is removed
    KEY/             files/ and manifest.json, whose shared lock keeps the entry and whose date is its last use

Locks are flock's: they end with the process, however that ends. Nothing here asks a server.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

from errors import WeightsError
from fetch.answers import Stop
from fetch.disk import locked, sizes_in

MANIFEST = "manifest.json"
REMEMBERED = 2000  # lines of the index
GB = 1_000_000_000


@dataclass(frozen=True)
class Entry:
    """A fine-tune on this disk. `bare`: it came as one file, not in an archive."""

    key: str
    folder: Path
    bare: bool


class Found(NamedTuple):
    """What a line of the index leads to; `name` and `shown` as in `sdxl.files.TunedFiles`."""

    key: str
    name: str
    shown: str


@dataclass(frozen=True)
class Store:
    """All entries below `root`; at most `limit` bytes of them, and `floor` bytes of the disk stay free."""

    root: Path
    limit: int
    floor: int

    def alone(self) -> AbstractContextManager[None]:
        """No other process or thread claims, adds or evicts meanwhile. Not to be nested."""
        return locked(self.root / "lock", quietly=True)

    def hold(self, key: str, held: ExitStack) -> Entry | None:
        """The entry, which stays for as long as `held` does; None if it is absent or damaged."""
        folder = self.root / key
        with ExitStack() as mine, suppress(OSError):
            file = mine.enter_context((folder / MANIFEST).open("rb"))
            fcntl.flock(file, fcntl.LOCK_SH)
            manifest = _manifest(file)
            # Whoever evicts holds the lock until the file has gone, so that it may have gone by now
            if not manifest or not os.fstat(file.fileno()).st_nlink or manifest["sizes"] != sizes_in(folder / "files"):
                return None
            with suppress(OSError):  # the cache may be read-only
                os.utime(folder / MANIFEST)
            held.push(mine.pop_all())
            return Entry(key, folder / "files", manifest["bare"] is True)
        return None

    @contextmanager
    def claim(self, name: str, stop: Stop) -> Iterator[Path]:
        """A folder of one's own for one's work on `name`, once nobody else works on that; it goes in the end."""
        folder = self.root / "incoming" / name
        while (lock := self._opened(folder)) is None:
            stop.wait(0.05)
            stop.check()
        try:
            yield folder
        finally:
            with lock, self.alone():
                shutil.rmtree(folder, ignore_errors=True)

    def sweep(self) -> None:
        """Remove what processes that are gone were fetching."""
        if self.root.is_dir():
            with self.alone():
                self._sweep()

    def _sweep(self) -> None:
        incoming = self.root / "incoming"
        for each in incoming.iterdir() if incoming.is_dir() else ():
            with ExitStack() as dead:
                if _lock_idle(each / "lock", dead):
                    shutil.rmtree(each, ignore_errors=True)

    def _opened(self, folder: Path) -> IO[str] | None:
        with self.alone():
            self._sweep()
            if folder.exists():
                return None
            try:
                (folder / "entry" / "files").mkdir(parents=True)
                lock = (folder / "lock").open("w")
            except OSError as error:
                raise WeightsError(f"cannot write in {folder.parent}: {error.strerror}; set SDXL_CACHE") from error
            fcntl.flock(lock, fcntl.LOCK_EX)
            return lock

    def add(self, folder: Path, key: str, held: ExitStack, *, bare: bool) -> Entry:
        """A claimed folder's entry/files under its key, unless the same content has come from elsewhere by now."""
        sizes = sizes_in(folder / "entry" / "files")
        with (folder / "entry" / MANIFEST).open("w") as file:
            json.dump({"bare": bare, "sizes": sizes}, file)
            file.flush()
            os.fsync(file.fileno())
        with self.alone():  # nothing is evicted before it is held
            if (entry := self.hold(key, held)) is None:
                if (self.root / key).exists():  # damaged; it goes with the claim
                    (self.root / key).rename(folder / "damaged")
                (folder / "entry").rename(self.root / key)
                entry = self.hold(key, held)
        if entry is None:
            raise WeightsError(f"a file in {self.root / key} does not stay as it was written; check that disk")
        return entry

    def known(self, what: str) -> Found | None:
        return self._index().get(what)

    def remember(self, found: Mapping[str, Found]) -> None:
        """What leads where, for the next time and the next process."""
        with self.alone():
            index = self._index()
            if all(index.get(what) == where for what, where in found.items()):
                return
            index = {what: where for what, where in index.items() if what not in found} | dict(found)
            kept = [(what, where) for what, where in index.items() if (self.root / where.key).is_dir()]
            fresh = self.root / "index.json.new"
            fresh.write_text(json.dumps(dict(kept[-REMEMBERED:])))
            fresh.replace(self.root / "index.json")

    def _index(self) -> dict[str, Found]:
        with suppress(OSError, ValueError, TypeError, AttributeError, RecursionError):
            read = json.loads((self.root / "index.json").read_text())
            return {what: Found(*map(str, where)) for what, where in read.items()}
        return {}

    def room(self, need: int, *, counted: bool = False) -> None:
        """Evict until `need` more bytes fit; WeightsError, and nothing evicted, if they do not fit even so.

        `counted`: a file of its full length, without its bytes, lies in the claimed folder already.
        """
        with self.alone(), ExitStack() as doomed:
            fine_tunes = (size for name, size in sizes_in(self.root).items() if "/" in name)
            used = sum(fine_tunes) + (0 if counted else need)
            lacking = max(used - self.limit, need + self.floor - shutil.disk_usage(self.root).free)
            victims = []
            for folder in self._oldest_first() if lacking > 0 else ():
                if lacking > 0 and _lock_idle(folder / MANIFEST, doomed):
                    victims.append(folder)
                    lacking -= sum(sizes_in(folder).values())
            if lacking > 0:
                raise WeightsError(
                    f"the fine-tune does not fit: {need / GB:.3g} GB are to come, {lacking / GB:.3g} GB too many; free "
                    "space, or set SDXL_FINETUNE_CACHE_GB (all fine-tunes) or SDXL_DISK_FLOOR_GB (what stays free)"
                )
            for folder in victims:
                away = self.root / "incoming" / f"evicted-{folder.name}"  # a kill leaves it where it is swept
                folder.rename(away)
                shutil.rmtree(away, ignore_errors=True)

    def _oldest_first(self) -> list[Path]:
        dated = []
        for manifest in self.root.glob(f"*/{MANIFEST}"):
            with suppress(OSError):
                dated.append((manifest.stat().st_mtime_ns, manifest.parent))
        return [folder for _, folder in sorted(dated)]


def _lock_idle(path: Path, stack: ExitStack) -> bool:
    """Whether nobody holds a lock file, or there is none; it is held until `stack` closes."""
    try:
        file = stack.enter_context(path.open("rb"))
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _manifest(file: IO[bytes]) -> dict[str, Any] | None:
    try:
        read = json.loads(file.read())
        return read if isinstance(read["sizes"], dict) and "bare" in read else None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
