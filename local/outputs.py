"""Outputs of a prediction as files, named as Cog's CLI names them."""

import base64
import binascii
import json
import mimetypes
import urllib.parse
from pathlib import Path
from typing import Any

import requests

EXTENSIONS = {
    "application/octet-stream": ".bin",
    "application/x-tar": ".tar",
    "image/jpeg": ".jpg",
    "image/webp": ".webp",
    "text/plain": ".txt",
}


class OutputError(Exception):
    """An output cannot be written; the message is for the user."""


def check_writable(given: str | None) -> None:
    """Raise OutputError before any work is done if -o cannot be written."""
    path = Path(given).expanduser() if given else Path("output")
    if not _is_folder(path) and not _is_folder(path.parent):
        raise OutputError(f"-o {path}: the folder {path.parent} does not exist")


def save(output: Any, given: str | None) -> tuple[list[Path], str | None]:
    """Write the files of output; (their paths, what else there is to print).

    Without -o a list becomes output.0.png, output.1.png, ... and a single file output.png. With -o a single
    picture is exactly that file, whether the model returns a list or not; several get their number in between.
    """
    path = Path(given).expanduser() if given else Path("output")
    if _is_folder(path):
        path, given = path / "output", None
    if _is_file(output):
        return [_write(output, path)], None
    if isinstance(output, list) and output and all(_is_file(item) for item in output):
        if given and len(output) == 1:
            return [_write(output[0], path)], None
        numbered = [path.with_name(f"{path.stem}.{number}{path.suffix}") for number in range(len(output))]
        return [_write(item, name) for item, name in zip(output, numbered, strict=True)], None
    if output in (None, []):
        return [], None
    text = output if isinstance(output, str) else json.dumps(output, indent=2, ensure_ascii=False)
    if given:
        return [_put(path, text.encode())], None
    return [], text


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError as error:  # a name that is too long
        raise OutputError(f"{path}: {error.strerror}") from error


def _is_file(item: Any) -> bool:
    return isinstance(item, str) and item.startswith(("data:", "http://", "https://"))


def _write(url: str, path: Path) -> Path:
    content, kind = _read(url)
    if path.suffix[1:].isdecimal() or not path.suffix:  # output.0 has no extension yet
        extension = EXTENSIONS.get(kind) or mimetypes.guess_extension(kind) or ""
        path = path.with_name(path.name + extension)
    return _put(path, content)


def _put(path: Path, content: bytes) -> Path:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror}") from error
    return path


def _read(url: str) -> tuple[bytes, str]:
    """(content, MIME type) of a data or http URL."""
    if not url.startswith("data:"):
        try:
            answer = requests.get(url, timeout=(10, 60))
            answer.raise_for_status()
        except requests.RequestException as error:
            raise OutputError(f"the output at {url.partition('?')[0]} cannot be fetched: {_reason(error)}") from error
        return answer.content, answer.headers.get("content-type", "").partition(";")[0]
    head, _, body = url[5:].partition(",")
    kind, *options = head.split(";")
    try:
        content = base64.b64decode(body) if "base64" in options else urllib.parse.unquote_to_bytes(body)
    except binascii.Error as error:
        raise OutputError(f"an output is damaged: {error}") from error
    return content, kind


def _reason(error: requests.RequestException) -> str:
    """What went wrong in words; the text of `requests` is long and names its internals."""
    if error.response is not None:
        return f"the server answers {error.response.status_code}"
    return "the server takes too long" if isinstance(error, requests.Timeout) else "there is no answer"
