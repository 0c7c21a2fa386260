"""Cog fetches the files that a request names by URL itself, from anywhere, of any size: here it learns not to.

coglet calls `cog.Path.validate` and `cog.types.URLPath.convert` for each. `guard_downloads` puts ours in their place:
public addresses only (in every spelling, after every redirect), a size limit, a deadline, nothing left on disk when
it fails, and errors that say what to send instead.
"""

import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import requests
from cog import Path
from cog.types import URLPath

from errors import InputError, SDXLError
from fetch.answers import Get, shown
from fetch.inline import decoded
from fetch.network import at_most, getter

MOST = 100 * 2**20  # bytes: what coglet takes in a request body
DEADLINE = 60.0  # seconds for so many bytes, the more the longer: while one input comes, nobody else is served
SILENCE = (10.0, 10.0)  # seconds to connect, and for the headers or the next byte


def guard_downloads(*, allow_private: bool, most: int = MOST) -> None:
    """`allow_private`: the operator wants inputs from a private network, a file server beside this one say. `most` is
    the largest file in bytes."""
    fetch_inline, accept = URLPath.convert, Path.validate
    deadline = DEADLINE * max(1.0, most / MOST)
    get = getter(allow_private=allow_private, timeout=SILENCE, patience=deadline)

    def convert(self: URLPath) -> Path:
        if not self.source.lower().startswith(("http:", "https:")):
            return fetch_inline(self)
        if self._path is None:
            self._path = _fetch(get, self.source, self.filename, most, deadline)
        return self._path

    URLPath.convert = convert
    Path.validate = staticmethod(_validating(accept))


def _validating(accept: Callable[[Any], pathlib.Path]) -> Callable[[Any], pathlib.Path]:
    """cog decodes data: URLs as it accepts them: the errors are Python's own, and wrong characters are no error."""

    def validate(value: Any) -> pathlib.Path:
        start = value.lstrip()[:5].lower() if isinstance(value, str) else ""
        try:
            if start == "data:":
                decoded(value)
            return accept(value)
        except (ValueError, OSError) as error:
            if start == "data:":  # what it holds stays unsaid: it may be a hundred megabytes
                raise InputError("the input is no valid data: URL; send data:TYPE;base64,...") from error
            raise InputError(f"{shown(str(value))[:200]} is no valid URL; send http(s)://host/file.") from error

    return validate


def _fetch(get: Get, url: str, name: str, most: int, deadline: float) -> Path:
    file = tempfile.NamedTemporaryFile(suffix=name, delete=False)  # noqa: SIM115 - coglet deletes it afterwards
    try:
        with file, get(url, {}) as response, at_most(deadline, response.raw.shutdown):
            response.raise_for_status()
            for part in response.iter_content(2**20):
                file.write(part)
                if file.tell() > most:
                    raise InputError(f"{name} is larger than {most // 2**20} MiB; send a smaller file.")
    except BaseException as error:
        Path(file.name).unlink(missing_ok=True)
        if isinstance(error, requests.RequestException | TimeoutError):
            raise InputError(f"{shown(url)[:200]} cannot be fetched: {_reason(error)}.") from error
        if isinstance(error, SDXLError):
            raise InputError(f"{shown(url)[:200]} cannot be fetched: {error}.") from error
        raise
    return Path(file.name)


def _reason(error: requests.RequestException | TimeoutError) -> str:
    """What went wrong in words; the inner text of `requests` names internals."""
    if isinstance(error, requests.Timeout | TimeoutError):
        return "the server takes too long"
    return "there is no answer" if error.response is None else f"the server answers {error.response.status_code}"
