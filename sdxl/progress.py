"""What a running prediction tells: one bar over all its denoising steps, and the seconds each stage took."""

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TextIO

import torch
from tqdm import tqdm

AHEAD = 2  # steps that a GPU is given beyond the one that it works on


class _NoLock:
    """A lock that does nothing: one thread draws, and a cancel inside tqdm's own lock would leave it locked."""

    def acquire(self, *_: object, **__: object) -> bool:
        return True

    def release(self) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


class Bar(tqdm):
    """A bar without tqdm's monitor thread and lock: a cancel that meets either hangs the worker for ever.

    Every state is a line of its own. coglet passes \\r on as it is, and Replicate's clients, who look for the last line
    that is a bar, would find the first of the states that it joins.
    """

    monitor_interval = 0
    _lock = _NoLock()
    disable: bool

    @staticmethod
    def status_printer(file: TextIO) -> Callable[[str], None]:
        """What tqdm calls with each state."""

        def write(state: str) -> None:
            file.write(f"{state}\n")
            file.flush()

        return write

    def close(self) -> None:
        """tqdm's own shows the last state again, and adds a line break."""
        if not self.disable:
            if self.last_print_n < self.n:
                self.display(pos=0)
            self.disable = True
            self._decr_instances(self)


class Progress:
    """A context manager; the bar is in the form that Replicate's clients read progress from."""

    def __init__(self, total: int) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._bar = Bar(total=total, unit="step", disable=total == 0)
        self._ahead: deque[torch.cuda.Event] = deque()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def step(self, count: int = 1) -> None:
        """A denoising step of `count` pictures is done. On a GPU it is on its way, and this waits for the one that was
        `AHEAD` steps before: the GPU always has work, the bar does not run off, and a cancel leaves little behind."""
        if torch.cuda.is_available():
            self._ahead.append(torch.cuda.current_stream().record_event())
            if len(self._ahead) > AHEAD:
                self._ahead.popleft().synchronize()
        self._bar.update(count)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time until the device has finished what is inside to `seconds[name]`."""
        start = time.perf_counter()
        yield
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds[name] += time.perf_counter() - start

    @contextmanager
    def rest(self, name: str) -> Iterator[None]:
        """Add the time inside that no stage took to `seconds[name]`."""
        start, before = time.perf_counter(), sum(self.seconds.values())
        yield
        self.seconds[name] += time.perf_counter() - start - (sum(self.seconds.values()) - before)
