"""The gateway fuzzed against its own OpenAPI document: whatever is sent, no answer is a server's error."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error

from gateway import worker_api
from gateway.app import API
from gateway.openapi import document
from tests.gateway.standing import TOKEN, WORKER_TOKEN, Standing, standing

MANY = 10**9  # calls in a minute
DOCUMENT = schemathesis.openapi.from_dict(document("http://gateway", API))
WORKERS = schemathesis.openapi.from_dict(
    json.loads(json.dumps(document("http://gateway", worker_api.CALLS)).replace('"/v1/', '"/_worker/'))
)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standing]:
    folder = tmp_path_factory.mktemp("fuzz")
    with standing(folder, creates=MANY, calls=MANY, queued=MANY, webhook_loopback="no") as found:
        yield found


@pytest.fixture(scope="module")
def known(here: Standing) -> dict[str, str]:
    """Values of what is there, for paths and bodies: random ones alone would get no further than 404."""
    job, file = here.create().json()["id"], here.upload(b"x")["id"]
    named = {"owner": "me", "name": "painter", "model": "me/painter", "hardware": "cpu", "destination": "my-name/new"}
    return {"job_id": job, "file_id": file, "version_id": here.version, "version": here.version, **named}


def send(here: Standing, known: dict[str, str], case: schemathesis.Case[Any]) -> None:
    """One call: half of them with what exists."""
    for given in (case.path_parameters, case.body):
        if isinstance(given, dict):
            given |= {name: known[name] for name in given.keys() & known.keys() if len(str(given[name])) % 2}
    if isinstance(case.body, dict) and "wait" in case.body:
        case.body["wait"] = 0
    headers = {"Authorization": f"Bearer {WORKER_TOKEN if case.path.startswith('/_worker/') else TOKEN}"}
    case.call_and_validate(base_url=here.url, headers=headers, checks=[not_a_server_error])


USUAL = settings(deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))


@DOCUMENT.parametrize()
@settings(USUAL, max_examples=8)
def test_no_call_is_answered_with_an_error_of_ours(
    case: schemathesis.Case[Any], here: Standing, known: dict[str, str]
) -> None:
    send(here, known, case)


@WORKERS.parametrize()
@settings(USUAL, max_examples=8)
def test_nor_is_any_of_a_worker(case: schemathesis.Case[Any], here: Standing, known: dict[str, str]) -> None:
    send(here, known, case)


@pytest.mark.soak
@DOCUMENT.parametrize()
@settings(USUAL, max_examples=40)
def test_nor_is_any_of_many(case: schemathesis.Case[Any], here: Standing, known: dict[str, str]) -> None:
    send(here, known, case)
