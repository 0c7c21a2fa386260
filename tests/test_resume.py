"""What was interrupted goes on: after an error, a kill, beside another process; never from wrong bytes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from errors import WeightsError
from tests.file_server import DATA, SHA, FileServer, cut, file_server, fine, get, names, stall

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def server() -> Iterator[FileServer]:
    with file_server() as server:
        server.files["/f"] = DATA
        yield server


def test_resume_asks_only_for_what_is_missing(server: FileServer, tmp_path: Path) -> None:
    server.faults["/f"] = [fine, fine, fine, *[cut(300_000)] * 30]
    with pytest.raises(WeightsError, match="cannot be fetched"):
        get(f"{server.url}/f", tmp_path, sha256=SHA)
    assert names(tmp_path) == {"f.bin.part", "f.bin.part.json"}
    had = sum(json.loads((tmp_path / "f.bin.part.json").read_text())["done"])
    assert had > 1 << 20
    server.faults["/f"].clear()
    server.sent.clear()
    assert get(f"{server.url}/f", tmp_path, sha256=SHA).read_bytes() == DATA
    assert server.sent["/f"] == len(DATA) - had + 1  # one byte asks what the file is
    assert names(tmp_path) == {"f.bin"}


@pytest.mark.parametrize("mark", ["etag", "date", "nothing"])
def test_resume_rests_on_what_tells_versions_apart(server: FileServer, tmp_path: Path, mark: str) -> None:
    """A strong ETag or a date; with neither, and no digest, nothing says that it is the same file."""
    server.etags["/f"] = '"strong"' if mark == "etag" else 'W/"weak"'
    server.headers["/f"] = {"Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"} if mark == "date" else {}
    server.faults["/f"] = [fine, fine, fine, *[cut(300_000)] * 30]
    with pytest.raises(WeightsError):
        get(f"{server.url}/f", tmp_path)
    assert names(tmp_path) == (set() if mark == "nothing" else {"f.bin.part", "f.bin.part.json"})
    server.faults["/f"].clear()
    server.sent.clear()
    assert get(f"{server.url}/f", tmp_path).read_bytes() == DATA
    assert (server.sent["/f"] < len(DATA)) == (mark != "nothing")


@pytest.mark.parametrize("damage", ["etag", "record", "part", "lost"])
def test_a_record_that_does_not_fit_starts_afresh(server: FileServer, tmp_path: Path, damage: str) -> None:
    server.faults["/f"] = [fine, fine, *[cut(300_000)] * 30]
    with pytest.raises(WeightsError):
        get(f"{server.url}/f", tmp_path)
    server.faults["/f"].clear()
    if damage == "etag":
        server.files["/f"], server.etags["/f"] = bytes(reversed(DATA)), '"two"'
    elif damage == "record":
        (tmp_path / "f.bin.part.json").write_text('{"of": 1, "done"')
    elif damage == "part":
        os.truncate(tmp_path / "f.bin.part", 10)
    else:
        (tmp_path / "f.bin.part").unlink()
    assert get(f"{server.url}/f", tmp_path).read_bytes() == server.files["/f"]


def test_a_record_that_lies_is_found_by_the_digest(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "f.bin.part").write_bytes(bytes(len(DATA)))
    done = [1 << 20] * 5 + [0]
    (tmp_path / "f.bin.part.json").write_text(f'{{"of": ["sha256:{SHA}", {len(DATA)}, {1 << 20}], "done": {done}}}')
    assert get(f"{server.url}/f", tmp_path, sha256=SHA).read_bytes() == DATA


CHILD = """
import sys
from pathlib import Path
from fetch.disk import locked
from fetch.download import fetch
from fetch.network import getter
from fetch.answers import Item, Manner
folder = Path(sys.argv[2])
with locked(folder / ".lock"):
    manner = Manner(piece=1 << 20, save_every=1 << 16, workers=2)
    fetch([Item(sys.argv[1], folder / "f.bin")], getter(allow_private=True), label="child", manner=manner)
"""


def child(url: str, folder: Path) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", CHILD, url, str(folder)], cwd=ROOT, stderr=subprocess.DEVNULL)


def test_a_killed_download_goes_on(server: FileServer, tmp_path: Path) -> None:
    server.faults["/f"] = [fine, fine, fine, stall, stall]
    with child(f"{server.url}/f", tmp_path) as process:
        deadline = time.monotonic() + 20
        while server.sent["/f"] < 2 << 20 and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "f.bin").exists()
    before = server.sent["/f"]
    assert get(f"{server.url}/f", tmp_path).read_bytes() == DATA
    assert server.sent["/f"] - before < len(DATA) - (1 << 20)
    assert names(tmp_path) <= {"f.bin", ".lock"}


def test_two_processes_fetch_once(server: FileServer, tmp_path: Path) -> None:
    with child(f"{server.url}/f", tmp_path) as one, child(f"{server.url}/f", tmp_path) as two:
        assert (one.wait(30), two.wait(30)) == (0, 0)
    assert (tmp_path / "f.bin").read_bytes() == DATA
    assert server.sent["/f"] <= len(DATA) + 2
