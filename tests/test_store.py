"""Fine-tunes on disk: fetched once, whole or absent, evicted in order, whatever is cut, killed or stopped."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain, repeat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import weights
from errors import WeightsError
from fetch import obtain
from fetch.answers import Manner, Patience, Stop, Stopped
from fetch.sources import Tokens
from fetch.store import GB, Store
from sdxl.files import TunedFiles
from tests.conftest import ROOT
from tests.file_server import (
    FileServer,
    cut,
    file_server,
    fine,
    hang_up,
    redirect,
    silent,
    stall,
    status,
    tarred,
    tensors,
    trickle,
)

QUICK = Manner(workers=2, piece=1 << 20, deadline=20, patience=Patience(attempts=2, backoff=0.01, window=0.6))
PATIENT = replace(QUICK, patience=Patience(attempts=6, window=30.0))
LORA, OTHER = tensors(size=3 << 20), tensors(seed=1)
TAR = tarred({"lora.safetensors": LORA})


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("SDXL_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SDXL_CACHE", str(tmp_path))
    monkeypatch.setenv("SDXL_DISK_FLOOR_GB", "0")
    monkeypatch.setenv("SDXL_PRIVATE_INPUTS", "1")
    monkeypatch.setattr(obtain, "_recent", {})
    return tmp_path / "finetunes"


@pytest.fixture
def web() -> Iterator[FileServer]:
    with file_server() as server:
        server.files |= {"/f": LORA, "/small": OTHER, "/tar": TAR}
        yield server


def tuned(url: str, *, stop: Stop | None = None, manner: Manner = QUICK, tokens: Tokens = Tokens()) -> Any:  # noqa: B008
    return weights.fine_tune(url, tokens=tokens, first="replicate", stop=stop or Stop(), manner=manner)


def got(url: str, **more: Any) -> TunedFiles:
    with tuned(url, **more) as files:
        assert files.folder.is_dir()
    found: TunedFiles = files
    return found


def forget() -> None:
    """The minute in which nothing is asked again is over."""
    obtain._recent.clear()


def left(cache: Path) -> set[str]:
    """What lies in the cache but its fixed parts: the lock, the index, and the folder for what comes."""
    fixed = {"lock", "index.json", "incoming"}
    return {path.relative_to(cache).as_posix() for path in cache.rglob("*")} - fixed


def entries(cache: Path) -> set[str]:
    return {path.name for path in cache.iterdir() if len(path.name) == 64}


def test_fetched_once(web: FileServer, cache: Path) -> None:
    files = got(f"{web.url}/tar")
    assert (files.folder / "lora.safetensors").read_bytes() == LORA
    assert files.key == hashlib.sha256(TAR).hexdigest()
    web.log.clear()
    assert got(f"{web.url}/tar") == files
    assert web.log == []  # for a minute
    forget()
    assert got(f"{web.url}/tar") == files
    assert [range_ for _, range_, _ in web.log] == ["bytes=0-0"]
    assert left(cache) == {files.key, *(f"{files.key}/{name}" for name in ("manifest.json", "files"))} | {
        f"{files.key}/files/lora.safetensors"
    }


def test_a_first_download_asks_each_thing_once(web: FileServer) -> None:
    got(f"{web.url}/small")
    assert [range_ for _, range_, _ in web.log] == ["bytes=0-0", f"bytes=0-{len(OTHER) - 1}"]


def test_a_signed_url_costs_one_question(web: FileServer) -> None:
    first = got(f"{web.url}/f?signature=one")
    web.log.clear()
    assert got(f"{web.url}/f?signature=two") == first
    assert [range_ for _, range_, _ in web.log] == ["bytes=0-0"]


def test_a_changed_file_is_fetched_anew(web: FileServer, cache: Path) -> None:
    first = got(f"{web.url}/f")
    web.files["/f"], web.etags["/f"] = tensors(size=3 << 20, seed=2), '"two"'
    forget()
    second = got(f"{web.url}/f")
    assert entries(cache) == {first.key, second.key}


def test_a_file_that_changes_between_question_and_answer(web: FileServer) -> None:
    """What is remembered is what came, not what was announced."""
    newer = tensors(size=3 << 20, seed=2)

    def change(*_: Any) -> bool:
        web.files["/f"], web.etags["/f"] = newer, '"two"'
        return False

    web.faults["/f"] = [fine, change]
    assert got(f"{web.url}/f").key == hashlib.sha256(newer).hexdigest()
    web.files["/f"], web.etags["/f"] = LORA, '"one"'
    forget()
    assert got(f"{web.url}/f").key == hashlib.sha256(LORA).hexdigest()


@pytest.mark.parametrize(("mark", "again"), [("etag", 1), ("date", 1), ("nothing", 2)])
def test_without_a_mark_it_is_fetched_every_time(web: FileServer, cache: Path, mark: str, again: int) -> None:
    web.etags["/f"] = '"strong"' if mark == "etag" else 'W/"weak"'
    web.headers["/f"] = {"Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"} if mark == "date" else {}
    for _ in range(2):
        key = got(f"{web.url}/f").key
        forget()
    assert web.sent["/f"] // len(LORA) == again
    assert entries(cache) == {key}


def test_a_date_alone_does_not_tell_two_queries_apart(web: FileServer) -> None:
    """Two files behind one address, of one size and one day."""
    newer = tensors(size=3 << 20, seed=2)
    answers: dict[str, bytes] = {"id=A": LORA, "id=B": newer}

    def answer(handler: Any, _: bytes, start: int, end: int) -> bool:
        handler.serve("/download", answers[handler.path.partition("?")[2]], start, end)
        return True

    web.files["/download"], web.always["/download"] = LORA, answer
    web.etags["/download"] = ""
    web.headers["/download"] = {"Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}
    keys = [got(f"{web.url}/download?{query}").key for query in answers]
    assert keys == [hashlib.sha256(body).hexdigest() for body in (LORA, newer)]
    forget()
    web.sent.clear()
    assert [got(f"{web.url}/download?{query}").key for query in answers] == keys
    assert web.sent["/download"] == 2


def test_one_content_from_two_places_is_one_entry(web: FileServer, cache: Path) -> None:
    web.files["/copy"] = LORA
    assert got(f"{web.url}/f").key == got(f"{web.url}/copy").key
    assert len(entries(cache)) == 1


def test_a_digest_is_believed_of_the_operator_s_services_only(web: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a page could name the digest of somebody's private file and be given it."""
    monkeypatch.setenv("HF_ENDPOINT", web.url)
    hub = {"X-Repo-Commit": "0" * 40, "X-Linked-ETag": f'"{hashlib.sha256(LORA).hexdigest()}"'}
    private = "/me/private/resolve/main/x.safetensors"
    web.always[private] = redirect("/f", hub)
    key = got("me/private/x.safetensors").key
    web.always["/claims"], web.files["/other"] = redirect("/other", hub), bytes(LORA)[:-1] + b"?"
    with pytest.raises(WeightsError, match="not the expected file"):
        got(f"{web.url}/claims")
    web.always["/me/copy/resolve/main/y.safetensors"] = redirect("/f", hub)
    web.sent.clear()
    assert got("me/copy/y.safetensors").key == key
    assert web.sent["/f"] == 1


