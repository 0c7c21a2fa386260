"""HTTP for those who make load."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]


@dataclass
class Connection:
    """HTTP over one kept connection, with as little work as can be: the load must not be the bottleneck."""

    host: str
    token: str
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, token: str) -> AsyncIterator[Connection]:
        """To http://host:port."""
        host = url.removeprefix("http://")
        name, _, port = host.partition(":")
        reader, writer = await asyncio.open_connection(name, int(port))
        try:
            yield cls(host, token, reader, writer)
        finally:
            writer.close()

    async def ask(self, method: str, path: str, body: Json | None = None) -> tuple[int, bytes]:
        """(status, body) of one request."""
        status, headers = await self.begin(method, path, body)
        return status, await self.reader.readexactly(int(headers.get("content-length", 0)))

    async def begin(self, method: str, path: str, body: Json | None = None) -> tuple[int, dict[str, str]]:
        """(status, headers) of one request, whose body is still to be read."""
        content = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: {self.host}\r\nAuthorization: Bearer {self.token}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        self.writer.write(head.encode() + content)
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
        return int(lines[0].split()[1]), dict(line.partition(": ")[::2] for line in lines[1:] if line)
