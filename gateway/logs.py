"""The gateway's log: JSON lines as coglet writes them, with the prediction's id, and without what nobody else may read.

Inputs, outputs and bodies are never logged. What may still slip in, with an exception's message for one, is masked:
tokens, data URLs, and of addresses the password, the query and the secret part of the gateway's own.
"""

from __future__ import annotations

import logging
import re
import sys
import time
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from local.logs import Entry

MASKS = (
    (re.compile(r"\b(bearer|token|basic)(\s+|\W{0,3}[:=]\W{0,3})[\w\-.~+/=]{6,}", re.IGNORECASE), r"\1 ***"),
    (re.compile(r"\b(?:r8|whsec|hf|gw)_[\w\-+/=]{8,}"), "***"),
    (re.compile(r"\bdata:[\w/+.\-;=]*,[^\s\"']*"), "data:***"),
    (re.compile(r"\b(\w+://)[^\s/@]{0,500}@"), r"\1"),
    (re.compile(r"\b(\w+://[^\s?\"'#]{0,500})[?#][^\s\"']*"), r"\1?***"),
    (re.compile(r"(/v1/(?:files|streams)/)[^\s\"']+"), r"\1***"),
)
LONGEST = 8_000  # characters of a message: with the numbers above, masking takes no time that anybody could blow up
USUAL = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}

about: ContextVar[str | None] = ContextVar("about", default=None)  # the prediction that the present work is for
log = logging.getLogger("gateway.http")


def masked(text: str) -> str:
    """The text without what is secret, and no longer than it may be."""
    text = text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
    for pattern, instead in MASKS:
        text = pattern.sub(instead, text)
    return text


class Lines(logging.Formatter):
    """One line for each record: JSON, or for people."""

    def __init__(self, *, as_json: bool) -> None:
        super().__init__()
        self._json = as_json

    def format(self, record: logging.LogRecord) -> str:
        """A traceback becomes part of the message."""
        message = record.getMessage()
        if record.exc_info:
            message += "\n" + self.formatException(record.exc_info)
        fields: dict[str, Any] = {key: value for key, value in vars(record).items() if key not in USUAL}
        prediction = fields.pop("job", None) or about.get()
        fields |= {"prediction_id": prediction} if prediction else {}
        shown = {key: masked(value) if isinstance(value, str) else value for key, value in fields.items()}
        moment = datetime.fromtimestamp(record.created, UTC).isoformat()
        level = "WARN" if record.levelname == "WARNING" else record.levelname
        entry = Entry(masked(message), record.name, level, moment, shown)
        return entry.json() if self._json else entry.text()


def setup(*, as_json: bool) -> None:
    """Our lines and the server's go to stderr; those of libraries from warnings on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Lines(as_json=as_json))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for name, level in (("gateway", logging.INFO), ("uvicorn", logging.INFO), ("uvicorn.access", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(level)


class Logged:
    """One line for each answer that changed or refused something, under the route's pattern: addresses may be secrets.

    What only reads, and a worker's calls, go by the thousand and are counted in the metrics.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        began, statuses = time.perf_counter(), [500]

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                statuses[0] = message["status"]
            await send(message)

        try:
            return await self.app(scope, receive, noting)
        finally:
            usual = scope["method"] in ("GET", "HEAD") or scope["path"].startswith("/_worker/")
            if statuses[0] >= 400 or not usual:
                route = getattr(scope.get("route"), "path", "an address without a route")
                job = scope.get("path_params", {}).get("job_id")
                seconds = round(time.perf_counter() - began, 4)
                log.info("%s %s", scope["method"], route, extra={"status": statuses[0], "seconds": seconds, "job": job})
