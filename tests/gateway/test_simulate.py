"""The simulation takes the jobs that the database takes, and shows what the policy is for."""

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from gateway import policy
from gateway.charts import Axis, lines
from gateway.jobs import Job, Model, Version
from gateway.simulate import Fleet, Outcome, Queue, Queued, simulate
from gateway.store import Store, open_store

BASE = "0" * 64


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = open_store(f"sqlite:///{tmp_path}/a.db")
    store.put_model(Model("me", "sdxl", 1.0))
    store.put_version(Version(BASE, "me/sdxl", 1.0, {}, BASE))
    yield store
    store.close()


@pytest.mark.parametrize("seed", range(5))
def test_the_simulated_queue_is_the_databases(store: Store, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "MOST_PASSED", 8)
    chance, queue, now = random.Random(seed), Queue(), 1000.0
    workers: dict[str, tuple[Job, Queued] | None] = dict.fromkeys("abcd")
    warm: dict[str, str | None] = dict.fromkeys("abcd")
    for number in range(400):
        now += chance.choice([0.0, 0.5, 9.0])
        if chance.random() < 0.55:
            key = f"tune{chance.randrange(6)}"
            store.create(Job(f"{number:026}", "prediction", "me", "me/sdxl", BASE, {}, now, weights_key=key))
            queue.add(Queued(number, now, key))
        worker = chance.choice("abcd")
        if held := workers[worker]:
            store.report(held[0].id, held[0].fence, now, status="succeeded")
            queue.end(held[1])
        known = warm[worker]
        claimed = store.claim(worker, ["predict"], [BASE], [f"predict:{known}"] if known else [], now, 1e9)
        simulated = queue.claim(known)
        workers[worker] = None
        assert (claimed is None) == (simulated is None)
        if claimed and simulated:
            assert int(claimed.job.id) == simulated.number
            workers[worker] = (claimed.job, simulated)
            warm[worker] = simulated.key


def compared(fleet: Fleet) -> tuple[Outcome, Outcome]:
    """In the order of coming, and by weights."""
    return simulate(replace(fleet, affinity=False)), simulate(fleet)


@pytest.mark.parametrize("workers", [1, 4, 100])
def test_affinity_makes_pictures_of_the_time_that_changes_took(workers: int) -> None:
    plain, by_weights = compared(Fleet(workers, tunes=7 + workers, jobs=4000))
    assert len(by_weights.waits) == 4000
    assert by_weights.changes_per_job < plain.changes_per_job / 2
    assert by_weights.busy > plain.busy + 0.08
    assert max(by_weights.waits) < max(plain.waits)


@pytest.mark.parametrize("seed", range(10))
def test_a_burst_changes_weights_seldom_and_is_done_earlier(seed: int) -> None:
    plain, by_weights = (
        simulate(Fleet(workers=4, tunes=7, jobs=2000, load=0, affinity=affinity), seed) for affinity in (False, True)
    )
    assert by_weights.changes <= 15
    assert max(by_weights.waits) < max(plain.waits)


def test_nobody_starves_for_a_popular_tune() -> None:
    """A flood for one tune, and one job for another in it."""
    queue = Queue()
    flood = [Queued(number, number * 0.1, "popular") for number in range(2000)]
    rare = Queued(500, 50.05, "rare")
    for job in sorted([*flood, rare], key=lambda each: each.created_at):
        queue.add(job)
    taken: list[Queued] = []
    while found := queue.claim("popular"):
        taken.append(found)
    before = taken[: taken.index(rare)]
    assert max(job.created_at for job in before) <= rare.created_at + policy.LONGEST_WAIT
    assert sum(job.created_at > rare.created_at for job in before) <= policy.MOST_PASSED


def test_a_database_that_is_too_slow_is_what_breaks() -> None:
    fleet = Fleet(workers=1000, tunes=7, jobs=4000)
    assert simulate(replace(fleet, database=1_000.0)).busy < simulate(fleet).busy / 2
    with pytest.raises(ValueError, match="heartbeats of 1000 workers"):
        simulate(replace(fleet, database=100.0))


def test_charts_are_svg_with_a_line_for_each_series() -> None:
    series = {"a & b": [(1.0, 0.5), (10.0, 2.0)], "c": [(1.0, 1.0), (100.0, 0.0)]}
    drawn = lines("<title>", Axis("x", (1, 10, 100), logarithmic=True), Axis("y", (0, 0.5, 1)), series)
    root = ElementTree.fromstring(drawn)
    texts = [each.text for each in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"<title>", "a & b", "c", "x", "y", "100", "0.5"} <= set(texts)
    assert len(list(root.iter("{http://www.w3.org/2000/svg}polyline"))) == 2
