"""What went wrong, as RFC 9457 has it, in the words that Replicate uses where clients were recorded with them."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from gateway.store import UnavailableError

TITLES = {
    400: "Bad request",
    401: "Unauthenticated",
    403: "Forbidden",
    404: "Not found",
    405: "Method not allowed",
    410: "Gone",
    413: "Content too large",
    415: "Unsupported media type",
    416: "Range not satisfiable",
    422: "Input validation failed",
    429: "Too many requests",
    500: "Internal server error",
    503: "Service unavailable",
}
NOT_FOUND = "The requested resource could not be found."

log = logging.getLogger("gateway")


class Problem(Exception):  # the name of the standard
    """An answer that is no success: `detail` says what to do."""

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] = {}, title: str = "") -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.title = title or TITLES[status]
        self.headers = dict(headers)


def missing(detail: str = NOT_FOUND) -> Problem:
    """404"""
    return Problem(404, detail)


def invalid(*lines: str) -> Problem:
    """422, of lines such as `- input.width: Must be less than or equal to 2048`."""
    return Problem(422, "".join(f"{line}\n" for line in lines))


class Answer(Response):
    """JSON in ASCII: half a surrogate pair that a client sent is no UTF-8."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """One line."""
        return b"" if content is None else json.dumps(content, separators=(",", ":"), allow_nan=False).encode()


def shown(problem: Problem) -> Response:
    """The problem as an answer."""
    body = {"title": problem.title, "detail": problem.detail, "status": problem.status}
    return Answer(body, problem.status, problem.headers, media_type="application/problem+json")


async def of_problem(_: Request, error: Exception) -> Response:
    """For the application's table of exceptions, as the others here."""
    assert isinstance(error, Problem)
    return shown(error)


async def of_http(_: Request, error: Exception) -> Response:
    """Starlette's own: no such route, no such method."""
    assert isinstance(error, HTTPException)
    detail = NOT_FOUND if error.detail == "Not Found" else error.detail
    return shown(Problem(error.status_code, detail, error.headers or {}, TITLES.get(error.status_code, "Error")))


async def of_unavailable(_: Request, error: Exception) -> Response:
    """The database is away; clients that read GET again after 503 find it back."""
    log.warning("the database does not answer: %s", error)
    return shown(Problem(503, "The database does not answer at present; try again.", {"Retry-After": "1"}))


async def of_leaving(_: Request, error: Exception) -> Response:  # noqa: ARG001
    """The client went away before all of its body had come; nobody reads this."""
    return shown(Problem(400, "The body ended too early."))


async def of_fault(_: Request, error: Exception) -> Response:  # noqa: ARG001  # the server logs it
    """Ours."""
    return shown(Problem(500, "The gateway failed at this; its log says why."))


HANDLERS: dict[Any, Any] = {
    Problem: of_problem,
    HTTPException: of_http,
    UnavailableError: of_unavailable,
    ClientDisconnect: of_leaving,
    Exception: of_fault,
}
