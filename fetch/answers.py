"""What a server's answer says, and how often to ask again: the part of a download that is only HTTP."""

import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from threading import Event
from typing import TypeVar

import requests
import urllib3

from errors import WeightsError

T = TypeVar("T")
Get = Callable[[str, Mapping[str, str]], requests.Response]

CHUNK = 1 << 20
PASSING = (requests.RequestException, urllib3.exceptions.HTTPError, OSError)
LASTING = (requests.exceptions.InvalidURL, requests.exceptions.SSLError, requests.exceptions.InvalidHeader)
EXPLAINED = {
    401: "needs a token (401): set HF_TOKEN to one that may read it",
    403: "is forbidden (403): accept its licence on its page and set HF_TOKEN",
    404: "does not exist (404): check the address",
}


@dataclass(frozen=True)
class Patience:
    """How often to try again, and how slow is too slow."""

    attempts: int = 6
    backoff: float = 0.5  # seconds, doubled by every failure in a row, at most 30
    window: float = 30.0  # seconds in which at least `least` bytes must arrive
    least: int = 64 << 10


@dataclass(frozen=True)
class Item:
    """One file: where it comes from, where it goes, and what is known of it beforehand."""

    url: str
    path: Path
    size: int | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Manner:
    """How to download; a test makes these numbers small."""

    workers: int = 8
    piece: int = 64 << 20
    save_every: int = 16 << 20
    limit: int | None = None  # bytes; a larger file is refused before it is fetched
    patience: Patience = field(default_factory=Patience)


@dataclass(frozen=True)
class Stated:
    """What an answer says of a file. `digest` is "sha256:…", or "git:…" for the hub's small files, or ""."""

    size: int
    ranged: bool
    validator: str
    digest: str

    @property
    def identity(self) -> str:
        return self.digest or self.validator


def shown(url: str) -> str:
    """The URL as an error may show it: without a query or a password, where tokens travel."""
    return re.sub(r"//[^/@]*@", "//", url.partition("?")[0])


def ask(get: Get, url: str, headers: Mapping[str, str]) -> requests.Response:
    """An answer that carries the file; ConnectionError where another try may help, WeightsError where not."""
    response = get(url, headers)
    status = response.status_code
    if status in (200, 206) or (status == 416 and response.headers.get("Content-Range") == "bytes */0"):
        return response
    response.close()
    if status >= 500 or status in (408, 429):
        raise ConnectionError(f"the server answers {status}")
    raise WeightsError(f"{shown(url)} {EXPLAINED.get(status, f'answers {status}: check the address')}")


def stated(response: requests.Response, url: str) -> Stated:
    """Size, validator and digest, from the answer to a request for the first byte."""
    told = response.headers
    length = told.get("Content-Range", "").rpartition("/")[2] or told.get("Content-Length", "")
    if not length.isdecimal():
        raise WeightsError(f"{shown(url)} does not say how long it is; use a server that does")
    digest = ""
    for hop in (*response.history, response):
        plain = hop.headers.get("ETag", "").removeprefix("W/").strip('"')
        linked = hop.headers.get("X-Linked-ETag", plain).strip('"')
        if "X-Repo-Commit" in hop.headers and re.fullmatch("[0-9a-f]{64}", linked):
            digest = digest or f"sha256:{linked}"
        elif "X-Repo-Commit" in hop.headers and re.fullmatch("[0-9a-f]{40}", linked):
            digest = digest or f"git:{linked}"
    return Stated(int(length), response.status_code != 200, validator_of(response), digest)


def validator_of(response: requests.Response) -> str:
    """What tells one version of a file from another: a strong ETag, or else the date."""
    etag = response.headers.get("ETag", "")
    return etag if etag.startswith('"') else response.headers.get("Last-Modified", "")


def arriving(response: requests.Response, patience: Patience) -> Iterator[bytes]:
    """The body as it comes; a trickle counts as a stall."""
    since, received = time.monotonic(), 0
    while data := response.raw.read1(CHUNK):
        yield data
        received += len(data)
        if time.monotonic() - since > patience.window:
            if received < patience.least:
                raise ConnectionError(f"only {received} bytes came in {patience.window:.0f} s")
            since, received = time.monotonic(), 0


def persistently(action: Callable[[], T], url: str, patience: Patience, stop: Event) -> T:
    """The action's result; what may pass is tried again with growing pauses."""
    for failures in count(1):
        try:
            return action()
        except PASSING as error:
            if failures >= patience.attempts or isinstance(error, LASTING) or stop.is_set():
                raise WeightsError(
                    f"{shown(url)} cannot be fetched: {_why(error)}; check the network and try again"
                ) from error
            stop.wait(min(30.0, patience.backoff * 2 ** (failures - 1)))
    raise AssertionError("unreachable")


def _why(error: BaseException) -> str:
    """The innermost cause in a few words, without the object addresses that urllib3 prints."""
    while isinstance(inner := getattr(error, "reason", None) or next(iter(error.args), None), BaseException):
        error = inner
    said = str(error.args[0] if error.args else error)
    return re.sub(r"^\w+\(host=[^)]*\): |^.*?object at 0x\w+>: ", "", said)[:200] or type(error).__name__
