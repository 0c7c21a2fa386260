"""Cog fetches the files that a request names by URL itself, from anywhere, of any size: here it learns not to.

coglet calls `cog.types.URLPath.convert` for each. `guard_downloads` puts ours in its place: public addresses only (in
every spelling, after every redirect), a size limit, nothing left on disk when it fails.
"""

import tempfile

import requests
from cog import Path
from cog.types import URLPath

from errors import InputError, SDXLError
from fetch.network import getter

MOST = 100 * 2**20  # bytes: what coglet takes in a request body


def guard_downloads(*, allow_private: bool) -> None:
    """`allow_private`: the operator wants inputs from a private network, a file server beside this one say."""
    fetch_inline = URLPath.convert
    get = getter(allow_private=allow_private)

    def convert(self: URLPath) -> Path:
        if not self.source.lower().startswith(("http:", "https:")):
            return fetch_inline(self)
        if self._path is None:
            self._path = _fetch(self.source, self.filename)
        return self._path

    def _fetch(url: str, name: str) -> Path:
        file = tempfile.NamedTemporaryFile(suffix=name, delete=False)  # noqa: SIM115 - coglet deletes it afterwards
        try:
            with file, get(url, {}) as response:
                response.raise_for_status()
                for part in response.iter_content(2**20):
                    file.write(part)
                    if file.tell() > MOST:
                        raise InputError(f"{name} is larger than {MOST // 2**20} MiB; send a smaller file.")
        except BaseException as error:
            Path(file.name).unlink(missing_ok=True)
            if isinstance(error, requests.RequestException):
                raise InputError(f"{url[:200]} cannot be fetched: {_reason(error)}.") from error
            if isinstance(error, SDXLError):
                raise InputError(f"{url[:200]} cannot be fetched: {error}.") from error
            raise
        return Path(file.name)

    URLPath.convert = convert


def _reason(error: requests.RequestException) -> str:
    """What went wrong in words; the inner text of `requests` names internals."""
    if error.response is not None:
        return f"the server answers {error.response.status_code}"
    return "the server takes too long" if isinstance(error, requests.Timeout) else "there is no answer"
