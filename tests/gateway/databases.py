"""A real Postgres as a child process, which tests may kill and start again."""

import signal
import time
import uuid
import warnings
from pathlib import Path

import psutil
import psycopg

with warnings.catch_warnings():  # there need be no folder of the user's for its lock
    warnings.simplefilter("ignore")
    from pgserver.postgres_server import get_server


class Postgres:
    """One server in a folder of its own; each test gets a database of its own on it."""

    def __init__(self, folder: Path) -> None:
        self._server = get_server(folder, cleanup_mode="delete")

    def new_database(self) -> str:
        """The URL of an empty one."""
        name = f"test_{uuid.uuid4().hex}"
        with psycopg.connect(self._server.get_uri(), autocommit=True) as connection:
            connection.execute(f"create database {name}".encode())
        return str(self._server.get_uri(name))

    def kill(self) -> None:
        """As a machine that fails: all of its processes at once, until `start`."""
        postmaster = psutil.Process(self._server.get_pid())
        processes = [postmaster, *postmaster.children(recursive=True)]
        for process in processes:
            process.send_signal(signal.SIGKILL)
        while any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes):
            time.sleep(0.01)

    def start(self) -> None:
        """With all that was committed."""
        for left in [*self._server.pgdata.glob("postmaster.pid"), *self._server.pgdata.glob(".s.PGSQL.*")]:
            left.unlink()  # the number in it may still be a zombie's
        self._server.ensure_postgres_running()

    def close(self) -> None:
        self._server.cleanup()