def test_another_asker_must_be_let_in(web: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", web.url)
    path = "/me/private/resolve/main/x.safetensors"
    web.files[path] = OTHER

    def guarded(handler: Any, *_: Any) -> bool:
        return handler.headers.get("Authorization") != "Bearer good" and status(401)(handler, b"", 0, 0)

    web.always[path] = guarded
    good = Tokens(huggingface="good")
    got("me/private/x.safetensors", tokens=good)
    for tokens in (Tokens(), Tokens(huggingface="bad")):
        with pytest.raises(WeightsError, match="hf_api_token"):
            got("me/private/x.safetensors", tokens=tokens)
    web.log.clear()
    got("me/private/x.safetensors", tokens=good)
    assert web.log == []


def test_offline(web: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    files = got(f"{web.url}/f")
    forget()
    web.log.clear()
    monkeypatch.setenv("SDXL_OFFLINE", "1")
    assert got(f" {web.url}/f") == files
    with pytest.raises(WeightsError, match="/small' is not complete in the cache and SDXL_OFFLINE is set"):
        got(f"{web.url}/small?token=secret")
    assert web.log == []


def test_offline_what_a_token_opened_is_for_its_owner(web: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", web.url)
    private, free = "me/private/x.safetensors", "me/free/x.safetensors"
    web.files["/me/private/resolve/main/x.safetensors"] = OTHER
    web.files["/me/free/resolve/main/x.safetensors"] = LORA
    mine, theirs, nobody = Tokens(huggingface="mine"), Tokens(huggingface="theirs"), Tokens()
    keys = [got(private, tokens=mine).key, got(free, tokens=Tokens(civitai="unused")).key, got(f"{web.url}/f").key]
    forget()
    web.log.clear()
    monkeypatch.setenv("SDXL_OFFLINE", "1")
    assert got(private, tokens=mine).key == keys[0]
    for tokens in (theirs, nobody):
        with pytest.raises(WeightsError, match="is not complete in the cache and SDXL_OFFLINE is set"):
            got(private, tokens=tokens)
        assert [got(free, tokens=tokens).key, got(f"{web.url}/f", tokens=tokens).key] == keys[1:]
    assert web.log == []


@pytest.mark.parametrize("damage", ["short", "gone", "more", "manifest", "index"])
def test_a_damaged_entry_is_fetched_anew(web: FileServer, cache: Path, damage: str) -> None:
    files = got(f"{web.url}/f")
    file = files.folder / "weights.safetensors"
    damages: dict[str, Callable[[], object]] = {
        "short": lambda: os.truncate(file, 10),
        "gone": file.unlink,
        "more": lambda: (files.folder / "x").write_text(""),
        "manifest": lambda: (cache / files.key / "manifest.json").write_text("{"),
        "index": lambda: (cache / "index.json").write_text('{"a": 1}'),
    }
    damages[damage]()
    with tuned(f"{web.url}/f") as again:
        assert again == files
        assert (again.folder / "weights.safetensors").read_bytes() == LORA
    assert [path.name for path in files.folder.iterdir()] == ["weights.safetensors"]


def limited(monkeypatch: pytest.MonkeyPatch, **gigabytes: float) -> None:
    for name, value in gigabytes.items():
        monkeypatch.setenv(f"SDXL_{name}_GB", repr(value))


def test_the_least_recently_used_goes_first(web: FileServer, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(5):
        web.files[f"/{n}"] = tensors(size=1 << 20, seed=n)
    limited(monkeypatch, FINETUNE_CACHE=3.5 * 2**20 / 1e9)
    keys = [got(f"{web.url}/{n}").key for n in range(3)]
    got(f"{web.url}/0")
    keys.append(got(f"{web.url}/3").key)
    assert entries(cache) == {keys[0], keys[2], keys[3]}
    with tuned(f"{web.url}/2"), tuned(f"{web.url}/0"), tuned(f"{web.url}/4") as newest:
        assert entries(cache) == {keys[0], keys[2], newest.key}
        with pytest.raises(WeightsError, match=r"does not fit.*SDXL_FINETUNE_CACHE_GB"):
            got(f"{web.url}/1")
        assert entries(cache) == {keys[0], keys[2], newest.key}
    got(f"{web.url}/1")
    assert not (left(cache) & {"incoming"})


def test_what_never_fits_evicts_nothing(web: FileServer, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = got(f"{web.url}/small").key
    limited(monkeypatch, FINETUNE_CACHE=1 / 1000)
    web.sent.clear()
    with pytest.raises(WeightsError, match="does not fit"):
        got(f"{web.url}/f")
    assert web.sent["/f"] == 1
    limited(monkeypatch, FINETUNE_CACHE=20, DISK_FLOOR=10**9)
    with pytest.raises(WeightsError, match=r"does not fit.*SDXL_DISK_FLOOR_GB"):
        got(f"{web.url}/f")
    assert web.sent["/f"] == 2
    assert entries(cache) == {key}


def test_room_is_made_while_it_comes(web: FileServer, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else fills the disk meanwhile."""
    first = got(f"{web.url}/small").key
    free = chain([1 << 40] * 2, repeat(0))
    monkeypatch.setattr("fetch.store.shutil.disk_usage", lambda _: SimpleNamespace(free=next(free)))
    with pytest.raises(WeightsError, match="does not fit"):
        got(f"{web.url}/f", manner=replace(QUICK, save_every=1 << 19, workers=1))
    assert entries(cache) == {first}
    assert left(cache) == {path for path in left(cache) if path.startswith(first)}


def test_the_largest_archive_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes and what is unpacked from it are there together."""
    monkeypatch.delenv("SDXL_FINETUNE_CACHE_GB", raising=False)
    assert weights.fine_tune_store().limit >= 2 * 12 * GB


def test_the_limit_on_one(web: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    limited(monkeypatch, FINETUNE_LIMIT=0.001)
    with pytest.raises(WeightsError, match=r"at most 1000000 are allowed \(SDXL_FINETUNE_LIMIT_GB\)"):
        got(f"{web.url}/f")
    assert web.sent["/f"] == 1
    limited(monkeypatch, FINETUNE_LIMIT=float("nan"))
    with pytest.raises(WeightsError, match="SDXL_FINETUNE_LIMIT_GB='nan' is no number"):
        got(f"{web.url}/f")


FAULTS: list[tuple[Any, str]] = [
    (status(500), "answers 500"),
    (status(404), "404"),
    (hang_up, "cannot be fetched"),
    (cut(1000), "broke off|more expected"),
    (stall, "cannot be fetched"),
    (trickle, "cannot be fetched"),
    (silent, "cannot be fetched"),
    (redirect("/x"), "redirects|does not exist"),
]


@pytest.mark.parametrize(("fault", "words"), FAULTS)
@pytest.mark.parametrize("probed", [True, False])
def test_a_failure_leaves_nothing(web: FileServer, cache: Path, fault: Any, words: str, probed: bool) -> None:
    first = got(f"{web.url}/small")
    before = left(cache)
    web.faults["/f"] = [fine] * probed + [fault] * 50
    with pytest.raises(WeightsError, match=words):
        got(f"{web.url}/f?token=secret")
    assert left(cache) == before
    web.gate.set()
    web.faults.clear()
    assert got(f"{web.url}/f").key == hashlib.sha256(LORA).hexdigest()
    assert got(f"{web.url}/small") == first


@pytest.mark.parametrize("declared", [len(LORA) + 10, len(LORA) - 10, ""])
def test_a_length_that_lies_leaves_nothing(web: FileServer, cache: Path, declared: Any) -> None:
    web.rangeless.add("/f")
    web.headers["/f"] = {"Content-Length": str(declared)}
    web.always["/f"] = cut(len(LORA))
    with pytest.raises(WeightsError, match=r"broke off|more expected|is damaged|how long it is"):
        got(f"{web.url}/f")
    assert not cache.exists() or left(cache) == set()


@pytest.mark.parametrize("body", [b"<html>", b"", b"\x80\x02x", tarred({"a.txt": b"x"}), LORA[:-1], TAR[:-12000]])
def test_what_is_no_fine_tune_leaves_nothing(web: FileServer, cache: Path, body: bytes) -> None:
    web.files["/f"] = body
    with pytest.raises(WeightsError, match=f"{web.url}/f "):
        got(f"{web.url}/f")
    assert left(cache) == set()


def test_a_deadline(web: FileServer, cache: Path) -> None:
    web.faults["/f"] = [fine, *[trickle] * 50]
    begun = time.monotonic()
    with pytest.raises(WeightsError, match=r"/f' takes longer than 0\.5 s"):
        got(f"{web.url}/f?token=secret", manner=replace(PATIENT, deadline=0.5))
    assert time.monotonic() - begun < 2
    assert left(cache) == set()


@pytest.mark.parametrize("fault", [stall, silent, trickle, status(500)])
@pytest.mark.parametrize("probed", [True, False])
def test_a_stop_ends_it_at_once(web: FileServer, cache: Path, fault: Any, probed: bool) -> None:
    web.faults["/f"] = [fine] * probed + [fault] * 50
    stop, ended = Stop(), threading.Event()
    raised: list[BaseException] = []

    def work() -> None:
        try:
            got(f"{web.url}/f", stop=stop, manner=PATIENT)
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is looked at below
            raised.append(error)
        ended.set()

    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(0.3)
    assert not ended.is_set()
    begun = time.monotonic()
    stop.set()
    assert ended.wait(5)
    assert time.monotonic() - begun < 1
    thread.join()
    assert [type(error) for error in raised] == [Stopped]
    assert not cache.exists() or left(cache) == set()
    web.gate.set()
    web.faults.clear()
    got(f"{web.url}/f")


def test_a_stop_before_the_start(web: FileServer) -> None:
    stop = Stop()
    stop.set()
    with pytest.raises(Stopped):
        got(f"{web.url}/f", stop=stop)
    assert web.log == []


def test_a_stop_at_any_moment(web: FileServer, cache: Path) -> None:
    chance = random.Random(4)
    for n in range(25):
        web.etags["/tar"] = f'"{n}"'  # as if it were new each time
        forget()
        stop = Stop()
        timer = threading.Timer(chance.uniform(0, 0.06), stop.set)
        timer.start()
        try:
            got(f"{web.url}/tar", stop=stop, manner=PATIENT)
        except Stopped:
            assert stop.is_set()
        timer.join()
        assert not (cache / "incoming").exists() or not list((cache / "incoming").iterdir())
        assert not cache.exists() or entries(cache) <= {hashlib.sha256(TAR).hexdigest()}
    assert got(f"{web.url}/tar").key == hashlib.sha256(TAR).hexdigest()


CHILD = """
import sys, time
import weights
from fetch.answers import Manner, Stop
from fetch.sources import Tokens
manner = Manner(piece=1 << 20, workers=2)
with weights.fine_tune(sys.argv[1], tokens=Tokens(), first="replicate", stop=Stop(), manner=manner) as files:
    print(files.key, flush=True)
    time.sleep(float(sys.argv[2]))
"""


def child(url: str, hold: float = 0) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", CHILD, url, str(hold)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def test_a_killed_download_is_cleared_away(web: FileServer, cache: Path) -> None:
    web.faults["/f"] = [fine, fine, *[stall] * 9]
    with child(f"{web.url}/f", 60) as process:
        deadline = time.monotonic() + 30
        while web.sent["/f"] < 1 << 20 and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
    assert any("came-0.part" in path for path in left(cache))
    web.gate.set()
    web.faults.clear()
    got(f"{web.url}/small")
    assert not any("came-0" in path for path in left(cache))
    assert got(f"{web.url}/f").key == hashlib.sha256(LORA).hexdigest()


def test_two_processes_fetch_once(web: FileServer, cache: Path) -> None:
    def slowly(*_: Any) -> bool:
        time.sleep(0.3)
        return False

    web.always["/f"] = slowly
    with child(f"{web.url}/f") as one, child(f"{web.url}/f") as two:
        assert (one.wait(60), two.wait(60)) == (0, 0)
    assert web.sent["/f"] <= len(LORA) + 2
    assert len(entries(cache)) == 1


def test_two_threads_fetch_once(web: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    remember = Store.remember

    def slowly(*args: Any) -> None:
        time.sleep(0.2)
        remember(*args)

    monkeypatch.setattr(Store, "remember", slowly)
    threads = [threading.Thread(target=got, args=(f"{web.url}/f",)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert web.sent["/f"] <= len(LORA) + 4


def test_what_another_process_uses_stays(web: FileServer, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with child(f"{web.url}/small", 60) as process:
        assert process.stdout
        key = process.stdout.readline().strip()
        limited(monkeypatch, FINETUNE_CACHE=(len(LORA) + 2000) / 1e9)
        with pytest.raises(WeightsError, match="does not fit"):
            got(f"{web.url}/f")
        assert key in entries(cache)
        process.kill()
    got(f"{web.url}/f")
    assert key not in entries(cache)


def test_one_waits_for_another_until_stopped(tmp_path: Path) -> None:
    store, stop = Store(tmp_path / "s", 1 << 30, 0), Stop()
    threading.Timer(0.2, stop.set).start()
    with store.claim("a", Stop()), pytest.raises(Stopped), store.claim("a", stop):
        pass
    assert list((tmp_path / "s" / "incoming").iterdir()) == []


def test_the_index_forgets_what_has_gone(web: FileServer, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    got(f"{web.url}/small")
    limited(monkeypatch, FINETUNE_CACHE=(len(LORA) + 2000) / 1e9)
    got(f"{web.url}/f")
    index = json.loads((cache / "index.json").read_text())
    assert {key for key, *_ in index.values()} == entries(cache)
    assert web.url.removeprefix("http://") not in "".join(index)


def test_a_read_only_cache_serves_offline(web: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    files = got(f"{web.url}/f")
    forget()
    monkeypatch.setenv("SDXL_OFFLINE", "1")
    monkeypatch.setattr("os.utime", lambda *_: (_ for _ in ()).throw(OSError("read-only")))
    monkeypatch.setattr(Store, "alone", lambda _: pytest.fail("nothing is locked for writing"))
    assert got(f"{web.url}/f") == files


def test_an_entry_is_held_as_long_as_it_is_used(web: FileServer, cache: Path) -> None:
    key = got(f"{web.url}/small").key
    store = Store(cache, 10, 0)
    with ExitStack() as held:
        assert store.hold(key, held)
        with pytest.raises(WeightsError):
            store.room(5)
    store.room(0, counted=True)
    assert entries(cache) == set()
    with ExitStack() as held:
        assert store.hold(key, held) is None
