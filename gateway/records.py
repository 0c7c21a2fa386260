"""Models, versions, deployments, files, tokens and workers in the database."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from gateway.jobs import File, Job, Json, Model, Version
from gateway.sql import Row, Transaction, dumps, insert, upsert

OWN_FILE = re.compile(r"/v1/files/([a-z2-7]+)(?:/|$)")


def put_model(transaction: Transaction, model: Model) -> None:
    row = vars(model) | {"full_name": model.full_name, "details": dumps(model.details)}
    upsert(transaction, "models", "full_name", row)


def get_model(transaction: Transaction, full_name: str) -> Model | None:
    row = transaction.row("select * from models where full_name = ?", full_name)
    return None if row is None else _model(row)


def list_models(
    transaction: Transaction, *, before: tuple[float, str] | None = None, limit: int = 100
) -> Sequence[Model]:
    condition = "where (created_at, full_name) < (?, ?)" if before else ""
    statement = f"select * from models {condition} order by created_at desc, full_name desc limit ?"
    return [_model(row) for row in transaction.rows(statement, *(before or ()), limit)]


def put_version(transaction: Transaction, version: Version, *, latest: bool = True) -> None:
    row = vars(version) | {"schema": dumps(version.schema), "overrides": dumps(version.overrides)}
    upsert(transaction, "versions", "id", row)
    for file_id in _files_in(version.overrides.values()):
        transaction.rows("update files set expires_at = null where id = ?", file_id)
    if latest:
        transaction.rows("update models set latest_version = ? where full_name = ?", version.id, version.model)


def made_version(transaction: Transaction, job: Job, weights: str, now: float) -> Version:
    """What a training made: its base with these weights. The same one if it is told twice."""
    trained = get_version(transaction, job.version)
    if trained is None or job.destination is None:
        raise LookupError(f"job {job.id} has no version or no destination")
    owner, _, name = job.destination.partition("/")
    version = Version(
        id=hashlib.sha256(f"{job.id} {weights}".encode()).hexdigest(),
        model=job.destination,
        created_at=now,
        schema=trained.schema,
        base=trained.base,
        overrides=trained.overrides | {"replicate_weights": weights},
        cog_version=trained.cog_version,
        training=job.id,
    )
    if get_model(transaction, job.destination) is None:
        put_model(transaction, Model(owner, name, now))
    put_version(transaction, version)
    return version


def get_version(transaction: Transaction, version_id: str) -> Version | None:
    row = transaction.row("select * from versions where id = ?", version_id)
    return None if row is None else _version(row)


def list_versions(transaction: Transaction, full_name: str) -> Sequence[Version]:
    statement = "select * from versions where model = ? order by created_at desc, id desc"
    return [_version(row) for row in transaction.rows(statement, full_name)]


def put_deployment(transaction: Transaction, full_name: str, details: Json | None) -> None:
    if details is None:
        transaction.rows("delete from deployments where full_name = ?", full_name)
    else:
        upsert(transaction, "deployments", "full_name", {"full_name": full_name, "details": dumps(details)})


def get_deployment(transaction: Transaction, full_name: str) -> Json | None:
    row = transaction.row("select details from deployments where full_name = ?", full_name)
    return None if row is None else json.loads(row["details"])


def list_deployments(transaction: Transaction) -> Sequence[Json]:
    rows = transaction.rows("select details from deployments order by full_name")
    return [json.loads(row["details"]) for row in rows]


def put_file(transaction: Transaction, file: File) -> None:
    upsert(transaction, "files", "id", vars(file) | {"metadata": dumps(file.metadata)})


def get_file(transaction: Transaction, file_id: str) -> File | None:
    row = transaction.row("select * from files where id = ?", file_id)
    return None if row is None else _file(row)


def list_files(transaction: Transaction, owner: str, limit: int = 100) -> Sequence[File]:
    statement = "select * from files where owner = ? order by created_at desc, id desc limit ?"
    return [_file(row) for row in transaction.rows(statement, owner, limit)]


def expired_files(transaction: Transaction, now: float, limit: int) -> Sequence[File]:
    statement = "select * from files where expires_at <= ? order by expires_at, id limit ?"
    return [_file(row) for row in transaction.rows(statement, now, limit)]


def delete_file(transaction: Transaction, file_id: str) -> None:
    transaction.rows("delete from files where id = ?", file_id)


def put_token(transaction: Transaction, digest: str, owner: str, scope: str) -> None:
    upsert(transaction, "tokens", "digest", {"digest": digest, "owner": owner, "scope": scope})


def find_token(transaction: Transaction, digest: str) -> tuple[str, str] | None:
    row = transaction.row("select owner, scope from tokens where digest = ?", digest)
    return None if row is None else (row["owner"], row["scope"])


def secret(transaction: Transaction, name: str, make: Callable[[], str]) -> str:
    kept = transaction.row("select value from secrets where name = ?", name)
    if kept is None:
        row = {"name": name, "value": make()}
        insert(transaction, "secrets", row, "on conflict (name) do nothing")
        kept = transaction.row("select value from secrets where name = ?", name)
    return str(kept["value"]) if kept else ""


def seen(transaction: Transaction, worker: str, now: float, details: Json) -> None:
    transaction.lightly()
    upsert(transaction, "workers", "worker", {"worker": worker, "seen_at": now, "details": dumps(details)})


def workers(transaction: Transaction, since: float) -> Sequence[Json]:
    rows = transaction.rows("select * from workers where seen_at >= ? order by worker", since)
    return [json.loads(row["details"]) | {"worker": row["worker"], "seen_at": row["seen_at"]} for row in rows]


def _files_in(values: Iterable[Any]) -> list[str]:
    """The gateway's own files that URLs among the values name."""
    return [found[1] for value in values if isinstance(value, str) and (found := OWN_FILE.search(value))]


def _model(row: Row) -> Model:
    values = {name: value for name, value in row.items() if name != "full_name"}
    return Model(**values | {"details": json.loads(row["details"])})


def _version(row: Row) -> Version:
    return Version(**row | {"schema": json.loads(row["schema"]), "overrides": json.loads(row["overrides"])})


def _file(row: Row) -> File:
    return File(**row | {"metadata": json.loads(row["metadata"])})
