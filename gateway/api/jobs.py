"""What predictions and trainings have in common: how they are asked for, waited for, shown, listed and canceled."""

from __future__ import annotations

import hashlib
import json
import math
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

from starlette.responses import Response

from gateway import guard, metrics, shapes
from gateway.api.call import Asked
from gateway.api.inline import Inline
from gateway.checks import weights_in
from gateway.ids import derived_id, new_id
from gateway.jobs import Job, Json, Kind
from gateway.limits import throttled
from gateway.logs import about
from gateway.problems import Answer, Problem, invalid, missing
from gateway.site import Known, Site
from gateway.store import NoVersionError

PAGE = 100  # of a list
LONGEST_WAIT = 60  # seconds
AHEAD = 0.3  # seconds before a wait ends at which it is answered: the clients give up half a second after it
LEAST_DEADLINE = 5  # seconds of Cancel-After
FULL = 5  # seconds after which to try again when the queue is full
WAIT = re.compile(r"(?:^|[,;\s])wait(?:\s*=\s*\"?(\d{1,9})\"?)?(?=$|[,;\s])")
AFTER = re.compile(r"(?:(\d{1,6})h)?(?:(\d{1,6})m)?(?:(\d{1,6})s?)?")
ID = re.compile(r"[a-z2-7]{26}")
EVENTS = ("start", "output", "logs", "completed")

BAD_VERSION = Problem(
    422,
    "The specified version does not exist (or perhaps you don't have permission to use it?)",
    title="Invalid version or not permitted",
)
TEXT: Json = {"type": "string", "maxLength": 2048}
ASKED: Json = {
    "input": {"type": "object"},
    "webhook": {**TEXT, "nullable": True},
    "webhook_completed": {**TEXT, "nullable": True},
    "webhook_events_filter": {"type": "array", "items": {"type": "string", "enum": list(EVENTS)}, "nullable": True},
    "stream": {"type": "boolean", "nullable": True},
}
FILTERS: Json = {
    "cursor": {"type": "string"},
    "created_after": {"type": "string", "format": "date-time"},
    "created_before": {"type": "string", "format": "date-time"},
    "source": {"type": "string", "enum": ["web"]},
}
HEADERS: Json = {
    "Prefer": {"type": "string", "description": "wait or wait=n: answer when it has ended, within n (60) seconds"},
    "Cancel-After": {"type": "string", "description": "such as 30s, 5m or 1h30m45s from now; 5 seconds at least"},
    "Idempotency-Key": {"type": "string", "description": "asked for again with the same key, it is the same one"},
}


def create(asked: Asked, kind: Kind, known: Known, **more: Any) -> Job:
    """Queue it. Problem."""
    site = asked.site
    checker = known.checkers[kind]
    if checker is None:
        raise invalid(f"- version: {known.version.id} is not for {kind}s; use a version whose schema has them")
    given, wrong = checker.checked(asked.body.get("input", {}))
    if wrong:
        raise invalid(*wrong)
    webhook = _webhook(asked)
    deadline = _deadline(asked)
    if site.store.queued(asked.account) >= site.settings.queued:
        raise throttled(FULL)
    kept = Inline(site, asked.account).stored(given, checker)
    job = Job(
        id=_id(asked, kind),
        kind=kind,
        owner=asked.account,
        model=known.version.model,
        version=known.version.id,
        input=shapes.hidden(kept, checker.secrets),
        created_at=round(time.time(), 6),  # as it is shown: `created_after` of what was shown finds it
        deadline=deadline,
        weights_key=weights_key(kept | known.version.overrides),
        webhook=webhook,
        webhook_events=_events(asked.body),
        **more,
    )
    try:
        return site.store.create(job)
    except NoVersionError:
        site.forget(known.version.id)
        raise BAD_VERSION from None


def weights_key(values: Json) -> str:
    """Equal for jobs that need the same weights; "" for the plain model."""
    named = weights_in(values)
    return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:16] if named else ""


def _id(asked: Asked, kind: Kind) -> str:
    if not (key := asked.headers.get("idempotency-key")):
        return new_id()
    return derived_id(asked.site.key, "idempotency", kind, asked.account, key)


def _webhook(asked: Asked) -> str | None:
    url = asked.body.get("webhook") or asked.body.get("webhook_completed")
    if not url:
        return None
    try:
        guard.check(url, asked.site.settings.webhooks)
    except ValueError as error:
        raise invalid(f"- webhook: {error}") from error
    return str(url)


def _events(body: Json) -> tuple[str, ...]:
    """`webhook_completed` is what clients of 2022 send."""
    only = ("completed",) if body.get("webhook_completed") and not body.get("webhook") else ()
    return tuple(dict.fromkeys(body.get("webhook_events_filter") or only))


