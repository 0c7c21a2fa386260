"""How much a database takes: `python -m gateway.rates sqlite:///new.db`, or an empty Postgres.

What is measured are the store's calls from threads of one process, as a gateway makes them, without HTTP.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count

from gateway.ids import new_id
from gateway.jobs import Job, Model, Version
from gateway.store import Store, open_store

SECONDS = 4.0  # of each measurement
THREADS = (1, 4, 16)
BASE = "0" * 64
QUEUED = 2_000  # jobs that wait all the time
LOGS = "".join(f"{step * 2}%|{'#' * 20}| {step}/50 [00:01<00:01, 20.0it/s]\n" for step in range(50))
LEASE = 60.0


class Asked:
    """The calls of clients and workers, each by any of several threads."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.numbers = count()
        self.warm: dict[str, str] = {}
        self.held: dict[str, Job] = {}
        store.put_model(Model("me", "sdxl", time.time()))
        store.put_version(Version(BASE, "me/sdxl", time.time(), {}, BASE))
        self.jobs = [self.create().id for _ in range(QUEUED)]

    def create(self) -> Job:
        fields = {"prompt": "An astronaut riding a rainbow unicorn", "num_inference_steps": 50}
        tune = f"{next(self.numbers) % 7}"
        job = Job(new_id(), "prediction", "me", "me/sdxl", BASE, fields, time.time(), weights_key=tune)
        return self.store.create(job)

    def poll(self) -> None:
        self.store.get(self.jobs[next(self.numbers) % QUEUED])

    def claim(self) -> Job:
        name = threading.current_thread().name
        warm = [f"predict:{self.warm[name]}"] if name in self.warm else []
        found = self.store.claim(name, ["predict"], [BASE], warm, time.time(), LEASE)
        if found is None:
            raise LookupError("the queue is empty")
        self.warm[name] = found.job.weights_key
        return found.job

    def whole(self) -> None:
        """Create, claim, start, end."""
        self.create()
        job = self.claim()
        self.store.report(job.id, job.fence, time.time(), status="processing", logs=LOGS[:200])
        output = ["https://gateway.example/v1/files/" + "a" * 26 + "/out-0.png"]
        self.store.report(job.id, job.fence, time.time(), status="succeeded", logs=LOGS, output=output)

    def mine(self) -> Job:
        name = threading.current_thread().name
        if name not in self.held:
            self.held[name] = self.claim()
        return self.held[name]

    def progress(self) -> None:
        job = self.mine()
        self.store.report(job.id, job.fence, time.time(), logs=LOGS[: next(self.numbers) % len(LOGS)])

    def heartbeat(self) -> None:
        job = self.mine()
        self.store.renew(job.worker or "", [(job.id, job.fence)], time.time(), LEASE)
        self.store.seen(job.worker or "", time.time(), {"warm": ["predict:1"]})

    def nothing(self) -> None:
        self.store.claim("w", ["predict"], ["1" * 64], [], time.time(), LEASE)


def measured(store: Store) -> Iterator[tuple[str, int, float]]:
    """(what, threads, times a second)"""
    asked = Asked(store)
    calls: dict[str, Callable[[], object]] = {
        "creates": asked.create,
        "polls": asked.poll,
        "jobs from create to end": asked.whole,
        "reports of progress": asked.progress,
        "heartbeats": asked.heartbeat,
        "claims of an empty queue": asked.nothing,
    }
    for name, call in calls.items():
        for threads in THREADS:
            yield name, threads, rate(call, threads)


def rate(call: Callable[[], object], threads: int) -> float:
    """Calls a second, all threads together."""
    done = [0] * threads
    until = time.monotonic() + SECONDS

    def work(which: int) -> None:
        while time.monotonic() < until:
            call()
            done[which] += 1

    workers = [threading.Thread(target=work, args=(which,), name=f"w{which}") for which in range(threads)]
    for each in workers:
        each.start()
    for each in workers:
        each.join()
    return sum(done) / SECONDS


def main() -> None:
    store = open_store(sys.argv[1])
    store.listen(lambda _: None)
    for name, threads, times in measured(store):
        sys.stdout.write(f"{name:28} {threads:3} threads  {times:9.0f}/s\n")
        sys.stdout.flush()
    store.close()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()
