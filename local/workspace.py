"""Everything temporary that a server makes lies in one folder, and goes when it is no longer needed.

coglet honours TMPDIR for its sockets, the downloads and the predictor's own files, but writes the outputs of each
prediction below a fixed folder and never deletes them (cog issue 3096). So the ids of predictions are noted.
"""

import fcntl
import os
import re
import shutil
import tempfile
from collections import deque
from pathlib import Path
from typing import IO

PREDICTIONS = Path("/tmp/coglet/predictions")
PREFIX = "cog-local-"
SAFE_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,200}")


class Workspace:
    """A private temporary folder, locked while in use, so that a later server can remove what a killed one left."""

    def __init__(self, kept: int) -> None:
        """Make the folder, and remove those of servers that are gone. The folders of `kept` predictions stay."""
        self._kept = kept
        remove_stale()
        self.folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        self.temporary = self.folder / "tmp"
        self.temporary.mkdir()
        self._lock = _locked(self.folder)
        self._ids: deque[str] = deque()

    def started(self, prediction: str) -> None:
        """Note a prediction; the folders of long finished ones are removed."""
        if not SAFE_ID.fullmatch(prediction) or prediction in self._ids:
            return
        self._ids.append(prediction)
        with (self.folder / "ids").open("a", encoding="ascii") as file:
            file.write(f"{prediction}\n")
        while len(self._ids) > self._kept:
            _remove_prediction(self._ids.popleft())

    def clear(self) -> None:
        """Empty the temporary folder; nothing may be running that uses it."""
        shutil.rmtree(self.temporary, ignore_errors=True)
        self.temporary.mkdir(exist_ok=True)

    def close(self) -> None:
        """Remove everything."""
        _remove(self.folder)
        if self._lock:
            self._lock.close()


def _locked(folder: Path) -> IO[str] | None:
    """The open lock file of folder, or None if a living server holds it."""
    file = (folder / "lock").open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file


def _remove_prediction(prediction: str) -> None:
    if SAFE_ID.fullmatch(prediction):
        shutil.rmtree(PREDICTIONS / prediction, ignore_errors=True)


def _remove(folder: Path) -> None:
    """Remove a workspace and the predictions it noted."""
    ids = folder / "ids"
    for prediction in ids.read_text(encoding="ascii", errors="replace").split() if ids.exists() else ():
        _remove_prediction(prediction)
    shutil.rmtree(folder, ignore_errors=True)


def remove_stale() -> None:
    """Remove the workspaces of servers that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        try:
            if not folder.is_dir() or folder.stat().st_uid != os.getuid() or not (folder / "lock").exists():
                continue
            if lock := _locked(folder):
                _remove(folder)
                lock.close()
        except OSError:
            continue  # another server is removing it