def _deadline(asked: Asked) -> float | None:
    if not (text := asked.headers.get("cancel-after", "").strip()):
        return None
    match = AFTER.fullmatch(text)
    seconds = (
        sum(int(part or 0) * unit for part, unit in zip(match.groups(), (3600, 60, 1), strict=True)) if match else 0
    )
    if seconds < LEAST_DEADLINE:
        raise invalid(
            f"- Cancel-After: {text[:40]!r} is no duration of {LEAST_DEADLINE} seconds or more; send 30s or 1h30m"
        )
    return time.time() + seconds


def creating(make: Callable[[Asked], Job]) -> Callable[[Asked], Awaitable[Response]]:
    """Answers a request for a job, and waits for its end if that is preferred."""

    async def answer(asked: Asked) -> Response:
        site, seconds = asked.site, _wait(asked)
        job = await site.beside(make, asked)
        about.set(job.id)
        if seconds is None:
            return await site.beside(_created, asked, job, {})
        ended = await ending(site, job, asked.at + seconds - AHEAD)
        # Whatever else is said at the end of a wait, clients take for the end of the job.
        shown = ended or replace(job, status="starting")
        applied = {"Preference-Applied": f"wait={seconds}"}
        return await site.beside(_created, asked, shown, applied, status=201 if ended else 202)

    return answer


async def ending(site: Site, job: Job, until: float) -> Job | None:
    """The job once it has ended; None if it has not by `until` (of time.monotonic())."""
    with site.hub.watch(job.id) as changed:
        while True:
            now = await site.beside(site.store.get, job.id)
            if now is not None and now.ended:
                return now
            left = until - time.monotonic()
            if now is None or left <= 0:
                return None
            await changed(min(left, 5.0))


def _wait(asked: Asked) -> int | None:
    match = WAIT.search(asked.headers.get("prefer", "").lower())
    if match is None:
        return None
    return min(max(int(match[1]), 1), LONGEST_WAIT) if match[1] else LONGEST_WAIT


def _created(asked: Asked, job: Job, headers: dict[str, str], status: int = 201) -> Response:
    body = seen(asked, job)
    return Answer(body, status, {**headers, "Location": body["urls"]["get"]})


def seen(asked: Asked, job: Job) -> Json:
    """As this client sees it."""
    return shapes.inlined(asked.site, shapes.job(asked.site, job), asked.headers.get("user-agent", ""))


def own(asked: Asked, kind: Kind) -> Job:
    """The job that the path names; Problem if there is none, or it is another account's."""
    job_id = asked.path["job_id"]
    job = asked.site.store.get(job_id) if ID.fullmatch(job_id) else None
    if job is None or job.owner != asked.account or job.kind != kind:
        raise missing()
    return job


def get(kind: Kind) -> Callable[[Asked], Response]:
    """One job."""
    return lambda asked: Answer(seen(asked, own(asked, kind)))


def cancel(kind: Kind) -> Callable[[Asked], Response]:
    """At once, whoever runs it. Of one that has ended nothing changes."""

    def answer(asked: Asked) -> Response:
        job, now = own(asked, kind), time.time()
        canceled = asked.site.store.cancel(job.id, now)
        if canceled is None:
            raise missing()
        if canceled.completed_at == now:
            metrics.ended(canceled)
        return Answer(seen(asked, canceled))

    return answer


def listing(kind: Kind) -> Callable[[Asked], Response]:
    """An account's jobs, newest first."""

    def answer(asked: Asked) -> Response:
        site = asked.site
        span = {name: when(asked, name) for name in ("created_after", "created_before")}
        if asked.query.get("source") == "web":  # all came by the API
            return Answer(shapes.page("", [], None))
        before = cursor(asked)
        found = site.store.list(kind, asked.account, before=before, limit=PAGE + 1, **span)
        last = found[PAGE - 1] if len(found) > PAGE else None
        kept = {name: asked.query[name] for name in span if asked.query.get(name)}
        url = f"{site.url}/v1/{shapes.PATHS[kind]}?{urlencode(kept)}{'&' * bool(kept)}"
        results = [shapes.job(site, job) for job in found[:PAGE]]
        return Answer(shapes.page(url, results, (last.created_at, last.id) if last else None))

    return answer


def cursor(asked: Asked) -> tuple[float, str] | None:
    """Where in a list to go on; Problem."""
    try:
        return shapes.place(asked.query.get("cursor", ""))
    except ValueError:
        raise invalid("- cursor: It is none of this list; follow `next` of an answer") from None


def when(asked: Asked, name: str) -> float | None:
    """A moment of the query, in unix seconds; Problem."""
    if not (text := asked.query.get(name, "")):
        return None
    try:
        found = datetime.fromisoformat(text)
        seconds = (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        seconds = math.nan
    if not math.isfinite(seconds):
        raise invalid(f"- {name}: {text[:40]!r} is no date and time; send 2026-01-31T12:00:00Z")
    return seconds
