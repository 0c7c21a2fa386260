"""The bytes of files, under opaque ids: in a directory, or in an S3 bucket. A file is there whole or not at all."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol, Self

CHUNK = 1 << 20  # bytes read at once
ABANDONED = 3600.0  # seconds after which the part of a file is from a process that is no more
ID = re.compile(r"[a-z2-7]{26,64}")


class MissingError(Exception):
    """There are no bytes under this id."""


class Writer(Protocol):
    """A file being written: there when the `with` block ends, gone when that ends by an exception. It sums up."""

    size: int

    @property
    def sha256(self) -> str: ...

    @property
    def md5(self) -> str: ...

    def write(self, data: bytes) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Blobs(Protocol):
    """Blocking; from any thread."""

    def writer(self, file_id: str) -> Writer:
        """For bytes that come bit by bit. Written again, an id has the new bytes; never a mixture."""

    def size(self, file_id: str) -> int | None:
        """Bytes; None where there are none."""

    def read(self, file_id: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Bytes from `start` up to `end` (exclusive; None: to the last), in chunks. MissingError, at the call."""

    def delete(self, file_id: str) -> None:
        """Whether it is there or not."""


def put(blobs: Blobs, file_id: str, chunks: Iterable[bytes]) -> Writer:
    """All of the chunks as one file; the answer has its size and digests."""
    with blobs.writer(file_id) as writer:
        for chunk in chunks:
            writer.write(chunk)
    return writer


class _Part:
    """A temporary file that becomes a blob, or nothing."""

    def __init__(self, folder: Path | None) -> None:
        handle, name = tempfile.mkstemp(dir=folder, suffix=".part")
        self.size = 0
        self._file: IO[bytes] = os.fdopen(handle, "wb")
        self._path = Path(name)
        self._sha256 = hashlib.sha256()
        self._md5 = hashlib.md5(usedforsecurity=False)

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()

    @property
    def md5(self) -> str:
        return self._md5.hexdigest()

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self._sha256.update(data)
        self._md5.update(data)
        self.size += len(data)

    def keep(self, path: Path) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with self._file:
                if kind is None:
                    self._file.flush()
                    os.fsync(self._file.fileno())
            if kind is None:
                self.keep(self._path)
        finally:
            self._path.unlink(missing_ok=True)


class Directory:
    """Files in a folder, spread over subfolders by the first two characters of their ids."""

    def __init__(self, path: Path | str) -> None:
        self._root = Path(path)
        self._parts = self._root / "parts"
        self._parts.mkdir(parents=True, exist_ok=True)
        for part in self._parts.iterdir():
            with suppress(FileNotFoundError):
                if time.time() - part.stat().st_mtime > ABANDONED:
                    part.unlink()

    def writer(self, file_id: str) -> Writer:
        return _ToDirectory(self._parts, self._path(file_id))

    def size(self, file_id: str) -> int | None:
        try:
            return self._path(file_id).stat().st_size
        except (FileNotFoundError, MissingError):
            return None

    def read(self, file_id: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        try:
            file = self._path(file_id).open("rb")
        except FileNotFoundError as error:
            raise MissingError(file_id) from error
        return _chunks(file, start, end)

    def delete(self, file_id: str) -> None:
        with suppress(MissingError):
            self._path(file_id).unlink(missing_ok=True)

    def _path(self, file_id: str) -> Path:
        """Only an id becomes a path: nothing else can leave the folder."""
        if not ID.fullmatch(file_id):
            raise MissingError(file_id)
        return self._root / file_id[:2] / file_id


class _ToDirectory(_Part):
    def __init__(self, parts: Path, path: Path) -> None:
        super().__init__(parts)
        self._to = path

    def keep(self, path: Path) -> None:
        self._to.parent.mkdir(exist_ok=True)
        path.replace(self._to)
        folder = os.open(self._to.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _chunks(file: IO[bytes], start: int, end: int | None) -> Iterator[bytes]:
    with file:
        file.seek(start)
        while (wanted := CHUNK if end is None else min(CHUNK, end - file.tell())) > 0:
            if not (chunk := file.read(wanted)):
                return
            yield chunk


class S3:
    """Files as objects of a bucket. Credentials come from the environment, as for every AWS client."""

    def __init__(self, bucket: str, prefix: str = "", endpoint: str | None = None) -> None:
        import boto3  # only who keeps files there needs it

        self._client: Any = boto3.client("s3", endpoint_url=endpoint)
        self._bucket = bucket
        self._prefix = prefix.strip("/") + "/" if prefix.strip("/") else ""

    def writer(self, file_id: str) -> Writer:
        return _ToS3(self._client, self._place(file_id))

    def size(self, file_id: str) -> int | None:
        try:
            return int(self._client.head_object(**self._place(file_id))["ContentLength"])
        except (MissingError, self._client.exceptions.ClientError) as error:
            if isinstance(error, MissingError) or _absent(error):
                return None
            raise

    def read(self, file_id: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        if end is not None and end <= start:
            return iter(())
        asked = {"Range": f"bytes={start}-{'' if end is None else end - 1}"} if start or end is not None else {}
        try:
            body = self._client.get_object(**self._place(file_id), **asked)["Body"]
        except self._client.exceptions.ClientError as error:
            if _absent(error):
                raise MissingError(file_id) from error
            if error.response["Error"]["Code"] == "InvalidRange":  # from behind the end on there is nothing
                return iter(())
            raise
        return _body(body)

    def delete(self, file_id: str) -> None:
        with suppress(MissingError):
            self._client.delete_object(**self._place(file_id))

    def _place(self, file_id: str) -> dict[str, str]:
        if not ID.fullmatch(file_id):
            raise MissingError(file_id)
        return {"Bucket": self._bucket, "Key": self._prefix + file_id}


class _ToS3(_Part):
    """S3 shows an object when all of it is there, also one that is sent in several parts."""

    def __init__(self, client: Any, place: dict[str, str]) -> None:
        super().__init__(None)
        self._client = client
        self._place = place

    def keep(self, path: Path) -> None:
        self._client.upload_file(str(path), self._place["Bucket"], self._place["Key"])


def _body(body: Any) -> Iterator[bytes]:
    try:
        yield from body.iter_chunks(CHUNK)
    finally:
        body.close()


def _absent(error: Any) -> bool:
    return error.response["Error"]["Code"] in {"404", "NoSuchKey", "NotFound"}
