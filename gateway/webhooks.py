"""Webhooks: what the store says is due is signed and posted, each receiver in a lane of its own.

A delivery is in the same transaction as the change that it tells of, so none is lost with a gateway. Only the one that
tells of the end is tried again, under the same id, with a fresh timestamp: after 1, 2, 4, 8, 16 and 32 seconds.
"""

from __future__ import annotations

import base64
import hmac
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from anyio import CapacityLimiter, Semaphore, create_task_group, fail_after, to_thread

from gateway.guard import Post
from gateway.jobs import Delivery, Job, Json
from gateway.metrics import DELIVERIES
from gateway.store import Store

PREFIX = "whsec_"
PAUSES = (1, 2, 4, 8, 16, 32)  # seconds before each further try
INTERVAL = 0.25  # seconds between two looks at an outbox that nobody announced anything for
THREADS = 64  # calls at once
LANE = 8  # of them to one host
IN_LANE = (
    20.0  # seconds that a delivery waits for its lane; with the call itself it stays below the minute of Store.due
)

log = logging.getLogger("gateway.webhooks")


def new_key() -> str:
    """A signing key. Standard base64: clients split it at its underscore, and there must be one only."""
    return PREFIX + base64.b64encode(secrets.token_bytes(24)).decode()


def sign(key: str, message: str, timestamp: int, body: bytes) -> str:
    """The webhook-signature header."""
    signed = b".".join((message.encode(), str(timestamp).encode(), body))
    digest = hmac.digest(base64.b64decode(key.removeprefix(PREFIX)), signed, "sha256")
    return f"v1,{base64.b64encode(digest).decode()}"


def superseded(delivery: Delivery, job: Job) -> bool:
    """Whether news of a running job come too late: it has ended, which its receiver is told anyway."""
    told = not job.webhook_events or "completed" in job.webhook_events
    return delivery.event != "completed" and job.ended and told


def next_try(delivery: Delivery, now: float) -> float | None:
    """When to try again after a failure (unix seconds); None: never."""
    if delivery.event != "completed" or delivery.tries >= len(PAUSES):
        return None
    return now + PAUSES[delivery.tries]


@dataclass(frozen=True)
class Courier:
    """Makes the calls.

    render  a job as GET shows it
    key     signs all of them
    """

    store: Store
    render: Callable[[Job], Json]
    key: str
    post: Post

    def call(self, delivery: Delivery) -> None:
        """One try, and what follows from it; blocks for at most half a minute."""
        job = self.store.get(delivery.job)
        if job is None or superseded(delivery, job):
            self.store.delivered(delivery.id)
            return
        body = json.dumps(self.render(job)).encode()
        now = int(time.time())
        headers = {
            "Content-Type": "application/json",
            "webhook-id": delivery.id,
            "webhook-timestamp": str(now),
            "webhook-signature": sign(self.key, delivery.id, now, body),
        }
        try:
            status = self.post(delivery.url, body, headers)
        except ValueError as error:  # refused by the guard, now and for ever
            self._finish(delivery, "refused", str(error))
        except OSError as error:
            self.fail(delivery, type(error).__name__)
        else:
            if status >= 400:
                self.fail(delivery, f"the receiver answers {status}")
            else:  # a redirect is not followed, and is no reason to call again
                self._finish(delivery, "delivered" if status < 300 else "redirected", str(status))

    def fail(self, delivery: Delivery, why: str) -> None:
        """Try again later, or give up."""
        again = next_try(delivery, time.time())
        self._count(delivery, "given up" if again is None else "postponed", why)
        self.store.postpone(delivery.id, again)

    def _finish(self, delivery: Delivery, outcome: str, why: str) -> None:
        self._count(delivery, outcome, why)
        self.store.delivered(delivery.id)

    def _count(self, delivery: Delivery, outcome: str, why: str) -> None:
        DELIVERIES.labels(delivery.event, outcome).inc()
        facts = {"job": delivery.job, "webhook": delivery.id, "event": delivery.event, "tries": delivery.tries + 1}
        log.info("webhook %s: %s", outcome, why, extra=facts)


@dataclass(frozen=True)
class Lanes:
    """Lets through a few calls to each host at once, so that a slow one holds up nobody but itself."""

    open: dict[str, Semaphore] = field(default_factory=dict)

    @asynccontextmanager
    async def lane(self, host: str) -> AsyncIterator[None]:
        """TimeoutError when it does not get free."""
        lane = self.open.setdefault(host, Semaphore(LANE))
        with fail_after(IN_LANE):
            await lane.acquire()
        try:
            yield
        finally:
            lane.release()
            if lane.value == LANE and not lane.statistics().tasks_waiting:
                self.open.pop(host, None)


async def deliver(courier: Courier, pause: Callable[[float], Awaitable[object]]) -> None:
    """Carry out what is due, until cancelled. `pause` returns after so many seconds, or earlier when told."""
    lanes, threads = Lanes(), CapacityLimiter(THREADS)

    async def carry(delivery: Delivery) -> None:
        with logged(delivery.job):
            try:
                async with lanes.lane(urlsplit(delivery.url).netloc):
                    await to_thread.run_sync(courier.call, delivery, limiter=threads, abandon_on_cancel=True)
            except TimeoutError:
                await to_thread.run_sync(courier.fail, delivery, "too many calls to its host are under way")

    async with create_task_group() as tasks:
        while True:
            found: Sequence[Delivery] = ()
            with logged():
                found = await to_thread.run_sync(courier.store.due, time.time())
            for delivery in found:
                tasks.start_soon(carry, delivery)
            if not found:
                await pause(INTERVAL)


@contextmanager
def logged(job: str | None = None) -> Iterator[None]:
    """A database that is away for a while ends no loop: what was taken is due again in a minute."""
    try:
        yield
    except Exception:
        log.exception("a webhook could not be seen to; it will be tried again", extra={"job": job})
