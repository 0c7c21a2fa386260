"""The API as its clients depend on it, beyond what the clients themselves show."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.routing import Route

from gateway import app
from gateway.app import API
from gateway.settings import Settings, SettingsError
from tests.gateway.standing import FILE, TOKEN, Standing, schema, standing

MISSING = "a" * 26
TRAINING = {"TrainingInput": {"type": "object", "properties": {"images": FILE}, "required": ["images"]}}
ZIP = "https://example.com/a.zip"


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standing]:
    with standing(tmp_path_factory.mktemp("api")) as found:
        yield found


@pytest.fixture(scope="module")
def trainer(here: Standing) -> str:
    """A version that can be trained."""
    return register(here, "me/trainer", TRAINING)


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


def test_a_version_is_found_under_its_own_model_only(here: Standing, trainer: str) -> None:
    assert here.create(version=f"me/painter:{trainer}").status_code == 422
    assert here.client.get(f"/v1/models/me/painter/versions/{trainer}").status_code == 404
    assert here.client.get(f"/v1/models/me/trainer/versions/{trainer}").json()["id"] == trainer


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


# Trainings, models, deployments


def train(here: Standing, version: str, destination: str, **given: Any) -> httpx.Response:
    body = {"destination": destination, "input": {"images": ZIP, **given}}
    return here.client.post(f"/v1/models/me/trainer/versions/{version}/trainings", json=body)


def test_a_training_makes_a_version_of_its_destination(here: Standing, trainer: str) -> None:
    """Which is made with it if it is the account's; it is a 404 in Replicate's words if it is somebody else's."""
    job = train(here, trainer, "my-name/mine").json()
    assert (job["model"], job["destination"], job["status"]) == ("me/trainer", "my-name/mine", "starting")
    asked = {"worker": "t", "base": trainer, "pools": ["train"], "wait": 0}
    claimed = here.worker.post("/_worker/claim", json=asked).json()
    assert (claimed["id"], claimed["destination"]) == (job["id"], "my-name/mine")
    place = f"/_worker/jobs/{job['id']}/files/0"
    kept = {"fence": str(claimed["fence"]), "name": "w.tar", "keep": "1"}
    weights = here.worker.put(place, params=kept, content=b"w").json()["url"]
    here.report(claimed, status="succeeded", output={"weights": weights})
    ended = here.client.get(job["urls"]["get"], headers={"User-Agent": "replicate-python/1.0.7"}).json()
    name, _, version = ended["output"]["version"].partition(":")
    assert (name, ended["output"]["weights"]) == ("my-name/mine", weights)
    model = here.client.get("/v1/models/my-name/mine").json()
    assert (model["latest_version"]["id"], model["visibility"]) == (version, "private")
    assert here.client.get(f"/v1/files/{weights.split('/')[-2]}").json()["expires_at"] is None

    run = here.client.post("/v1/models/my-name/mine/predictions", json={"input": {"prompt": "x"}}).json()
    asked = {"worker": "t", "base": trainer, "pools": ["predict"], "wait": 0}
    claimed = here.worker.post("/_worker/claim", json=asked).json()
    assert claimed["id"] == run["id"]
    assert claimed["input"] == {"prompt": "x", "replicate_weights": weights}
    assert claimed["weights_key"]
    cancel(here, run)

    assert here.client.delete("/v1/models/my-name/mine").status_code == 422
    assert here.client.delete(f"/v1/models/my-name/mine/versions/{version}").status_code == 204
    assert here.create(version=version).status_code == 422
    assert here.client.delete("/v1/models/my-name/mine").status_code == 204
    assert here.client.get("/v1/models/my-name/mine").status_code == 404


def test_destinations_that_are_none(here: Standing, trainer: str) -> None:
    answer = train(here, trainer, "somebody/else")
    assert answer.status_code == 404
    assert answer.json()["detail"] == "The specified training destination does not exist"
    for name in ("nothing", "My-Name/x", "my-name/x/y", "my-name/..", "my-name/\0"):
        assert train(here, trainer, name).status_code == 422
    assert train(here, trainer, "my-name/new", images="/etc/passwd").status_code == 422
    assert here.client.get("/v1/models/my-name/new").status_code == 404
    assert train(here, here.version, "my-name/new").status_code == 404


