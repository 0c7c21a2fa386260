"""Cog's own downloads, behind the guard."""

import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cog
import pytest
import requests

from errors import InputError
from fetch import inputs
from sdxl.workers import beside
from tests.file_server import FileServer, file_server, redirect
from tests.serving import sentence, serving

NO_DATA = "the input is no valid data: URL; send data:TYPE;base64,..."


@pytest.fixture(autouse=True)
def put_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cog.Path, "validate", cog.Path.__dict__["validate"])
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)


@pytest.fixture
def web() -> Iterator[FileServer]:
    with file_server() as server:
        server.files |= {"/small": b"x" * 100, "/large": b"x" * 300}
        server.always["/hop"] = redirect("/small")
        yield server


def guard(*, allow_private: bool, most: int = inputs.MOST) -> None:
    inputs.guard_downloads(beside, allow_private=allow_private, most=most)


def fetch(url: str) -> cog.Path:
    """As coglet asks for it; the file is there as long as the path is held."""
    return cog.Path.validate(url)


def test_private_addresses_are_refused(web: FileServer, tmp_path: Path) -> None:
    guard(allow_private=False)
    with pytest.raises(InputError, match=r"cannot be fetched: host '127.0.0.1' is not on the public internet"):
        fetch(f"{web.url}/small")
    assert web.log == []
    assert list(tmp_path.iterdir()) == []


def test_an_operator_may_allow_them(web: FileServer) -> None:
    guard(allow_private=True)
    for name in ("small", "hop"):
        assert fetch(f"{web.url}/{name}").read_bytes() == b"x" * 100


def test_what_stands_in_front_of_the_server_may_keep_its_files(
    web: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SDXL_OWN_FILES", f"{web.url}/")
    guard(allow_private=False)
    assert fetch(f"{web.url}/small").read_bytes() == b"x" * 100
    with file_server() as other:
        for url in (f"{other.url}/small", web.url.replace("127.0.0.1", "localhost") + "/small"):
            with pytest.raises(InputError, match="not on the public internet"):
                fetch(url)
        assert other.log == []


@pytest.mark.parametrize("own", ["", "http://127.0.0.1:{port}", "http://127"])
def test_half_an_address_allows_nothing(own: str, web: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDXL_OWN_FILES", own.format(port=web.url.rpartition(":")[2]))
    guard(allow_private=False)
    with pytest.raises(InputError, match="not on the public internet"):
        fetch(f"{web.url}/small")


def test_a_file_goes_with_its_path(web: FileServer, tmp_path: Path) -> None:
    guard(allow_private=True)
    for url in (f"{web.url}/small", "data:image/png;base64,aGVsbG8="):
        path = fetch(url)
        (file,) = tmp_path.iterdir()
        assert str(path) == str(file)
        assert type(path) is cog.Path, "what coglet itself would fetch is a URLPath"
        parent = path.parent
        del path
        assert list(tmp_path.iterdir()) == []
        del parent
        assert tmp_path.is_dir()


def test_a_file_has_the_ending_of_its_kind(web: FileServer) -> None:
    guard(allow_private=True)
    web.files["/a/pictures.tar.gz"] = b"x"
    assert fetch(f"{web.url}/a/pictures.tar.gz?token=1").name.endswith("pictures.tar.gz")
    assert fetch("data:application/zip;base64,aGVsbG8=").suffix == ".zip"
    assert fetch("data:,hello").suffix == ""


def test_a_training_may_be_sent_more(web: FileServer) -> None:
    guard(allow_private=True, most=300)
    assert len(fetch(f"{web.url}/large").read_bytes()) == 300
    guard(allow_private=True, most=299)
    with pytest.raises(InputError, match="larger"):
        fetch(f"{web.url}/large")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent", "/absent cannot be fetched: the server answers 404"),
        ("large", "/large cannot be fetched: the file is larger than 0 MiB; send a smaller one"),
    ],
)
def test_failures_leave_no_file_and_tell_no_token(name: str, message: str, web: FileServer, tmp_path: Path) -> None:
    guard(allow_private=True, most=200)
    with pytest.raises(InputError, match=message) as caught:
        fetch(f"{web.url.replace('//', '//me:password@')}/{name}?token=secret")
    assert "secret" not in str(caught.value)
    assert "password" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def trickle(handler: Any, start: bytes) -> None:
    """A byte now and then, each well within the time for the next one, until the client goes away."""
    handler.wfile.write(start)
    for _ in range(300):
        handler.wfile.write(b"x")
        handler.wfile.flush()
        if handler.server.gate.wait(0.05):
            break


