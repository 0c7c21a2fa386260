"""What tests of the API do again and again."""

from __future__ import annotations

from typing import Any

from tests.gateway.standing import Standing, schema


def register(here: Standing, model: str, more: dict[str, Any]) -> str:
    """A model whose schema has these components too; its version."""
    document = schema("", {"type": "string"})
    document["components"]["schemas"] |= more
    about = {
        "worker": "t",
        "model": model,
        "pools": ["train"],
        "schema": {"predict": document, "train": document if more else None},
    }
    return str(here.worker.post("/_worker/register", json=about).json()["base"])


def finish(here: Standing, job: dict[str, Any], **news: Any) -> dict[str, Any]:
    """Play the worker for one job."""
    claimed = here.claim()
    assert claimed["id"] == job["id"]
    assert here.report(claimed, status="succeeded", **news).status_code == 200
    return dict(here.client.get(job["urls"]["get"]).json())


def cancel(here: Standing, job: dict[str, Any]) -> dict[str, Any]:
    return dict(here.client.post(job["urls"]["cancel"]).json())
