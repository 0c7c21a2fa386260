"""Every way a download can go wrong, over a real server: a whole file, or a clear error and no half one."""

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from errors import WeightsError
from fetch.answers import Manner
from fetch.disk import digest_of, locked
from tests.file_server import (
    DATA,
    SHA,
    FileServer,
    cut,
    file_server,
    fine,
    get,
    hang_up,
    names,
    redirect,
    stall,
    status,
)


@pytest.fixture
def server() -> Iterator[FileServer]:
    with file_server() as server:
        server.files["/f"] = DATA
        yield server


@pytest.mark.parametrize("ranged", [True, False])
@pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 1, len(DATA)])
def test_any_size_arrives_whole(server: FileServer, tmp_path: Path, ranged: bool, size: int) -> None:
    server.files["/f"] = DATA[:size]
    if not ranged:
        server.rangeless.add("/f")
    assert get(f"{server.url}/f", tmp_path).read_bytes() == DATA[:size]
    assert names(tmp_path) == {"f.bin"}


def test_what_is_there_costs_no_request(server: FileServer, tmp_path: Path) -> None:
    get(f"{server.url}/f", tmp_path)
    server.log.clear()
    get(f"{server.url}/f", tmp_path)
    assert server.log == []


@pytest.mark.parametrize("ranged", [True, False])
@pytest.mark.parametrize("fault", [status(500), status(429), cut(10_000), hang_up, stall])
def test_a_passing_fault_is_overcome(server: FileServer, tmp_path: Path, fault: Any, ranged: bool) -> None:
    if not ranged:
        server.rangeless.add("/f")
    server.faults["/f"] = [fine, fault, fault]
    assert get(f"{server.url}/f", tmp_path).read_bytes() == DATA
    assert names(tmp_path) == {"f.bin"}


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (status(404), "404"),
        (status(401), "HF_TOKEN"),
        (status(403), "licence"),
        (status(410), "410"),
        (status(500), "answers 500"),
        (hang_up, "cannot be fetched"),
        (redirect("/f"), "redirects more than 10 times"),
        (redirect("ftp://example.com/f"), "not an http"),
    ],
)
def test_a_lasting_fault_is_said(server: FileServer, tmp_path: Path, fault: Any, words: str) -> None:
    server.always["/f"] = fault
    with pytest.raises(WeightsError, match=words):
        get(f"{server.url}/f?token=secret", tmp_path)
    assert names(tmp_path) == set()


def test_the_query_stays_unsaid(server: FileServer, tmp_path: Path) -> None:
    server.always["/f"] = hang_up
    with pytest.raises(WeightsError, match="/f cannot be fetched") as caught:
        get(f"{server.url}/f?token=secret", tmp_path)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("declared", [len(DATA) + 10, len(DATA) - 10])
def test_a_length_that_lies(server: FileServer, tmp_path: Path, declared: int) -> None:
    server.rangeless.add("/f")
    server.headers["/f"] = {"Content-Length": str(declared)}
    server.always["/f"] = cut(len(DATA))
    with pytest.raises(WeightsError, match=r"broke off|more expected|not the expected file"):
        get(f"{server.url}/f", tmp_path, sha256=SHA)
    assert names(tmp_path) == set()


def test_no_length_at_all_is_refused(server: FileServer, tmp_path: Path) -> None:
    server.rangeless.add("/f")
    server.headers["/f"] = {"Content-Length": ""}
    server.always["/f"] = cut(len(DATA))
    with pytest.raises(WeightsError, match="how long it is"):
        get(f"{server.url}/f", tmp_path)


def test_size_and_limit_are_checked_before_the_body(server: FileServer, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="instead of 7"):
        get(f"{server.url}/f", tmp_path, size=7)
    with pytest.raises(WeightsError, match="at most 1000 are allowed"):
        get(f"{server.url}/f", tmp_path, Manner(limit=1000))
    assert server.sent["/f"] <= 2
    assert names(tmp_path) == set()


def test_a_full_disk_is_said_before_the_body(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fetch.disk.RESERVE", 1 << 60)
    with pytest.raises(WeightsError, match="SDXL_CACHE"):
        get(f"{server.url}/f", tmp_path)
    assert server.sent["/f"] == 1
    assert names(tmp_path) == set()


def test_a_damaged_file_is_fetched_anew_then_refused(server: FileServer, tmp_path: Path) -> None:
    damaged = bytearray(DATA)
    damaged[12345] ^= 1

    def repair(*_: Any) -> bool:
        server.files["/f"] = DATA if server.sent["/f"] > len(DATA) else bytes(damaged)
        return False

    server.files["/f"] = bytes(damaged)
    server.always["/f"] = repair
    assert get(f"{server.url}/f", tmp_path / "a", sha256=SHA).read_bytes() == DATA

    server.always.clear()
    server.files["/f"] = bytes(damaged)
    with pytest.raises(WeightsError, match="not the expected file"):
        get(f"{server.url}/f", tmp_path / "b", sha256=SHA)
    assert names(tmp_path / "b") == set()


def test_a_file_that_changes_meanwhile_is_taken_from_one_version(server: FileServer, tmp_path: Path) -> None:
    newer = bytes(reversed(DATA))

    def change(*_: Any) -> bool:
        if server.sent["/f"] > 2 << 20:
            server.files["/f"], server.etags["/f"] = newer, '"two"'
        return False

    server.always["/f"] = change
    assert get(f"{server.url}/f", tmp_path).read_bytes() == newer


def test_a_trickle_is_a_stall(server: FileServer, tmp_path: Path) -> None:
    def trickle(handler: Any, body: bytes, start: int, end: int) -> bool:
        handler.serve("/f", body, start, end, cut=10)
        for _ in range(40):
            handler.wfile.write(b"x")
            time.sleep(0.1)
        return True

    server.faults["/f"] = [fine, *[trickle] * 30]
    with pytest.raises(WeightsError, match="bytes came in"):
        get(f"{server.url}/f", tmp_path)
    assert len(server.log) <= 1 + 3 * 6  # three attempts at each of six pieces


def test_digests(tmp_path: Path) -> None:
    (tmp_path / "hello").write_bytes(b"hello\n")
    assert digest_of(tmp_path / "hello", "git") == "git:ce013625030ba8dba906f756967f9e9ca394464a"
    assert digest_of(tmp_path / "hello") == f"sha256:{hashlib.sha256(b'hello' + bytes([10])).hexdigest()}"


def test_an_unwritable_cache_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WeightsError, match="set SDXL_CACHE"), locked(tmp_path / "file" / "x" / ".lock"):
        pass
