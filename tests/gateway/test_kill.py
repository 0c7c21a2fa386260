"""kill -9 of gateway, agent, coglet and database at random moments: no job is lost, doubled, or taken for another."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from tests.gateway.databases import Postgres
from tests.gateway.receiving import Receiver, receiver
from tests.gateway.running import TOKEN, TOY, Gateway, running, until

pytestmark = pytest.mark.soak
JOBS = 200
MODEL = "local/killed"
ENDED = ("succeeded", "failed", "canceled")


@dataclass
class Stack:
    """All of it under `gateway.serve`, which starts again what was killed."""

    gateway: Gateway
    runs: Path
    database: Postgres | None
    random: random.Random = field(default_factory=lambda: random.Random(11))

    def ask(self, verb: str, path: str, **asked: Any) -> Any:
        """Until there is an answer: a POST carries an Idempotency-Key, so that it may be sent again."""
        head = {"Authorization": f"Bearer {TOKEN}", **asked.pop("headers", {})}
        end = time.monotonic() + 60
        while True:
            with suppress(requests.RequestException):
                answer = requests.request(verb, f"{self.gateway.url}/v1/{path}", headers=head, timeout=20, **asked)
                if answer.status_code < 500:
                    assert answer.ok, answer.text
                    return answer.json()
            assert time.monotonic() < end, "the gateway does not come back"
            time.sleep(0.05)

    def victims(self) -> dict[str, Callable[[], object]]:
        """Who may be killed, by name: those that had a moment to do something since the last time."""
        serving = psutil.Process(self.gateway.processes[0].pid)
        found: dict[str, Callable[[], object]] = {}
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            for process in serving.children(recursive=True):
                line = " ".join(process.cmdline())
                for name, mark in MARKS.items():
                    if mark in line and time.time() - process.create_time() > ALIVE[name]:
                        found[name] = process.kill
        if self.database:
            found["database"] = self.fail_database
        return found

    def fail_database(self) -> None:
        assert self.database
        self.database.kill()
        time.sleep(self.random.random())
        self.database.start()


ALIVE = {"gateway": 4.0, "agent": 5.0, "coglet": 0.0}  # seconds
MARKS = {"gateway": "gateway.front", "agent": "gateway.agent", "coglet": "cog.server.http"}


@pytest.fixture(params=["sqlite", "postgres"])
def stack(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stack]:
    database = Postgres(tmp_path / "postgres") if request.param == "postgres" else None
    runs = tmp_path / "runs"
    settings = {
        "GATEWAY_PACKAGE": str(TOY),
        "GATEWAY_MODEL": MODEL,
        "GATEWAY_POOLS": "predict",
        "GATEWAY_OUTPUT_MODE": "url",
        "GATEWAY_ATTEMPTS": "50",
        "GATEWAY_LEASE": "5",
        "TOY_LOG": str(runs),
        **({"DATABASE_URL": database.new_database()} if database else {}),
    }
    try:
        with running(tmp_path, with_worker=True, **settings) as gateway:
            yield Stack(gateway, runs, database)
    finally:
        if database:
            database.close()


def test_whatever_is_killed(stack: Stack) -> None:
    until(lambda: stack.ask("GET", "models")["results"], 60)
    version = stack.ask("GET", f"models/{MODEL}")["latest_version"]["id"]
    killed: dict[str, int] = defaultdict(int)
    done = threading.Event()

    def kill() -> None:
        while not done.wait(1 + stack.random.random() * 3):
            victims = stack.victims()
            if victims:
                name = stack.random.choice(sorted(victims))
                with suppress(psutil.NoSuchProcess):
                    victims[name]()
                    killed[name] += 1

    killer = threading.Thread(target=kill)
    with receiver() as hook:
        killer.start()
        try:
            jobs = {created(stack, version, number, hook): number for number in range(JOBS)}
            assert len(jobs) == JOBS
            until(lambda: not waiting(stack, jobs), 170)
        finally:
            done.set()
            killer.join()
        check_all(stack, jobs, hook)
    assert set(killed) == {*MARKS, *(["database"] if stack.database else [])}, killed


def created(stack: Stack, version: str, number: int, hook: Receiver) -> str:
    """A job whose output follows from its number."""
    image = "data:text/plain;base64," + base64.b64encode(f"file {number}".encode()).decode()
    given = {"text": f"job-{number}", "image": image, "count": 1 + number % 3, "seconds": 0.1 * (number % 4)}
    body = {"version": version, "input": given, "webhook": hook.url, "webhook_events_filter": ["completed"]}
    return str(stack.ask("POST", "predictions", json=body, headers={"Idempotency-Key": f"key-{number}"})["id"])


def waiting(stack: Stack, jobs: dict[str, int]) -> list[str]:
    """The jobs that have not ended."""
    listed, path = [], "predictions"
    while path:
        page = stack.ask("GET", path)
        listed += page["results"]
        path = (page["next"] or "").partition("/v1/")[2]
    ended = {job["id"] for job in listed if job["status"] in ENDED}
    return [job for job in jobs if job not in ended]


def check_all(stack: Stack, jobs: dict[str, int], hook: Receiver) -> None:
    """Each has ended once, well, with its own output; nothing ran after it had ended; one webhook id says so."""
    runs = defaultdict(list)
    for line in stack.runs.read_text().splitlines():
        what, when, *text = line.split(" ")
        if what == "run":
            runs[text[0]].append(float(when))
    for job, number in jobs.items():
        found = stack.ask("GET", f"predictions/{job}")
        assert found["status"] == "succeeded", found
        digest = hashlib.sha256(f"file {number}".encode()).hexdigest()
        expected = [{"text": f"job-{number}", "given": [digest], "number": each} for each in range(1 + number % 3)]
        assert [requests.get(url, timeout=20).json() for url in found["output"]] == expected
        assert runs[f"job-{number}"], number
        assert max(runs[f"job-{number}"]) < seconds(found["completed_at"]), number
    until(lambda: {json.loads(call.body)["id"] for call in list(hook.calls)} >= jobs.keys(), 90)
    ids = defaultdict(set)
    for call in hook.calls:
        body = json.loads(call.body)
        assert body["status"] == "succeeded"
        ids[body["id"]].add(call.headers["webhook-id"])
    assert {job: len(each) for job, each in ids.items()} == dict.fromkeys(jobs, 1)


def seconds(stamp: str) -> float:
    """Unix seconds of an RFC 3339 time."""
    return datetime.fromisoformat(stamp).timestamp()


def test_canceled_at_once_200_times(tmp_path: Path) -> None:
    """With a file, at every moment of its start; every tenth time something else must run within five seconds."""
    settings = {"GATEWAY_PACKAGE": str(TOY), "GATEWAY_MODEL": MODEL, "GATEWAY_POOLS": "predict"}
    draw = random.Random(3)
    with running(tmp_path, with_worker=True, **settings) as gateway:
        stack = Stack(gateway, tmp_path / "runs", None)
        until(lambda: stack.ask("GET", "models")["results"], 60)
        version = stack.ask("GET", f"models/{MODEL}")["latest_version"]["id"]
        image = "data:application/octet-stream;base64," + base64.b64encode(draw.randbytes(200_000)).decode()

        def create(wait: str, **given: Any) -> dict[str, Any]:
            body = {"version": version, "input": given}
            made: dict[str, Any] = stack.ask("POST", "predictions", json=body, headers={"Prefer": wait} if wait else {})
            return made

        for number in range(200):
            job = create("", image=image, seconds=60)["id"]
            time.sleep(draw.random() * 0.15)
            assert stack.ask("POST", f"predictions/{job}/cancel")["status"] == "canceled"
            if number % 10 == 9:
                assert create("wait=5", text="after")["status"] == "succeeded"
                assert stack.ask("GET", f"predictions/{job}")["status"] == "canceled"
        assert gateway.log("gateway").count("Starting coglet server") == 1
        assert gateway.log("gateway").count("Cancelling prediction") > 50
