"""Work beside a thread that is cancelled as coglet cancels: by an exception at any of its bytecodes."""

import contextvars
import ctypes
import gc
import random
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from sdxl.workers import Stop, Stopped, beside


class CancelError(BaseException):
    """Stands for cog.CancelationException."""


def cancel(thread: threading.Thread) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(CancelError))


def until(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_gives_what_the_work_gives() -> None:
    assert beside(lambda _: 42) == 42
    with pytest.raises(ValueError, match="no good"):
        beside(lambda _: (_ for _ in ()).throw(ValueError("no good")))
    with pytest.raises(KeyboardInterrupt):
        beside(lambda _: (_ for _ in ()).throw(KeyboardInterrupt()))


def test_the_work_has_a_thread_and_the_context_of_its_own() -> None:
    variable = contextvars.ContextVar("variable", default="nobody's")
    variable.set("the prediction's")
    before = threading.active_count()

    def work(_: Stop) -> tuple[str, str, bool]:
        return variable.get(), threading.current_thread().name, threading.current_thread() in threading.enumerate()

    assert beside(work) == ("the prediction's", "beside", True)
    until(lambda: threading.active_count() == before)


def test_a_failure_holds_nothing() -> None:
    """What the work has in hand may be a file that goes with its path: nobody waits for the garbage collector."""

    class Held:
        pass

    references = []

    def work(_: Stop) -> None:
        held = Held()
        references.append(weakref.ref(held))
        raise ValueError("no good")

    gc.disable()
    try:
        with pytest.raises(ValueError, match="no good") as caught:
            beside(work)
        del caught
        until(lambda: references[0]() is None)
    finally:
        gc.enable()


def test_work_that_ends_by_itself_is_not_stopped() -> None:
    stop = beside(lambda stop: stop)
    stop.check()


class Course:
    """A thread that works beside itself in one thing after the other, as coglet's does; what became of the last."""

    def __init__(self) -> None:
        self.begun = self.at_work = 0
        self.said: list[str] = []

    def one(self) -> None:
        try:
            try:
                self.begun += 1
                beside(self.work)
                self.said.append("done")
            finally:
                left = self.at_work
        except (CancelError, Stopped):
            self.said.append("canceled" if not left else "canceled, but at work")

    def work(self, stop: Stop) -> None:
        self.at_work += 1
        try:
            while True:
                stop.check()
                time.sleep(0.0001)
        finally:
            time.sleep(0.002)  # a checkpoint
            self.at_work -= 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a cancel that hit the new thread
@pytest.mark.parametrize("cancels", [1, 2])
def test_a_cancel_waits_for_the_work_whenever_it_comes(cancels: int) -> None:
    order, course = random.Random(cancels), Course()
    for number in range(300):
        thread = threading.Thread(target=course.one)
        thread.start()
        while course.begun <= number:
            time.sleep(0)
        spin = time.perf_counter() + order.choice((0.0002, 0.001, 0.005)) * order.random()
        while time.perf_counter() < spin:
            pass
        for _ in range(cancels):
            cancel(thread)
            time.sleep(0.0005)
        thread.join(10)
        assert course.said == ["canceled"] * (number + 1)
