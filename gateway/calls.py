"""Webhook calls that are due, as rows: queued in the transaction of the change that they tell of."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.ids import derived_id, new_id
from gateway.jobs import Delivery, Job
from gateway.sql import Transaction, insert

EVENTS = ("output", "completed")  # who asks for none in particular
THROTTLE = 0.5  # seconds between two calls about output and logs
TAKEN = 60.0  # seconds for which a delivery is one gateway's
TERMINAL = "completed"
PASSING = frozenset({"output", "logs"})


def call(transaction: Transaction, job: Job, event: str, now: float) -> None:
    """Queue a call if the job's webhook wants it."""
    if job.webhook is None or event not in (job.webhook_events or EVENTS):
        return
    if event in PASSING:
        _pass(transaction, job, event, now)
        return
    if event == TERMINAL:  # it says all that those before it would
        transaction.rows("delete from deliveries where job = ? and tries = 0", job.id)
    name = derived_id(TERMINAL, job.id) if event == TERMINAL else new_id()
    _queue(transaction, Delivery(f"msg_{name}", job.id, event, job.webhook, now))


def _pass(transaction: Transaction, job: Job, event: str, now: float) -> None:
    """One waits at most, half a second after the last: it will tell the job as it is then."""
    if transaction.row("select id from deliveries where job = ? and event in ('output', 'logs') and tries = 0", job.id):
        return
    told = transaction.row("select told_at from jobs where id = ?", job.id)
    due_at = max(now, told["told_at"] + THROTTLE) if told else now
    transaction.rows("update jobs set told_at = ? where id = ?", due_at, job.id)
    _queue(transaction, Delivery(f"msg_{new_id()}", job.id, event, job.webhook or "", due_at))


def _queue(transaction: Transaction, delivery: Delivery) -> None:
    insert(transaction, "deliveries", vars(delivery))
    transaction.tell("webhooks")


def due(transaction: Transaction, now: float, limit: int = 32) -> Sequence[Delivery]:
    statement = "select * from deliveries where due_at <= ? order by due_at, id limit ?" + transaction.skipping
    deliveries = [Delivery(**row) for row in transaction.rows(statement, now, limit)]
    for each in deliveries:
        transaction.rows("update deliveries set due_at = ?, tries = tries + 1 where id = ?", now + TAKEN, each.id)
    return deliveries


def delivered(transaction: Transaction, delivery_id: str) -> None:
    transaction.rows("delete from deliveries where id = ?", delivery_id)


def postpone(transaction: Transaction, delivery_id: str, due_at: float | None) -> None:
    if due_at is None:
        delivered(transaction, delivery_id)
    else:
        transaction.rows("update deliveries set due_at = ? where id = ?", due_at, delivery_id)
