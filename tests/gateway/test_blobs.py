"""The bytes of files in a directory and in a bucket of a server that speaks S3."""

import hashlib
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from gateway.blobs import ABANDONED, CHUNK, S3, Blobs, Directory, MissingError, put
from gateway.ids import derived_id, new_id, version_id

BYTES = bytes(range(256)) * 17


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(params=["directory", "s3"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    if request.param == "directory":
        return Directory(tmp_path / "blobs")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    endpoint, bucket = request.getfixturevalue("endpoint"), uuid.uuid4().hex
    boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket=bucket)
    return S3(bucket, "some/where/", endpoint)


def content(blobs: Blobs, file_id: str, *part: int | None) -> bytes:
    return b"".join(blobs.read(file_id, *part))  # type: ignore[arg-type]


def test_what_is_put_is_read_in_any_part(blobs: Blobs) -> None:
    file_id = new_id()
    written = put(blobs, file_id, [BYTES[:1000], b"", BYTES[1000:]])
    assert (written.size, written.sha256) == (len(BYTES), hashlib.sha256(BYTES).hexdigest())
    assert written.md5 == hashlib.md5(BYTES, usedforsecurity=False).hexdigest()
    assert blobs.size(file_id) == len(BYTES)
    parts: list[tuple[int, int | None]] = [(0, None), (0, 1), (5, 5), (100, 3000), (4000, None), (4000, 9999)]
    for start, end in [*parts, (len(BYTES), None), (9999, None)]:
        assert content(blobs, file_id, start, end) == BYTES[start:end]


def test_large_files_come_in_chunks(blobs: Blobs) -> None:
    file_id, large = new_id(), os.urandom(9 * CHUNK + 1)  # S3 takes it in several parts
    put(blobs, file_id, (large[at : at + CHUNK] for at in range(0, len(large), CHUNK)))
    chunks = list(blobs.read(file_id))
    assert b"".join(chunks) == large
    assert max(map(len, chunks)) <= CHUNK
    assert content(blobs, file_id, CHUNK - 1, 2 * CHUNK + 1) == large[CHUNK - 1 : 2 * CHUNK + 1]


def test_an_empty_file_is_a_file(blobs: Blobs) -> None:
    file_id = new_id()
    put(blobs, file_id, [])
    assert (blobs.size(file_id), content(blobs, file_id)) == (0, b"")


def test_a_file_that_was_not_finished_is_not_there(blobs: Blobs, tmp_path: Path) -> None:
    file_id = new_id()

    def broken() -> Iterator[bytes]:
        yield b"half"
        raise ConnectionError

    with pytest.raises(ConnectionError):
        put(blobs, file_id, broken())
    assert blobs.size(file_id) is None
    with pytest.raises(MissingError):
        blobs.read(file_id)
    put(blobs, file_id, [b"old"])
    with pytest.raises(ConnectionError):
        put(blobs, file_id, broken())
    assert content(blobs, file_id) == b"old"
    put(blobs, file_id, [b"new"])
    assert content(blobs, file_id) == b"new"
    assert not list(tmp_path.rglob("*.part"))


def test_a_deleted_file_is_gone(blobs: Blobs) -> None:
    file_id = new_id()
    put(blobs, file_id, [b"x"])
    blobs.delete(file_id)
    blobs.delete(file_id)
    assert blobs.size(file_id) is None


def test_a_reader_has_all_of_a_file_that_is_replaced_meanwhile(tmp_path: Path) -> None:
    blobs, file_id = Directory(tmp_path), new_id()
    put(blobs, file_id, [b"a" * 3 * CHUNK])
    reading = blobs.read(file_id)
    first = next(reading)
    put(blobs, file_id, [b"b"])
    blobs.delete(file_id)
    assert first + b"".join(reading) == b"a" * 3 * CHUNK


@pytest.mark.parametrize(
    "hostile", ["", "..", "../../etc/passwd", "a/b" * 9, "A" * 26, "a" * 25, "a" * 26 + "\n", "\0" * 26]
)
def test_only_ids_are_ids(blobs: Blobs, hostile: str) -> None:
    assert blobs.size(hostile) is None
    blobs.delete(hostile)
    for refused in (lambda: blobs.read(hostile), lambda: blobs.writer(hostile)):
        with pytest.raises(MissingError):
            refused()


def test_parts_of_processes_that_are_no_more_are_removed(tmp_path: Path) -> None:
    Directory(tmp_path)
    old, young = tmp_path / "parts" / "old.part", tmp_path / "parts" / "young.part"
    for path in (old, young):
        path.write_bytes(b"x")
    long_ago = time.time() - ABANDONED - 1
    os.utime(old, (long_ago, long_ago))
    Directory(tmp_path)
    assert (old.exists(), young.exists()) == (False, True)


def test_ids() -> None:
    made = {new_id() for _ in range(1000)}
    assert len(made) == 1000
    assert {len(each) for each in made} == {26}
    assert set("".join(made)) == set("abcdefghijklmnopqrstuvwxyz234567")
    assert derived_id("key", "job", 1) == derived_id("key", "job", 1)
    others = [("key", "job", 2), ("other", "job", 1), ("key", "jo", "b1")]
    assert derived_id("key", "job", 1) not in {derived_id(*each) for each in others}
    assert version_id({"a": {"b": 1, "c": 2}}) == version_id({"a": {"c": 2, "b": 1}}) != version_id({"a": {}})
