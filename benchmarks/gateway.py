"""What the gateway bears: how soon an idle worker has a job, creates per second, many who poll and stream at once.

The gateway is a process of its own, as script/gateway starts it; worker and clients speak its real protocols from here,
so both share the cores with it. `python -m benchmarks.gateway` prints the table and writes results/gateway.json.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import Any

import requests

from benchmarks.connection import Connection
from benchmarks.measure import Row, machine
from benchmarks.report import RESULTS, lines
from tests.gateway import running as whole

GROUP = "gateway"
ROOT = Path(__file__).resolve().parent.parent
Json = dict[str, Any]


@dataclass(frozen=True)
class Amount:
    """How much to do; the tests do less."""

    runs: int = 40  # of a real model
    starts: int = 200
    creates: int = 6000
    connections: int = 16
    pollers: int = 1000
    streams: int = 100
    seconds: float = 20.0  # of polling and streaming
    pause: float = 0.5  # seconds between two polls of a client, as the official ones wait


@dataclass
class Gateway:
    """One that runs, and who may ask it."""

    url: str
    token: str
    worker_token: str
    version: str = ""
    answers: Counter[int] = field(default_factory=Counter)

    def client(self) -> Any:
        return Connection.open(self.url, self.token)

    def worker(self) -> Any:
        return Connection.open(self.url, self.worker_token)

    async def register(self) -> None:
        """A worker that paints what it is told."""
        text = {"type": "string"}
        schemas = {
            "Input": {"type": "object", "properties": {"prompt": text}},
            "Output": {"type": "array", "items": text, "x-cog-array-type": "iterator"},
        }
        schema = {
            "openapi": "3.0.2",
            "info": {"title": "Cog", "version": "0"},
            "paths": {},
            "components": {"schemas": schemas},
        }
        about = {"worker": "bench", "model": "bench/text", "schema": {"predict": schema, "train": None}}
        about |= {"pools": ["predict"], "hardware": "cpu", "cog_version": "0"}
        async with self.worker() as link:
            status, body = await link.ask("POST", "/_worker/register", about)
            if status != 200:
                raise RuntimeError(f"the gateway answers {status} {body.decode()[:200]} to a worker")
            self.version = json.loads(body)["base"]

    async def create(self, link: Connection) -> Json:
        """One prediction."""
        status, body = await link.ask(
            "POST", "/v1/predictions", {"version": self.version, "input": {"prompt": "a cat"}}
        )
        self.answers[status] += 1
        if status != 201:
            raise RuntimeError(f"the gateway answers {status} {body.decode()[:200]} to a create")
        made: Json = json.loads(body)
        return made

    async def claim(self, link: Connection, wait: float = 10) -> Json | None:
        """The next job, once there is one."""
        asked = {"worker": "bench", "base": self.version, "pools": ["predict"], "warm": [], "wait": wait}
        status, body = await link.ask("POST", "/_worker/claim", asked)
        return json.loads(body) if status == 200 else None

    async def report(self, link: Connection, job: Json, **news: Any) -> None:
        """What a worker says of a job."""
        status, _ = await link.ask("POST", f"/_worker/jobs/{job['id']}/report", {"fence": job["fence"], **news})
        self.answers[status] += 1


async def starts(gateway: Gateway, amount: Amount) -> list[float]:
    """Seconds from before a client asks until an idle worker has the job."""
    taken: list[float] = []
    async with gateway.client() as client, gateway.worker() as link:
        for _ in range(amount.starts):
            waiting = asyncio.create_task(gateway.claim(link))
            await asyncio.sleep(0.02)  # until it waits
            began = time.perf_counter()
            creating = asyncio.create_task(gateway.create(client))
            job = await waiting
            taken.append(time.perf_counter() - began)
            await creating
            assert job is not None
            await gateway.report(link, job, status="succeeded", output=["a"])
    return taken


async def creates(gateway: Gateway, amount: Amount) -> float:
    """Predictions created per second, over several connections that ask one after the other."""
    left = iter(range(amount.creates))

    async def ask() -> None:
        async with gateway.client() as link:
            for _ in left:
                await gateway.create(link)

    began = time.perf_counter()
    await asyncio.gather(*(ask() for _ in range(amount.connections)))
    return amount.creates / (time.perf_counter() - began)


@dataclass
class Crowd:
    """What many clients saw."""

    polls: list[float] = field(default_factory=list)  # seconds that each took
    events: int = 0
    done: int = 0
    errors: Counter[str] = field(default_factory=Counter)


async def crowd(gateway: Gateway, amount: Amount) -> Crowd:
    """Pollers and streams at once, while a worker reports something new of every streamed job all the time."""
    seen, end = Crowd(), time.monotonic() + amount.seconds
    async with gateway.client() as client, gateway.worker() as link:
        made = [await gateway.create(client) for _ in range(amount.streams)]
        jobs = [job for _ in made if (job := await gateway.claim(link))]
        work = asyncio.create_task(_work(gateway, link, jobs, end))
        await asyncio.gather(
            *(_noted(seen, _poll, gateway, amount, made[n % len(made)]["id"], n, end) for n in range(amount.pollers)),
            *(_noted(seen, _stream, gateway, each["urls"]["stream"]) for each in made),
        )
        await work
    return seen


async def _work(gateway: Gateway, link: Connection, jobs: list[Json], end: float) -> None:
    words = 0
    while time.monotonic() < end:
        words += 1
        for job in jobs:
            await gateway.report(link, job, status="processing", output=["word "] * words)
            await asyncio.sleep(1.0 / len(jobs))
    for job in jobs:
        await gateway.report(link, job, status="succeeded", output=["word "] * words)


async def _noted(seen: Crowd, act: Callable[..., Awaitable[None]], *args: Any) -> None:
    try:
        await act(seen, *args)
    except (OSError, EOFError, RuntimeError) as error:
        seen.errors[f"{type(error).__name__}: {error}"[:80]] += 1


async def _poll(seen: Crowd, gateway: Gateway, amount: Amount, job_id: str, number: int, end: float) -> None:
    await asyncio.sleep(amount.pause * (number % 100) / 100)  # clients do not ask in step
    async with gateway.client() as link:
        while time.monotonic() < end:
            began = time.perf_counter()
            status, _ = await link.ask("GET", f"/v1/predictions/{job_id}")
            seen.polls.append(time.perf_counter() - began)
            if status != 200:
                seen.errors[str(status)] += 1
            await asyncio.sleep(amount.pause)


async def _stream(seen: Crowd, gateway: Gateway, url: str) -> None:
    async with gateway.client() as link:
        status, _ = await link.begin("GET", url.removeprefix(gateway.url))
        if status != 200:
            raise RuntimeError(f"a stream answers {status}")
        while line := await link.reader.readline():
            seen.events += line.startswith(b"event: output")
            if line.startswith(b"event: done"):
                seen.done += 1
                return
    raise RuntimeError("a stream broke off")


async def rows(gateway: Gateway, amount: Amount) -> list[Row]:
    """All of it, one after the other."""
    await gateway.register()
    taken = await starts(gateway, amount)
    many = await crowd(gateway, amount)
    rate = await creates(gateway, amount)
    late = quantiles(taken, n=20)[-1]
    who = f"{amount.pollers:,} pollers and {amount.streams} streams"
    return [
        Row(GROUP, "from the client's call to an idle worker, median", "ms", None, median(taken) * 1000, most=50),
        Row(GROUP, "from the client's call to an idle worker, 95 of 100", "ms", None, late * 1000),
        Row(GROUP, "seconds for 300 creates", "s", None, 300 / rate, most=1),
        Row(GROUP, "creates per second", "1/s", None, rate),
        Row(GROUP, f"{who}: errors", "", None, many.errors.total(), most=0),
        Row(GROUP, f"{who}: streams that did not end", "", None, amount.streams - many.done, most=0),
        Row(GROUP, f"{who}: polls per second", "1/s", None, len(many.polls) / amount.seconds),
        Row(GROUP, f"{who}: a poll, median", "ms", None, median(many.polls) * 1000),
        Row(GROUP, f"{who}: events per second", "1/s", None, many.events / amount.seconds),
    ]


@contextmanager
def running(folder: Path) -> Iterator[Gateway]:
    """The gateway alone, as script/gateway runs it, with limits that nobody meets."""
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as bound:
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        gateway = Gateway(url, secrets.token_hex(20), secrets.token_hex(20))
        told = {
            "PUBLIC_URL": url,
            "DATABASE": f"sqlite:///{folder}/gateway.db",
            "FILES": f"{folder}/files",
            "TOKEN": gateway.token,
            "WORKER_TOKEN": gateway.worker_token,
            "CREATES": "100000000",
            "CALLS": "100000000",
            "QUEUED": "100000000",
        }
        variables = os.environ | {f"GATEWAY_{name}": value for name, value in told.items()}
        command = [sys.executable, "-m", "gateway.front", str(bound.fileno())]
        with (folder / "log").open("w") as log:
            process = subprocess.Popen(
                command, cwd=ROOT, env=variables, stdout=log, stderr=log, pass_fds=[bound.fileno()]
            )
        try:
            yield gateway
        finally:
            process.terminate()
            process.wait(timeout=30)


def model_starts(amount: Amount) -> list[float]:
    """Seconds from before a client asks until the model runs, of the smallest package with a real agent and coglet."""
    taken: list[float] = []
    with TemporaryDirectory() as name, whole.running(Path(name)) as gateway, requests.Session() as client:
        ran = Path(name) / "ran"
        gateway.agent("toy", "local/toy", GATEWAY_PACKAGE=str(whole.TOY), TOY_LOG=str(ran))
        client.headers.update({"Authorization": f"Bearer {gateway.token}", "Prefer": "wait"})
        url = f"{gateway.url}/v1/models/local/toy/predictions"
        for number in range(amount.runs + 1):
            began = time.time()
            client.post(url, json={"input": {"text": f"number {number}"}}, timeout=90).raise_for_status()
            (line,) = [line for line in ran.read_text().splitlines() if line.endswith(f" number {number}")]
            taken.append(float(line.split()[1]) - began)
            time.sleep(0.2)  # until the worker is idle
    return taken[1:]


def measured(amount: Amount) -> list[Row]:
    """All rows, of gateways of our own."""
    started = [1000 * seconds for seconds in model_starts(amount)]
    with TemporaryDirectory() as folder, running(Path(folder)) as gateway:
        found = asyncio.run(rows(gateway, amount))
    return [
        Row(GROUP, "from the client's call to a model that runs, median", "ms", None, median(started), most=50),
        *found,
    ]


def main() -> int:
    """0 if every goal is met."""
    began, found = time.monotonic(), measured(Amount())
    shown = [row.as_json() for row in found]
    run = {"date": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}", "seconds": time.monotonic() - began, "machine": machine()}
    (RESULTS / "gateway.json").write_text(json.dumps({**run, "rows": shown}, indent=1) + "\n")
    sys.stdout.write("\n".join(lines(shown, None, markdown=False)) + "\n")
    return 0 if all(row.met is not False for row in found) else 1


if __name__ == "__main__":
    sys.exit(main())
