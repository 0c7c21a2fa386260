"""SQLite and Postgres as the record of jobs and their queue: the same answers, whoever asks and whatever dies."""

import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gateway.ids import new_id, version_id
from gateway.jobs import Claimed, File, Job, Kind, Model, Version
from gateway.policy import LONGEST_WAIT, MOST_PASSED
from gateway.store import NoVersionError, StaleError, Store, UnavailableError, hidden, open_store
from tests.gateway.databases import Postgres

BASE = version_id({"predict": {"openapi": "3.0.2"}, "train": None})
MODEL = Model("acme", "sdxl", 1.0, details={"github_url": "https://example.com"})
VERSION = Version(BASE, MODEL.full_name, 1.0, {"openapi": "3.0.2"}, BASE, cog_version="0.23.1")
NOW = 1_000_000.0
LEASE = 30.0
URL = "https://gateway.example/v1/files/{}/weights.tar"


@pytest.fixture
def store(database: str) -> Iterator[Store]:
    store = open_store(database)
    prepare(store)
    yield store
    store.close()


def prepare(store: Store) -> None:
    store.put_model(MODEL)
    store.put_version(VERSION)


def job(created_at: float = NOW, kind: Kind = "prediction", **fields: Any) -> Job:
    values: dict[str, Any] = {"owner": "acme", "model": MODEL.full_name, "version": BASE, "input": {"prompt": "a cat"}}
    return Job(id=new_id(), kind=kind, created_at=created_at, **values | fields)


def claim(store: Store, *warm: str, worker: str = "w", now: float = NOW, pool: str = "predict") -> Claimed | None:
    return store.claim(worker, [pool], [BASE], [f"{pool}:{key}" for key in warm], now, LEASE)


def claimed(store: Store, *warm: str, **more: Any) -> Job:
    found = claim(store, *warm, **more)
    assert found is not None
    return found.job


def events(store: Store) -> list[str]:
    """Of all deliveries, those that are not due yet too."""
    return [each.event for each in store.due(NOW + 10_000, limit=1000)]


def test_a_job_is_kept_as_it_was_given(store: Store) -> None:
    odd = {"prompt": "nul \0, half a pair \ud83d, 漢字", "numbers": [1, 2.5, None, True]}
    given = job(input=odd, webhook="https://a.example", webhook_events=("start", "logs"), deadline=NOW + 9)
    assert store.create(given) == given
    assert store.get(given.id) == given
    assert store.create(replace(given, input={})) == given
    assert store.get(new_id()) is None
    assert store.queued("acme") == 1
    assert store.queued("others") == 0
    with pytest.raises(NoVersionError):
        store.create(job(version="0" * 64))


