"""What the gateway keeps, in the API's JSON."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from gateway import streams
from gateway.blobs import MissingError
from gateway.jobs import File, Job, Json, Model, Version
from gateway.site import Site

SECRET = "$secret"  # in a kept input, {"$secret": value} is for the worker alone
REDACTED = "[REDACTED]"
# How all official clients begin their User-Agent; the last is that of the second Python client's module.
OFFICIAL = re.compile(r"(async)?replicate|_moduleclient/python", re.IGNORECASE)
PATHS = {"prediction": "predictions", "training": "trainings"}
EMPTY: Json = {"github_url": None, "paper_url": None, "license_url": None, "weights_url": None, "cover_image_url": None}


def moment(seconds: float | None) -> str | None:
    """RFC 3339, in UTC."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def job(site: Site, of: Job) -> Json:
    """A prediction or training. Nothing in `urls` is null: Python's client takes none."""
    here = f"{site.url}/v1/{PATHS[of.kind]}/{of.id}"
    shown: Json = {
        "id": of.id,
        "model": of.model,
        "version": of.version,
        "input": without_secrets(of.input),
        "output": of.output,
        "logs": of.logs,
        "error": of.error,
        "status": of.status,
        "source": "api",
        "data_removed": of.data_removed,
        "created_at": moment(of.created_at),
        "started_at": moment(of.started_at),
        "completed_at": moment(of.completed_at),
        "metrics": metrics(of),
        "urls": {"get": here, "cancel": f"{here}/cancel", "web": f"{site.url}/#/{of.kind}s/{of.id}"},
    }
    if of.kind == "prediction":
        known = site.version(of.version)
        files = known is not None and known.gives_files
        shown["urls"]["stream"] = site.url + streams.path(of.id, site.key, files=files)
    more = {
        "webhook": of.webhook,
        "webhook_events_filter": list(of.webhook_events) or None,
        "deadline": moment(of.deadline),
        "deployment": of.deployment,
        "destination": of.destination,
    }
    return shown | {name: value for name, value in more.items() if value is not None}


def metrics(of: Job) -> Json:
    """The worker's own, and the seconds since it was asked for."""
    if of.completed_at is None:
        return of.metrics
    ran = {} if of.started_at is None else {"predict_time": max(0.0, of.completed_at - of.started_at)}
    return ran | of.metrics | {"total_time": max(0.0, of.completed_at - of.created_at)}


def hidden(given: Json, secrets: frozenset[str]) -> Json:
    """An input as it is kept: what is secret is marked so, whatever becomes of the version that says which are."""
    return {name: {SECRET: value} if name in secrets and value is not None else value for name, value in given.items()}


def without_secrets(value: Any) -> Any:
    """An input as anybody may see it."""
    return _opened(value, lambda _: REDACTED)


def with_secrets(value: Any) -> Any:
    """An input as the worker gets it."""
    return _opened(value, lambda secret: secret)


def _opened(value: Any, show: Callable[[Any], Any]) -> Any:
    return {
        name: show(each[SECRET]) if isinstance(each, dict) and each.keys() == {SECRET} else each
        for name, each in value.items()
    }


def inlined(site: Site, shown: Json, user_agent: str) -> Json:
    """With files of the output as data: URLs where this client needs them so, up to the operator's limit; trained
    weights stay URLs."""
    mode = site.settings.output_mode
    needed = site.url.startswith("http:") and OFFICIAL.match(user_agent) is not None
    if not (mode == "data" or (mode == "auto" and needed)) or "destination" in shown:
        return shown
    left = site.settings.inline
    own = re.compile(re.escape(f"{site.url}/v1/files/") + r"([a-z2-7]+)/[^/?#]*")

    def one(text: str) -> str:
        nonlocal left
        match = own.fullmatch(text)
        file = site.store.get_file(match[1]) if match else None
        if file is None or file.size > left:
            return text
        try:
            data = b"".join(site.blobs.read(file.id))
        except MissingError:  # it expired just now
            return text
        left -= file.size
        return f"data:{file.content_type};base64,{base64.b64encode(data).decode()}"

    return shown | {"output": each_text(shown["output"], one)}


def each_text(value: Any, one: Callable[[str], Any]) -> Any:
    """The value with each text in it replaced."""
    if isinstance(value, str):
        return one(value)
    if isinstance(value, list):
        return [each_text(item, one) for item in value]
    if isinstance(value, dict):
        return {name: each_text(item, one) for name, item in value.items()}
    return value


def model(site: Site, of: Model) -> Json:
    """With its latest version."""
    latest = site.version(of.latest_version) if of.latest_version else None
    return {
        "url": f"{site.url}/{of.full_name}",
        "owner": of.owner,
        "name": of.name,
        "description": of.description,
        "visibility": of.visibility,
        "run_count": 0,
        "is_official": False,
        "created_at": moment(of.created_at),
        "default_example": None,
        "latest_version": None if latest is None else version(latest.version),
        **EMPTY,
        **{name: value for name, value in of.details.items() if name in EMPTY},
    }


def version(of: Version) -> Json:
    """With the schema that its inputs are checked against."""
    return {
        "id": of.id,
        "created_at": moment(of.created_at),
        "cog_version": of.cog_version,
        "openapi_schema": of.schema,
    }


def file(site: Site, of: File) -> Json:
    """Python's client needs name and etag."""
    return {
        "id": of.id,
        "name": of.name,
        "content_type": of.content_type,
        "size": of.size,
        "etag": of.md5,
        "checksums": {"sha256": of.sha256, "md5": of.md5},
        "metadata": of.metadata,
        "created_at": moment(of.created_at),
        "expires_at": moment(of.expires_at),
        "urls": {"get": f"{site.url}/v1/files/{of.id}", "download": file_url(site, of)},
    }


def file_url(site: Site, of: File) -> str:
    """Where its bytes are, for whoever knows it."""
    return f"{site.url}/v1/files/{of.id}/{quote(of.name, safe='')}"


def account(name: str) -> Json:
    """Whose a token is."""
    return {"type": "user", "username": name, "name": name, "github_url": None, "avatar_url": None}


def page(url: str, results: Sequence[Json], after: tuple[float, str] | None) -> Json:
    """One page of a list. `next` is whole, since the JavaScript client knows no other."""
    return {
        "previous": None,
        "next": None if after is None else f"{url}cursor={cursor(after)}",
        "results": list(results),
    }


def cursor(after: tuple[float, str]) -> str:
    """A place in a list, as text for an address."""
    return base64.urlsafe_b64encode(json.dumps(after).encode()).decode().rstrip("=")


def place(text: str) -> tuple[float, str] | None:
    """The place that a cursor names; ValueError."""
    if not text:
        return None
    try:
        at, name = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    except (binascii.Error, TypeError, RecursionError) as error:
        raise ValueError(text) from error
    if type(at) is not float or not isinstance(name, str) or "\0" in name or not name.isascii():
        raise ValueError(text)
    return at, name
