"""Inputs that name a file of this machine: sent as a data: URL, as Cog does; fine-tunes, and what trainings learn from,
by their path where the server is ours, which reads them itself; a secret as what the file says.
"""

import base64
import math
import mimetypes
import os
import re
from pathlib import Path

MOST = 100 * 2**20  # bytes: what coglet takes as a request
MIME_TYPES = {".webp": "image/webp", ".safetensors": "application/octet-stream", ".jsonl": "application/jsonl"}
WEIGHTS = ("replicate_weights", "lora_weights", "resume_from")  # a fine-tune of rank 32 has 186 MB
READABLE = "SDXL_LOCAL_FILES"  # the paths, and no others, that a request to the server may name
FILE = re.compile(r"\.{0,2}/|~|.*\.(tar|tgz|tar\.gz|safetensors|zip)$", re.IGNORECASE)
URL = re.compile(r"(https?|data):", re.IGNORECASE)
ELSEWHERE = re.compile(r"[a-z][a-z0-9+.-]*:|\w[\w.-]*/\w[\w.-]*/.", re.IGNORECASE)  # a URL, or owner/repo/FILE


class ValueProblemError(Exception):
    """The inputs on the command line cannot be used; the message is for the user."""


def existing(text: str) -> Path | None:
    """The file or folder that text names, if any; any text may be asked about."""
    try:
        path = Path(text).expanduser()
        return path if text and (path.is_file() or path.is_dir()) else None
    except (OSError, RuntimeError):  # too long for a name, or the home of nobody
        return None


def data_url(name: str, path: str) -> str:
    """The content of a file, with its MIME type."""
    try:
        file = Path(path).expanduser()
        check_size(f"{name}=@{path}", (file.stat().st_size + 2) // 3 * 4)
        content = file.read_bytes()
    except (OSError, RuntimeError) as error:
        raise ValueProblemError(f"{name}=@{path}: {getattr(error, 'strerror', None) or error}") from error
    suffix = file.suffix.lower()
    kind = MIME_TYPES.get(suffix) or mimetypes.guess_type(file.name)[0] or "application/octet-stream"
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def check_size(what: str, size: int) -> None:
    """Refuse what no server would take; size is in bytes, files in base64."""
    if size > MOST:
        raise ValueProblemError(
            f"{what}: {math.ceil(size / 2**20)} MiB to send, but a server takes {MOST // 2**20} MiB; "
            "put large files where it can fetch them, and give their http(s) URLs"
        )


def secret(name: str, text: str) -> str:
    """A secret, or with @ what a file says, so that it need not stand in the shell's history. No error shows it."""
    if not text.startswith("@"):
        return text
    try:
        content = Path(text[1:]).expanduser().read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ValueProblemError(f"{name}=@FILE: {error.strerror}") from None
    except (ValueError, RuntimeError):
        raise ValueProblemError(f"{name}=@FILE: it is no text file") from None
    if not content:
        raise ValueProblemError(f"{name}=@FILE: the file is empty")
    return content


class LocalFiles:
    """The files on this machine that a request names."""

    def __init__(self, *, weights_by_path: bool, files_by_path: bool) -> None:
        """by_path: the server is ours and is given `paths`, absolute; else each file is sent along."""
        self._weights_by_path, self._files_by_path = weights_by_path, files_by_path
        self.paths: list[str] = []

    def file(self, name: str, text: str) -> str:
        """What the request says for a file: a URL as it is, a path or a data: URL for a file of this machine."""
        if URL.match(text):
            return text
        plain = text.removeprefix("@")
        if not self._files_by_path:
            return data_url(name, plain)
        found = existing(plain)
        if found is None:
            raise ValueProblemError(f"{name}={text}: No such file or directory")
        if found.is_dir():
            raise ValueProblemError(f"{name}={text}: this is a folder; pack it as a .zip or .tar")
        return self._allow(name, found)

    def weights(self, name: str, text: str) -> str:
        """What the request says for weights: a path or a data: URL for a file that exists, and else what text says."""
        plain = text.removeprefix("@")
        found = existing(plain)
        if found is None:
            if text.startswith("@") or (FILE.match(text) and not ELSEWHERE.match(text)):
                raise ValueProblemError(f"{name}={text}: No such file or directory")
            return text
        if self._weights_by_path:
            return self._allow(name, found)
        if found.is_dir():
            raise ValueProblemError(f"{name}={text}: a folder cannot be sent to a running server; send it as a .tar")
        return data_url(name, plain)

    def _allow(self, name: str, found: Path) -> str:
        # Links stay links: behind one in a cache of Hugging Face there is a file without a name of its own.
        path = str(found.resolve() if found.is_dir() else found.parent.resolve() / found.name)
        if os.pathsep in path:
            raise ValueProblemError(f"{name}={path}: a path with {os.pathsep!r} cannot be passed on; rename it")
        if path not in self.paths:
            self.paths.append(path)
        return path
