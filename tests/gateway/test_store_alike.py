"""Random histories on SQLite and Postgres side by side: the same answers, and one end for each job."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from gateway.ids import new_id
from gateway.jobs import ENDED, Job, Model, Version
from gateway.policy import LONGEST_WAIT
from gateway.store import StaleError, Store, open_store
from tests.gateway.databases import Postgres

ATTEMPTS = 3
LEASE = 30.0
KEYS = ["", "a", "b"]
WORKERS = ["v", "w"]


@pytest.fixture(scope="module")
def stores(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Store]]:
    urls = [f"sqlite:///{tmp_path_factory.mktemp('alike')}/gateway.db", postgres.new_database()]
    stores = [open_store(url) for url in urls]
    yield stores
    for store in stores:
        store.close()


class History(RuleBasedStateMachine):
    """Each has a base version of its own, so that its queue is empty at first."""

    stores: list[Store]
    start = 1_000_000.0  # each history is long after the one before, whose leases have run out by then

    def __init__(self) -> None:
        super().__init__()
        History.start += 1_000_000
        self.now = History.start
        self.base = (new_id() * 3)[:64]
        self.jobs: list[str] = []
        self.held: dict[str, tuple[str, int]] = {}  # what workers believe to hold
        self.ended: dict[str, Job] = {}
        self.fences: dict[str, int] = {}
        self.both(lambda store: store.sweep(self.now, attempts=1))
        self.both(lambda store: store.put_model(Model("me", "sdxl", 1.0)))
        self.both(lambda store: store.put_version(Version(self.base, "me/sdxl", 1.0, {}, self.base)))

    def both(self, ask: Callable[[Store], Any]) -> Any:
        """The answer, which must be the same."""
        first, second = (answer(store, ask) for store in self.stores)
        assert first == second
        return first

    def seen(self, job_id: str) -> Any:
        return self.both(lambda store: store.get(job_id))

    def deliver(self, call: str) -> None:
        self.both(lambda store: store.delivered(call))

    def succeed(self, job: Job) -> None:
        self.both(lambda store: store.report(job.id, job.fence, self.now, status="succeeded"))

    def a_job(self, data: st.DataObject) -> str:
        return data.draw(st.sampled_from(self.jobs))

    def fence(self, data: st.DataObject, job_id: str) -> int:
        """That of the worker which holds it, more often than another."""
        held = self.held.get(job_id, ("", 0))[1]
        return data.draw(st.sampled_from([held, held, held, max(0, held - 1)]))

    @rule(key=st.sampled_from(KEYS), wait=st.sampled_from([0.0, 1.0, LONGEST_WAIT]), deadline=st.booleans())
    def create(self, key: str, wait: float, deadline: bool) -> None:
        self.now += wait
        job = Job(
            new_id(), "prediction", "me", "me/sdxl", self.base, {"prompt": key}, self.now, weights_key=key,
            deadline=self.now + 60 if deadline else None, webhook="https://a.example",
        )  # fmt: skip
        assert self.both(lambda store: store.create(job)) == job
        self.jobs.append(job.id)

    @rule(worker=st.sampled_from(WORKERS), warm=st.lists(st.sampled_from(KEYS), max_size=2))
    def claim(self, worker: str, warm: list[str]) -> None:
        keys = [f"predict:{key}" for key in warm]
        found = self.both(lambda store: store.claim(worker, ["predict"], [self.base], keys, self.now, LEASE))
        if found is None:
            return
        job = found.job
        assert job.id not in self.ended
        assert job.id not in self.held, "two workers have it"
        assert job.deadline is None or job.deadline > self.now
        assert (job.worker, job.lease_until) == (worker, self.now + LEASE)
        self.held[job.id] = (worker, job.fence)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), status=st.sampled_from([None, "processing", "succeeded", "failed", "canceled"]))
    def report(self, data: st.DataObject, status: str | None) -> None:
        job_id = self.a_job(data)
        fence = self.fence(data, job_id)
        logs = data.draw(st.sampled_from([None, "a", "b"]))
        said = self.both(lambda store: store.report(job_id, fence, self.now, status=status, logs=logs))
        if said == "stale":
            assert (job_id not in self.held) or self.held[job_id][1] != fence
        elif said.ended:
            self.held.pop(job_id, None)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), error=st.sampled_from([None, "crashed"]))
    def hand_back(self, data: st.DataObject, error: str | None) -> None:
        job_id = self.a_job(data)
        fence = self.fence(data, job_id)
        said = self.both(lambda store: store.hand_back(job_id, fence, self.now, error=error, attempts=ATTEMPTS))
        if said != "stale":
            assert self.held.pop(job_id)[1] == fence

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        job_id = self.a_job(data)
        assert self.both(lambda store: store.cancel(job_id, self.now)).ended
        self.held.pop(job_id, None)

    @rule(worker=st.sampled_from(WORKERS))
    def renew(self, worker: str) -> None:
        held = [(job_id, fence) for job_id, (holder, fence) in self.held.items() if holder == worker]
        wrong = [(job_id, fence) for job_id, (holder, fence) in self.held.items() if holder != worker]
        assert self.both(lambda store: store.renew(worker, held, self.now, LEASE)) == []
        lost = self.both(lambda store: store.renew(worker, wrong, self.now, LEASE))
        assert lost == [job_id for job_id, _ in wrong]

    @rule(wait=st.sampled_from([0.0, 10.0, LEASE]))
    def sweep(self, wait: float) -> None:
        self.now += wait
        self.both(lambda store: store.sweep(self.now, attempts=ATTEMPTS))
        for job_id, (_, fence) in list(self.held.items()):
            job = self.seen(job_id)
            if job.fence != fence:
                del self.held[job_id]
            else:
                assert job.lease_until > self.now

    @invariant()
    def ends_are_ends(self) -> None:
        for job_id in self.jobs:
            job = self.seen(job_id)
            assert self.ended.get(job_id, job) == job
            assert job.fence >= self.fences.get(job_id, 0)
            assert job.attempt <= ATTEMPTS + 1
            assert (job.completed_at is not None) == (job.status in ENDED)
            assert job.ended or (job.worker is not None) == (job_id in self.held)
            self.fences[job_id] = job.fence
            if job.ended:
                self.ended[job_id] = job

    def teardown(self) -> None:
        """Each that ended has one call of its webhook, and each that did not can still be done."""
        calls = self.calls()
        assert sorted(job_id for job_id, _ in calls) == sorted(self.ended)
        for _, call in calls:
            self.deliver(call)
        self.now += 1000
        self.both(lambda store: store.sweep(self.now, attempts=ATTEMPTS + 2))
        while found := self.both(lambda store: store.claim("z", ["predict"], [self.base], [], self.now, LEASE)):
            self.succeed(found.job)
        for job_id in self.jobs:
            assert self.seen(job_id).ended
        assert {job_id for job_id, _ in self.calls()} >= set(self.jobs) - set(self.ended)

    def calls(self) -> list[tuple[str, str]]:
        """Of this history: job and delivery. They are not taken down, so a later history sees them as well."""
        found = self.both(lambda store: sorted((each.job, each.id) for each in store.due(self.now, limit=10_000)))
        return [(job_id, call) for job_id, call in found if job_id in self.jobs]


def answer(store: Store, ask: Callable[[Store], Any]) -> Any:
    try:
        return ask(store)
    except StaleError:
        return "stale"


def histories(stores: list[Store], examples: int) -> None:
    History.stores = stores
    run_state_machine_as_test(
        History,
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            phases=[Phase.explicit, Phase.generate, Phase.shrink],
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_histories(stores: list[Store]) -> None:
    histories(stores, 40)


@pytest.mark.soak
def test_many_histories(stores: list[Store]) -> None:
    histories(stores, 300)