def test_lists_are_newest_first_and_go_on_from_where_a_page_ended(store: Store) -> None:
    made = [store.create(job(NOW + number // 2)) for number in range(7)]
    store.create(job(owner="others"))
    store.create(job(kind="training"))
    expected = sorted(made, key=lambda each: (each.created_at, each.id), reverse=True)
    first = store.list("prediction", "acme", limit=3)
    rest = store.list("prediction", "acme", before=(first[-1].created_at, first[-1].id))
    assert [*first, *rest] == expected
    bounded = store.list("prediction", "acme", created_after=NOW + 1, created_before=NOW + 3)
    assert bounded == [each for each in expected if NOW + 1 <= each.created_at < NOW + 3]


def test_a_job_from_claim_to_end(store: Store) -> None:
    heard: list[str] = []
    store.listen(heard.append)
    queued = store.create(job())
    running = claimed(store)
    assert running == replace(queued, worker="w", lease_until=NOW + LEASE, fence=1, attempt=1, changed=1)
    assert claim(store) is None
    processing = store.report(queued.id, 1, NOW + 1, status="processing", logs="50%|###  | 1/2")
    assert (processing.status, processing.started_at) == ("processing", NOW + 1)
    ended = store.report(queued.id, 1, NOW + 2, status="succeeded", output=["a", "b"], metrics={"predict_time": 1.5})
    assert (ended.status, ended.completed_at, ended.lease_until) == ("succeeded", NOW + 2, None)
    assert (ended.output, ended.logs, ended.metrics) == (["a", "b"], processing.logs, {"predict_time": 1.5})
    assert store.report(queued.id, 1, NOW + 3, status="failed", error="too late") == ended
    assert store.cancel(queued.id, NOW + 4) == ended
    assert store.get(queued.id) == ended
    assert store.queued("acme") == 0
    until(lambda: heard.count(queued.id) >= 4)
    assert "queue" in heard


def test_a_late_worker_changes_nothing(store: Store) -> None:
    first = claimed(store) if store.create(job()) else None
    assert first is not None
    store.sweep(NOW + LEASE, attempts=3)
    second = claimed(store, worker="v", now=NOW + LEASE)
    assert (second.id, second.fence, second.attempt) == (first.id, 3, 2)
    assert store.renew("w", [(first.id, first.fence)], NOW, LEASE) == [first.id]
    assert store.renew("w", [(first.id, second.fence)], NOW, LEASE) == [first.id]
    assert store.renew("v", [(first.id, second.fence)], NOW + 40, LEASE) == []
    with pytest.raises(StaleError):
        store.report(first.id, first.fence, NOW, status="succeeded", output="mine")
    with pytest.raises(StaleError):
        store.hand_back(first.id, first.fence, NOW, error="mine", attempts=1)
    with pytest.raises(StaleError):
        store.report(new_id(), 1, NOW)
    assert store.get(first.id) == replace(second, lease_until=NOW + 40 + LEASE)
    canceled = store.cancel(first.id, NOW + 50)
    assert canceled is not None
    assert (canceled.status, canceled.fence) == ("canceled", 4)
    with pytest.raises(StaleError):
        store.report(first.id, second.fence, NOW + 51, status="succeeded")


def test_a_job_that_no_worker_can_end_fails_after_so_many_attempts(store: Store) -> None:
    given = store.create(job())
    polite = claimed(store)
    assert store.hand_back(given.id, polite.fence, NOW, error=None, attempts=1).attempt == 0
    again = claimed(store)
    store.report(given.id, again.fence, NOW, status="processing", logs="half", output=["half"])
    back = store.hand_back(given.id, again.fence, NOW, error="crashed", attempts=2)
    assert (back.status, back.logs, back.output, back.started_at) == ("starting", "", None, None)
    last = claimed(store)
    failed = store.hand_back(given.id, last.fence, NOW + 5, error="crashed", attempts=2)
    assert (failed.status, failed.error, failed.completed_at) == ("failed", "crashed", NOW + 5)
    lost = store.create(job())
    for _ in range(2):
        claimed(store)
        store.sweep(NOW + LEASE, attempts=2)
    swept = store.get(lost.id)
    assert swept is not None
    assert swept.status == "failed"
    assert "lost 2 times" in (swept.error or "")


def test_deadlines_end_jobs_in_the_queue_and_on_workers(store: Store) -> None:
    waiting = store.create(job(deadline=NOW + 5, webhook="https://a.example"))
    assert claim(store, now=NOW + 6) is None
    running = store.create(job(deadline=NOW + 50))
    claimed(store, now=NOW + 6)
    store.sweep(NOW + 7, attempts=3)
    store.sweep(NOW + 8, attempts=3)
    ended = store.get(waiting.id)
    assert ended is not None
    assert (ended.status, ended.completed_at) == ("canceled", NOW + 7)
    assert events(store) == ["completed"]
    store.sweep(NOW + 50, attempts=3)
    found = store.get(running.id)
    assert found is not None
    assert found.status == "canceled"


def test_workers_get_what_they_serve(store: Store) -> None:
    other = replace(VERSION, id="1" * 64, base="1" * 64)
    tuned = replace(VERSION, id="2" * 64, overrides={"replicate_weights": "https://a.example/w.tar"})
    store.put_version(other)
    store.put_version(tuned)
    store.create(job(version=other.id))
    store.create(job(kind="training"))
    mine = store.create(job(NOW + 1, version=tuned.id))
    found = claim(store)
    assert found is not None
    assert (found.job.id, found.version, found.lease) == (mine.id, tuned, LEASE)
    assert claim(store) is None
    assert claimed(store, pool="train").kind == "training"
    many = store.claim("w", ["predict", "train"], [BASE, other.id], [], NOW, LEASE)
    assert many is not None
    assert many.job.version == other.id


def test_warm_weights_pass_the_oldest_within_bounds(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.policy.MOST_PASSED", 20)
    oldest = store.create(job(NOW, weights_key="a"))
    near = store.create(job(NOW + LONGEST_WAIT, weights_key="b"))
    far = store.create(job(NOW + LONGEST_WAIT + 1, weights_key="b"))
    assert claimed(store, "b").id == near.id
    assert claimed(store, "b").id == oldest.id
    assert claimed(store).id == far.id
    first = store.create(job(NOW, weights_key="a"))
    for _ in range(20):
        store.create(job(NOW + 1, weights_key="b"))
        assert claimed(store, "c", "b").weights_key == "b"
    store.create(job(NOW + 1, weights_key="b"))
    assert claimed(store, "b").id == first.id


@pytest.mark.parametrize("arrivals", ["at once", "spread"])
def test_two_thousand_jobs_over_seven_tunes_and_four_workers(tmp_path: Path, arrivals: str) -> None:
    """SQLite: the test above shows that both choose alike. Each job takes a second."""
    store = open_store(f"sqlite:///{tmp_path}/queue.db")
    prepare(store)
    gap = {"at once": 0.0, "spread": 0.01}[arrivals]
    for number in range(2000):
        store.create(job(NOW + number * gap, weights_key=f"tune{number * 5 % 7}"))
    held: dict[str, Job] = {}
    switches, taken = 0, []
    for step in itertools.count():
        worker, now = "abcd"[step % 4], NOW + 20 + step / 4
        before = held.get(worker)
        if before:
            store.report(before.id, before.fence, now, status="succeeded")
        found = claim(store, *([before.weights_key] if before else []), worker=worker, now=now)
        if found is None:
            break
        switches += before is None or before.weights_key != found.job.weights_key
        held[worker] = found.job
        taken.append(found.job)
    store.close()
    assert len({each.id for each in taken}) == 2000
    assert switches <= 15
    assert most_passed(taken) <= MOST_PASSED


def most_passed(taken: list[Job]) -> int:
    """How many were taken at most while one and the same was the oldest that waited."""
    waiting = sorted(taken, key=lambda each: (each.created_at, each.id), reverse=True)
    gone: set[str] = set()
    most = passed = 0
    for each in taken:
        while waiting[-1].id in gone:
            waiting.pop()
            passed = 0
        passed += each.id != waiting[-1].id
        most = max(most, passed)
        gone.add(each.id)
    return most


def test_threads_never_take_the_same_job(store: Store) -> None:
    expected = {store.create(job(NOW + number, weights_key=f"{number % 3}")).id for number in range(120)}
    taken: list[str] = []

    def work(name: str) -> None:
        while found := claim(store, name, worker=name):
            taken.append(found.job.id)
            store.report(found.job.id, found.job.fence, NOW, status="succeeded", output=name)

    in_threads(6, work)
    assert Counter(taken) == Counter(expected)


def test_processes_never_take_the_same_job(database: str) -> None:
    store = open_store(database)
    prepare(store)
    expected = {store.create(job(NOW + number)).id for number in range(200)}
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        taken = [each for part in pool.map(take_all, [database] * 3) for each in part]
    assert Counter(taken) == Counter(expected)
    store.close()


def take_all(database: str) -> list[str]:
    """In a process of its own."""
    store = open_store(database)
    taken = []
    while found := claim(store, worker=str(os.getpid())):
        taken.append(found.job.id)
    store.close()
    return taken


def test_many_creates_of_one_id_are_one_job(store: Store) -> None:
    given = job()
    answers: list[Job] = []
    in_threads(6, lambda _: answers.append(store.create(given)))
    assert answers == [given] * 6
    claimed(store)
    assert claim(store) is None


def test_a_training_makes_its_version_when_it_succeeds(store: Store) -> None:
    file = File(new_id(), "acme", "weights.tar", "application/x-tar", 3, "0", "0", NOW, NOW + 60)
    store.put_file(file)
    given = store.create(job(kind="training", destination="me/mine"))
    fence = claimed(store, pool="train").fence
    url = URL.format(file.id)
    ended = store.report(given.id, fence, NOW + 9, status="succeeded", output={"weights": url, "version": None})
    (version,) = store.list_versions("me/mine")
    assert ended.output == {"version": f"me/mine:{version.id}", "weights": url}
    assert version.overrides == {"replicate_weights": url}
    assert (version.base, version.schema, version.training) == (BASE, VERSION.schema, given.id)
    model = store.get_model("me/mine")
    assert model is not None
    assert model.latest_version == version.id
    assert store.report(given.id, fence, NOW + 10, status="succeeded", output={"weights": url}) == ended
    assert len(store.list_versions("me/mine")) == 1
    assert store.expire(NOW + 99, keep=1e9) == []  # its weights would have expired by then
    tuned = store.create(job(version=version.id, model="me/mine"))
    found = claim(store)
    assert found is not None
    assert (found.job.id, found.version) == (tuned.id, version)


def test_a_training_without_weights_fails(store: Store) -> None:
    given = store.create(job(kind="training", destination="me/mine"))
    ended = store.report(given.id, claimed(store, pool="train").fence, NOW, status="succeeded", output={})
    assert (ended.status, ended.error) == ("failed", "The training ended without weights.")
    assert store.get_model("me/mine") is None


def test_webhooks_are_queued_with_the_change(store: Store) -> None:
    every = ("start", "output", "logs", "completed")
    given = store.create(job(webhook="https://a.example", webhook_events=every))
    fence = claimed(store).fence
    store.report(given.id, fence, NOW, status="processing")
    (start,) = store.due(NOW)
    assert (start.event, start.url, start.job, start.tries) == ("start", "https://a.example", given.id, 0)
    assert store.due(NOW) == []  # taken for a minute
    (again,) = store.due(NOW + 61)
    assert (again.id, again.tries) == (start.id, 1)
    store.delivered(start.id)
    for number in range(5):
        store.report(given.id, fence, NOW + number / 100, logs="x" * number, output=[number])
    (first,) = store.due(NOW + 1)
    store.report(given.id, fence, NOW + 0.1, output=["next"])
    store.delivered(first.id)
    assert store.due(NOW + 0.4) == []
    store.report(given.id, fence, NOW + 0.2, status="succeeded")
    (last,) = store.due(NOW + 9)
    assert last.event == "completed"
    store.postpone(last.id, NOW + 20)
    assert store.due(NOW + 19) == []
    assert [each.id for each in store.due(NOW + 20)] == [last.id]
    store.postpone(last.id, None)
    assert store.due(NOW + 1e6) == []


@pytest.mark.parametrize(
    ("asked", "expected"),
    [((), ["completed"]), (("start",), ["start"]), (("logs",), ["logs"]), (("completed",), ["completed"])],
)
def test_webhooks_tell_what_was_asked_for(store: Store, asked: tuple[str, ...], expected: list[str]) -> None:
    given = store.create(job(webhook="https://a.example", webhook_events=asked))
    fence = claimed(store).fence
    store.report(given.id, fence, NOW, status="processing", logs="a")
    store.report(given.id, fence, NOW, logs="b", output=1)
    store.report(given.id, fence, NOW, status="failed", error="no")
    assert events(store) == expected


def test_what_ended_long_ago_is_emptied_and_expired_files_go(store: Store) -> None:
    old, new, open_ = (store.create(job(NOW + number)) for number in range(3))
    for each in (old, new):
        fence = claimed(store).fence
        store.report(each.id, fence, each.created_at * 1.0, status="succeeded", output="x", logs="y")
    file = File(new_id(), "acme", "a.png", "image/png", 3, "0", "0", NOW, NOW + 10, {"a": 1}, old.id)
    kept = replace(file, id=new_id(), expires_at=None)
    store.put_file(file)
    store.put_file(kept)
    assert store.expire(NOW + 10.5, keep=10) == [file]
    emptied = store.get(old.id)
    assert emptied is not None
    assert emptied.data_removed
    assert (emptied.input, emptied.output, emptied.logs, emptied.status) == ({}, None, "", "succeeded")
    assert [store.get(each.id) and not store.get(each.id).data_removed for each in (new, open_)] == [True, True]  # type: ignore[union-attr]
    assert store.get_file(file.id) == file
    store.delete_file(file.id)
    assert store.expire(NOW + 10.5, keep=10) == []
    assert store.list_files("acme") == [kept]


def test_models_versions_and_deployments(store: Store) -> None:
    second = replace(VERSION, id="2" * 64, created_at=2.0)
    store.put_version(replace(VERSION, id="3" * 64, created_at=0.5), latest=False)
    store.put_version(second)
    model = replace(MODEL, latest_version=second.id)
    assert store.get_model("acme/sdxl") == model
    assert [each.id for each in store.list_versions("acme/sdxl")] == [second.id, BASE, "3" * 64]
    other = Model("acme", "other", 1.0)
    store.put_model(other)
    assert store.list_models() == [model, other]
    assert store.list_models(before=(1.0, "acme/sdxl")) == [other]
    queued = store.create(job(version=second.id))
    store.delete_version(second.id)
    assert store.get_version(second.id) is None
    assert store.get_model("acme/sdxl") == replace(model, latest_version=BASE)
    failed = store.get(queued.id)
    assert failed is not None
    assert failed.status == "failed"
    store.delete_model("acme/sdxl")
    assert store.list_versions("acme/sdxl") == []
    assert store.get_model("acme/sdxl") is None
    store.put_deployment("acme/fast", {"min": 0})
    store.put_deployment("acme/fast", {"min": 1})
    assert (store.get_deployment("acme/fast"), store.list_deployments()) == ({"min": 1}, [{"min": 1}])
    store.put_deployment("acme/fast", None)
    assert (store.get_deployment("acme/fast"), store.list_deployments()) == (None, [])


def test_tokens_secrets_workers_and_counts(store: Store) -> None:
    store.put_token("d1", "acme", "api")
    store.put_token("d1", "acme", "worker")
    assert store.find_token("d1") == ("acme", "worker")
    assert store.find_token("d2") is None
    assert store.secret("key", lambda: "first") == "first"
    assert store.secret("key", lambda: "second") == "first"
    store.seen("w", NOW, {"warm": ["predict:a"]})
    store.seen("v", NOW + 5, {})
    assert [each["worker"] for each in store.workers(NOW + 1)] == ["v"]
    assert store.workers(NOW)[1] == {"worker": "w", "seen_at": NOW, "warm": ["predict:a"]}
    now = time.time()
    for kind in ("prediction", "prediction", "training"):
        store.create(job(now - 100, kind, webhook="https://a.example"))
    first = claimed(store, now=now)
    store.report(first.id, first.fence, now, status="processing", output="a")
    counts = store.counts()
    assert counts["jobs"] == {"predict": {"queued": 1, "processing": 1}, "train": {"queued": 1}}
    assert set(counts["oldest"]) == {"predict", "train"}
    assert counts["oldest"]["train"] >= 100
    assert counts["deliveries"] == 1


def test_a_store_that_is_opened_again_has_everything(database: str) -> None:
    first = open_store(database)
    prepare(first)
    given = first.create(job())
    first.close()
    second = open_store(database)
    assert second.get(given.id) == given
    second.close()


def test_acknowledged_jobs_survive_kill_9(tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path}/gateway.db"
    store = open_store(database)
    prepare(store)
    code = f"from tests.gateway.test_store import *; create_for_ever({database!r})"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        acknowledged = [next(process.stdout).strip() for _ in range(50)]
        process.send_signal(signal.SIGKILL)
        acknowledged += [line.strip() for line in process.stdout if line.endswith("\n")]
    assert all(store.get(each) for each in acknowledged)
    assert claim(store) is not None
    store.close()


def create_for_ever(database: str) -> None:
    """In a process of its own, until it is killed."""
    store = open_store(database)
    for _ in itertools.count():
        sys.stdout.write(store.create(job()).id + "\n")
        sys.stdout.flush()


def test_a_database_that_was_killed_and_came_back_is_no_error(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.postgres.PATIENCE", 120.0)  # this machine may have much else to do
    server = Postgres(tmp_path_factory.mktemp("killed") / "data")
    store = open_store(server.new_database())
    prepare(store)
    heard: list[str] = []
    store.listen(heard.append)
    before = [store.create(job()) for _ in range(20)]
    server.kill()
    asked = threading.Thread(target=lambda: before.append(store.create(job())))
    asked.start()
    server.start()
    asked.join()
    assert [store.get(each.id) for each in before] == before
    assert len(before) == 21
    until(lambda: heard.count("*") == 2)  # what was told in between may have gone unheard
    after = store.create(job())
    until(lambda: after.id in heard)
    store.close()
    server.close()


def test_a_database_that_stays_away_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.postgres.PATIENCE", 0.1)
    with pytest.raises(UnavailableError, match="does not answer"):
        open_store("postgresql://nobody@/nothing?host=/nowhere")


def test_addresses_of_databases() -> None:
    for wrong in ("", "mysql://me:secret@host/db", "sqlite:///", "sqlite:///x?synchronous=off", "sqlite://x"):
        with pytest.raises(ValueError, match="give sqlite:///path or postgresql://") as error:
            open_store(wrong)
        assert "secret" not in str(error.value)
    assert hidden("postgresql://me:p%40s@host/db") == "postgresql://me:...@host/db"


def test_gateways_on_one_postgres_hear_each_other(postgres: Postgres) -> None:
    database = postgres.new_database()
    one, other = open_store(database), open_store(database)
    prepare(one)
    heard: list[str] = []
    other.listen(heard.append)
    given = one.create(job())
    until(lambda: {given.id, "queue"} <= set(heard))
    one.close()
    other.close()


def until(condition: Any) -> None:
    """Waits for it, 20 seconds at most."""
    for _ in range(2000):
        if condition():
            return
        time.sleep(0.01)
    assert condition()


def in_threads(many: int, work: Any) -> None:
    threads = [threading.Thread(target=work, args=(f"{number}",)) for number in range(many)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
