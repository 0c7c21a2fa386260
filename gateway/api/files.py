"""Files: uploaded and produced, and their bytes for whoever knows the address."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from typing import Any, BinaryIO

from anyio import to_thread
from python_multipart.exceptions import MultipartParseError
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message

from gateway import blobs, shapes
from gateway.api.call import Asked, Call, parsed, refuse_large, too_large
from gateway.api.inline import MEDIA_TYPE, PLAIN_TYPE
from gateway.ids import new_id
from gateway.jobs import File, Json
from gateway.problems import Answer, Problem, invalid, missing
from gateway.site import Site

MOST = 100 * 2**20  # bytes of an upload
FORM = 64 * 1024  # bytes of a form beside its file
FIELDS = 8  # of a form
LISTED = 100
UNSAFE = re.compile(r"[\x00-\x1f\x7f/\\\"<>|:*?]+")
LONGEST_NAME = 100  # characters


async def _create(asked: Asked) -> Response:
    """One part, `content`, is the file; `metadata` comes as a field from Python and as a file from JavaScript."""
    request = asked.request
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise Problem(415, "The body is no form; send multipart/form-data with the file as its part `content`.")
    refuse_large(request, MOST + FORM)
    limited = Request(request.scope, _counted(request))
    try:
        async with limited.form(max_files=FIELDS, max_fields=FIELDS, max_part_size=FORM) as form:
            content = form.get("content")
            if not isinstance(content, UploadFile):
                raise invalid("- content: is required; send the file as the part `content` of the form")
            if (content.size or 0) > MOST:
                raise too_large(MOST)
            about = await _metadata(form)
            named = _field(form, "filename") or content.filename or "file"
            kind = _field(form, "type") or content.content_type or ""
            file = await to_thread.run_sync(_keep, asked, content.file, safe_name(named), media_type(kind), about)
    except (MultiPartException, MultipartParseError, HTTPException) as error:
        raise Problem(400, f"The form cannot be read: {str(error)[:200]}") from error
    return Answer(shapes.file(asked.site, file), 201)


def _counted(request: Request) -> Any:
    """The body as it comes, up to the limit."""
    size = 0

    async def receive() -> Message:
        nonlocal size
        message = await request.receive()
        size += len(message.get("body", b""))
        if size > MOST + FORM:
            raise too_large(MOST)
        return message

    return receive


async def _metadata(form: FormData) -> Json:
    given = form.get("metadata")
    data = await given.read(FORM) if isinstance(given, UploadFile) else (given or "").encode(errors="surrogatepass")
    about = parsed(data) if data.strip() else {}
    if not isinstance(about, dict):
        raise invalid("- metadata: Invalid type. Expected: object")
    return about


def _field(form: FormData, name: str) -> str:
    value = form.get(name)
    return value if isinstance(value, str) else ""


def _keep(asked: Asked, content: BinaryIO, name: str, kind: str, about: Json) -> File:
    site, now, file_id = asked.site, time.time(), new_id()
    written = blobs.put(site.blobs, file_id, _chunks(content))
    until = now + site.settings.keep
    file = File(
        file_id, asked.account, name, kind, written.size, written.sha256, written.md5, now, until, metadata=about
    )
    site.store.put_file(file)
    return file


def _chunks(content: BinaryIO) -> Iterator[bytes]:
    while chunk := content.read(blobs.CHUNK):
        yield chunk


def safe_name(text: str) -> str:
    """A file name that means nothing but itself, wherever it ends up."""
    name = UNSAFE.sub("_", text.encode(errors="replace").decode()).strip(". ")
    return name[-LONGEST_NAME:].lstrip("-. ") or "file"


def media_type(text: str) -> str:
    """A plain one; parameters, of which a charset matters to nobody here, are dropped."""
    kind = text.partition(";")[0].strip().lower()
    return kind if MEDIA_TYPE.fullmatch(kind) else PLAIN_TYPE


def _list(asked: Asked) -> Response:
    files = asked.site.store.list_files(asked.account, LISTED)
    return Answer(shapes.page("", [shapes.file(asked.site, file) for file in files], None))


def _get(asked: Asked) -> Response:
    return Answer(shapes.file(asked.site, _own(asked)))


def _delete(asked: Asked) -> Response:
    """The row goes last: if this stops in between, its expiry finishes the work."""
    file = _own(asked)
    asked.site.blobs.delete(file.id)
    asked.site.store.delete_file(file.id)
    return Response(status_code=204)


def _own(asked: Asked) -> File:
    file = live(asked.site, asked.path["file_id"])
    if file is None or file.owner != asked.account:
        raise missing()
    return file


def live(site: Site, file_id: str) -> File | None:
    """A file that has not expired."""
    file = site.store.get_file(file_id) if blobs.ID.fullmatch(file_id) else None
    return None if file is None or (file.expires_at is not None and file.expires_at <= time.time()) else file


UPLOAD: Json = {
    "type": "object",
    "properties": {
        "content": {"type": "string", "format": "binary"},
        "filename": {"type": "string"},
        "type": {"type": "string"},
        "metadata": {"type": "string", "description": json.dumps({"any": "JSON object"})},
    },
    "required": ["content"],
}

CALLS = (
    Call("POST", "/files", "Upload a file", awaits=_create, raw="multipart/form-data", statuses=(201,)),
    Call("GET", "/files", "List files", _list),
    Call("GET", "/files/{file_id}", "Get a file", _get),
    Call("DELETE", "/files/{file_id}", "Delete a file", _delete, statuses=(204,)),
)
