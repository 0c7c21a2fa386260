"""A real HTTP server on loopback that misbehaves on request."""

import hashlib
import io
import json
import os
import random
import tarfile
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fetch.answers import Item, Manner, Patience
from fetch.download import fetch
from fetch.network import getter

DATA = os.urandom(1 << 20) * 5 + b"end"
SHA = hashlib.sha256(DATA).hexdigest()
QUICK = Manner(
    workers=4,
    piece=1 << 20,
    save_every=1 << 18,
    patience=Patience(attempts=3, backoff=0.01, window=1.0, least=50_000),
)
Fault = Callable[["Handler", bytes, int, int], bool]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "FileServer"

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        self.server.log.append((path, self.headers.get("Range"), self.headers.get("Authorization")))
        body = self.server.files.get(path)
        start, end = self._range(path, len(body or b""))
        faults = self.server.faults[path]
        fault = self.server.always.get(path) or (faults.pop(0) if faults else None)
        if fault and fault(self, body or b"", start, end):
            return
        if body is None:
            self.reply(404, b"not found", {})
        else:
            self.serve(path, body, start, end)

    def _range(self, path: str, size: int) -> tuple[int, int]:
        """(first, end) that the request asks for; (0, -1) stands for the whole file."""
        wanted = self.headers.get("Range")
        current = self.headers.get("If-Range", self.server.etags[path]) == self.server.etags[path]
        if not wanted or not current or path in self.server.rangeless:
            return 0, -1
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        return int(first), min(int(last) + 1, size)

    def serve(self, path: str, body: bytes, start: int, end: int, cut: int | None = None) -> None:
        headers = {"ETag": self.server.etags[path], **self.server.headers[path]}
        if end >= 0:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(body)}"
        if end >= 0 and not body:
            self.reply(416, b"", {**headers, "Content-Range": "bytes */0"})
        else:
            self.reply(206 if end >= 0 else 200, body[start:end] if end >= 0 else body, headers, cut)

    def reply(self, status: int, body: bytes, headers: dict[str, str], cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        try:
            self.wfile.write(body[:cut])
            self.server.sent[urlsplit(self.path).path] += len(body[:cut])
        except OSError:
            self.close_connection = True
        if cut is not None:
            self.close_connection = True


class FileServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.etags: defaultdict[str, str] = defaultdict(lambda: '"one"')
        self.headers: defaultdict[str, dict[str, str]] = defaultdict(dict)
        self.rangeless: set[str] = set()
        self.faults: defaultdict[str, list[Fault]] = defaultdict(list)
        self.always: dict[str, Fault] = {}
        self.log: list[tuple[str, str | None, str | None]] = []
        self.sent: defaultdict[str, int] = defaultdict(int)
        self.gate = threading.Event()  # what a stalling answer waits for

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *args: Any) -> None:
        pass  # a client that went away


def fine(*_: Any) -> bool:
    return False


def status(code: int) -> Fault:
    def fault(handler: Handler, *_: Any) -> bool:
        handler.reply(code, b"no", {})
        return True

    return fault


def cut(count: int) -> Fault:
    """The connection ends after `count` bytes of the body."""

    def fault(handler: Handler, body: bytes, start: int, end: int) -> bool:
        handler.serve(urlsplit(handler.path).path, body, start, end, cut=count)
        return True

    return fault


def hang_up(handler: Handler, *_: Any) -> bool:
    handler.close_connection = True
    return True


def stall(handler: Handler, body: bytes, start: int, end: int) -> bool:
    """Headers, a thousand bytes, then silence."""
    handler.serve(urlsplit(handler.path).path, body, start, end, cut=1000)
    handler.wfile.flush()
    handler.server.gate.wait(20)
    return True


def redirect(to: str, headers: dict[str, str] | None = None) -> Fault:
    def fault(handler: Handler, *_: Any) -> bool:
        handler.reply(302, b"", {"Location": to, **(headers or {})})
        return True

    return fault


@contextmanager
def file_server() -> Iterator[FileServer]:
    server = FileServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.gate.set()
        server.shutdown()
        thread.join()
        server.server_close()


def get(url: str, folder: Path, manner: Manner = QUICK, **known: Any) -> Path:
    """Download to f.bin in the folder, impatiently."""
    item = Item(url, folder / "f.bin", **known)
    fetch([item], getter(allow_private=True, timeout=(2, 1)), label="test", manner=manner)
    return item.path


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def tensors(names: tuple[str, ...] = ("a.lora_down.weight",), size: int = 4096, seed: int = 0) -> bytes:
    """A .safetensors file of bytes without meaning."""
    header = json.dumps(
        {
            name: {"dtype": "U8", "shape": [size], "data_offsets": [size * n, size * (n + 1)]}
            for n, name in enumerate(names)
        }
    ).encode()
    return len(header).to_bytes(8, "little") + header + random.Random(seed).randbytes(size * len(names))


def tarred(files: Mapping[str, bytes]) -> bytes:
    """A tar of regular files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, body in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            archive.addfile(info, io.BytesIO(body))
    return buffer.getvalue()


def silent(handler: Handler, *_: Any) -> bool:
    """Not even headers."""
    handler.server.gate.wait(20)
    handler.close_connection = True
    return True


def trickle(handler: Handler, body: bytes, start: int, end: int) -> bool:
    """Headers, a hundred bytes, then one now and then."""
    handler.serve(urlsplit(handler.path).path, body, start, end, cut=100)
    with suppress(OSError):
        while not handler.server.gate.wait(0.05):
            handler.wfile.write(b"x")
            handler.wfile.flush()
    return True
