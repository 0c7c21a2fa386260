"""What happens to jobs in the database, from the queue to the end; each function is one transaction."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from gateway.calls import call
from gateway.jobs import ENDED, Claimed, Job, Json
from gateway.policy import LOOKED_AT, may_pass
from gateway.records import get_version, made_version
from gateway.sql import Row, Transaction, insert, job_changes, job_of, job_row, marks
from gateway.store import NoVersionError, StaleError

QUEUE = "queue"  # told when there is work
LOST = "The worker that ran this was lost {} times; the last time it was not heard of for its whole lease."
NO_VERSION = "The version that this was to run was deleted."
NO_WEIGHTS = "The training ended without weights."
FRESH: Json = {"status": "starting", "started_at": None, "output": None, "logs": "", "metrics": {}}
CANDIDATES = """select id, created_at, passed, fence, attempt, weights_key from jobs
    where status = 'starting' and worker is null and pool = ? and base = ? {}
    and (deadline is null or deadline > ?) order by created_at, id"""
CANDIDATE = CANDIDATES + " limit 1"
ANY = """select id from jobs where status = 'starting' and worker is null and pool = ? and base = ?
    order by created_at, id limit 1"""  # in the index's order: Postgres might read the table otherwise
UNUSED = f"""select id from ({CANDIDATES.format("")} limit {LOOKED_AT}) as oldest where not exists
    (select 1 from jobs as running where running.worker is not null and running.completed_at is null
    and running.pool = ? and running.base = ? and running.weights_key = oldest.weights_key)
    order by created_at, id limit 1"""
SWEPT = 500  # jobs in one sweep; the next one takes the rest


def create(transaction: Transaction, job: Job) -> Job:
    version = transaction.row("select base from versions where id = ?", job.version)
    if version is None:
        raise NoVersionError(job.version)
    row = insert(transaction, "jobs", job_row(job, version["base"]), "on conflict (id) do nothing")
    if row is None:
        return _present(transaction, job.id)
    transaction.tell(job.id, QUEUE)
    return job_of(row)


def get(transaction: Transaction, job_id: str) -> Job | None:
    row = transaction.row("select * from jobs where id = ?", job_id)
    return None if row is None else job_of(row)


def is_there_work(transaction: Transaction, pools: Sequence[str], bases: Sequence[str]) -> bool:
    return any(transaction.row(ANY, pool, base) for pool in pools for base in bases)


def claim(
    transaction: Transaction,
    worker: str,
    pools: Sequence[str],
    bases: Sequence[str],
    warm: Sequence[str],
    now: float,
    lease: float,
) -> Claimed | None:
    while (chosen := _next(transaction, pools, bases, warm, now)) is not None:
        taken = {"worker": worker, "lease_until": now + lease}
        job = _change(transaction, chosen["id"], **taken, fence=chosen["fence"] + 1, attempt=chosen["attempt"] + 1)
        if (version := get_version(transaction, job.version)) is not None:
            return Claimed(job, version, lease)
        _end(transaction, job, now, status="failed", error=NO_VERSION, fence=job.fence + 1)
    return None


def _next(
    transaction: Transaction, pools: Sequence[str], bases: Sequence[str], warm: Sequence[str], now: float
) -> Row | None:
    """By gateway.policy."""
    oldest = _first(_oldest(transaction, pools, bases, now))
    if oldest is None:
        return None
    chosen = _first(_ready(transaction, pools, bases, warm, now)) or _first(_unused(transaction, pools, bases, now))
    if chosen is None or chosen["id"] == oldest["id"]:
        return oldest
    if not may_pass(chosen["created_at"], oldest["created_at"], oldest["passed"]):
        return oldest
    transaction.rows("update jobs set passed = passed + 1 where id = ?", oldest["id"])
    return chosen


def _oldest(transaction: Transaction, pools: Sequence[str], bases: Sequence[str], now: float) -> Iterator[Row]:
    """Of each pool and base: one look into an index each, however long the queue is."""
    statement = CANDIDATE.format("") + transaction.skipping
    for pool in pools:
        for base in bases:
            yield from transaction.rows(statement, pool, base, now)


def _ready(
    transaction: Transaction, pools: Sequence[str], bases: Sequence[str], warm: Sequence[str], now: float
) -> Iterator[Row]:
    statement = CANDIDATE.format("and weights_key = ?") + transaction.skipping
    for each in warm:
        pool, _, key = each.partition(":")
        for base in bases if pool in pools else ():
            yield from transaction.rows(statement, pool, base, key, now)


def _unused(transaction: Transaction, pools: Sequence[str], bases: Sequence[str], now: float) -> Iterator[Row]:
    """Found before it is locked, so that not all that are looked at are: another may have it by then."""
    locked = CANDIDATES.format("and id = ?") + transaction.skipping
    for pool in pools:
        for base in bases:
            for row in transaction.rows(UNUSED, pool, base, now, pool, base):
                yield from transaction.rows(locked, pool, base, row["id"], now)


def _first(rows: Iterator[Row]) -> Row | None:
    return min(rows, key=lambda row: (row["created_at"], row["id"]), default=None)


def report(
    transaction: Transaction,
    job_id: str,
    fence: int,
    now: float,
    *,
    status: str | None = None,
    output: Any = None,
    error: str | None = None,
    logs: str | None = None,
    metrics: Json | None = None,
) -> Job:
    job = _held(transaction, job_id, fence)
    if job.ended:  # said again, since the answer was lost
        return job
    news = {"output": output, "error": error, "logs": logs, "metrics": metrics}
    changes = {name: value for name, value in news.items() if value is not None and value != getattr(job, name)}
    if status in {"processing", "succeeded", "failed"} and job.started_at is None:
        changes["started_at"] = now
    if status == "succeeded" and job.destination is not None:
        return _trained(transaction, job, changes, now)
    if status in ENDED:
        return _end(transaction, job, now, **changes, status=status)
    if status == "processing" and job.status != status:
        changes["status"] = status
    if not changes:
        return job
    transaction.lightly()
    job = _change(transaction, job.id, **changes)
    for event in ("start" if "status" in changes else "", *(each for each in ("output", "logs") if each in changes)):
        call(transaction, job, event, now)
    return job


def _trained(transaction: Transaction, job: Job, changes: Json, now: float) -> Job:
    """Its version exists when the job has succeeded, and not before."""
    output = changes.get("output", job.output)
    weights = output.get("weights") if isinstance(output, dict) else output
    if not isinstance(weights, str) or not weights:
        return _end(transaction, job, now, **changes | {"status": "failed", "error": NO_WEIGHTS})
    version = made_version(transaction, job, weights, now)
    output = {"version": f"{version.model}:{version.id}", "weights": weights}
    return _end(transaction, job, now, **changes | {"status": "succeeded", "output": output})


def renew(
    transaction: Transaction, worker: str, held: Sequence[tuple[str, int]], now: float, lease: float
) -> Sequence[str]:
    transaction.lightly()
    return [
        job_id
        for job_id, fence in held
        if not transaction.rows(
            """update jobs set lease_until = ? where id = ? and fence = ? and worker = ? and completed_at is null
            returning id""",
            now + lease, job_id, fence, worker,
        )
    ]  # fmt: skip


def hand_back(
    transaction: Transaction, job_id: str, fence: int, now: float, *, error: str | None, attempts: int
) -> Job:
    job = _held(transaction, job_id, fence)
    if job.ended:
        raise StaleError(job_id)
    if error is None:  # a worker that stops is no fault of the job
        return _queue_again(transaction, job, attempt=job.attempt - 1)
    if job.attempt >= attempts:
        return _end(transaction, job, now, status="failed", error=error, fence=job.fence + 1)
    return _queue_again(transaction, job)


def cancel(transaction: Transaction, job_id: str, now: float) -> Job | None:
    row = transaction.row("select * from jobs where id = ?" + transaction.waiting, job_id)
    if row is None:
        return None
    job = job_of(row)
    return job if job.ended else _end(transaction, job, now, status="canceled", fence=job.fence + 1)


def sweep(transaction: Transaction, now: float, *, attempts: int, leases: bool = True) -> list[Job]:
    changed = []
    late = "completed_at is null and deadline is not null and deadline <= ?"
    for job in _these(transaction, late, now):
        changed.append(_end(transaction, job, now, status="canceled", fence=job.fence + 1))
    silent = "worker is not null and completed_at is null and lease_until <= ?"
    for job in _these(transaction, silent, now) if leases else ():
        if job.attempt >= attempts:
            lost = {"status": "failed", "error": LOST.format(job.attempt)}
            changed.append(_end(transaction, job, now, **lost, fence=job.fence + 1))
        else:
            changed.append(_queue_again(transaction, job))
    return changed


def give_up(transaction: Transaction, versions: Sequence[str], now: float) -> None:
    """Ends the jobs of versions that are being deleted."""
    condition = f"completed_at is null and version in ({marks(versions)})"
    for row in transaction.rows(f"select * from jobs where {condition}{transaction.waiting}", *versions):
        job = job_of(row)
        _end(transaction, job, now, status="failed", error=NO_VERSION, fence=job.fence + 1)


def _these(transaction: Transaction, condition: str, now: float) -> list[Job]:
    statement = f"select * from jobs where {condition} order by created_at, id limit {SWEPT}" + transaction.skipping
    return [job_of(row) for row in transaction.rows(statement, now)]


def _held(transaction: Transaction, job_id: str, fence: int) -> Job:
    statement = "select * from jobs where id = ? and fence = ? and worker is not null" + transaction.waiting
    row = transaction.row(statement, job_id, fence)
    if row is None:
        raise StaleError(job_id)
    return job_of(row)


def _present(transaction: Transaction, job_id: str) -> Job:
    row = transaction.row("select * from jobs where id = ?", job_id)
    if row is None:
        raise StaleError(job_id)
    return job_of(row)


def _queue_again(transaction: Transaction, job: Job, **changes: Any) -> Job:
    """It keeps its place, so it is the next; what the attempt had said is forgotten."""
    transaction.tell(QUEUE)
    return _change(transaction, job.id, **FRESH, worker=None, lease_until=None, fence=job.fence + 1, **changes)


def _end(transaction: Transaction, job: Job, now: float, **changes: Any) -> Job:
    job = _change(transaction, job.id, **changes, completed_at=now, lease_until=None)
    call(transaction, job, "completed", now)
    return job


def _change(transaction: Transaction, job_id: str, **changes: Any) -> Job:
    columns = job_changes(changes)
    assignments = ", ".join(f"{name} = ?" for name in columns)
    statement = f"update jobs set {assignments}, changed = changed + 1 where id = ? returning *"
    (row,) = transaction.rows(statement, *columns.values(), job_id)
    transaction.tell(job_id)
    return job_of(row)
