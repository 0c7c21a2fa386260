"""What a server's answer says, and how often to ask again: the part of a download that is only HTTP."""

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.message import Message
from itertools import count
from pathlib import Path, PurePosixPath, PureWindowsPath
from threading import Event, Lock
from typing import TypeVar

import requests
import urllib3

from errors import WeightsError

T = TypeVar("T")
Get = Callable[[str, Mapping[str, str]], requests.Response]

CHUNK = 1 << 20
PASSING = (requests.RequestException, urllib3.exceptions.HTTPError, OSError)
LASTING = (requests.exceptions.InvalidURL, requests.exceptions.SSLError, requests.exceptions.InvalidHeader)
# What a refusal means where there is a token to set, and where there is none
EXPLAINED = {
    401: "needs a token (401): set {token} to one that may read it",
    403: "is forbidden (403): accept its licence on its page and set {token} to one that may read it",
    404: "does not exist (404): check the address, and set {token} if it is private",
}
UNEXPLAINED = {
    401: "needs a sign-in (401): give an address that works without one, a signed URL say",
    403: "is forbidden (403): give an address that anyone may read; a signed URL may have run out",
    404: "does not exist (404): check the address",
}


class Stopped(WeightsError):
    """The download was given up because its `Stop` was set; nothing is wrong with the file."""


