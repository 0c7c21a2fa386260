"""Who asks: tokens and what they open. Only digests are kept, in memory and in the database."""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from dataclasses import dataclass, field

from starlette.requests import Request

from gateway.problems import Problem
from gateway.settings import Settings, is_loopback
from gateway.store import Store

SCHEME = re.compile(r"(?:bearer|token)\s+(\S+)\s*", re.IGNORECASE)
REMEMBERED = 5.0  # seconds for which a token that was removed from the database may still open
MOST = 10_000  # digests remembered

UNAUTHENTICATED = Problem(401, "You did not pass a valid authentication token", {"WWW-Authenticate": "Bearer"})


@dataclass(frozen=True)
class Caller:
    """An account, and what it came for: api or worker."""

    account: str
    scope: str


@dataclass
class Tokens:
    """Those of the settings, and those in the database."""

    settings: Settings
    store: Store
    _found: dict[str, tuple[float, Caller | None]] = field(default_factory=dict)

    def caller(self, request: Request) -> Caller | None:
        """Who asks, as far as it is known without the database; None: `looked_up` knows more. Problem."""
        if not self.settings.token and "authorization" not in request.headers and self._from_here(request):
            return Caller(self.settings.account, "api")
        digest = _digest(request)
        own = {
            self.settings.token: Caller(self.settings.account, "api"),
            self.settings.worker_token: Caller(self.settings.account, "worker"),
        }
        for token, caller in own.items():
            if token and hmac.compare_digest(digest, sha256(token)):
                return caller
        until, found = self._found.get(digest, (0.0, None))
        if until > time.monotonic():
            if found is None:
                raise UNAUTHENTICATED
            return found
        return None

    def looked_up(self, request: Request) -> Caller:
        """Blocks for the database. Problem."""
        digest = _digest(request)
        kept = self.store.find_token(digest)
        caller = Caller(*kept) if kept else None
        if caller is None and not self.settings.token and self._from_here(request):
            caller = Caller(self.settings.account, "api")  # clients cannot do without sending something
        if len(self._found) >= MOST:
            self._found.clear()
        self._found[digest] = (time.monotonic() + REMEMBERED, caller)
        if caller is None:
            raise UNAUTHENTICATED
        return caller

    def _from_here(self, request: Request) -> bool:
        """No page of another origin in a browser on this machine, under whatever name it found us."""
        origin = request.headers.get("origin")
        host = request.url.hostname or ""
        return is_loopback(host) and origin in (None, f"{request.url.scheme}://{request.url.netloc}")


def sha256(token: str) -> str:
    """A token's digest; those of people have enough chance in them to need no salt."""
    return hashlib.sha256(token.encode(errors="surrogateescape")).hexdigest()


def _digest(request: Request) -> str:
    match = SCHEME.fullmatch(request.headers.get("authorization", ""))
    if match is None:
        raise UNAUTHENTICATED
    return sha256(match[1])
