"""How often an account may ask: token buckets, in this process."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

from gateway.problems import Problem


@dataclass
class Bucket:
    """Fills up in a minute."""

    size: int
    level: float
    at: float

    def take(self, now: float) -> float:
        """0.0 if there was one left, else the seconds until there is."""
        self.level = min(self.size, self.level + (now - self.at) * self.size / 60)
        self.at = now
        if self.level >= 1:
            self.level -= 1
            return 0.0
        return (1 - self.level) * 60 / self.size


@dataclass
class Limits:
    """sizes: kind of call -> how many in a minute."""

    sizes: dict[str, int]
    _buckets: dict[tuple[str, str], Bucket] = field(default_factory=dict)

    def take(self, account: str, kind: str) -> dict[str, str]:
        """Headers that say what is left; Problem 429."""
        now, size = time.monotonic(), self.sizes[kind]
        bucket = self._buckets.setdefault((account, kind), Bucket(size, size, now))
        wait = bucket.take(now)
        reset = math.ceil((size - bucket.level) * 60 / size)
        headers = {
            "ratelimit-limit": f"{size}",
            "ratelimit-remaining": f"{int(bucket.level)}",
            "ratelimit-reset": f"{reset}",
        }
        if wait:
            raise throttled(math.ceil(wait), headers)
        return headers


def throttled(seconds: int, headers: dict[str, str] | None = None) -> Problem:
    """429, in the words that clients were recorded with."""
    text = f"Request was throttled. Expected available in {seconds} second{'s' * (seconds != 1)}."
    return Problem(429, text, {"Retry-After": str(seconds), **(headers or {})})