def test_a_version_that_cannot_be_trained(here: Standing) -> None:
    version = register(here, "me/plain", {})
    path = f"/v1/models/me/plain/versions/{version}/trainings"
    answer = here.client.post(path, json={"destination": "my-name/x", "input": {}})
    assert answer.status_code == 422
    assert "is not for trainings" in answer.json()["detail"]


def test_models_are_made_changed_found_and_removed(here: Standing) -> None:
    body = {"owner": "my-name", "name": "toast", "visibility": "private", "hardware": "cpu", "description": "a toaster"}
    made = here.client.post("/v1/models", json=body)
    assert (made.status_code, made.json()["description"], made.json()["latest_version"]) == (201, "a toaster", None)
    assert here.client.post("/v1/models", json=body).status_code == 422
    assert here.client.post("/v1/models", json={**body, "owner": "me"}).status_code == 403
    changed = here.client.patch(
        "/v1/models/my-name/toast", json={"description": "b\0", "readme": "# hi", "paper_url": "x"}
    )
    assert (changed.json()["description"], changed.json()["paper_url"]) == ("b", "x")
    assert here.client.get("/v1/models/my-name/toast/readme").text == "# hi"
    for words in ("toast b", '"toast b"'):
        (found,) = here.client.request("QUERY", "/v1/models", content=words).json()["results"]
        assert found["name"] == "toast"
    (found,) = here.client.get("/v1/search", params={"query": "toast"}).json()["models"]
    assert found["model"]["name"] == "toast"
    assert here.client.patch("/v1/models/me/painter", json={}).status_code == 403
    assert here.client.post("/v1/models/my-name/toast/predictions", json={"input": {}}).status_code == 404
    assert here.client.delete("/v1/models/my-name/toast").status_code == 204


def test_a_deployment_is_a_name_that_can_be_changed(here: Standing, trainer: str) -> None:
    body = {"name": "live", "model": "me/painter", "version": here.version, "hardware": "cpu", "max_instances": 2}
    made = here.client.post("/v1/deployments", json=body)
    release = made.json()["current_release"]
    assert (made.status_code, release["number"], release["version"]) == (201, 1, here.version)
    assert release["configuration"] == {"hardware": "cpu", "min_instances": 0, "max_instances": 2}
    assert here.client.post("/v1/deployments", json=body).status_code == 422
    path = "/v1/deployments/my-name/live"
    job = here.client.post(f"{path}/predictions", json={"input": {}}).json()
    assert (job["version"], job["deployment"]) == (here.version, "my-name/live")
    cancel(here, job)
    changed = here.client.patch(path, json={"model": "me/trainer"}).json()["current_release"]
    assert (changed["number"], changed["version"], changed["configuration"]["max_instances"]) == (2, trainer, 2)
    assert here.client.patch(path, json={"min_instances": 3}).status_code == 422
    assert here.client.patch(path, json={"version": "b" * 64}).status_code == 422
    assert [each["name"] for each in here.client.get("/v1/deployments").json()["results"]] == ["live"]
    assert here.client.delete(path).status_code == 204
    assert here.client.get(path).status_code == 404


# Files


def test_a_file_is_kept_with_its_sums(here: Standing) -> None:
    fields = {"metadata": json.dumps({"who": "me"}), "filename": "b.txt", "type": "text/plain"}
    made = here.client.post("/v1/files", files={"content": ("a.bin", b"hello")}, data=fields)
    file = made.json()
    assert (made.status_code, file["name"], file["content_type"], file["size"]) == (201, "b.txt", "text/plain", 5)
    assert file["metadata"] == {"who": "me"}
    assert here.client.get(file["urls"]["get"]).json() == file
    blob = ("blob", json.dumps({"who": "you"}), "application/json")  # as JavaScript sends it
    other = here.client.post("/v1/files", files={"content": ("a", b""), "metadata": blob}).json()
    assert (other["metadata"], other["size"]) == ({"who": "you"}, 0)
    answer = here.anonymous("GET", file["urls"]["download"])
    assert (answer.content, answer.headers["accept-ranges"]) == (b"hello", "bytes")
    assert answer.headers["content-disposition"].startswith('attachment; filename="b.txt"')
    again = here.anonymous("GET", file["urls"]["download"], headers={"If-None-Match": answer.headers["etag"]})
    assert again.status_code == 304
    assert here.client.delete(f"/v1/files/{file['id']}").status_code == 204
    for path in (f"/v1/files/{file['id']}", file["urls"]["download"]):
        assert here.client.get(path).status_code == 404


