"""The account, and what else the clients ask for."""

from __future__ import annotations

import time

from starlette.responses import Response

from gateway import shapes
from gateway.api.call import Asked, Call
from gateway.api.models import matching
from gateway.problems import Answer, missing

RECENT = 86_400.0  # seconds within which a worker was heard of


def _account(asked: Asked) -> Response:
    return Answer(shapes.account(asked.account))


def _hardware(asked: Asked) -> Response:
    workers = asked.site.store.workers(time.time() - RECENT)
    names = {str(worker["hardware"]) for worker in workers if worker.get("hardware")} | {"cpu"}
    return Answer([{"name": name, "sku": name.lower().replace(" ", "-")} for name in sorted(names)])


def _collections(_: Asked) -> Response:
    return Answer(shapes.page("", [], None))


def _collection(_: Asked) -> Response:
    raise missing()


def _search(asked: Asked) -> Response:
    query = asked.query.get("query", "")
    models = [{"model": model, "metadata": {"score": 1.0}} for model in matching(asked, query)]
    return Answer({"query": query, "models": models, "collections": [], "pages": []})


def _secret(asked: Asked) -> Response:
    return Answer({"key": asked.site.webhook_key})


CALLS = (
    Call("GET", "/account", "Get the account of the token", _account),
    Call("GET", "/hardware", "List hardware", _hardware),
    Call("GET", "/collections", "List collections", _collections),
    Call("GET", "/collections/{slug}", "Get a collection", _collection),
    Call("GET", "/search", "Search models", _search, query={"query": {"type": "string"}}),
    Call("GET", "/webhooks/default/secret", "Get the secret that webhooks are signed with", _secret),
)
