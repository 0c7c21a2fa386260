"""A real server that webhooks are sent to, and a store with jobs that have one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import anyio

from fetch.answers import Stop
from gateway.guard import Rules, poster
from gateway.ids import new_id
from gateway.jobs import Job, Model, Version
from gateway.sqlite import SQLite
from gateway.store import Store
from gateway.webhooks import Courier, deliver, new_key

VERSION = "ab" * 32
LOOPBACK = Rules(loopback=True)


@dataclass(frozen=True)
class Call:
    """One request that arrived; the names of headers in lower case."""

    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Receiver:
    """Keeps what arrives. `answer` gives (status, headers) for the number of the call, from 1."""

    answer: Callable[[int], tuple[int, dict[str, str]]] = lambda _: (200, {})
    calls: list[Call] = field(default_factory=list)
    port: int = 0
    changed: threading.Condition = field(default_factory=threading.Condition)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    def wait(self, number: int, seconds: float = 20.0) -> list[Call]:
        """The calls, once there are so many."""
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.calls) >= number, seconds), f"{len(self.calls)} calls came"
            return list(self.calls)


@contextmanager
def receiver(answer: Callable[[int], tuple[int, dict[str, str]]] | None = None) -> Iterator[Receiver]:
    """One that listens on all of loopback."""
    kept = Receiver(answer) if answer else Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            with kept.changed:
                kept.calls.append(Call(self.path, {k.lower(): v for k, v in self.headers.items()}, body))
                number = len(kept.calls)
                kept.changed.notify_all()
            status, headers = kept.answer(number)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": "0"}.items():
                self.send_header(name, value)
            self.end_headers()

        do_GET = do_POST

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("0.0.0.0", 0), Handler)
    server.daemon_threads = True
    kept.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield kept
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def new_store(folder: Path) -> Store:
    """With a version to make jobs of."""
    store = SQLite(folder / "gateway.db")
    store.put_model(Model("me", "painter", time.time()))
    store.put_version(Version(VERSION, "me/painter", time.time(), {}, VERSION))
    return store


def new_job(store: Store, webhook: str | None = None, events: tuple[str, ...] = (), **values: Any) -> Job:
    """Queued."""
    job = Job(new_id(), "prediction", "me", "me/painter", VERSION, {}, time.time(), **values)
    return store.create(Job(**vars(job) | {"webhook": webhook, "webhook_events": events}))


def claimed(store: Store) -> Job:
    """The oldest job, a worker's now."""
    taken = store.claim("worker", ["predict"], [VERSION], [], time.time(), 60)
    assert taken is not None
    return taken.job


def finished(store: Store, output: Any = None) -> Job:
    """The oldest job, claimed and done."""
    job = claimed(store)
    return store.report(job.id, job.fence, time.time(), status="succeeded", output=output)


def settle(store: Store) -> None:
    """Until no delivery waits."""
    end = time.monotonic() + 20
    while waiting := store.counts()["deliveries"]:
        assert time.monotonic() < end, f"{waiting} deliveries wait"
        time.sleep(0.01)


@contextmanager
def delivering(store: Store, rules: Rules = LOOPBACK) -> Iterator[Courier]:
    """While webhooks of the store are delivered."""
    stop, done = Stop(), threading.Event()
    courier = Courier(store, lambda job: {"id": job.id, "status": job.status}, new_key(), poster(rules, stop))

    async def until_done() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(deliver, courier, anyio.sleep)
            await anyio.to_thread.run_sync(done.wait)
            stop.set()
            tasks.cancel_scope.cancel()

    thread = threading.Thread(target=anyio.run, args=(until_done,))
    thread.start()
    try:
        yield courier
    finally:
        done.set()
        thread.join()
