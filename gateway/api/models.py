"""Models and their versions."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import islice

from starlette.responses import PlainTextResponse, Response

from gateway import shapes
from gateway.api import find
from gateway.api.call import Asked, Call, parsed, whole
from gateway.api.jobs import PAGE, cursor
from gateway.jobs import Json, Model
from gateway.problems import Answer, Problem, invalid, missing
from gateway.settings import NAME

LONGEST_QUERY = 2048  # bytes
FOUND = 50  # models of a search, at most
LOOKED_AT = 10_000  # models


def _list(asked: Asked) -> Response:
    site = asked.site
    models = site.store.list_models(before=cursor(asked), limit=PAGE + 1)
    last = models[PAGE - 1] if len(models) > PAGE else None
    results = [shapes.model(site, model) for model in models[:PAGE] if find.visible(asked, model)]
    return Answer(shapes.page(f"{site.url}/v1/models?", results, (last.created_at, last.full_name) if last else None))


def _create(asked: Asked) -> Response:
    body, site = asked.body, asked.site
    if body["owner"] != asked.account:
        raise Problem(403, f"This token is of {asked.account}; create models of this owner.")
    if not NAME.fullmatch(body["name"]):
        raise invalid(f"- name: {body['name'][:80]!r} is no name; use small letters, digits, '.', '_' and '-'")
    if site.store.get_model(f"{body['owner']}/{body['name']}") is not None:
        raise invalid("- name: A model with that name and owner already exists")
    model = _changed(Model(body["owner"], body["name"], time.time()), body)
    site.store.put_model(model)
    return Answer(shapes.model(site, model), 201)


def _changed(model: Model, body: Json) -> Model:
    said = {name: value for name, value in body.items() if name in DETAILS and value is not None}
    plain: Json = {name: storable(body[name]) for name in ("description", "visibility") if body.get(name) is not None}
    return replace(model, details={**model.details, **said}, **plain)


def storable(text: str) -> str:
    """Without what no database takes as text: NUL, and half a surrogate pair."""
    return text.replace("\0", "").encode(errors="replace").decode()


def matching(asked: Asked, query: str) -> list[Json]:
    """Models whose name or description has all words of a query."""
    words = query.lower().split()
    models = asked.site.store.list_models(limit=LOOKED_AT)
    found = (
        model
        for model in models
        if find.visible(asked, model)
        and all(word in f"{model.full_name} {model.description}".lower() for word in words)
    )
    return [shapes.model(asked.site, model) for model in islice(found, FOUND)]


async def _search(asked: Asked) -> Response:
    """Python sends the words as they are, JavaScript sends them as a JSON text."""
    body = await whole(asked.request, LONGEST_QUERY)
    try:
        query = parsed(body)
    except Problem:
        query = None
    words = query if isinstance(query, str) else body.decode(errors="replace")
    results = await asked.site.beside(matching, asked, words)
    return Answer(shapes.page("", results, None))


def _get(asked: Asked) -> Response:
    return Answer(shapes.model(asked.site, find.model(asked, find.path_name(asked))))


def _change(asked: Asked) -> Response:
    model = _changed(find.own_model(asked), asked.body)
    asked.site.store.put_model(model)
    return Answer(shapes.model(asked.site, model))


def _delete(asked: Asked) -> Response:
    model = find.own_model(asked)
    if asked.site.store.list_versions(model.full_name):
        raise invalid(f"- name: {model.full_name} has versions; delete these first")
    asked.site.store.delete_model(model.full_name)
    return Response(status_code=204)


def _readme(asked: Asked) -> Response:
    model = find.model(asked, find.path_name(asked))
    return PlainTextResponse(model.details.get("readme") or model.description)


def _examples(asked: Asked) -> Response:
    find.model(asked, find.path_name(asked))
    return Answer(shapes.page("", [], None))


def _versions(asked: Asked) -> Response:
    model = find.model(asked, find.path_name(asked))
    versions = asked.site.store.list_versions(model.full_name)
    return Answer(shapes.page("", [shapes.version(each) for each in versions], None))


def _version(asked: Asked) -> Response:
    known = find.version(asked, asked.path["version_id"], find.path_name(asked))
    if known is None:
        raise missing()
    return Answer(shapes.version(known.version))


def _delete_version(asked: Asked) -> Response:
    """204: Python's client takes anything else for a failure."""
    find.own_model(asked)
    known = find.version(asked, asked.path["version_id"], find.path_name(asked))
    if known is None:
        raise missing()
    asked.site.store.delete_version(known.version.id)
    asked.site.forget(known.version.id)
    return Response(status_code=204)


TEXT: Json = {"type": "string", "maxLength": 100_000, "nullable": True}
DETAILS = (*shapes.EMPTY, "readme", "hardware")
ABOUT: Json = {
    **dict.fromkeys(("description", *DETAILS), TEXT),
    "visibility": {"type": "string", "enum": ["public", "private"]},
}
CREATED: Json = {
    "type": "object",
    "properties": {"owner": {"type": "string"}, "name": {"type": "string"}, **ABOUT},
    "required": ["owner", "name"],
}
MODEL = "/models/{owner}/{name}"

CALLS = (
    Call("GET", "/models", "List models", _list, query={"cursor": {"type": "string"}}),
    Call("POST", "/models", "Create a model", _create, body=CREATED, statuses=(201,)),
    Call("QUERY", "/models", "Search models", awaits=_search, raw="text/plain"),
    Call("GET", MODEL, "Get a model", _get),
    Call("PATCH", MODEL, "Change a model", _change, body={"type": "object", "properties": ABOUT}),
    Call("DELETE", MODEL, "Delete a model", _delete, statuses=(204,)),
    Call("GET", f"{MODEL}/readme", "Get a model's readme", _readme),
    Call("GET", f"{MODEL}/examples", "List a model's examples", _examples),
    Call("GET", f"{MODEL}/versions", "List a model's versions", _versions),
    Call("GET", f"{MODEL}/versions/{{version_id}}", "Get a version", _version),
    Call("DELETE", f"{MODEL}/versions/{{version_id}}", "Delete a version", _delete_version, statuses=(204,)),
)
