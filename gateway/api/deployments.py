"""Deployments: a name for a model's version, which can be changed under it."""

from __future__ import annotations

import time
from typing import Any

from starlette.responses import Response

from gateway import shapes
from gateway.api import find
from gateway.api.call import Asked, Call
from gateway.jobs import Json
from gateway.problems import Answer, Problem, invalid, missing
from gateway.settings import NAME

CONFIGURATION = ("hardware", "min_instances", "max_instances")
DEFAULTS: Json = {"hardware": "cpu", "min_instances": 0, "max_instances": 1}


def _list(asked: Asked) -> Response:
    own = [each for each in asked.site.store.list_deployments() if each["owner"] == asked.account]
    return Answer(shapes.page("", [_shown(each) for each in own], None))


def _create(asked: Asked) -> Response:
    body, store = asked.body, asked.site.store
    full_name = f"{asked.account}/{body['name']}"
    if not NAME.fullmatch(body["name"]):
        raise invalid(f"- name: {body['name'][:80]!r} is no name; use small letters, digits, '.', '_' and '-'")
    if store.get_deployment(full_name) is not None:
        raise invalid("- name: A deployment with that name already exists")
    given = {"model": body["model"], "version": body.get("version"), **DEFAULTS, **_configuration(body)}
    details = _release(asked, {"owner": asked.account, "name": body["name"], "number": 1}, given)
    store.put_deployment(full_name, details)
    return Answer(_shown(details), 201)


def _get(asked: Asked) -> Response:
    return Answer(_shown(_own(asked)))


def _change(asked: Asked) -> Response:
    kept, body = _own(asked), asked.body
    given = {name: body.get(name) or kept[name] for name in ("model", "version")}
    if body.get("model") and not body.get("version"):
        given["version"] = None  # the other model's latest
    configuration = {name: kept[name] for name in CONFIGURATION} | _configuration(body)
    details = _release(asked, kept | {"number": kept["number"] + 1}, given | configuration)
    asked.site.store.put_deployment(find.path_name(asked), details)
    return Answer(_shown(details))


def _delete(asked: Asked) -> Response:
    _own(asked)
    asked.site.store.put_deployment(find.path_name(asked), None)
    return Response(status_code=204)


def _own(asked: Asked) -> Json:
    name = find.path_name(asked)
    details = asked.site.store.get_deployment(name) if find.is_full_name(name) else None
    if details is None or details["owner"] != asked.account:
        raise missing()
    return details


def _configuration(body: Json) -> Json:
    return {name: body[name] for name in CONFIGURATION if body.get(name) is not None}


def _release(asked: Asked, kept: Json, given: Json) -> Json:
    if given["min_instances"] > given["max_instances"]:
        raise invalid("- min_instances: Must be less than or equal to max_instances")
    try:
        known = find.latest(asked, given["model"])
    except Problem:
        raise invalid(f"- model: There is no model {given['model'][:80]!r} with a version") from None
    if given["version"]:
        named = find.version(asked, given["version"].rpartition(":")[2], given["model"])
        if named is None:
            raise invalid(f"- version: {given['model']} has no version {given['version'][:80]!r}")
        known = named
    return kept | given | {"version": known.version.id, "created_at": time.time()}


def _shown(details: Json) -> Json:
    configuration: dict[str, Any] = {name: details[name] for name in CONFIGURATION}
    release = {
        "number": details["number"],
        "model": details["model"],
        "version": details["version"],
        "created_at": shapes.moment(details["created_at"]),
        "created_by": shapes.account(details["owner"]),
        "configuration": configuration,
    }
    return {"owner": details["owner"], "name": details["name"], "current_release": release}


COUNT: Json = {"type": "integer", "minimum": 0, "maximum": 10_000}
TEXT: Json = {"type": "string", "minLength": 1, "maxLength": 256}
PROPERTIES: Json = {"model": TEXT, "version": TEXT, "hardware": TEXT, "min_instances": COUNT, "max_instances": COUNT}
CREATED: Json = {
    "type": "object",
    "properties": {"name": TEXT, **PROPERTIES},
    "required": ["name", "model"],
}
DEPLOYMENT = "/deployments/{owner}/{name}"

CALLS = (
    Call("GET", "/deployments", "List deployments", _list),
    Call("POST", "/deployments", "Create a deployment", _create, body=CREATED, statuses=(201,)),
    Call("GET", DEPLOYMENT, "Get a deployment", _get),
    Call("PATCH", DEPLOYMENT, "Change a deployment", _change, body={"type": "object", "properties": PROPERTIES}),
    Call("DELETE", DEPLOYMENT, "Delete a deployment", _delete, statuses=(204,)),
)
