"""Cog fetches the files that a request names by URL itself, from anywhere, of any size: here it learns not to.

coglet asks `cog.Path.validate` for a path and fetches what comes back as a `URLPath`, on threads that it starts: a
cancel that meets one at its start hangs the worker for ever, in one of a hundred. `guard_downloads` puts ours in its
place, which comes back with the file: from public addresses only (in every spelling, after every redirect), with a size
limit and a deadline, nothing left on disk when it fails, and errors that say what to send instead.
"""

import mimetypes
import pathlib
import re
import tempfile
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import IO, Any, Protocol

import requests
from cog import Path
from cog.types import get_filename

from errors import InputError, SDXLError
from fetch import answers
from fetch.answers import Get, shown
from fetch.inline import decoded
from fetch.network import at_most, getter, is_own

MOST = 100 * 2**20  # bytes: what coglet takes in a request body
DEADLINE = 60.0  # seconds for so many bytes, the more the longer: while one input comes, nobody else is served
SILENCE = (10.0, 10.0)  # seconds to connect, and for the headers or the next byte
FETCHED = re.compile(r"\s*(https?|data):", re.IGNORECASE)


class Stop(Protocol):
    """What `beside` gives to its work."""

    def check(self) -> None:
        """Raise something if the work is to end."""


Beside = Callable[[Callable[[Stop], Path]], Path]


def guard_downloads(beside: Beside, *, allow_private: bool, most: int = MOST) -> None:
    """`beside` runs work on a thread that no cancel meets. `allow_private`: the operator wants inputs from a private
    network, a file server beside this one say. `most` is the largest file in bytes."""
    accept, sources = Path.validate, {private: Source.of(allow_private=private, most=most) for private in (False, True)}

    def validate(value: Any) -> pathlib.Path:
        fetched = isinstance(value, str) and FETCHED.match(value)
        source = sources[allow_private or bool(fetched and is_own(value.lstrip()))]
        path: pathlib.Path = beside(partial(source.file, value.lstrip())) if fetched else accept(value)
        return path

    Path.validate = staticmethod(validate)


@dataclass(frozen=True)
class Source:
    """Where files come from; `most` in bytes, `deadline` in seconds for the body of one; `cut` ends all waiting."""

    get: Get
    most: int
    deadline: float
    cut: answers.Stop

    @classmethod
    def of(cls, *, allow_private: bool, most: int = MOST, cut: answers.Stop | None = None) -> "Source":
        """Files of at most so many bytes, with the time that they may take."""
        deadline, cut = DEADLINE * max(1.0, most / MOST), cut or answers.Stop()
        get = getter(allow_private=allow_private, timeout=SILENCE, patience=deadline, stop=cut)
        return cls(get, most, deadline, cut)

    def save(self, url: str, file: IO[bytes], stop: Stop) -> None:
        """Write what is behind an http(s) or data: URL into a file. InputError, or what stop raises."""
        if url[:5].lower() == "data:":
            _decode(url, file)
        else:
            self._download(url, file, stop)

    def file(self, url: str, stop: Stop) -> Path:
        """The file behind a URL. It goes when its path is let go, as coglet does once a prediction is over."""
        file = tempfile.NamedTemporaryFile(suffix=file_name(url), delete=False)  # noqa: SIM115
        path = Path(file.name)
        weakref.finalize(path, pathlib.Path(file.name).unlink, missing_ok=True)
        try:
            with file:
                self.save(url, file, stop)
        except BaseException:
            path.unlink(missing_ok=True)  # the error may be held for long, and with it the path
            raise
        return path

    def _download(self, url: str, file: IO[bytes], stop: Stop) -> None:
        try:
            with self.get(url, {}) as response, self._cutting(response.raw.shutdown):
                response.raise_for_status()
                for part in response.iter_content(2**20):
                    stop.check()
                    file.write(part)
                    if file.tell() > self.most:
                        raise InputError(f"the file is larger than {self.most // 2**20} MiB; send a smaller one")
        except (requests.RequestException, TimeoutError) as error:
            raise InputError(f"{shown(url)[:200]} cannot be fetched: {_reason(error)}.") from error
        except SDXLError as error:
            raise InputError(f"{shown(url)[:200]} cannot be fetched: {error}.") from error

    @contextmanager
    def _cutting(self, cut: Callable[[], None]) -> Iterator[None]:
        with at_most(self.deadline, cut), self.cut.cutting(cut):
            yield


def _decode(url: str, file: IO[bytes]) -> None:
    """cog's own way decodes it twice, skips over wrong characters, and has Python's errors."""
    try:
        content = decoded(url)
    except ValueError as error:  # what it holds stays unsaid: it may be a hundred megabytes
        raise InputError("the input is no valid data: URL; send data:TYPE;base64,...") from error
    file.write(content)


def file_name(url: str) -> str:
    """What a URL calls its file; of a data: URL only the ending is known."""
    if url[:5].lower() == "data:":
        kind = url[5:200].partition(",")[0].partition(";")[0]
        return mimetypes.guess_extension(kind) or ""
    try:
        name: str = get_filename(url)
    except ValueError as error:
        raise InputError(f"{shown(url)[:200]} is no valid URL; send http(s)://host/file.") from error
    return name


def _reason(error: requests.RequestException | TimeoutError) -> str:
    """What went wrong in words; the inner text of `requests` names internals."""
    if isinstance(error, requests.Timeout | TimeoutError):
        return "the server takes too long"
    return "there is no answer" if error.response is None else f"the server answers {error.response.status_code}"
