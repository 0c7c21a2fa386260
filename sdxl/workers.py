"""Threads beside a prediction: they write pictures and fetch weights.

Started once, at setup, and given work through a queue in C: a cancel that arrives while a thread starts, or while a
lock of Python's is held, hangs a process for ever.
"""

import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Job(Generic[T]):
    """Something a worker does; `finished` becomes true when it is done, `error` is what it raised."""

    def __init__(self, work: Callable[[], T]) -> None:
        self.error: BaseException | None = None
        self.finished = False
        self._work: Callable[[], T] | None = work
        self._value: list[T] = []

    def run(self) -> None:
        """Called by a worker."""
        try:
            if self._work is not None:
                self._value.append(self._work())
        except BaseException as error:  # noqa: BLE001 - it is raised where the result is asked for
            self.error = error
        self._work = None  # it holds a picture
        self.finished = True

    def wait(self) -> None:
        """Until it is finished; may be cut short at any point and called again, so it only looks."""
        while not self.finished:
            time.sleep(0.001)

    def result(self) -> T:
        """What the work returned, or raised, once it is finished."""
        self.wait()
        if self.error is not None:
            raise self.error
        return self._value[0]


class Workers:
    """Daemon threads that take jobs in order."""

    def __init__(self, count: int, name: str) -> None:
        self._jobs: SimpleQueue[Job[Any]] = SimpleQueue()
        for _ in range(count):
            threading.Thread(target=self._work, name=name, daemon=True).start()

    def submit(self, work: Callable[[], T]) -> Job[T]:
        """Have `work` done by the next free thread."""
        job = Job(work)
        self._jobs.put(job)
        return job

    def _work(self) -> None:
        while True:
            self._jobs.get().run()
