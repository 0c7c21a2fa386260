"""How long each stage of something took."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stages:
    """`str` of it is "imports 2.1 s, download 0.3 s; 2.6 s in all"."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._begun = time.perf_counter()

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add what is inside to a stage."""
        begun = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begun

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.seconds.items())
        return f"{parts}; {time.perf_counter() - self._begun:.1f} s in all"
