"""Streams over a real connection: what the Python client's decoder makes of them, and what a browser's would."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from anyio import to_thread
from replicate.client import Client
from replicate.stream import EventSource
from starlette.applications import Starlette

from gateway import streams
from gateway.jobs import Json
from gateway.store import Store
from gateway.streams import path, routes
from gateway.waiting import Changed, Hub
from tests.gateway.receiving import claimed, new_job, new_store
from tests.gateway.serving import served

KEY = "the gateway's"
ENDS: dict[str, tuple[str, str]] = {
    "succeeded": ("", "{}"),
    "failed": ('{"detail": "out of paint"}', '{"reason": "error"}'),
    "canceled": ("", '{"reason": "canceled"}'),
}


@dataclass(frozen=True)
class Streaming:
    """A gateway's streams and the jobs that they are of."""

    url: str
    store: Store

    def address(self, job_id: str, *, files: bool = True) -> str:
        """Of a job's stream."""
        return self.url + path(job_id, KEY, files=files)

    def told(self, job_id: str, after: str = "") -> list[tuple[str, str, str]]:
        """(event, data, id) of all events of a job that has ended."""
        text = httpx.get(self.address(job_id), headers={"Last-Event-ID": after} if after else {}, timeout=20).text
        return [parsed(block) for block in text.split("\n\n") if block.startswith("event")]


def parsed(block: str) -> tuple[str, str, str]:
    """An event as the standard reads it."""
    fields = [line.partition(": ")[::2] for line in block.split("\n")]
    named = dict(fields)
    return named["event"], "\n".join(value for name, value in fields if name == "data"), named["id"]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Streaming]:
    store = new_store(tmp_path_factory.mktemp("streams"))
    hubs: list[Hub] = []

    async def look(job_id: str) -> Json | None:
        job = await to_thread.run_sync(store.get, job_id)
        return vars(job) if job else None

    @contextmanager
    def watch(job_id: str) -> Iterator[Changed]:
        with hubs[0].watch(job_id) as changed:
            yield changed

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        hubs.append(Hub())
        store.listen(hubs[0].heard)
        yield

    with served(lambda _: Starlette(routes=routes(look, watch, KEY), lifespan=lifespan)) as url:
        yield Streaming(url, store)


@pytest.fixture
def streaming(shared: Streaming) -> Iterator[Streaming]:
    yield shared
    for job in shared.store.list("prediction", "me"):
        shared.store.cancel(job.id, 1.0)


def ended(store: Store, status: str, **news: Any) -> str:
    """The id of a job that came to this end."""
    job_id = new_job(store).id
    job = claimed(store)
    if status == "canceled":
        store.report(job.id, job.fence, 1.0, **news)
        store.cancel(job.id, 2.0)
    else:
        store.report(job.id, job.fence, 1.0, status=status, **news)
    return job_id


@pytest.mark.parametrize("status", list(ENDS))
def test_the_ends(streaming: Streaming, status: str) -> None:
    job_id = ended(streaming.store, status, output=["a", "b"], logs="one\n", error="out of paint")
    error, done = ENDS[status]
    told = [(name, data) for name, data, _ in streaming.told(job_id)]
    expected = [
        ("logs", "one\n"),
        ("output", "a"),
        ("output", "b"),
        *([("error", error)] if error else []),
        ("done", done),
    ]
    assert told == expected


def test_every_event_has_an_id_of_seconds_and_a_number_that_grows(streaming: Streaming) -> None:
    job_id = ended(streaming.store, "failed", output=["a", "b", "c"], logs="x" * 100, error="no")
    ids = [event_id for *_, event_id in streaming.told(job_id)]
    assert all(re.fullmatch(r"\d{10}:\d+", event_id) for event_id in ids)
    numbers = [int(event_id.partition(":")[2]) for event_id in ids]
    assert numbers == sorted(numbers)


def test_a_stream_goes_on_after_any_of_its_events(streaming: Streaming) -> None:
    job_id = ended(streaming.store, "succeeded", output=["a", "b", "c"], logs="log")
    whole = streaming.told(job_id)
    for number in range(len(whole) - 1):
        rest = streaming.told(job_id, after=whole[number][2])
        assert [event[:2] for event in rest] == [event[:2] for event in whole[number + 1 :]]


@pytest.mark.parametrize("odd", ["x", "1:", "1:99999999999999999999", "1:-1", "١:٢", "1:1\u00b2"])
def test_an_id_that_is_not_ours_begins_anew(streaming: Streaming, odd: str) -> None:
    job_id = ended(streaming.store, "succeeded", output=["a"])
    answer = httpx.get(streaming.address(job_id), headers=[(b"Last-Event-ID", odd.encode())])
    assert [parsed(block)[:2] for block in answer.text.strip().split("\n\n")] == [("output", "a"), ("done", "{}")]


