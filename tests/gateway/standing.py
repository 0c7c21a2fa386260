"""The whole gateway in this process, without workers: tests play the worker over its real protocol."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx

from gateway.app import create_app
from gateway.settings import Settings
from tests.gateway.serving import served

TOKEN, WORKER_TOKEN = "r8_" + "c" * 37, "w" * 40
STRING = {"type": "string"}
FILE = {"type": "string", "format": "uri"}
INPUTS = {
    "prompt": STRING,
    "image": FILE,
    "images": {"type": "array", "items": FILE},
    "replicate_weights": STRING,
    "lora_weights": STRING,
    "api_key": {"type": "string", "format": "password", "writeOnly": True, "x-cog-secret": True},
}


def schema(kind: str, output: dict[str, Any]) -> dict[str, Any]:
    """A predictor's, or a trainer's if `kind` is "Training", as Cog writes it."""
    given = {"title": f"{kind}Input", "type": "object", "properties": INPUTS}
    schemas = {f"{kind}Input": given, f"{kind}Output": {"title": f"{kind}Output", **output}}
    info = {"title": "Cog", "version": "0.1.0"}
    return {"openapi": "3.0.2", "info": info, "paths": {}, "components": {"schemas": schemas}}


@dataclass(frozen=True)
class Standing:
    """A gateway that stands, with one model whose worker is the test."""

    url: str
    client: httpx.Client
    worker: httpx.Client
    nobody: httpx.Client
    version: str
    settings: Settings

    def create(self, **body: Any) -> httpx.Response:
        """A prediction of its model."""
        return self.client.post("/v1/predictions", json={"version": self.version, "input": {}, **body})

    def claim(self, wait: float = 0) -> dict[str, Any]:
        """The next job."""
        asked = {"worker": "w", "base": self.version, "pools": ["predict"], "warm": [], "wait": wait}
        answer = self.worker.post("/_worker/claim", json=asked)
        assert answer.status_code == 200, answer.text
        job: dict[str, Any] = answer.json()
        return job

    def report(self, job: dict[str, Any], **news: Any) -> httpx.Response:
        """What the worker says of a job."""
        return self.worker.post(f"/_worker/jobs/{job['id']}/report", json={"fence": job["fence"], **news})

    def upload(self, content: bytes, name: str = "a.png", kind: str = "image/png") -> dict[str, Any]:
        """A file of the client's."""
        answer = self.client.post("/v1/files", files={"content": (name, content, kind)})
        assert answer.status_code == 201, answer.text
        file: dict[str, Any] = answer.json()
        return file

    def anonymous(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Without a token; `path` may be a whole URL."""
        return self.nobody.request(method, path, **options)


@contextmanager
def standing(folder: Path, *, output: dict[str, Any] | None = None, **settings: Any) -> Iterator[Standing]:
    """A gateway in this folder; `output` is the schema of what its model gives: files, if not said."""
    made: list[Settings] = []

    def make(url: str) -> Any:
        own: dict[str, Any] = {
            "public_url": url,
            "port": int(url.rpartition(":")[2]),
            "token": TOKEN,
            "worker_token": WORKER_TOKEN,
        }
        own |= {"database": f"sqlite:///{folder}/gateway.db", "files": str(folder / "files"), **settings}
        made.append(replace(Settings(), **own).checked())
        return create_app(made[0])

    with (
        served(make) as url,
        httpx.Client(base_url=url, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=60) as client,
        httpx.Client(base_url=url, headers={"Authorization": f"Bearer {WORKER_TOKEN}"}, timeout=60) as worker,
        httpx.Client(base_url=url, timeout=60) as nobody,
    ):
        about: dict[str, Any] = {"worker": "w", "model": "me/painter", "hardware": "cpu", "cog_version": "0.23.1"}
        about |= {"pools": ["predict", "train"]}
        weights = {"type": "object", "properties": {"weights": FILE}}
        documents = {"predict": schema("", output or {"type": "array", "items": FILE})}
        documents |= {"train": schema("Training", weights)}
        answer = worker.post("/_worker/register", json={**about, "schema": documents})
        assert answer.status_code == 200, answer.text
        yield Standing(url, client, worker, nobody, answer.json()["base"], made[0])
