"""Predictions as their clients depend on them, beyond what the clients themselves show."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from starlette.routing import Route

from gateway import app
from gateway.app import API
from tests.gateway.asking import cancel
from tests.gateway.standing import TOKEN, Standing, standing

MISSING = "a" * 26


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standing]:
    with standing(tmp_path_factory.mktemp("api")) as found:
        yield found


# Creating


def test_every_reference_runs_the_same_version(here: Standing) -> None:
    for path, body in (
        ("predictions", {"version": here.version}),
        ("predictions", {"version": "me/painter"}),
        ("predictions", {"version": f"me/painter:{here.version}"}),
        ("models/me/painter/predictions", {}),
    ):
        answer = here.client.post(f"/v1/{path}", json={**body, "input": {}})
        job = answer.json()
        assert (answer.status_code, job["version"], job["model"], job["status"]) == (
            201, here.version, "me/painter", "starting",
        )  # fmt: skip
        cancel(here, job)


@pytest.mark.parametrize("version", ["b" * 64, "me/other", "x/painter:" + "b" * 64, "x", ":", "/", "me/painter:"])
def test_versions_that_are_not_there(here: Standing, version: str) -> None:
    answer = here.create(version=version)
    assert (answer.status_code, answer.json()["title"]) == (422, "Invalid version or not permitted")


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ({}, "- body: input is required"),
        ({"input": []}, "- input: Invalid type. Expected: object, given: array"),
        ({"input": {}, "webhook": 5}, "- webhook: Invalid type. Expected: string, given: integer"),
        ({"input": {}, "webhook_events_filter": ["all"]}, "- webhook_events_filter[0]: Must be one of the following"),
        ({"input": {}, "webhook": "ftp://example.com"}, "- webhook: 'ftp://example.com' is not an https URL"),
    ],
)
def test_bodies_are_checked(here: Standing, body: dict[str, Any], line: str) -> None:
    answer = here.client.post("/v1/models/me/painter/predictions", json=body)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["title"] == "Input validation failed"
    assert line in answer.json()["detail"]


def test_the_same_idempotency_key_is_the_same_prediction(here: Standing) -> None:
    def create(key: str) -> str:
        body = {"version": here.version, "input": {}}
        return str(here.client.post("/v1/predictions", json=body, headers={"Idempotency-Key": key}).json()["id"])

    first, again, other = create("one"), create("one"), create("two")
    assert first == again != other
    for each in (first, other):
        here.client.post(f"/v1/predictions/{each}/cancel")


@pytest.mark.parametrize(("text", "seconds"), [("5", 5), ("30s", 30), ("5m", 300), ("1h30m45s", 5445)])
def test_cancel_after(here: Standing, text: str, seconds: int) -> None:
    body = {"version": here.version, "input": {}}
    job = here.client.post("/v1/predictions", json=body, headers={"Cancel-After": text}).json()
    assert re.fullmatch(r"[\d-]{10}T[\d:.]+Z", job["deadline"])
    claimed = here.claim()
    assert claimed["deadline"] - time.time() == pytest.approx(seconds, abs=3)
    cancel(here, job)


@pytest.mark.parametrize("text", ["4s", "soon", "-5s", "s", "1d", "1e9"])
def test_durations_that_are_none(here: Standing, text: str) -> None:
    body = {"version": here.version, "input": {}}
    assert here.client.post("/v1/predictions", json=body, headers={"Cancel-After": text}).status_code == 422


def test_large_data_urls_become_one_file_and_small_ones_stay(here: Standing) -> None:
    small, large = "data:text/plain;base64,aGk=", "data:image/png;base64," + "aGVs" * 4000
    jobs = [here.create(input={"image": large, "images": [small, large]}).json() for _ in range(2)]
    (url,) = {url for job in jobs for url in (job["input"]["image"], job["input"]["images"][1])}
    assert jobs[0]["input"]["images"][0] == small
    answer = here.anonymous("GET", url)
    assert (answer.content, answer.headers["content-type"]) == (b"hel" * 4000, "image/png")
    for job in jobs:
        cancel(here, job)
    damaged = here.create(input={"image": "data:image/png;base64," + "!" * 10_000})
    assert damaged.status_code == 422
    assert damaged.json()["detail"].startswith("- input.image: ")


# Waiting


def test_a_wait_ends_with_the_job(here: Standing) -> None:
    head = {"Authorization": f"Bearer {TOKEN}", "Prefer": "wait=20"}
    body = {"version": here.version, "input": {}}
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(here.anonymous, "POST", "/v1/predictions", json=body, headers=head)
        job = here.claim(wait=10)
        here.report(job, status="processing")
        here.report(job, status="succeeded", output=["x"])
        answer = waiting.result()
    assert (answer.status_code, answer.json()["status"], answer.json()["output"]) == (201, "succeeded", ["x"])
    assert answer.headers["preference-applied"] == "wait=20"
    assert answer.headers["location"] == answer.json()["urls"]["get"]


def test_a_wait_that_runs_out_says_starting(here: Standing) -> None:
    body = {"version": here.version, "input": {}}
    answer = here.client.post("/v1/predictions", json=body, headers={"Prefer": "respond-async, wait=1"})
    assert (answer.status_code, answer.json()["status"]) == (202, "starting")
    cancel(here, answer.json())


# Looking


def test_the_object_of_a_running_and_of_an_ended_job(here: Standing) -> None:
    job = here.create(input={"prompt": "x", "api_key": "secret", "unknown": 1}).json()
    assert job["input"] == {"prompt": "x", "api_key": "[REDACTED]"}
    claimed = here.claim()
    assert claimed["input"] == {"prompt": "x", "api_key": "secret"}
    here.report(claimed, status="processing", logs=" 50%|#####     | 1/2", metrics={"loss": 0.5})
    now = here.client.get(job["urls"]["get"]).json()
    assert (now["status"], now["logs"], now["completed_at"], now["metrics"]) == (
        "processing", " 50%|#####     | 1/2", None, {"loss": 0.5},
    )  # fmt: skip
    here.report(claimed, status="failed", error="no paint")
    ended = here.client.get(job["urls"]["get"]).json()
    assert (ended["status"], ended["error"], ended["logs"]) == ("failed", "no paint", now["logs"])
    assert ended["metrics"].keys() == {"loss", "predict_time", "total_time"}
    assert all(isinstance(url, str) for url in ended["urls"].values())
    assert cancel(here, ended) == ended


def test_output_files_come_as_each_client_can_take_them(here: Standing) -> None:
    job = here.create().json()
    claimed = here.claim()
    put = here.worker.put(
        f"/_worker/jobs/{job['id']}/files/0", params={"fence": claimed["fence"], "name": "out-0.png"},
        content=b"png", headers={"Content-Type": "image/png"},
    )  # fmt: skip
    url = put.json()["url"]
    here.report(claimed, status="succeeded", output=[url, "https://example.com/x.png"])
    agents = {
        "replicate-python/1.0.7": "data:image/png;base64,cG5n",
        "replicate-javascript/1.4.0": "data:image/png;base64,cG5n",
        "Replicate/Python 2.0.0b4": "data:image/png;base64,cG5n",
        "curl/8": url,
    }
    for agent, expected in agents.items():
        got = here.client.get(job["urls"]["get"], headers={"User-Agent": agent}).json()
        assert got["output"] == [expected, "https://example.com/x.png"], agent
    listed = here.client.get("/v1/predictions", headers={"User-Agent": "replicate-python/1.0.7"}).json()["results"]
    assert next(each for each in listed if each["id"] == job["id"])["output"][0] == url


@pytest.mark.parametrize(
    ("settings", "inlined"), [({"output_mode": "url"}, 0), ({"inline": 5}, 1), ({"output_mode": "data"}, 2)]
)
def test_the_operator_says_what_is_inlined(tmp_path: Path, settings: dict[str, Any], inlined: int) -> None:
    with standing(tmp_path, **settings) as found:
        job = found.create().json()
        claimed = found.claim()
        place = f"/_worker/jobs/{job['id']}/files"
        urls = [
            found.worker.put(f"{place}/{n}", params={"fence": claimed["fence"], "name": "a.txt"}, content=b"abcd")
            for n in range(2)
        ]
        found.report(claimed, status="succeeded", output=[answer.json()["url"] for answer in urls])
        agent = "curl" if settings.get("output_mode") == "data" else "replicate-python/1"
        output = found.client.get(job["urls"]["get"], headers={"User-Agent": agent}).json()["output"]
    assert [each.startswith("data:") for each in output] == [True] * inlined + [False] * (2 - inlined)


def test_lists_go_on_where_a_page_ends(here: Standing) -> None:
    before = here.client.get("/v1/predictions").json()["results"]
    made = [here.create().json() for _ in range(101)]
    page = here.client.get("/v1/predictions").json()
    assert [each["id"] for each in page["results"]] == [job["id"] for job in reversed(made[1:])]
    assert page["next"].startswith(f"{here.url}/v1/predictions?cursor=")
    after = here.client.get(page["next"]).json()["results"]
    assert [each["id"] for each in after] == [made[0]["id"], *(each["id"] for each in before[:99])][: len(after)]
    since = made[50]["created_at"]
    span = {"created_after": since, "created_before": made[60]["created_at"]}
    found = here.client.get("/v1/predictions", params=span).json()["results"]
    assert [each["id"] for each in found] == [job["id"] for job in reversed(made[50:60])]
    assert here.client.get("/v1/predictions", params={"source": "web"}).json()["results"] == []
    for job in made:
        cancel(here, job)


@pytest.mark.parametrize("query", ["cursor=x", "cursor=WzEsMl0", "created_after=yesterday", "created_before=NaN"])
def test_places_and_times_that_are_none(here: Standing, query: str) -> None:
    assert here.client.get(f"/v1/predictions?{query}").status_code == 422


@pytest.mark.parametrize("kind", ["predictions", "trainings"])
def test_what_is_not_there(here: Standing, kind: str) -> None:
    for method, path in (("GET", MISSING), ("POST", f"{MISSING}/cancel"), ("GET", "x"), ("GET", "%00")):
        answer = here.client.request(method, f"/v1/{kind}/{path}")
        assert (answer.status_code, answer.json()["title"]) == (404, "Not found")


def test_it_says_how_it_is(here: Standing) -> None:
    assert here.anonymous("GET", "/healthz").text == "ok"
    assert here.anonymous("GET", "/readyz").text == "ready"
    assert here.anonymous("GET", "/metrics").status_code == 401
    for client in (here.client, here.worker):
        assert "gateway_jobs{" in client.get("/metrics").text


def test_its_description_is_what_is_served(here: Standing) -> None:
    """Every call of the table is a route below /v1 and /v1/v1, and is described; nothing else is."""
    described = here.anonymous("GET", "/openapi.json").json()["paths"]
    documented = {(method.removeprefix("x-").upper(), path) for path, calls in described.items() for method in calls}
    routes = app.create_app(here.settings).routes
    served = {(method, route.path) for route in routes if isinstance(route, Route) for method in route.methods or ()}
    api = {(call.method, f"/v1{call.path}") for call in API}
    assert documented == api
    assert api <= served
    assert {(method, f"/v1{path}") for method, path in api} <= served  # Python's first client, told a URL with /v1
    beside = {path for method, path in served - api if method != "HEAD" and path.startswith("/v1/")}
    assert {path for path in beside if not path.startswith("/v1/v1/")} == {
        "/v1/files/{file_id}/{name:path}", "/v1/files/streams/{job_id}/{secret}", "/v1/streams/{job_id}/{secret}",
        "/v1/openapi.json",
    }  # fmt: skip