@pytest.mark.parametrize("part", ["headers", "length", "unknown length", "chunk"])
def test_a_trickle_ends_at_the_deadline(
    part: str, web: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[str] = []
    starts = {
        "headers": b"HTTP/1.1 200 OK\r\nX-A: ",
        "length": b"HTTP/1.1 200 OK\r\nContent-Length: 200\r\n\r\n",
        "unknown length": b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n",
        "chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;",
    }

    def answer(handler: Any, *_: Any) -> bool:
        handler.close_connection = True
        try:
            trickle(handler, starts[part])
            ended.append("by itself")
        except OSError:
            ended.append("cut")
        return True

    web.always["/slow"] = answer
    monkeypatch.setattr(inputs, "DEADLINE", 0.4)
    monkeypatch.setattr(inputs, "SILENCE", (0.4, 0.4))
    guard(allow_private=True)
    with pytest.raises(InputError, match="/slow cannot be fetched: the server takes too long"):
        fetch(f"{web.url}/slow")
    while not ended:
        time.sleep(0.01)
    assert ended == ["cut"]
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_is_gone(tmp_path: Path) -> None:
    guard(allow_private=True)
    with pytest.raises(InputError, match="there is no answer"):
        fetch("http://127.0.0.1:9/x.png")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("url", "content"),
    [
        ("data:text/plain;base64,aGVsbG8=", b"hello"),
        ("data:text/plain;base64,aGVs%0Abg8%3D", b"hel\x6e\x0f"),
        ("data:text/plain;base64,aGVs\nbG8=", b"hello"),
        ("data:,hello%20you", b"hello you"),
        ("data:;base64,", b""),
    ],
)
def test_good_data_urls(url: str, content: bytes) -> None:
    guard(allow_private=False)
    assert fetch(url).read_bytes() == content


BAD = ["data:image/png;base64,QUJ", "data:image/png;base64", "data:image/png;base64,!secret!", "data:x;base64,QUJD=QQ"]


@pytest.mark.parametrize("start", ["data:,", "data:image/png;base64,"])
def test_escapes_are_few(start: str) -> None:
    """Python takes 4.7 GB for 60 MB of them."""
    guard(allow_private=False)
    assert fetch(start + "%41" * 200_000)
    began = time.thread_time()
    with pytest.raises(InputError, match="no valid data: URL"):
        cog.Path.validate(start + "%41" * 20_000_000)
    assert time.thread_time() - began < 0.5


@pytest.mark.parametrize("url", BAD)
def test_bad_data_urls_are_refused(url: str) -> None:
    guard(allow_private=False)
    with pytest.raises(InputError) as caught:
        cog.Path.validate(url)
    assert str(caught.value) == NO_DATA


def test_what_is_no_url_at_all() -> None:
    guard(allow_private=False)
    with pytest.raises(InputError, match=r"^http://\[::1 is no valid URL; send"):
        cog.Path.validate("http://[::1?token=secret")
    assert cog.Path.validate("plain.png") == cog.Path("plain.png")


def test_the_real_coglet_says_it_so() -> None:
    with serving() as server, file_server() as web:
        for url in BAD:
            answer = server.predict(image=url)
            assert (answer["status"], sentence(answer["error"])) == ("failed", NO_DATA)
        answer = server.predict(image=f"{web.url}/x.png?token=secret")
        assert sentence(answer["error"]).startswith(f"{web.url}/x.png cannot be fetched: host '127.0.0.1' is not on")
        assert web.log == []
        assert server.files() == set()


def test_a_cancel_while_an_input_is_read_frees_the_worker() -> None:
    """coglet's own way hangs in one of thirty to a hundred."""
    asked = {"image": f"data:image/png;base64,{'A' * 400_000}"}
    order = random.Random(3)
    with serving() as server:
        for number in range(100):
            url, begun = f"{server.url}/predictions/c{number}", time.monotonic()
            body, asynchronous = {"input": asked}, {"Prefer": "respond-async"}
            while requests.put(url, json=body, headers=asynchronous, timeout=20).status_code == 409:
                assert time.monotonic() - begun < 20, "the worker hangs"
                time.sleep(0.005)
            time.sleep(0.012 * order.random())
            requests.post(f"{url}/cancel", timeout=20)
        assert server.predict()["status"] == "succeeded"
        assert server.files() == set()
