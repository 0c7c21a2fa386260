"""The queue at scale: the policy that the database's claims follow, in a time that passes by itself.

Simulated are arrivals, weights, workers, and a database that takes so many transactions a second; not the network, and
no failures. gateway.scenarios has what docs/scale.md shows of it.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate, islice

from gateway import policy


@dataclass(eq=False)
class Queued:
    """A job that waits."""

    number: int  # in the order of coming
    created_at: float
    key: str
    passed: int = 0
    taken: bool = False


class Queue:
    """As gateway.queueing has it in the database."""

    def __init__(self) -> None:
        self._all: deque[Queued] = deque()
        self._by_key: defaultdict[str, deque[Queued]] = defaultdict(deque)
        self._running: Counter[str] = Counter()

    def add(self, job: Queued) -> None:
        """In the order of coming."""
        self._all.append(job)
        self._by_key[job.key].append(job)

    def claim(self, warm: str | None, *, affinity: bool = True) -> Queued | None:
        """The next one for a worker with these weights; without `affinity` the oldest."""
        oldest = _first(self._all)
        if oldest is None:
            return None
        chosen = (_first(self._by_key[warm]) if warm is not None else None) or self._unused()
        if not affinity or chosen is None or chosen is oldest:
            chosen = oldest
        elif policy.may_pass(chosen.created_at, oldest.created_at, oldest.passed):
            oldest.passed += 1
        else:
            chosen = oldest
        chosen.taken = True
        self._running[chosen.key] += 1
        return chosen

    def end(self, job: Queued) -> None:
        """It runs no more."""
        self._running[job.key] -= 1

    def _unused(self) -> Queued | None:
        waiting = islice((job for job in self._all if not job.taken), policy.LOOKED_AT)
        return next((job for job in waiting if not self._running[job.key]), None)


def _first(jobs: deque[Queued]) -> Queued | None:
    while jobs and jobs[0].taken:
        jobs.popleft()
    return jobs[0] if jobs else None


@dataclass(frozen=True)
class Fleet:
    """Workers, what is asked of them, and the database between. Times in seconds."""

    workers: int
    tunes: int  # LoRAs in use; the second is asked for half as often as the first, the third a third as often
    jobs: int
    load: float = 0.9  # jobs that come, as part of what the workers could do if weights never changed; 0: all at once
    inference: float = 2.5
    change: float = 1.0  # of weights
    affinity: bool = True
    warm_first: bool = False  # of workers that wait, one with the weights takes a job; else whoever asks first
    database: float | None = None  # transactions a second; None: any number
    per_job: float = 5.0  # transactions: create, claim, start, file, end
    reports: float = 4.0  # transactions a second of a job that runs, for its progress
    per_worker: float = 0.4  # transactions a second: two for a heartbeat every five seconds


@dataclass
class Outcome:
    """What came of it."""

    fleet: Fleet
    seconds: float = 0.0
    changes: int = 0
    waits: list[float] = field(default_factory=list)  # seconds from creation to start, of each job
    set_back: int = 0  # the most places that a job lost from the order of coming to that of starting

    @property
    def throughput(self) -> float:
        """Jobs a second."""
        return len(self.waits) / self.seconds

    @property
    def busy(self) -> float:
        """Part of the workers' time that went into inference."""
        return self.throughput * self.fleet.inference / self.fleet.workers

    @property
    def changes_per_job(self) -> float:
        return self.changes / len(self.waits)

    def wait(self, part: float) -> float:
        """Seconds that this part of the jobs did not exceed."""
        return sorted(self.waits)[min(len(self.waits) - 1, int(part * len(self.waits)))]


def simulate(fleet: Fleet, seed: int = 0) -> Outcome:
    """All of its jobs, from the first to come to the last to end."""
    return _Run(fleet, random.Random(seed)).outcome()


class _Run:
    def __init__(self, fleet: Fleet, chance: random.Random) -> None:
        self.fleet, self.chance = fleet, chance
        self.queue, self.result = Queue(), Outcome(fleet)
        self.warm: list[str | None] = [None] * fleet.workers
        self.idle = list(range(fleet.workers))
        self.busy: list[tuple[float, int, Queued]] = []
        self.database_free = 0.0
        self.transaction = _seconds_per_job(fleet)

    def outcome(self) -> Outcome:
        coming = arrivals(self.fleet, self.chance)
        following = next(coming, None)
        while following or self.busy:
            if following and (not self.busy or following.created_at <= self.busy[0][0]):
                now, job = following.created_at, following
                self.queue.add(job)
                following = next(coming, None)
                self.give(now, self.who(job))
            else:
                now, worker, job = heapq.heappop(self.busy)
                self.result.seconds = now
                self.queue.end(job)
                self.idle.append(worker)
                self.give(now, len(self.idle) - 1)
        return self.result

    def who(self, job: Queued) -> int | None:
        """Of those that wait, by their place in the list."""
        if not self.idle:
            return None
        if self.fleet.warm_first:
            places = range(len(self.idle))
            return next((place for place in places if self.warm[self.idle[place]] == job.key), 0)
        return self.chance.randrange(len(self.idle))

    def give(self, now: float, place: int | None) -> None:
        if place is None:
            return
        worker = self.idle[place]
        job = self.queue.claim(self.warm[worker], affinity=self.fleet.affinity)
        if job is None:
            return
        self.idle[place] = self.idle[-1]
        self.idle.pop()
        self.database_free = max(now, self.database_free) + self.transaction
        began = self.database_free if self.transaction else now
        changed = self.warm[worker] != job.key
        self.warm[worker] = job.key
        result = self.result
        result.set_back = max(result.set_back, len(result.waits) - job.number)
        result.changes += changed
        result.waits.append(began - job.created_at)
        heapq.heappush(self.busy, (began + changed * self.fleet.change + self.fleet.inference, worker, job))


def _seconds_per_job(fleet: Fleet) -> float:
    """Of the database, with what the heartbeats leave of it; ValueError when they leave nothing."""
    if fleet.database is None:
        return 0.0
    left = fleet.database - fleet.workers * fleet.per_worker
    if left <= 0:
        raise ValueError(f"the heartbeats of {fleet.workers} workers alone are more than {fleet.database:g} a second")
    return (fleet.per_job + fleet.reports * fleet.inference) / left


def arrivals(fleet: Fleet, chance: random.Random) -> Iterator[Queued]:
    """As they come, by chance."""
    popular = list(accumulate(1 / rank for rank in range(1, fleet.tunes + 1)))
    rate = fleet.load * fleet.workers / fleet.inference
    now = 0.0
    for number in range(fleet.jobs):
        now += chance.expovariate(rate) if rate else 0.0
        yield Queued(number, now, f"tune{chance.choices(range(fleet.tunes), cum_weights=popular)[0]}")
