"""The store in Postgres, for several gateways: they claim past each other, and hear what the others change."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Concatenate

import psycopg
from psycopg.rows import dict_row

from gateway.notices import LOST, Notices
from gateway.sql import SCHEMA, Row, Transaction
from gateway.sql_store import Connections, P, SqlStore, T
from gateway.store import Heard, UnavailableError

Connection = psycopg.Connection[Row]

PATIENCE = 10.0  # seconds that a call waits for a database that is away
PAUSE = 0.05  # seconds before it is tried again; doubled each time
LONGEST_PAUSE = 1.0
HASTEN = "set local synchronous_commit = off"
MIGRATING = 7_345_108_612  # any number, the same in all gateways


class Postgres(SqlStore):
    """A call whose connection is lost is begun anew, for PATIENCE seconds; then UnavailableError.

    Also one that was lost while it was being committed, where nobody knows whether it was: creating, reporting and
    cancelling twice is as once; the job of a claim that went unheard is queued again when its lease ends.
    """

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url
        self._connections = Connections(self._connect, psycopg.Connection.close)
        self._closing = threading.Event()
        self._patiently(lambda: self._once(_migrate))
        self._notices = Notices(self._connect)

    def close(self) -> None:
        self._closing.set()
        self._notices.close()
        self._connections.close()

    def listen(self, heard: Heard) -> None:
        super().listen(heard)
        self._notices.listen(heard, PATIENCE)

    def _connect(self) -> Connection:
        return psycopg.connect(self._url, autocommit=True, row_factory=dict_row)

    def _read(self, function: Callable[Concatenate[Transaction, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        def once() -> T:
            with self._connections.one() as connection:
                return function(_transaction(connection), *args, **kwargs)

        return self._patiently(once)

    def _write(self, function: Callable[Concatenate[Transaction, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        result, news = self._patiently(lambda: self._once(function, *args, **kwargs))
        self._tell(news)
        self._notices.tell(news)
        return result

    def _once(
        self, function: Callable[Concatenate[Transaction, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> tuple[T, Sequence[str]]:
        with self._connections.one() as connection, connection.transaction():
            transaction = _transaction(connection)
            return function(transaction, *args, **kwargs), transaction.news

    def _patiently(self, once: Callable[[], T]) -> T:
        pause, until = PAUSE, time.monotonic() + PATIENCE
        while True:
            try:
                return once()
            except LOST as error:  # deadlocks too: begun anew they pass
                self._connections.clear()  # the others are lost too, as a rule
                if time.monotonic() + pause > until or self._closing.wait(pause):
                    raise UnavailableError("The database does not answer.") from error
                pause = min(LONGEST_PAUSE, pause * 2)


def _transaction(connection: Connection) -> Transaction:
    def execute(statement: str, values: Sequence[Any]) -> list[Row]:
        cursor = connection.execute(statement.replace("?", "%s").encode(), values)
        return cursor.fetchall() if cursor.description else []

    return Transaction(execute, skipping=" for update skip locked", waiting=" for update", hasten=HASTEN)


def _migrate(transaction: Transaction) -> None:
    transaction.rows("select pg_advisory_xact_lock(?)", MIGRATING)
    transaction.rows("create table if not exists schema_version (version bigint not null)")
    done = len(transaction.rows("select version from schema_version"))
    for number, statements in enumerate(SCHEMA[done:], done + 1):
        for statement in statements:
            transaction.rows(statement.format(key='text collate "C"'))
        transaction.rows("insert into schema_version (version) values (?)", number)
