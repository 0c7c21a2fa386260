"""What all calls of one gateway share."""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from threading import Lock
from typing import ParamSpec, TypeVar

from anyio import CapacityLimiter, to_thread

from gateway import webhooks
from gateway.auth import Tokens
from gateway.blobs import Blobs
from gateway.checks import COMPONENTS, Checker, is_uri_output
from gateway.jobs import Kind, Version
from gateway.limits import Limits
from gateway.settings import Settings
from gateway.store import Store
from gateway.waiting import Hub

P = ParamSpec("P")
T = TypeVar("T")

THREADS = 16  # calls of the database at once
VERSIONS = 500  # kept in memory, with what checks their inputs


@dataclass(frozen=True)
class Known:
    """A version, and what follows from its schema."""

    version: Version
    checkers: dict[Kind, Checker | None]
    gives_files: bool


@dataclass
class Site:
    """The parts of a gateway. `hub` is there once the event loop runs."""

    settings: Settings
    store: Store
    blobs: Blobs
    tokens: Tokens = field(init=False)
    limits: Limits = field(init=False)
    hub: Hub = field(init=False)
    key: str = field(init=False)  # makes addresses that nobody guesses
    webhook_key: str = field(init=False)
    known: OrderedDict[str, Known] = field(default_factory=OrderedDict)
    _lock: Lock = field(default_factory=Lock)

    def __post_init__(self) -> None:
        """Blocks for the database."""
        self.tokens = Tokens(self.settings, self.store)
        self.limits = Limits({"create": self.settings.creates, "call": self.settings.calls, "read": 600_000})
        self.key = self.store.secret("addresses", lambda: secrets.token_urlsafe(32))
        self.webhook_key = self.store.secret("webhooks", webhooks.new_key)

    @property
    def url(self) -> str:
        """How clients reach it, without /v1."""
        return self.settings.public_url

    @cached_property
    def threads(self) -> CapacityLimiter:
        """For what blocks for the database."""
        return CapacityLimiter(THREADS)

    async def beside(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run what blocks beside the event loop."""
        return await to_thread.run_sync(lambda: function(*args, **kwargs), limiter=self.threads)

    def version(self, version_id: str) -> Known | None:
        """A version by its id; one that was seen before comes from memory, since versions do not change."""
        with self._lock:
            if (known := self.known.get(version_id)) is not None:
                self.known.move_to_end(version_id)
                return known
        version = self.store.get_version(version_id)
        return None if version is None else self.learn(version)

    def learn(self, version: Version) -> Known:
        """Remember a version."""
        known = _known(version, f"{self.url}/v1/files/", self.settings.private_inputs)
        with self._lock:
            self.known[version.id] = known
            while len(self.known) > VERSIONS:
                self.known.popitem(last=False)
        return known

    def forget(self, version_id: str) -> None:
        """It was deleted. Other gateways notice when a job of it is to be created."""
        with self._lock:
            self.known.pop(version_id, None)


def _known(version: Version, own: str, private: bool) -> Known:

    checkers = {kind: Checker.of(version.schema, kind, own=own, private=private) for kind in COMPONENTS}
    return Known(version, checkers, is_uri_output(version.schema))
