"""Outputs as files, named as Cog's CLI names them; unlike it, also those inside an object."""

import json
import mimetypes
import os
import tempfile
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests

from local.answers import Received

EXTENSIONS = {
    "application/octet-stream": ".bin",
    "application/x-tar": ".tar",
    "image/jpeg": ".jpg",
    "image/webp": ".webp",
    "text/plain": ".txt",
}
Where = tuple[str, ...]  # the place of a value in the output: field names, and numbers in lists


class OutputError(Exception):
    """An output cannot be written; the message is for the user."""


def check_writable(given: str | None) -> None:
    """Raise OutputError before any work is done if -o cannot be written."""
    path = Path(given).expanduser() if given else Path("output")
    folder = path if _is_folder(path) else path.parent
    if not _is_folder(folder):
        raise OutputError(f"-o {path}: the folder {folder} does not exist")
    if not os.access(folder, os.W_OK):
        raise OutputError(f"-o {path}: the folder {folder} cannot be written to")


@contextmanager
def receiving(given: str | None) -> Iterator[Path]:
    """A folder for files that come in, on the disk that they shall lie on, until they have their names."""
    path = Path(given).expanduser() if given else Path("output")
    parent = path if _is_folder(path) else path.parent
    try:
        with tempfile.TemporaryDirectory(dir=parent, prefix=".receiving-") as folder:
            yield Path(folder)
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror}") from error


def save(output: Any, given: str | None, default: str, folder: Path) -> tuple[list[Path], str | None]:
    """Name the files of output; (their paths, what else there is to print). Files still to be fetched come to folder.

    Without -o a list becomes output.0.png, output.1.png, ... and a single file, alone or in an object, output.png. With
    -o a single file is exactly that, whether in a list or not; several get their number, or field, in between.
    """
    path = Path(given or default).expanduser()
    if _is_folder(path):
        path, given = path / default, None
    leaves = list(_leaves(output, ()))
    files = [(where, value) for where, value in leaves if _is_file(value)]
    alone = len(files) == 1 and (given is not None or not isinstance(output, list))
    paths = {where: _write(value, path, () if alone else where, folder) for where, value in files}
    if len(files) == len(leaves):
        return list(paths.values()), None
    shown = _shown(output, (), paths)
    text = shown if isinstance(shown, str) else json.dumps(shown, indent=2, ensure_ascii=False)
    if given and not files:
        return [_put(path, text.encode())], None
    return list(paths.values()), text


def _leaves(value: Any, where: Where) -> Iterator[tuple[Where, Any]]:
    """Every value that holds no others, but None."""
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(item, (*where, str(key)))
    elif value is not None:
        yield where, value


def _shown(value: Any, where: Where, paths: dict[Where, Path]) -> Any:
    """The output with the path of each file in its place."""
    if isinstance(value, dict):
        return {key: _shown(item, (*where, key), paths) for key, item in value.items()}
    if isinstance(value, list):
        return [_shown(item, (*where, str(number)), paths) for number, item in enumerate(value)]
    return str(paths[where]) if where in paths else value


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError as error:  # a name that is too long
        raise OutputError(f"{path}: {error.strerror}") from error


def _is_file(value: Any) -> bool:
    return isinstance(value, Received) or (
        isinstance(value, str) and value.startswith(("data:", "http://", "https://"))
    )


def _write(value: Any, path: Path, where: Where, folder: Path) -> Path:
    """Give a file its name: path, with where in the output it was if that is needed, and an ending if path has none."""
    file = value if isinstance(value, Received) else _fetched(value, folder)
    bare = not path.suffix or path.suffix[1:].isdecimal()  # v1.5 has no ending
    ending = EXTENSIONS.get(file.kind) or mimetypes.guess_extension(file.kind) or "" if bare else path.suffix
    name = ".".join((path.name if bare else path.stem, *where)) + ending
    try:
        return file.path.replace(path.with_name(name))
    except OSError as error:
        raise OutputError(f"{path.with_name(name)}: {error.strerror}") from error


def _put(path: Path, content: bytes) -> Path:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror}") from error
    return path


def _fetched(url: str, folder: Path) -> Received:
    """The file behind an http URL, or in a data: URL without base64."""
    handle, name = tempfile.mkstemp(dir=folder)
    with os.fdopen(handle, "wb") as file:
        os.fchmod(handle, 0o644)
        if url.startswith("data:"):
            kind, _, body = url[5:].partition(",")
            file.write(urllib.parse.unquote_to_bytes(body))
            return Received(Path(name), kind.partition(";")[0])
        try:
            with requests.get(url, timeout=(10, 60), stream=True) as answer:
                answer.raise_for_status()
                for part in answer.iter_content(2**20):
                    file.write(part)
        except requests.RequestException as error:
            raise OutputError(f"the output at {url.partition('?')[0]} cannot be fetched: {_reason(error)}") from error
        return Received(Path(name), answer.headers.get("content-type", "").partition(";")[0])


def _reason(error: requests.RequestException) -> str:
    """What went wrong in words; the text of `requests` is long and names its internals."""
    if error.response is not None:
        return f"the server answers {error.response.status_code}"
    return "the server takes too long" if isinstance(error, requests.Timeout) else "there is no answer"
