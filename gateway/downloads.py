"""The bytes of files at addresses that nobody guesses: no token, no redirect, parts on request, and nothing in a file
can do anything in the browser that shows it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from gateway.api.files import live
from gateway.blobs import MissingError
from gateway.jobs import File
from gateway.problems import Problem, missing
from gateway.site import Site

RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
SHOWN = frozenset({"image/png", "image/jpeg", "image/webp", "image/gif", "image/avif"})  # svg can hold a script
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; sandbox",
    "Cache-Control": "private, max-age=3600, immutable",
    "Accept-Ranges": "bytes",
    "Referrer-Policy": "no-referrer",
}


def answer(site: Site, request: Request, file_id: str) -> Response:
    """A file, or the part of it that is asked for. Blocks; Problem."""
    file = live(site, file_id)
    if file is None:
        raise missing()
    etag = f'"{file.sha256}"'
    headers = {**HEADERS, "ETag": etag, "Content-Disposition": disposition(file)}
    if etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    wanted = request.headers.get("range", "") if request.headers.get("if-range", etag) == etag else ""
    part = _part(wanted, file.size)
    start, end = part or (0, file.size)
    headers["Content-Length"] = str(end - start)
    if part:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{file.size}"
    status = 206 if part else 200
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=file.content_type)
    try:
        chunks: Iterator[bytes] = site.blobs.read(file.id, start, end)
    except MissingError:
        raise missing() from None
    return StreamingResponse(chunks, status, headers, media_type=file.content_type)


def _part(wanted: str, size: int) -> tuple[int, int] | None:
    """(start, end) of one range of bytes; None for the whole, also where several are asked for; Problem 416."""
    match = RANGE.fullmatch(wanted.replace(" ", ""))
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if first:
        start, end = int(first), min(size, int(last) + 1) if last else size
    else:
        start, end = max(0, size - int(last)), size
    if start >= end and (not last or not first or int(first) <= int(last)):
        raise Problem(416, f"The file has {size} bytes.", {"Content-Range": f"bytes */{size}"})
    return (start, end) if start < end else None


def disposition(file: File) -> str:
    """Pictures are shown, all else is saved."""
    plain = re.sub(r"[^\w.() -]", "_", file.name, flags=re.ASCII)
    kind = "inline" if file.content_type in SHOWN else "attachment"
    return f"{kind}; filename=\"{plain}\"; filename*=UTF-8''{quote(file.name, safe='')}"
