"""A call of the API: one row of a table, from which its route, its checks and its description are made."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NoReturn

from jsonschema import Draft202012Validator
from starlette.datastructures import Headers, QueryParams
from starlette.requests import Request
from starlette.responses import Response

from gateway import checks
from gateway.auth import Caller
from gateway.jobs import Json
from gateway.problems import Problem, invalid
from gateway.site import Site

MOST_BODY = 64 * 2**20  # bytes; files are uploaded, not sent in JSON
JSON_TYPES = (
    "application/json",
    "text/plain",
    "application/x-www-form-urlencoded",
    "",
)  # curl -d says the last but one


@dataclass(frozen=True)
class Asked:
    """A request that may be answered. `at`: seconds of time.monotonic() when it came."""

    site: Site
    caller: Caller
    path: Mapping[str, str]
    query: QueryParams
    headers: Headers
    body: Any
    at: float
    request: Request

    @property
    def account(self) -> str:
        return self.caller.account


Answers = Callable[[Asked], Response]  # beside the event loop: it may block
Awaits = Callable[[Asked], Awaitable[Response]]


@dataclass(frozen=True)
class Call:
    """method and path (below /v1), and what answers.

    body       JSON schema of the body; None: it is not read
    query      name -> JSON schema of a parameter in the address, all of them optional
    statuses   of answers, beside those that any call may have
    limit      which bucket it takes from
    raw        the body is read by whoever answers
    """

    method: str
    path: str
    summary: str
    answers: Answers | None = None
    awaits: Awaits | None = None
    body: Json | None = None
    query: Json = field(default_factory=dict)
    statuses: tuple[int, ...] = (200,)
    limit: str = "call"
    scope: str = "api"
    raw: str = ""
    headers: Json = field(default_factory=dict)

    @cached_property
    def validator(self) -> Draft202012Validator:
        """Of the body."""
        return Draft202012Validator(checks.plain(self.body or {}))

    async def respond(self, site: Site, request: Request) -> Response:
        """The answer; Problem."""
        began = time.monotonic()
        caller = site.tokens.caller(request)
        if caller is None:
            caller = await site.beside(site.tokens.looked_up, request)
        if caller.scope != self.scope:
            raise Problem(403, f"This token is for {caller.scope} calls, not for {self.scope} calls.")
        left = site.limits.take(caller.account, self.limit) if self.scope == "api" else {}
        body = await self._body(request)
        asked = Asked(site, caller, request.path_params, request.query_params, request.headers, body, began, request)
        if self.answers is not None:
            response = await site.beside(self.answers, asked)
        else:
            assert self.awaits is not None
            response = await self.awaits(asked)
        response.headers.update(left)
        return response

    async def _body(self, request: Request) -> Any:
        if self.body is None:
            return None
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in JSON_TYPES and not kind.endswith("+json"):
            raise Problem(415, f"The body is {kind[:80]!r}; send application/json.")
        body = parsed(await whole(request, MOST_BODY))
        if wrong := checks.problems(self.validator, body, ""):
            raise invalid(*wrong)
        return body


async def whole(request: Request, most: int) -> bytes:
    """The body, of so many bytes at most."""
    refuse_large(request, most)
    parts, size = [], 0
    async for part in request.stream():
        parts.append(part)
        size += len(part)
        if size > most:
            raise too_large(most)
    return b"".join(parts)


def refuse_large(request: Request, most: int) -> None:
    """Before anything is read, if the client says how much will come."""
    stated = request.headers.get("content-length", "")
    if stated.isdecimal() and int(stated[:20]) > most:
        raise too_large(most)


def too_large(most: int) -> Problem:
    """413"""
    return Problem(
        413, f"The body is larger than {most // 2**20} MiB; upload large files to storage of your own and send a URL."
    )


def parsed(data: bytes) -> Any:
    """JSON, with numbers that are numbers."""
    try:
        return json.loads(data, parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise Problem(400, f"The body is not JSON: {str(error)[:200]}; send a JSON object.") from error


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is too large")
    return number
