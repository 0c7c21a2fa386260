"""The store's methods, each a function of one transaction: SQLite and Postgres differ in how they make transactions."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from gateway import calls, queueing, records, retention
from gateway.jobs import Claimed, Delivery, File, Job, Json, Model, Version
from gateway.sql import Transaction, job_of
from gateway.store import Heard, NoVersionError, StaleError

P = ParamSpec("P")
T = TypeVar("T")
C = TypeVar("C")


REFUSALS = (NoVersionError, StaleError)


class Connections(Generic[C]):
    """Connections that wait for the next who needs one; the last one back is the first to go out."""

    def __init__(self, connect: Callable[[], C], close: Callable[[C], None]) -> None:
        self._connect = connect
        self._close = close
        self._idle: list[C] = []
        self._lock = threading.Lock()
        self._closed = False

    @contextmanager
    def one(self) -> Iterator[C]:
        """One that failed is closed, since nobody knows what state it is in; a refusal is no failure."""
        with self._lock:
            connection = self._idle.pop() if self._idle else None
        if connection is None:
            connection = self._connect()
        try:
            yield connection
        except REFUSALS:
            self._back(connection)
            raise
        except BaseException:
            self._close(connection)
            raise
        self._back(connection)

    def _back(self, connection: C) -> None:
        with self._lock:
            if not self._closed:
                self._idle.append(connection)
                return
        self._close(connection)

    def close(self) -> None:
        """Those that are out are closed when they come back."""
        with self._lock:
            self._closed = True
        self.clear()

    def clear(self) -> None:
        """Whoever comes next gets a new one."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            self._close(connection)


class SqlStore(ABC):
    """gateway.store.Store on a database that speaks SQL."""

    def __init__(self) -> None:
        self._heard: list[Heard] = []

    @abstractmethod
    def _read(self, function: Callable[Concatenate[Transaction, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Its result; it changes nothing."""

    @abstractmethod
    def _write(self, function: Callable[Concatenate[Transaction, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Its result, once all that it changed is kept; nothing is changed if it raises."""

    @abstractmethod
    def close(self) -> None: ...

    def listen(self, heard: Heard) -> None:
        self._heard.append(heard)

    def _tell(self, news: Sequence[str]) -> None:
        for what in news:
            for heard in self._heard:
                heard(what)

    def create(self, job: Job) -> Job:
        return self._write(queueing.create, job)

    def get(self, job_id: str) -> Job | None:
        return self._read(queueing.get, job_id)

    def list(
        self,
        kind: str,
        owner: str,
        *,
        before: tuple[float, str] | None = None,
        created_after: float | None = None,
        created_before: float | None = None,
        limit: int = 100,
    ) -> Sequence[Job]:
        conditions: dict[str, Any] = {
            "kind = ?": [kind],
            "owner = ?": [owner],
            "(created_at, id) < (?, ?)": before,
            "created_at >= ?": created_after if created_after is None else [created_after],
            "created_at < ?": created_before if created_before is None else [created_before],
        }
        given = {condition: values for condition, values in conditions.items() if values is not None}
        statement = f"select * from jobs where {' and '.join(given)} order by created_at desc, id desc limit ?"
        values = [value for each in given.values() for value in each]
        return [job_of(row) for row in self._read(Transaction.rows, statement, *values, limit)]

    def queued(self, owner: str) -> int:
        statement = "select count(*) as jobs from jobs where owner = ? and completed_at is null"
        (row,) = self._read(Transaction.rows, statement, owner)
        return int(row["jobs"])

    def claim(
        self, worker: str, pools: Sequence[str], bases: Sequence[str], warm: Sequence[str], now: float, lease: float
    ) -> Claimed | None:
        if not self._read(
            queueing.is_there_work, pools, bases
        ):  # most who ask find nothing: they need not queue to write
            return None
        return self._write(queueing.claim, worker, pools, bases, warm, now, lease)

    def report(
        self,
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
        news: Json = {"status": status, "output": output, "error": error, "logs": logs, "metrics": metrics}
        return self._write(queueing.report, job_id, fence, now, **news)

    def renew(self, worker: str, held: Sequence[tuple[str, int]], now: float, lease: float) -> Sequence[str]:
        return self._write(queueing.renew, worker, held, now, lease)

    def hand_back(self, job_id: str, fence: int, now: float, *, error: str | None, attempts: int) -> Job:
        return self._write(queueing.hand_back, job_id, fence, now, error=error, attempts=attempts)

    def cancel(self, job_id: str, now: float) -> Job | None:
        return self._write(queueing.cancel, job_id, now)

    def sweep(self, now: float, *, attempts: int, leases: bool = True) -> Sequence[Job]:
        return self._write(queueing.sweep, now, attempts=attempts, leases=leases)

    def expire(self, now: float, *, keep: float) -> Sequence[File]:
        return self._write(retention.expire, now, keep=keep)

    def due(self, now: float, limit: int = 32) -> Sequence[Delivery]:
        return self._write(calls.due, now, limit)

    def delivered(self, delivery_id: str) -> None:
        self._write(calls.delivered, delivery_id)

    def postpone(self, delivery_id: str, due_at: float | None) -> None:
        self._write(calls.postpone, delivery_id, due_at)

    def put_model(self, model: Model) -> None:
        self._write(records.put_model, model)

    def get_model(self, full_name: str) -> Model | None:
        return self._read(records.get_model, full_name)

    def list_models(self, *, before: tuple[float, str] | None = None, limit: int = 100) -> Sequence[Model]:
        return self._read(records.list_models, before=before, limit=limit)

    def delete_model(self, full_name: str) -> None:
        self._write(retention.delete_model, full_name)

    def put_version(self, version: Version, *, latest: bool = True) -> None:
        self._write(records.put_version, version, latest=latest)

    def get_version(self, version_id: str) -> Version | None:
        return self._read(records.get_version, version_id)

    def list_versions(self, full_name: str) -> Sequence[Version]:
        return self._read(records.list_versions, full_name)

    def delete_version(self, version_id: str) -> None:
        self._write(retention.delete_version, version_id)

    def put_deployment(self, full_name: str, details: Json | None) -> None:
        self._write(records.put_deployment, full_name, details)

    def get_deployment(self, full_name: str) -> Json | None:
        return self._read(records.get_deployment, full_name)

    def list_deployments(self) -> Sequence[Json]:
        return self._read(records.list_deployments)

    def put_file(self, file: File) -> None:
        self._write(records.put_file, file)

    def get_file(self, file_id: str) -> File | None:
        return self._read(records.get_file, file_id)

    def list_files(self, owner: str, limit: int = 100) -> Sequence[File]:
        return self._read(records.list_files, owner, limit)

    def delete_file(self, file_id: str) -> None:
        self._write(records.delete_file, file_id)

    def put_token(self, digest: str, owner: str, scope: str) -> None:
        self._write(records.put_token, digest, owner, scope)

    def find_token(self, digest: str) -> tuple[str, str] | None:
        return self._read(records.find_token, digest)

    def secret(self, name: str, make: Callable[[], str]) -> str:
        return self._write(records.secret, name, make)

    def seen(self, worker: str, now: float, details: Json) -> None:
        self._write(records.seen, worker, now, details)

    def workers(self, since: float) -> Sequence[Json]:
        return self._read(records.workers, since)

    def counts(self) -> Json:
        return self._read(retention.counts)
