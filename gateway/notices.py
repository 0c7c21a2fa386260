"""What gateways on one Postgres tell each other, by LISTEN and NOTIFY."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import psycopg

from gateway.ids import new_id
from gateway.store import Heard

Connect = Callable[[], "psycopg.Connection[Any]"]

CHANNEL = "gateway"
PAUSE = 0.5  # seconds between tries, and until a thread looks whether it should end
LOST = (psycopg.OperationalError, psycopg.InterfaceError)
NOTIFY = "select pg_notify(%s, told.what) from unnest(%s::text[]) as told(what)"


class Notices:
    """Sent beside the transactions that they tell of, all that have gathered in one: Postgres lets one transaction that
    notifies commit at a time, and a change that waited for its flush so would hold up all others.

    So one can be lost with the process that should have sent it: whoever waits must look again after a while. This
    process itself does not need them, and ignores its own.
    """

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._name = new_id()
        self._gathered: dict[str, None] = {}
        self._any = threading.Condition()
        self._closing = threading.Event()
        self._listening = threading.Event()
        self._threads: list[threading.Thread] = []
        self._start("gateway-notices", self._send)

    def tell(self, news: Sequence[str]) -> None:
        """The other gateways, soon."""
        if news:
            with self._any:
                self._gathered.update(dict.fromkeys(news))
                self._any.notify()

    def listen(self, heard: Heard, patience: float) -> None:
        """Returns when it listens, or after so many seconds."""
        self._start("gateway-listener", lambda: self._follow(heard))
        self._listening.wait(patience)

    def close(self) -> None:
        """What has been told is sent, unless the database is away."""
        self._closing.set()
        with self._any:
            self._any.notify()
        for thread in self._threads:
            thread.join()

    def _start(self, name: str, target: Callable[[], None]) -> None:
        self._threads.append(threading.Thread(target=target, name=name, daemon=True))
        self._threads[-1].start()

    def _send(self) -> None:
        news: list[str] = []
        while True:
            try:
                with self._connect() as connection:
                    connection.execute("set synchronous_commit = off")
                    while news := news or self._next():
                        connection.execute(NOTIFY, (CHANNEL, [f"{self._name} {what}" for what in news]))
                        news = []
                return
            except LOST:
                if self._closing.wait(PAUSE):
                    return

    def _next(self) -> list[str]:
        """All that has gathered, when there is something; nothing at the end."""
        with self._any:
            self._any.wait_for(lambda: self._gathered or self._closing.is_set())
            news, self._gathered = list(self._gathered), {}
            return news

    def _follow(self, heard: Heard) -> None:
        """Whenever the connection is new, something may have gone unheard."""
        while not self._closing.is_set():
            try:
                with self._connect() as connection:
                    connection.execute(f"listen {CHANNEL}")
                    self._listening.set()
                    heard("*")
                    while not self._closing.is_set():
                        for notice in connection.notifies(timeout=PAUSE):
                            sender, _, what = notice.payload.partition(" ")
                            if sender != self._name:
                                heard(what)
            except LOST:
                self._closing.wait(PAUSE)
