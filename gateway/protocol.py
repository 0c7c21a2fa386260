"""uvicorn's HTTP, with an end to the heads of requests: it would keep whatever comes until a head is whole, for ever.

That is before any token is looked at, so anybody who can connect could fill the memory, or hold connections for ever.
"""

from __future__ import annotations

import asyncio
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MOST = 512 * 1024  # bytes of a head; what arrives at once, a quarter megabyte at most, may hold a part of a body too
PATIENCE = 20.0  # seconds for a head to be whole


class Bounded(HttpToolsProtocol):
    """Closes connections whose next request's head is too large or too slow."""

    _head = 0
    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn itself
        """Someone is there who will ask for something."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Some of what is asked."""
        if self._waiting is not None:
            self._head += len(data)
            if self._head > MOST:
                self._close()
                return
        super().data_received(data)

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._wait()

    def on_headers_complete(self) -> None:
        """Its head is whole."""
        self._done()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody is there any more."""
        self._done()
        super().connection_lost(exc)

    def _wait(self) -> None:
        if self._waiting is None:
            self._head = 0
            self._waiting = self.loop.call_later(PATIENCE, self._close)

    def _done(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _close(self) -> None:
        self._done()
        if self._head == 0:  # it asked nothing, as browsers do that connect in advance
            self.transport.close()
        elif not self.transport.is_closing():
            self.send_400_response("The head of the request is too large or too slow.")


def configured(app: Any, grace: int) -> uvicorn.Config:
    """How the gateway is served; `grace` in seconds, for answers under way when it ends."""
    return uvicorn.Config(
        app,
        http=Bounded,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=grace,
    )
