"""Cog's own downloads, behind the guard."""

import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cog
import pytest
from cog.types import URLPath

from errors import InputError
from fetch import inputs
from tests.file_server import FileServer, file_server, redirect
from tests.serving import sentence, serving

NO_DATA = "the input is no valid data: URL; send data:image/png;base64,..."


@pytest.fixture(autouse=True)
def put_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(URLPath, "convert", URLPath.convert)
    monkeypatch.setattr(cog.Path, "validate", cog.Path.__dict__["validate"])
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)


@pytest.fixture
def web() -> Iterator[FileServer]:
    with file_server() as server:
        server.files |= {"/small": b"x" * 100, "/large": b"x" * 300}
        server.always["/hop"] = redirect("/small")
        yield server


def fetch(url: str) -> Path:
    return Path(URLPath(source=url, filename="picture.png", fileobj=io.BytesIO()).convert())


def test_private_addresses_are_refused(web: FileServer, tmp_path: Path) -> None:
    inputs.guard_downloads(allow_private=False)
    with pytest.raises(InputError, match=r"cannot be fetched: host '127.0.0.1' is not on the public internet"):
        fetch(f"{web.url}/small")
    assert web.log == []
    assert list(tmp_path.iterdir()) == []


def test_an_operator_may_allow_them(web: FileServer) -> None:
    inputs.guard_downloads(allow_private=True)
    for name in ("small", "hop"):
        assert fetch(f"{web.url}/{name}").read_bytes() == b"x" * 100


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent", "/absent cannot be fetched: the server answers 404"),
        ("large", "is larger than 0 MiB; send a smaller file"),
    ],
)
def test_failures_leave_no_file_and_tell_no_token(
    name: str, message: str, web: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "MOST", 200)
    inputs.guard_downloads(allow_private=True)
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
    inputs.guard_downloads(allow_private=True)
    with pytest.raises(InputError, match="/slow cannot be fetched: the server takes too long"):
        fetch(f"{web.url}/slow")
    while not ended:
        time.sleep(0.01)
    assert ended == ["cut"]
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_is_gone(tmp_path: Path) -> None:
    inputs.guard_downloads(allow_private=True)
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
def test_good_data_urls_stay_coglets(url: str, content: bytes) -> None:
    inputs.guard_downloads(allow_private=False)
    path: Any = cog.Path.validate(url)
    assert Path(path.convert()).read_bytes() == content


BAD = ["data:image/png;base64,QUJ", "data:image/png;base64", "data:image/png;base64,!secret!", "data:x;base64,QUJD=QQ"]


@pytest.mark.parametrize("start", ["data:,", "data:image/png;base64,"])
def test_escapes_are_few(start: str) -> None:
    """Python takes 4.7 GB for 60 MB of them."""
    inputs.guard_downloads(allow_private=False)
    assert cog.Path.validate(start + "%41" * 200_000)
    began = time.thread_time()
    with pytest.raises(InputError, match="no valid data: URL"):
        cog.Path.validate(start + "%41" * 20_000_000)
    assert time.thread_time() - began < 0.5


@pytest.mark.parametrize("url", [*BAD, "data://[,x"])
def test_bad_data_urls_are_refused(url: str) -> None:
    inputs.guard_downloads(allow_private=False)
    with pytest.raises(InputError) as caught:
        cog.Path.validate(url)
    assert str(caught.value) == NO_DATA


def test_what_is_no_url_at_all() -> None:
    inputs.guard_downloads(allow_private=False)
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
