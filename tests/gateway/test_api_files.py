"""Files: uploaded, fetched in parts, and gone in time."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway import app
from tests.gateway.asking import finish
from tests.gateway.standing import Standing, standing


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standing]:
    with standing(tmp_path_factory.mktemp("api")) as found:
        yield found


def test_a_file_is_kept_with_its_sums(here: Standing) -> None:
    fields = {"metadata": json.dumps({"who": "me"}), "filename": "b.txt", "type": "text/plain"}
    made = here.client.post("/v1/files", files={"content": ("a.bin", b"hello")}, data=fields)
    file = made.json()
    assert (made.status_code, file["name"], file["content_type"], file["size"]) == (201, "b.txt", "text/plain", 5)
    assert file["metadata"] == {"who": "me"}
    assert here.client.get(file["urls"]["get"]).json() == file
    blob = ("blob", json.dumps({"who": "you"}), "application/json")  # as JavaScript sends it
    other = here.client.post("/v1/files", files={"content": ("a", b""), "metadata": blob}).json()
    assert (other["metadata"], other["size"]) == ({"who": "you"}, 0)
    answer = here.anonymous("GET", file["urls"]["download"])
    assert (answer.content, answer.headers["accept-ranges"]) == (b"hello", "bytes")
    assert answer.headers["content-disposition"].startswith('attachment; filename="b.txt"')
    again = here.anonymous("GET", file["urls"]["download"], headers={"If-None-Match": answer.headers["etag"]})
    assert again.status_code == 304
    assert here.client.delete(f"/v1/files/{file['id']}").status_code == 204
    for path in (f"/v1/files/{file['id']}", file["urls"]["download"]):
        assert here.client.get(path).status_code == 404


@pytest.mark.parametrize(
    ("wanted", "status", "content", "place"),
    [
        ("bytes=0-1", 206, b"he", "bytes 0-1/5"),
        ("bytes=3-", 206, b"lo", "bytes 3-4/5"),
        ("bytes=-2", 206, b"lo", "bytes 3-4/5"),
        ("bytes=-9", 206, b"hello", "bytes 0-4/5"),
        ("bytes=1-900", 206, b"ello", "bytes 1-4/5"),
        ("bytes=5-", 416, None, "bytes */5"),
        ("bytes=-0", 416, None, "bytes */5"),
        ("bytes=3-1", 200, b"hello", None),
        ("bytes=0-1,3-4", 200, b"hello", None),
        ("lines=1-2", 200, b"hello", None),
    ],
)
def test_parts_of_files(here: Standing, wanted: str, status: int, content: bytes | None, place: str | None) -> None:
    url = here.upload(b"hello")["urls"]["download"]
    answer = here.anonymous("GET", url, headers={"Range": wanted})
    assert (answer.status_code, answer.headers.get("content-range")) == (status, place)
    assert content is None or answer.content == content
    head = here.anonymous("HEAD", url, headers={"Range": wanted})
    assert (head.status_code, head.content) == (status, b"")
    assert content is None or head.headers["content-length"] == str(len(content))


@pytest.mark.parametrize(
    ("options", "status"),
    [
        ({"json": {}}, 415),
        ({"data": {"x": "y"}, "files": {"other": b""}}, 422),
        ({"files": {"content": b"x"}, "data": {"metadata": "{"}}, 400),
        ({"files": {"content": b"x"}, "data": {"metadata": "[]"}}, 422),
        ({"files": [("content", b"x")] * 20}, 400),
    ],
)
def test_forms_that_are_none(here: Standing, options: dict[str, Any], status: int) -> None:
    assert here.client.post("/v1/files", **options).status_code == status


def test_what_is_kept_for_a_time_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "CLEAN", 0.1)
    with standing(tmp_path, keep=0.5) as found:
        job = finish(found, found.create(input={"prompt": "x"}).json(), output=["done"], logs="log")
        file = found.upload(b"x")
        assert list(Path(found.settings.files).glob("*/*"))
        for _ in range(100):
            if not list(Path(found.settings.files).glob("*/*")):
                break
            time.sleep(0.1)
        gone = found.client.get(job["urls"]["get"]).json()
        assert (gone["data_removed"], gone["input"], gone["output"], gone["logs"]) == (True, {}, None, "")
        assert gone["status"] == "succeeded"
        assert found.anonymous("GET", file["urls"]["download"]).status_code == 404
