"""The store in one SQLite file: nothing to set up, for one gateway process (others may read and write beside it)."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Concatenate

from gateway.sql import SCHEMA, Row, Transaction
from gateway.sql_store import Connections, P, SqlStore, T

PATIENCE = 30.0  # seconds to wait for another process that writes


class SQLite(SqlStore):
    """A write-ahead log, one writer at a time, readers beside it.

    What was acknowledged survives the end of the process, however it comes: the log is in the system's hands by then.
    With `synchronous="full"` it is on the disk and survives a power cut as well, for a flush at each change.
    """

    def __init__(self, path: Path | str, *, synchronous: str = "normal") -> None:
        super().__init__()
        self._path = Path(path)
        self._synchronous = synchronous
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._writing = threading.Lock()  # in turn, where SQLite would have them sleep and try again
        self._connections = Connections(self._connect, sqlite3.Connection.close)
        self._write(_migrate)

    def close(self) -> None:
        self._connections.close()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=PATIENCE, isolation_level=None, check_same_thread=False)
        connection.execute("pragma journal_mode = wal")
        connection.execute(f"pragma synchronous = {self._synchronous}")
        return connection

    def _read(self, function: Callable[Concatenate[Transaction, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        with self._connections.one() as connection:
            return function(_transaction(connection), *args, **kwargs)

    def _write(self, function: Callable[Concatenate[Transaction, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        with self._connections.one() as connection, self._writing:
            transaction = _transaction(connection)
            connection.execute("begin immediate")
            with connection:  # commits, or rolls back
                result = function(transaction, *args, **kwargs)
        self._tell(transaction.news)
        return result


def _transaction(connection: sqlite3.Connection) -> Transaction:
    def execute(statement: str, values: Sequence[Any]) -> list[Row]:
        cursor = connection.execute(statement, values)
        rows = cursor.fetchall()
        names = [column[0] for column in cursor.description or ()]
        return [dict(zip(names, row, strict=True)) for row in rows]

    return Transaction(execute)


def _migrate(transaction: Transaction) -> None:
    (version,) = transaction.rows("pragma user_version")
    for statements in SCHEMA[version["user_version"] :]:
        for statement in statements:
            transaction.rows(statement.format(key="text"))
    transaction.rows(f"pragma user_version = {len(SCHEMA)}")