def test_the_python_client_follows_a_job_while_it_runs(streaming: Streaming) -> None:
    new_job(streaming.store)
    job = claimed(streaming.store)
    seen: list[tuple[str, str]] = []
    with httpx.stream("GET", streaming.address(job.id, files=False), timeout=20) as response:
        source = iter(EventSource(Client(api_token="t"), response))
        for number in range(5):
            streaming.store.report(job.id, job.fence, number, output=[f"word {n}\n" for n in range(number + 1)])
            event = next(source)
            seen.append((event.event.value, event.data))
        streaming.store.report(job.id, job.fence, 9.0, status="succeeded")
        seen += [(event.event.value, event.data) for event in source]
    assert seen == [*(("output", f"word {number}\n") for number in range(5)), ("done", "{}")]


def test_a_failure_is_an_exception_in_python(streaming: Streaming) -> None:
    job_id = ended(streaming.store, "failed", error="out of paint")
    address = streaming.address(job_id)
    with httpx.stream("GET", address, timeout=20) as response, pytest.raises(RuntimeError, match="out of paint"):
        list(EventSource(Client(api_token="t"), response))


@pytest.mark.parametrize(
    "text", ["", "\n", "a\nb", "a\r\nb", "a\n\n", "\u2028", "a\x0bb", "event: done", " a", ":b", "ü\0"]
)
def test_text_arrives_whole(streaming: Streaming, text: str) -> None:
    job_id = ended(streaming.store, "succeeded", output=[text])
    with httpx.stream("GET", streaming.address(job_id, files=False), timeout=20) as response:
        output, done = list(EventSource(Client(api_token="t"), response))
    assert (output.data, done.data) == ("\n".join(f"{text}.".splitlines())[:-1], "{}")


def test_what_is_no_text_is_json_and_what_is_no_list_comes_at_the_end(streaming: Streaming) -> None:
    new_job(streaming.store)
    job = claimed(streaming.store)
    with httpx.stream("GET", streaming.address(job.id), timeout=20) as response:
        lines = response.iter_lines()
        streaming.store.report(job.id, job.fence, 1.0, output={"weights": "https://w"}, logs="l")
        assert next(lines) == "event: logs"
        streaming.store.report(job.id, job.fence, 2.0, status="succeeded")
        rest = "\n".join(lines)
    assert rest.count("event: output") == 1
    assert json.loads(re.findall(r"data: (\{.*\})", rest)[0]) == {"weights": "https://w"}


def test_silence_is_broken_by_comments(streaming: Streaming, monkeypatch: pytest.MonkeyPatch) -> None:
    assert streams.KEEP_ALIVE <= 10
    monkeypatch.setattr(streams, "KEEP_ALIVE", 0.05)
    job = new_job(streaming.store)
    with httpx.stream("GET", streaming.address(job.id), timeout=20) as response:
        lines = response.iter_lines()
        assert [next(lines) for _ in range(6)] == [": keep-alive", ""] * 3
        streaming.store.cancel(job.id, 1.0)
        assert '{"reason": "canceled"}' in "".join(lines)


def test_a_job_that_another_worker_began_again_is_told_anew(streaming: Streaming) -> None:
    new_job(streaming.store)
    job = claimed(streaming.store)
    with httpx.stream("GET", streaming.address(job.id), timeout=20) as response:
        lines = response.iter_lines()
        streaming.store.report(job.id, job.fence, 1.0, logs="a longer first try")
        assert next(lines) == "event: logs"
        streaming.store.hand_back(job.id, job.fence, 2.0, error=None, attempts=3)
        again = claimed(streaming.store)
        streaming.store.report(again.id, again.fence, 3.0, status="succeeded", logs="short")
        assert "data: short" in list(lines)


def test_only_the_whole_address_leads_there(streaming: Streaming) -> None:
    job, other = new_job(streaming.store), new_job(streaming.store)
    right = streaming.address(job.id)
    wrong = [
        right[:-1] + ("a" if right[-1] != "a" else "b"),
        right.replace(job.id, other.id),
        right + "a",
        right[:-26] + "ü",
    ]
    assert [httpx.get(address).status_code for address in wrong] == [404] * 4
    head = httpx.head(right)
    assert (head.status_code, head.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")


def test_who_leaves_is_forgotten(streaming: Streaming) -> None:
    job = new_job(streaming.store)
    for _ in range(3):
        with httpx.stream("GET", streaming.address(job.id), timeout=20) as response:
            assert response.status_code == 200
    streaming.store.cancel(job.id, 1.0)
    threading.Event().wait(0.05)
    assert [event[0] for event in streaming.told(job.id)] == ["done"]
