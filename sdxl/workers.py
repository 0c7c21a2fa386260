"""Threads beside a prediction or a training: they write pictures, fetch weights, train.

A cancel that arrives while `threading` starts a thread, or while a lock of Python's is held, hangs a process for ever.
So the workers are started once, at setup, and given work through a queue in C; and a training, which has no setup, is
started by one call in C.
"""

import _thread
import contextvars
import threading
import time
import weakref
from collections.abc import Callable
from functools import partial
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


class Stopped(BaseException):
    """Raised in work that was asked to stop; no failure, so that `except Exception` does not take it for one."""


class Stop:
    """How work is asked to stop: a plain flag, because a cancel may meet at any point the thread that sets it."""

    def __init__(self) -> None:
        self.asked = False

    def check(self) -> None:
        """Called by the work, wherever it can be left; raises `Stopped` if it is to be."""
        if self.asked:
            raise Stopped


class _Beside(Job[T]):
    """Work on a thread of its own. `began` is set before `asked` is looked at, and whoever waits does the reverse: so
    one of the two sees the other's."""

    def __init__(self, work: Callable[[Stop], T]) -> None:
        self.began, self.stop = False, Stop()
        self._lives: Callable[[], object] = lambda: None
        super().__init__(partial(work, self.stop))

    def start(self) -> None:
        """One call in C: it starts a thread, or does not. Prints and metrics find their prediction by its context."""
        begin = partial(self._begin, contextvars.copy_context())
        self._lives = weakref.ref(begin)  # nothing but the thread holds it
        _thread.start_new_thread(begin, ())

    def wait(self) -> None:
        """As any job's, but for a cancel that hits the new thread: until a thread first runs, CPython 3.11 holds it for
        the one that started it. It ends there, before it begins."""
        while not self.finished:
            if self._lives() is None and not self.began:
                raise Stopped
            time.sleep(0.001)

    def _begin(self, context: contextvars.Context) -> None:
        """On the new thread: one that Python knows, since libraries ask for theirs."""
        self.began = True
        if self.stop.asked:
            self.finished = True
            return
        try:
            threading.Thread(target=context.run, args=(self.run,), name="beside", daemon=True).start()
        except BaseException as error:  # noqa: BLE001 - it is raised where the result is asked for
            self.error, self.finished = error, True

    def outlast(self) -> None:
        """Ask it to stop, and return when it has, or never began: however often that is cut short."""
        while True:
            try:
                self.stop.asked = True
                while self.began and not self.finished:
                    time.sleep(0.001)
                return
            except BaseException:  # noqa: BLE001 - a further cancel, of what is being cancelled
                continue


def beside(work: Callable[[Stop], T]) -> T:
    """What `work` returns or raises, on a fresh thread. A cancel meets only the thread that waits here, at any point:
    the work is asked to stop, and the cancel goes on once it has.
    """
    job = _Beside(work)
    try:
        job.start()
        return job.result()
    except BaseException:
        job.outlast()
        raise
    finally:
        job.error = None  # it holds, by its traceback, this job and all that the work has in hand
