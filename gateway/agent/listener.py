"""What coglet can reach of its agent, on this machine alone: where it says how a job goes, and the files of a job.

A file is a loopback URL with a key that nobody can guess, since only a URL becomes a `Path` in the predictor, and since
coglet's own downloads know no limits: what it is given is here already, or comes from the gateway's own store.
"""

import hashlib
import mimetypes
import secrets
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import SimpleQueue
from typing import Any
from urllib.parse import quote, urlsplit

from gateway.agent.link import AwayError, GoneError, Link, RefusedError
from gateway.jobs import Json
from local.answers import AnswerError, read

PASSED_ON = ("Content-Type", "Content-Length", "Content-Range", "Accept-Ranges", "ETag", "Last-Modified")
PART = 2**20  # bytes
NEWS_LIMIT = 8 * 2**30  # bytes of one webhook: whole outputs may be in it


@dataclass(frozen=True)
class News:
    """One webhook of coglet's; its files lie in the job's folder. body is {} where it could not be read."""

    body: Json
    problem: str = ""


@dataclass
class Expected:
    """Who waits for a task's news, and where its files go."""

    folder: Path
    news: "SimpleQueue[News | None]" = field(default_factory=SimpleQueue)


class Listener:
    """A server on the loopback interface, in threads of its own."""

    def __init__(self, link: Link, state: Path) -> None:
        """Start it, on the port of the last time if that is free: packages know a file again by its address."""
        self._link, self._key = link, secrets.token_bytes(32)
        self._secret = secrets.token_urlsafe(24)
        self._expected: dict[str, Expected] = {}
        self._files: dict[str, Path | str] = {}  # by key: a path, or the id of a file of the gateway
        self._server = _bound(self, state / "port")
        self.origin = f"http://127.0.0.1:{self._server.server_address[1]}/"
        threading.Thread(target=self._server.serve_forever, name="listener", daemon=True).start()

    def close(self) -> None:
        """Listen no more."""
        self._server.shutdown()
        self._server.server_close()

    @contextmanager
    def expecting(self, task: str, folder: Path) -> Iterator[tuple[str, "SimpleQueue[News | None]"]]:
        """(the webhook's URL, what comes to it) while this lasts."""
        expected = self._expected[task] = Expected(folder)
        try:
            yield f"{self.origin}{self._secret}/{task}", expected.news
        finally:
            del self._expected[task]

    def offer(self, file: Path | str, name: str) -> str:
        """The URL under which coglet gets a file of this machine, or of the gateway by its id: always the same."""
        key = hashlib.blake2b(str(file).encode(), key=self._key, digest_size=16).hexdigest()
        self._files[key] = file
        return f"{self.origin}{quote(name or 'file')}?{key}"

    def withdraw(self, folder: Path) -> None:
        """Files in a folder that goes."""
        for key, file in list(self._files.items()):
            if isinstance(file, Path) and file.is_relative_to(folder):
                del self._files[key]

    def take(self, path: str, handler: "Handler") -> int:
        """Read a webhook; the status to answer."""
        secret, _, task = path.strip("/").partition("/")
        expected = self._expected.get(task)
        length = handler.headers.get("Content-Length", "")
        if not secrets.compare_digest(secret.encode(), self._secret.encode()) or expected is None:
            return 404
        if not length.isdecimal() or int(length) > NEWS_LIMIT:
            return 413
        body = _parts(handler, int(length))
        try:
            found = read(body, Path(tempfile.mkdtemp(dir=expected.folder)))
            expected.news.put(News(found if isinstance(found, dict) else {}))
        except (AnswerError, OSError) as error:
            for _ in body:
                pass  # it is read to its end, so that coglet hears the answer
            expected.news.put(News({}, str(error)))
        return 200

    def give(self, handler: "Handler") -> None:
        """Answer a GET for a file."""
        file = self._files.get(urlsplit(handler.path).query)
        if isinstance(file, Path) and file.is_file():
            kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
            with file.open("rb") as source:
                head = {"Content-Type": kind, "Content-Length": str(file.stat().st_size)}
                handler.answer(200, head, source)
        elif isinstance(file, str):
            self._pass_on(file, handler)
        else:
            handler.answer(404, {"Content-Length": "0"})

    def _pass_on(self, file_id: str, handler: "Handler") -> None:
        asked = {name: value for name in ("Range", "If-Range") if (value := handler.headers.get(name))}
        try:
            with self._link.file(file_id, asked) as answer:
                head = {name: answer.headers[name] for name in PASSED_ON if name in answer.headers}
                head.setdefault("ETag", f'"{hashlib.sha256(file_id.encode()).hexdigest()[:32]}"')  # it never changes
                handler.answer(answer.status_code, head, answer.raw)
        except (AwayError, GoneError):
            handler.answer(503, {"Content-Length": "0"})
        except RefusedError:
            handler.answer(404, {"Content-Length": "0"})


class Handler(BaseHTTPRequestHandler):
    """HTTP for a Listener."""

    protocol_version = "HTTP/1.1"
    listener: Listener

    def do_POST(self) -> None:
        """A webhook."""
        self.answer(self.listener.take(self.path, self), {"Content-Length": "0"})

    def do_GET(self) -> None:
        """A file."""
        self.listener.give(self)

    def answer(self, status: int, head: dict[str, str], body: Any = None) -> None:
        """Send head and body; without a length the connection ends with it."""
        self.send_response_only(status)
        for name, value in head.items():
            self.send_header(name, value)
        self.close_connection = self.close_connection or status >= 400 or "Content-Length" not in head
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if body is not None:
            shutil.copyfileobj(body, self.wfile, PART)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: paths are secret."""


def _bound(listener: Listener, remembered: Path) -> ThreadingHTTPServer:
    """A server on the port that a file remembers, or another."""
    handler = type("Bound", (Handler,), {"listener": listener})
    told = remembered.read_text() if remembered.exists() else ""
    for port in (int(told) if told.isdecimal() else 0, 0):
        try:
            server = ThreadingHTTPServer(("127.0.0.1", port), handler)
        except (OSError, OverflowError):
            continue
        server.daemon_threads = True
        remembered.write_text(str(server.server_address[1]))
        return server
    raise OSError("no port of 127.0.0.1 is free")


def _parts(handler: Handler, length: int) -> Iterator[bytes]:
    """The body of a request."""
    while length > 0:
        part = handler.rfile.read(min(length, PART))
        if not part:
            raise OSError("the webhook ends too soon")
        length -= len(part)
        yield part
