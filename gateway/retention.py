"""What is removed from the database, and what is counted in it."""

from __future__ import annotations

import time
from collections.abc import Sequence

from gateway.jobs import File, Json
from gateway.queueing import give_up
from gateway.records import expired_files
from gateway.sql import Transaction, dumps

AT_ONCE = 500  # rows of one transaction
FORGOTTEN = 86_400.0  # seconds after which a worker that is silent is no more


def expire(transaction: Transaction, now: float, *, keep: float) -> Sequence[File]:
    transaction.rows(
        f"""update jobs set input = ?, output = ?, error = ?, logs = ?, data_removed = 1, changed = changed + 1
        where id in (select id from jobs where data_removed = 0 and completed_at < ? order by completed_at
        limit {AT_ONCE})""",
        dumps({}), dumps(None), dumps(None), dumps(""), now - keep,
    )  # fmt: skip
    transaction.rows("delete from workers where seen_at < ?", now - FORGOTTEN)
    return expired_files(transaction, now, AT_ONCE)


def delete_version(transaction: Transaction, version_id: str) -> None:
    gone = transaction.row("delete from versions where id = ? returning model", version_id)
    if gone is None:
        return
    give_up(transaction, [version_id], time.time())
    left = transaction.row(
        "select id from versions where model = ? order by created_at desc, id desc limit 1", gone["model"]
    )
    transaction.rows(
        "update models set latest_version = ? where full_name = ? and latest_version = ?",
        left and left["id"], gone["model"], version_id,
    )  # fmt: skip


def delete_model(transaction: Transaction, full_name: str) -> None:
    transaction.rows("delete from models where full_name = ?", full_name)
    gone = transaction.rows("delete from versions where model = ? returning id", full_name)
    give_up(transaction, [row["id"] for row in gone], time.time())


def counts(transaction: Transaction) -> Json:
    jobs: Json = {}
    oldest: Json = {}
    for row in transaction.rows(
        """select pool, case when status = 'starting' and worker is null then 'queued' else status end as stage,
        count(*) as jobs, min(created_at) as oldest from jobs where completed_at is null group by pool, stage"""
    ):
        jobs.setdefault(row["pool"], {})[row["stage"]] = row["jobs"]
        if row["stage"] == "queued":
            oldest[row["pool"]] = max(0.0, time.time() - row["oldest"])
    waiting = transaction.rows("select count(*) as deliveries from deliveries")
    return {"jobs": jobs, "oldest": oldest, "deliveries": waiting[0]["deliveries"]}
