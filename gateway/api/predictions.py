"""Predictions: of a version, of a model's latest version, of a deployment."""

from __future__ import annotations

from gateway.api import find
from gateway.api.call import Asked, Call
from gateway.api.jobs import ASKED, FILTERS, HEADERS, TEXT, cancel, create, creating, get, listing
from gateway.jobs import Job, Json
from gateway.problems import missing


def _by_version(asked: Asked) -> Job:
    return create(asked, "prediction", find.reference(asked, asked.body["version"]))


def _by_model(asked: Asked) -> Job:
    return create(asked, "prediction", find.latest(asked, find.path_name(asked)))


def _by_deployment(asked: Asked) -> Job:
    name = find.path_name(asked)
    release = asked.site.store.get_deployment(name) if find.is_full_name(name) else None
    if release is None or asked.path["owner"] != asked.account:
        raise missing()
    return create(asked, "prediction", find.reference(asked, release["version"]), deployment=name)


PLAIN: Json = {"type": "object", "properties": ASKED, "required": ["input"]}
VERSIONED: Json = {
    "type": "object",
    "properties": {"version": {**TEXT, "minLength": 1}, **ASKED},
    "required": ["version", "input"],
}
CREATED = (201, 202)

CALLS = (
    Call("GET", "/predictions/{job_id}", "Get a prediction", get("prediction"), limit="read"),
    Call(
        "POST", "/predictions", "Create a prediction", awaits=creating(_by_version), body=VERSIONED, statuses=CREATED,
        limit="create", headers=HEADERS,
    ),
    Call("GET", "/predictions", "List predictions", listing("prediction"), query=FILTERS),
    Call("POST", "/predictions/{job_id}/cancel", "Cancel a prediction", cancel("prediction")),
    Call(
        "POST", "/models/{owner}/{name}/predictions", "Create a prediction with a model's latest version",
        awaits=creating(_by_model), body=PLAIN, statuses=CREATED, limit="create", headers=HEADERS,
    ),
    Call(
        "POST", "/deployments/{owner}/{name}/predictions", "Create a prediction with a deployment",
        awaits=creating(_by_deployment), body=PLAIN, statuses=CREATED, limit="create", headers=HEADERS,
    ),
)  # fmt: skip
