"""Who waits for what: changes that the store tells of wake those in the event loop who wait for them."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress

Changed = Callable[[float], Awaitable[bool]]

ALL = "*"


class Hub:
    """Made in the event loop. Give `heard` to Store.listen: any thread may call it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: defaultdict[str, set[asyncio.Event]] = defaultdict(set)

    def heard(self, what: str) -> None:
        """A job, by its id, or "queue" or "webhooks" changed; "*": anything may have."""
        if what in self._waiting or what == ALL:  # most changes interest nobody: the loop is not bothered with them
            with suppress(RuntimeError):  # it has ended
                self._loop.call_soon_threadsafe(self._wake, what)

    @contextmanager
    def watch(self, what: str) -> Iterator[Changed]:
        """A function that waits until `what` has changed since its last call, or for so many seconds: whether it has.

        Changes count from here on: look at the job after this, and none is missed.
        """
        event = asyncio.Event()
        self._waiting[what].add(event)

        async def changed(seconds: float) -> bool:
            with suppress(TimeoutError):
                await asyncio.wait_for(event.wait(), seconds)
            was = event.is_set()
            event.clear()
            return was

        try:
            yield changed
        finally:
            self._waiting[what].discard(event)
            if not self._waiting[what]:
                del self._waiting[what]

    def _wake(self, what: str) -> None:
        whose = self._waiting if what == ALL else [what]
        for event in [event for each in whose for event in self._waiting.get(each, ())]:
            event.set()
