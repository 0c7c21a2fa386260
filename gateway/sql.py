"""What SQLite and Postgres share: the tables, the rows, and a store whose methods are functions of a transaction."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from gateway.jobs import POOLS, Job

Row = dict[str, Any]

# {key}: text that is compared byte by byte. One list entry for each change of the tables that was released, in order.
SCHEMA: tuple[tuple[str, ...], ...] = (
    (
        """create table jobs (
            id {key} primary key, kind text not null, owner {key} not null, model text not null, version text not null,
            input text not null, created_at double precision not null, status text not null, output text not null,
            error text not null, logs text not null, metrics text not null, started_at double precision,
            completed_at double precision, deadline double precision, weights_key text not null, destination text,
            webhook text, webhook_events text not null, deployment text, data_removed bigint not null,
            attempt bigint not null, fence bigint not null, worker text, lease_until double precision,
            changed bigint not null, pool text not null, base text not null, passed bigint not null,
            told_at double precision not null)""",
        """create index jobs_oldest on jobs (pool, base, created_at, id)
            where status = 'starting' and worker is null""",
        """create index jobs_warm on jobs (pool, base, weights_key, created_at, id)
            where status = 'starting' and worker is null""",
        "create index jobs_open on jobs (owner) where completed_at is null",
        """create index jobs_running on jobs (pool, base, weights_key)
            where worker is not null and completed_at is null""",
        "create index jobs_deadlines on jobs (deadline) where completed_at is null and deadline is not null",
        "create index jobs_listed on jobs (owner, kind, created_at, id)",
        "create index jobs_kept on jobs (completed_at) where data_removed = 0 and completed_at is not null",
        "create index jobs_versions on jobs (version) where completed_at is null",
        """create table deliveries (id {key} primary key, job text not null, event text not null, url text not null,
            due_at double precision not null, tries bigint not null)""",
        "create index deliveries_due on deliveries (due_at)",
        "create index deliveries_jobs on deliveries (job)",
        """create table models (full_name {key} primary key, owner text not null, name text not null,
            created_at double precision not null, description text not null, visibility text not null,
            latest_version text, details text not null)""",
        """create table versions (id {key} primary key, model text not null, created_at double precision not null,
            schema text not null, base text not null, overrides text not null, cog_version text not null,
            training text)""",
        "create index versions_models on versions (model, created_at)",
        "create table deployments (full_name {key} primary key, details text not null)",
        """create table files (id {key} primary key, owner text not null, name text not null,
            content_type text not null, size bigint not null, sha256 text not null, md5 text not null,
            created_at double precision not null, expires_at double precision, metadata text not null, job text)""",
        "create index files_listed on files (owner, created_at)",
        "create index files_expiring on files (expires_at) where expires_at is not null",
        "create table tokens (digest {key} primary key, owner text not null, scope text not null)",
        "create table secrets (name {key} primary key, value text not null)",
        """create table workers (worker {key} primary key, seen_at double precision not null,
            details text not null)""",
    ),
)

# Written as JSON: what has a structure, and what may hold characters that no database takes as text.
JOB_JSON = frozenset({"input", "output", "error", "logs", "metrics", "webhook_events"})
JOB_FIELDS = tuple(each.name for each in fields(Job))


@dataclass
class Transaction:
    """Statements with ? for values, and whom to tell once they are committed.

    `skipping` follows a select whose rows this transaction will change and others must not wait for; `waiting` one
    where others wait. SQLite has one writer at a time and needs neither. `hasten` is the statement after which a commit
    does not wait for the disk.
    """

    execute: Callable[[str, Sequence[Any]], list[Row]]
    skipping: str = ""
    waiting: str = ""
    hasten: str = ""
    news: list[str] = field(default_factory=list)

    def rows(self, statement: str, *values: Any) -> list[Row]:
        return self.execute(statement, values)

    def row(self, statement: str, *values: Any) -> Row | None:
        return next(iter(self.execute(statement, values)), None)

    def lightly(self) -> None:
        """This changes nothing that a power cut may not undo: how far a job has come, that a worker is there."""
        if self.hasten:
            self.execute(self.hasten, ())

    def tell(self, *what: str) -> None:
        """Each once."""
        self.news.extend(each for each in what if each not in self.news)


def insert(transaction: Transaction, table: str, row: Row, conflict: str = "") -> Row | None:
    """The row as it is kept; None where `conflict` ("on conflict ... do nothing") kept it out."""
    names = ", ".join(row)
    statement = f"insert into {table} ({names}) values ({marks(row)}) {conflict} returning *"
    return transaction.row(statement, *row.values())


def upsert(transaction: Transaction, table: str, key: str, row: Row) -> None:
    changes = ", ".join(f"{name} = excluded.{name}" for name in row if name != key)
    insert(transaction, table, row, f"on conflict ({key}) do update set {changes}")


def marks(values: Iterable[Any]) -> str:
    """?, ?, ? for as many values."""
    return ", ".join("?" for _ in values)


def dumps(value: Any) -> str:
    """ASCII: NUL and half a surrogate pair are no text to a database, but their escapes are."""
    return json.dumps(value, separators=(",", ":"))


def job_row(job: Job, base: str) -> Row:
    """A job's columns, with what only the queue needs: pool, base, passed, told_at."""
    row = job_changes({name: getattr(job, name) for name in JOB_FIELDS})
    return row | {"pool": POOLS[job.kind], "base": base, "passed": 0, "told_at": 0.0}


def job_changes(values: Row) -> Row:
    """Values of a job's fields as its columns hold them."""
    row = {name: dumps(value) if name in JOB_JSON else value for name, value in values.items()}
    if "data_removed" in row:
        row["data_removed"] = int(row["data_removed"])
    return row


def job_of(row: Row) -> Job:
    values = {name: json.loads(row[name]) if name in JOB_JSON else row[name] for name in JOB_FIELDS}
    values["webhook_events"] = tuple(values["webhook_events"])
    values["data_removed"] = bool(values["data_removed"])
    return Job(**values)
