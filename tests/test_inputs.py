"""Cog's own downloads, behind the guard."""

import io
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cog
import pytest
from cog.types import URLPath

from errors import InputError
from fetch import inputs


@pytest.fixture(autouse=True)
def put_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(URLPath, "convert", URLPath.convert)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)


@pytest.fixture(scope="module")
def web() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            kind = self.path.strip("/")
            self.send_response(404 if kind == "absent" else 302 if kind == "hop" else 200)
            if kind == "hop":
                self.send_header("Location", "/small")
            self.end_headers()
            self.wfile.write(b"x" * (300 if kind == "large" else 100))

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def fetch(url: str) -> Path:
    return Path(URLPath(source=url, filename="picture.png", fileobj=io.BytesIO()).convert())


def test_private_addresses_are_refused(web: str, tmp_path: Path) -> None:
    inputs.guard_downloads(allow_private=False)
    with pytest.raises(InputError, match=r"cannot be fetched: host '127.0.0.1' is not on the public internet"):
        fetch(f"{web}/small")
    assert list(tmp_path.iterdir()) == []


def test_an_operator_may_allow_them(web: str) -> None:
    inputs.guard_downloads(allow_private=True)
    for name in ("small", "hop"):
        assert fetch(f"{web}/{name}").read_bytes() == b"x" * 100


@pytest.mark.parametrize(
    ("name", "message"), [("absent", "the server answers 404"), ("large", "is larger than 0 MiB; send a smaller file")]
)
def test_failures_leave_no_file(
    name: str, message: str, web: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "MOST", 200)
    inputs.guard_downloads(allow_private=True)
    with pytest.raises(InputError, match=message):
        fetch(f"{web}/{name}")
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_is_gone(tmp_path: Path) -> None:
    inputs.guard_downloads(allow_private=True)
    with pytest.raises(InputError, match="there is no answer"):
        fetch("http://127.0.0.1:9/x.png")
    assert list(tmp_path.iterdir()) == []


def test_data_urls_stay_coglets() -> None:
    inputs.guard_downloads(allow_private=False)
    path = cog.Path.validate("data:text/plain;base64,aGVsbG8=")
    assert Path(path.convert()).read_bytes() == b"hello"