@pytest.mark.parametrize(
    ("wanted", "status", "content", "place"),
    [
        ("bytes=0-1", 206, b"he", "bytes 0-1/5"),
        ("bytes=3-", 206, b"lo", "bytes 3-4/5"),
        ("bytes=-2", 206, b"lo", "bytes 3-4/5"),
        ("bytes=-9", 206, b"hello", "bytes 0-4/5"),
        ("bytes=1-900", 206, b"ello", "bytes 1-4/5"),
        ("bytes=5-", 416, None, "bytes */5"),
        ("bytes=-0", 416, None, "bytes */5"),
        ("bytes=3-1", 200, b"hello", None),
        ("bytes=0-1,3-4", 200, b"hello", None),
        ("lines=1-2", 200, b"hello", None),
    ],
)
def test_parts_of_files(here: Standing, wanted: str, status: int, content: bytes | None, place: str | None) -> None:
    url = here.upload(b"hello")["urls"]["download"]
    answer = here.anonymous("GET", url, headers={"Range": wanted})
    assert (answer.status_code, answer.headers.get("content-range")) == (status, place)
    assert content is None or answer.content == content
    head = here.anonymous("HEAD", url, headers={"Range": wanted})
    assert (head.status_code, head.content) == (status, b"")
    assert content is None or head.headers["content-length"] == str(len(content))


@pytest.mark.parametrize(
    ("options", "status"),
    [
        ({"json": {}}, 415),
        ({"data": {"x": "y"}, "files": {"other": b""}}, 422),
        ({"files": {"content": b"x"}, "data": {"metadata": "{"}}, 400),
        ({"files": {"content": b"x"}, "data": {"metadata": "[]"}}, 422),
        ({"files": [("content", b"x")] * 20}, 400),
    ],
)
def test_forms_that_are_none(here: Standing, options: dict[str, Any], status: int) -> None:
    assert here.client.post("/v1/files", **options).status_code == status


# The rest


def test_what_is_kept_for_a_time_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "CLEAN", 0.1)
    with standing(tmp_path, keep=0.5) as found:
        job = finish(found, found.create(input={"prompt": "x"}).json(), output=["done"], logs="log")
        file = found.upload(b"x")
        assert list(Path(found.settings.files).glob("*/*"))
        for _ in range(100):
            if not list(Path(found.settings.files).glob("*/*")):
                break
            time.sleep(0.1)
        gone = found.client.get(job["urls"]["get"]).json()
        assert (gone["data_removed"], gone["input"], gone["output"], gone["logs"]) == (True, {}, None, "")
        assert gone["status"] == "succeeded"
        assert found.anonymous("GET", file["urls"]["download"]).status_code == 404


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


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("GATEWAY_PORT", "http", "not a whole number"),
        ("GATEWAY_PORT", "70000", "between 0 and 65535"),
        ("GATEWAY_OUTPUT_MODE", "inline", "auto, url, data"),
        ("GATEWAY_PUBLIC_URL", "gateway.example", "http"),
        ("GATEWAY_ACCOUNT", "Me", "small letters"),
        ("GATEWAY_CREATE_DESTINATIONS", "perhaps", "yes or no"),
        ("GATEWAY_WEBHOOK_PORTS", "80,x", "port numbers"),
        ("GATEWAY_HOST", "0.0.0.0", "GATEWAY_TOKEN"),
        ("GATEWAY_WORKER_TOKEN", "short", "random characters"),
    ],
)
def test_settings_that_make_no_sense_are_named(name: str, value: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        Settings.read({name: value})


def test_settings_come_from_the_environment() -> None:
    found = Settings.read({"GATEWAY_HOST": "::1", "GATEWAY_WEBHOOK_PORTS": "8080 9090", "GATEWAY_KEEP": "60"})
    assert found.public_url == "http://[::1]:8000"
    assert found.webhooks.ports == {8080, 9090}
    assert (found.keep, found.webhooks.loopback) == (60.0, True)
