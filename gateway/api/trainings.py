"""Trainings, each of which becomes a version of its destination."""

from __future__ import annotations

import time

from gateway.api import find
from gateway.api.call import Asked, Call
from gateway.api.jobs import ASKED, FILTERS, HEADERS, TEXT, cancel, create, creating, get, listing
from gateway.jobs import Job, Json, Model
from gateway.problems import invalid, missing

NO_DESTINATION = "The specified training destination does not exist"


def _train(asked: Asked) -> Job:
    known = find.version(asked, asked.path["version_id"], find.path_name(asked))
    if known is None:
        raise missing()
    destination = asked.body["destination"]
    if not find.is_full_name(destination):
        raise invalid(f"- destination: {destination[:80]!r} is no owner/name in small letters")
    exists = _exists(asked, destination)
    job = create(asked, "training", known, destination=destination)
    if not exists:
        owner, _, name = destination.partition("/")
        asked.site.store.put_model(Model(owner, name, time.time()))
    return job


def _exists(asked: Asked, destination: str) -> bool:
    """Whether it has to be made; Problem 404 if it is not there and not to be made."""
    owner = destination.partition("/")[0]
    exists = asked.site.store.get_model(destination) is not None
    if owner != asked.account or not (exists or asked.site.settings.create_destinations):
        raise missing(NO_DESTINATION)
    return exists


BODY: Json = {
    "type": "object",
    "properties": {"destination": {**TEXT, "minLength": 3}, **ASKED},
    "required": ["destination", "input"],
}

CALLS = (
    Call("GET", "/trainings/{job_id}", "Get a training", get("training"), limit="read"),
    Call("GET", "/trainings", "List trainings", listing("training"), query=FILTERS),
    Call("POST", "/trainings/{job_id}/cancel", "Cancel a training", cancel("training")),
    Call(
        "POST", "/models/{owner}/{name}/versions/{version_id}/trainings", "Create a training",
        awaits=creating(_train), body=BODY, statuses=(201, 202), limit="create", headers=HEADERS,
    ),
)  # fmt: skip
