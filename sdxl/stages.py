"""How long each stage of something took."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class Stages:
    """`str` of it is "imports 2.1 s, download 0.3 s; 2.6 s in all". `before` is what others took already."""

    def __init__(self, before: Mapping[str, float] | None = None) -> None:
        self.seconds = dict(before or {})
        self._begun = time.perf_counter()

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add what is inside to a stage."""
        begun = time.perf_counter()
        yield
        self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - begun, 3)

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.seconds.items())
        return f"{parts}; {time.perf_counter() - self._begun:.1f} s in all"
