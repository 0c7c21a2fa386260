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


def job(number: int) -> Job:
    fields = {"prompt": "An astronaut riding a rainbow unicorn", "num_inference_steps": 50}
    return Job(
        new_id(), "prediction", "me", "me/sdxl", BASE, fields, time.time(), weights_key=f"{number % 7}"
    )  # fmt: skip


def measured(store: Store) -> Iterator[tuple[str, int, float]]:
    """(what, threads, times a second)"""
    store.put_model(Model("me", "sdxl", time.time()))
    store.put_version(Version(BASE, "me/sdxl", time.time(), {}, BASE))
    jobs = [store.create(job(number)).id for number in range(QUEUED)]
    numbers = count()

    def create() -> None:
        store.create(job(next(numbers)))

    def poll() -> None:
        store.get(jobs[next(numbers) % len(jobs)])

    def whole() -> None:
        """A job from its creation to its end, as gateway and worker do it."""
        store.create(job(next(numbers)))
        name = threading.current_thread().name
        found = store.claim(name, ["predict"], [BASE], [f"predict:{warm.get(name, '')}"], time.time(), LEASE)
        if found is None:
            return
        warm[name] = found.job.weights_key
        store.report(found.job.id, found.job.fence, time.time(), status="processing", logs=LOGS[:200])
        output = ["https://gateway.example/v1/files/" + "a" * 26 + "/out-0.png"]
        store.report(found.job.id, found.job.fence, time.time(), status="succeeded", logs=LOGS, output=output)

    def heartbeat() -> None:
        name = threading.current_thread().name
        if name not in held:
            found = store.claim(name, ["predict"], [BASE], [], time.time(), LEASE)
            held[name] = (found.job.id, found.job.fence) if found else ("", 0)
        store.renew(name, [held[name]], time.time(), LEASE)
        store.seen(name, time.time(), {"warm": ["predict:1"]})

    def empty() -> None:
        store.claim("w", ["predict"], ["1" * 64], [], time.time(), LEASE)

    warm: dict[str, str] = {}
    held: dict[str, tuple[str, int]] = {}
    calls: dict[str, Callable[[], None]] = {
        "creates": create,
        "polls": poll,
        "jobs from create to end": whole,
        "heartbeats": heartbeat,
        "claims of an empty queue": empty,
    }
    for name, call in calls.items():
        for threads in THREADS:
            yield name, threads, rate(call, threads)


def rate(call: Callable[[], None], threads: int) -> float:
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
