"""The API's own description, made of the tables that serve it."""

from __future__ import annotations

import re
from collections.abc import Iterable

from gateway.api import files
from gateway.api.call import Call
from gateway.jobs import Json
from gateway.problems import TITLES

SUCCESS = {200: "It is in the body", 201: "It was made", 202: "It was made and has not ended", 204: "It is gone"}
ANY_CALL = (400, 401, 403, 404, 413, 415, 422, 429, 503)
METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE"})  # OpenAPI 3.0 knows no QUERY
RAW: dict[str, Json] = {"multipart/form-data": files.UPLOAD, "text/plain": {"type": "string"}}
PROBLEM: Json = {
    "type": "object",
    "properties": {"title": {"type": "string"}, "detail": {"type": "string"}, "status": {"type": "integer"}},
    "required": ["title", "detail", "status"],
}


def document(url: str, calls: Iterable[Call]) -> Json:
    """OpenAPI 3.0, of all calls below /v1."""
    paths: Json = {}
    for call in calls:
        place = paths.setdefault(f"/v1{call.path}", {})
        if call.method in METHODS:
            place[call.method.lower()] = operation(call)
        else:
            place[f"x-{call.method.lower()}"] = operation(call)
    return {
        "openapi": "3.0.3",
        "info": {"title": "Replicate's HTTP API, from your own machines", "version": "1"},
        "servers": [{"url": url}],
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": {"Problem": PROBLEM},
        },
    }


def operation(call: Call) -> Json:
    """One call."""
    problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    answers = {str(status): {"description": SUCCESS[status]} for status in call.statuses}
    failures = {str(status): {"description": TITLES[status], "content": problem} for status in ANY_CALL}
    shown: Json = {"summary": call.summary, "parameters": parameters(call), "responses": answers | failures}
    if call.body is not None:
        shown["requestBody"] = {"required": True, "content": {"application/json": {"schema": call.body}}}
    elif call.raw:
        shown["requestBody"] = {"required": True, "content": {call.raw: {"schema": RAW[call.raw]}}}
    return shown


def parameters(call: Call) -> list[Json]:
    """In the path, the query and the headers."""
    in_path = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"{(\w+)}", call.path)
    ]
    elsewhere = [
        {"name": name, "in": place, "schema": schema}
        for place, schemas in (("query", call.query), ("header", call.headers))
        for name, schema in schemas.items()
    ]
    return [*in_path, *elsewhere]
