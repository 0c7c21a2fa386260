"""Server-sent events of a job: what is new in its row since the last event, so a stream can break and go on anywhere.

The names of events and the `id` on each of them are what the official clients take; any other name makes the Python one
raise, and it drops events without an id. Its read timeout is 30 seconds, and the cold boot of a worker takes longer:
hence the comments in between.
"""

from __future__ import annotations

import hmac
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from gateway.ids import derived_id
from gateway.jobs import ENDED, Json

Look = Callable[[str], Awaitable[Json | None]]  # a job as GET shows it
Changed = Callable[[float], Awaitable[bool]]  # whether it changed within so many seconds
Watch = Callable[[str], AbstractContextManager[Changed]]

KEEP_ALIVE = 10.0  # seconds of silence at most
FILES, TEXT = "/v1/files/streams", "/v1/streams"  # below /v1/files/ the JavaScript client makes files of outputs
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no", "X-Content-Type-Options": "nosniff"}
EVENT_ID = re.compile(r"\d{1,12}:(\d{1,18})")
MOST_LOGS = 10**9  # characters


def path(job_id: str, key: str, *, files: bool) -> str:
    """Where a job is streamed, unguessable since the JavaScript client sends no token there; `key` is the gateway's."""
    return f"{FILES if files else TEXT}/{job_id}/{_secret(job_id, key)}"


def routes(look: Look, watch: Watch, key: str) -> list[Route]:
    """For the table of the application, from the root on. `watch` tells of a job's changes while its context lasts."""

    async def stream(request: Request) -> Response:
        job_id = request.path_params["job_id"]
        right = hmac.compare_digest(request.path_params["secret"].encode(), _secret(job_id, key).encode())
        if not right or await look(job_id) is None:
            raise HTTPException(404, "There is no such stream; use the address in urls.stream.")
        if request.method == "HEAD":
            return Response(media_type="text/event-stream", headers=HEADERS)
        start = Position.after(request.headers.get("Last-Event-ID", ""))
        return StreamingResponse(events(job_id, start, look, watch), media_type="text/event-stream", headers=HEADERS)

    return [Route(f"{place}/{{job_id}}/{{secret}}", stream) for place in (FILES, TEXT)]


@dataclass(frozen=True)
class Position:
    """How much of a job has been sent: items of its output, characters of its logs."""

    items: int = 0
    logs: int = 0

    @classmethod
    def after(cls, event_id: str) -> Position:
        """Where a stream goes on after the event of this id; at the beginning if it is none of ours."""
        match = EVENT_ID.fullmatch(event_id)
        return cls(*divmod(int(match[1]), MOST_LOGS)) if match else cls()

    def event_id(self) -> str:
        return f"{int(time.time())}:{self.items * MOST_LOGS + self.logs}"


async def events(job_id: str, start: Position, look: Look, watch: Watch) -> AsyncIterator[str]:
    """The stream's text, until the job has ended."""
    at = start
    with watch(job_id) as changed:
        while shown := await look(job_id):
            for name, data, after in news(shown, at):
                at = after
                yield event(name, data, at)
            if shown["status"] in ENDED:
                return
            if not await changed(KEEP_ALIVE):
                yield ": keep-alive\n\n"


def news(shown: Json, at: Position) -> Iterator[tuple[str, str, Position]]:
    """(event, data, position after it) of what a job shows beyond a position."""
    logs, items = shown.get("logs") or "", _items(shown)
    # A job that another worker began again has less than it had.
    at = Position(at.items if at.items <= len(items) else 0, at.logs if at.logs <= len(logs) else 0)
    if len(logs) > at.logs:
        at, fresh = replace(at, logs=len(logs)), logs[at.logs :]
        yield "logs", fresh, at
    for item in items[at.items :]:
        at = replace(at, items=at.items + 1)
        yield "output", item, at
    if shown["status"] == "failed":
        yield "error", json.dumps({"detail": shown.get("error")}), at
    if shown["status"] in ENDED:
        reason = {"failed": {"reason": "error"}, "canceled": {"reason": "canceled"}}.get(shown["status"], {})
        yield "done", json.dumps(reason), at


def event(name: str, data: str, at: Position) -> str:
    """One event. A line of data ends wherever the client below the Python one, httpx, sees an end of line."""
    lines = f"{data}.".splitlines()
    lines[-1] = lines[-1][:-1]
    return "".join((f"event: {name}\n", f"id: {at.event_id()}\n", *(f"data: {line}\n" for line in lines), "\n"))


def _items(shown: Json) -> list[str]:
    """The output's items as text; one that is no list is complete at the end only."""
    output: Any = shown.get("output")
    if not isinstance(output, list):
        output = [] if output is None or shown["status"] not in ENDED else [output]
    return [item if isinstance(item, str) else json.dumps(item) for item in output]


def _secret(job_id: str, key: str) -> str:
    return derived_id(key, "stream", job_id)
