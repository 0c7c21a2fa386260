"""Identifiers: random ones that nobody guesses, and ones that follow from what they name."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
from collections.abc import Mapping
from typing import Any

LENGTH = 26  # characters of a-z2-7, 5 bits each: 130 bits
BYTES = 17  # enough for LENGTH characters


def new_id() -> str:
    """A random id of 130 bits, for jobs and for files: who has a file's id may read the file."""
    return _letters(secrets.token_bytes(BYTES))


def derived_id(key: str, *parts: object) -> str:
    """The same id for the same parts, which nobody without `key` can tell. For what is sent twice: a worker's file."""
    digest = hmac.digest(key.encode(), json.dumps([str(part) for part in parts]).encode(), "sha256")
    return _letters(digest)


def version_id(documents: Mapping[str, Any]) -> str:
    """64 hex digits of a worker's schema documents: the same on every machine and after every start."""
    canonical = json.dumps(documents, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _letters(data: bytes) -> str:
    return base64.b32encode(data).decode().lower()[:LENGTH]