class Refused(WeightsError):
    """The server will not give the file, and will not when asked again; `status` is its answer."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Stop(Event):
    """Set by another thread, it ends what goes on under it at once: `set` also cuts what waits for a server."""

    def __init__(self) -> None:
        super().__init__()
        self._cuts: list[Callable[[], object]] = []
        self._guard = Lock()

    def set(self) -> None:
        super().set()
        with self._guard:
            cuts = list(self._cuts)
        for cut in cuts:
            with suppress(OSError, ValueError, RuntimeError):  # it is closed already
                cut()

    @contextmanager
    def cutting(self, cut: Callable[[], object]) -> Iterator[None]:
        """While this lasts, `set` calls `cut`; at once if it is set already."""
        with self._guard:
            self._cuts.append(cut)
        try:
            if self.is_set():
                with suppress(OSError, ValueError, RuntimeError):
                    cut()
            yield
        finally:
            with self._guard:
                self._cuts.remove(cut)

    def check(self) -> None:
        if self.is_set():
            raise Stopped("the download was stopped; send the request again for another try")


@dataclass(frozen=True)
class Patience:
    """How often to try again, and how slow is too slow."""

    attempts: int = 6
    backoff: float = 0.5  # seconds, doubled by every failure in a row, at most 30
    window: float = 30.0  # seconds in which at least `least` bytes must arrive
    least: int = 64 << 10


@dataclass(frozen=True)
class Manner:
    """How to download; a test makes these numbers small."""

    workers: int = 8
    piece: int = 64 << 20
    save_every: int = 16 << 20
    limit: int | None = None  # bytes; a larger file is refused before it is fetched
    deadline: float = 1800.0  # seconds that a fine-tune may take from the question to the last byte unpacked
    patience: Patience = field(default_factory=Patience)


@dataclass(frozen=True)
class Stated:
    """What an answer says of a file. `digest` is "sha256:…", or "git:…" for the hub's small files, or "".

    `name` is the file's name if the server states one, without folders.
    """

    size: int
    ranged: bool
    validator: str
    digest: str
    name: str = ""

    @property
    def identity(self) -> str:
        return self.digest or self.validator


@dataclass(frozen=True)
class Item:
    """One file: where it comes from, where it goes, and what is known of it beforehand.

    token  what a reader sets to be let in, or None where no token helps
    label  how errors name the file, if not by its URL
    told   what the server has just said of it, which saves one question
    """

    url: str
    path: Path
    size: int | None = None
    sha256: str | None = None
    token: str | None = "HF_TOKEN"
    label: str = ""
    told: Stated | None = None

    @property
    def shown(self) -> str:
        return self.label or shown(self.url)


def shown(url: str) -> str:
    """The URL as an error may show it: without a query, a fragment or a password, where tokens travel."""
    return re.sub(r"//[^/]*@", "//", re.split(r"[?#]", url, maxsplit=1)[0])


def ask(get: Get, item: Item, headers: Mapping[str, str]) -> requests.Response:
    """An answer that carries the file; ConnectionError where another try may help, Refused where not."""
    response = get(item.url, headers)
    status = response.status_code
    if status in (200, 206) or (status == 416 and response.headers.get("Content-Range") == "bytes */0"):
        return response
    response.close()
    if status >= 500 or status in (408, 429):
        raise ConnectionError(f"the server answers {status}")
    meanings = EXPLAINED if item.token else UNEXPLAINED
    meaning = meanings.get(status, f"answers {status}: check the address").format(token=item.token)
    raise Refused(f"{item.shown} {meaning}", status)


def probe(get: Get, item: Item, patience: Patience, stop: Stop) -> Stated:
    """What the server says of a file, asked for its first byte."""

    def once() -> Stated:
        with ask(get, item, {"Range": "bytes=0-0"}) as response:
            told = stated(response, item.shown)
            if told.ranged:
                with stop.cutting(response.raw.shutdown):
                    response.raw.read(2)  # to its end, so that the connection serves again
        return told

    return persistently(once, item.shown, patience, stop)


def stated(response: requests.Response, label: str) -> Stated:
    """Size, validator, digest and name, from the answer to a request for the first byte."""
    told = response.headers
    length = told.get("Content-Range", "").rpartition("/")[2] or told.get("Content-Length", "")
    if not length.isdecimal():
        raise WeightsError(f"{label} does not say how long it is; use a server that does")
    digest = ""
    for hop in (*response.history, response):
        plain = hop.headers.get("ETag", "").removeprefix("W/").strip('"')
        linked = hop.headers.get("X-Linked-ETag", plain).strip('"')
        if "X-Repo-Commit" in hop.headers and re.fullmatch("[0-9a-f]{64}", linked):
            digest = digest or f"sha256:{linked}"
        elif "X-Repo-Commit" in hop.headers and re.fullmatch("[0-9a-f]{40}", linked):
            digest = digest or f"git:{linked}"
    return Stated(int(length), response.status_code != 200, validator_of(response), digest, _named(response))


def _named(response: requests.Response) -> str:
    """The name that Content-Disposition gives the file (RFC 6266), without the folders that it must not have."""
    head = Message()
    head["Content-Disposition"] = "".join(filter(str.isprintable, response.headers.get("Content-Disposition", "")))
    with suppress(ValueError, LookupError, TypeError):  # an encoding that does not exist, say
        return PureWindowsPath(PurePosixPath(head.get_filename("")).name).name
    return ""


def validator_of(response: requests.Response) -> str:
    """What tells one version of a file from another: a strong ETag, or else the date."""
    etag = response.headers.get("ETag", "")
    return etag if etag.startswith('"') else response.headers.get("Last-Modified", "")


def arriving(response: requests.Response, patience: Patience, stop: Stop) -> Iterator[bytes]:
    """The body as it comes; a trickle counts as a stall."""
    since, received = time.monotonic(), 0
    with stop.cutting(response.raw.shutdown):
        while data := response.raw.read1(CHUNK):
            yield data
            received += len(data)
            if time.monotonic() - since > patience.window:
                if received < patience.least:
                    raise ConnectionError(f"only {received} bytes came in {patience.window:.0f} s")
                since, received = time.monotonic(), 0


def persistently(action: Callable[[], T], label: str, patience: Patience, stop: Stop) -> T:
    """The action's result; what may pass is tried again with growing pauses, until `stop`."""
    for failures in count(1):
        stop.check()
        try:
            return action()
        except PASSING as error:
            stop.check()  # a connection that was cut is no fault of the server
            if failures >= patience.attempts or isinstance(error, LASTING):
                raise WeightsError(
                    f"{label} cannot be fetched: {_why(error)}; check the network and try again"
                ) from error
            stop.wait(min(30.0, patience.backoff * 2 ** (failures - 1)))
    raise AssertionError("unreachable")


def _why(error: BaseException) -> str:
    """The innermost cause in a few words, without the object addresses that urllib3 prints."""
    while isinstance(inner := getattr(error, "reason", None) or next(iter(error.args), None), BaseException):
        error = inner
    said = str(error.args[0] if error.args else error)
    said = re.sub(r"\w+://\S+", lambda url: shown(url[0]), said)
    return re.sub(r"^\w+\(host=[^)]*\): |^.*?object at 0x\w+>: ", "", said)[:200] or type(error).__name__
