"""The worker's side, as docs/gateway.md has it: who holds what, until when, and how it is taken away."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.gateway.running import until
from tests.gateway.standing import Standing, schema, standing

ANOTHER = {"type": "integer"}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standing]:
    with standing(tmp_path_factory.mktemp("worker")) as found:
        yield found


def about(model: str, output: dict[str, Any]) -> dict[str, Any]:
    return {
        "worker": "w",
        "model": model,
        "pools": ["predict"],
        "schema": {"predict": schema("", output), "train": None},
    }


def register(here: Standing, model: str, output: dict[str, Any]) -> str:
    answer = here.worker.post("/_worker/register", json=about(model, output))
    assert answer.status_code == 200, answer.text
    assert answer.json()["url"] == here.url
    return str(answer.json()["base"])


def status(here: Standing, job: dict[str, Any]) -> str:
    return str(here.client.get(f"/v1/predictions/{job['id']}").json()["status"])


def beat(here: Standing, job: dict[str, Any], wait: float = 0, **more: Any) -> list[str]:
    asked = {"worker": "w", "held": [[job["id"], job["fence"]]], "wait": wait, "details": {"warm": []}, **more}
    drop: list[str] = here.worker.post("/_worker/heartbeat", json=asked).json()["drop"]
    return drop


def put(here: Standing, job: dict[str, Any], number: int, content: bytes, **more: Any) -> httpx.Response:
    asked = {"fence": job["fence"], "name": f"out-{number}.png", **more}
    place = f"/_worker/jobs/{job['id']}/files/{number}"
    return here.worker.put(place, params=asked, content=content, headers={"Content-Type": "image/png"})


def test_the_same_package_is_the_same_version(here: Standing) -> None:
    first, again = register(here, "me/one", {"type": "string"}), register(here, "me/one", {"type": "string"})
    other, second = register(here, "me/two", {"type": "string"}), register(here, "me/one", ANOTHER)
    assert first == again
    assert len({first, other, second}) == 3
    versions = here.client.get("/v1/models/me/one/versions").json()["results"]
    assert {each["id"] for each in versions} == {first, second}
    assert here.client.get("/v1/models/me/one").json()["latest_version"]["id"] == second
    register(here, "me/one", {"type": "string"})  # the package before, that an operator went back to
    assert here.client.get("/v1/models/me/one").json()["latest_version"]["id"] == first


@pytest.mark.parametrize("model", ["x", "Me/x", "me/x/y", "me/..", "/", "me/\0"])
def test_models_have_an_owner_and_a_name(here: Standing, model: str) -> None:
    assert here.worker.post("/_worker/register", json=about(model, ANOTHER)).status_code == 422


def test_a_worker_that_waits_gets_a_job_as_it_comes(here: Standing) -> None:
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(here.claim, 20)
        job = here.create().json()
        assert waiting.result()["id"] == job["id"]
    here.client.post(f"/v1/predictions/{job['id']}/cancel")
    nothing = {"worker": "w", "base": here.version, "pools": ["predict"], "wait": 0.2}
    assert here.worker.post("/_worker/claim", json=nothing).status_code == 204


def test_no_job_goes_to_a_worker_that_has_left(here: Standing) -> None:
    asked = {"worker": "gone", "base": here.version, "pools": ["predict"], "wait": 20}
    with pytest.raises(httpx.ReadTimeout):
        here.worker.post("/_worker/claim", json=asked, timeout=0.3)
    job = here.create().json()
    assert here.claim(wait=5)["id"] == job["id"]
    here.client.post(f"/v1/predictions/{job['id']}/cancel")


def test_only_its_own_version_and_pool_are_claimed(here: Standing) -> None:
    other = register(here, "me/three", ANOTHER)
    job = here.create().json()
    for asked in ({"base": other, "pools": ["predict"]}, {"base": here.version, "pools": ["train"]}):
        assert here.worker.post("/_worker/claim", json={"worker": "w", "wait": 0, **asked}).status_code == 204
    assert here.claim()["id"] == job["id"]
    here.client.post(f"/v1/predictions/{job['id']}/cancel")


def test_warm_weights_go_first(here: Standing) -> None:
    weights = [f"https://example.com/{name}.tar" for name in "aba"]
    jobs = [here.create(input={"replicate_weights": each}).json() for each in weights]
    first = here.claim()
    warm = {"worker": "w", "base": here.version, "pools": ["predict"], "warm": [f"predict:{first['weights_key']}"]}
    second = here.worker.post("/_worker/claim", json=warm).json()
    assert [first["id"], second["id"]] == [jobs[0]["id"], jobs[2]["id"]]
    assert first["weights_key"] == second["weights_key"] != here.claim()["weights_key"]
    for job in jobs:
        here.client.post(f"/v1/predictions/{job['id']}/cancel")


def test_a_canceled_job_is_dropped_at_once(here: Standing) -> None:
    job = here.create().json()
    claimed = here.claim()
    assert beat(here, claimed) == []
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(beat, here, claimed, 25)
        here.client.post(job["urls"]["cancel"])
        assert waiting.result() == [job["id"]]
    for answer in (
        here.report(claimed, status="succeeded"),
        here.worker.post(f"/_worker/jobs/{job['id']}/hand-back", json={"fence": claimed["fence"]}),
        put(here, claimed, 0, b"late"),
    ):
        assert answer.status_code == 410
    assert status(here, job) == "canceled"


def test_what_is_reported_twice_is_one(here: Standing) -> None:
    job = here.create().json()
    claimed = here.claim()
    for _ in range(2):
        assert here.report(claimed, status="processing", logs="x").status_code == 200
    first = put(here, claimed, 0, b"one").json()["url"]
    assert put(here, claimed, 0, b"one").json()["url"] == first
    for _ in range(2):
        assert here.report(claimed, status="succeeded", output=[first]).status_code == 200
    assert here.report(claimed, status="failed", error="late").status_code == 200
    shown = here.client.get(job["urls"]["get"]).json()
    assert (shown["status"], shown["output"], shown["error"]) == ("succeeded", [first], None)
    assert here.nobody.get(first).content == b"one"


def test_a_job_that_is_handed_back_comes_again_and_not_for_ever(tmp_path: Path) -> None:
    with standing(tmp_path, attempts=2) as found:
        job = found.create().json()
        back = f"/_worker/jobs/{job['id']}/hand-back"
        claimed = found.claim()
        assert found.worker.post(back, json={"fence": claimed["fence"]}).status_code == 200  # the worker stops
        for attempt in (1, 2):
            before, claimed = claimed, found.claim()
            assert (claimed["id"], claimed["attempt"]) == (job["id"], attempt)
            assert found.report(before, status="succeeded").status_code == 410
            put(found, claimed, 0, b"x")
            found.worker.post(back, json={"fence": claimed["fence"], "error": "no memory"})
        shown = found.client.get(job["urls"]["get"]).json()
        assert (shown["status"], shown["error"]) == ("failed", "no memory")


def test_a_silent_worker_loses_its_job(tmp_path: Path) -> None:
    with standing(tmp_path, lease=0.5) as found:
        found.create()
        claimed = found.claim()
        until(lambda: beat(found, {"id": claimed["id"], "fence": 0}) and found.claim(wait=10)["attempt"] == 2)
        assert beat(found, claimed) == [claimed["id"]]


def test_a_deadline_ends_a_job_in_the_queue(tmp_path: Path) -> None:
    """Also right after the gateway was started, when it takes no silent worker for lost yet."""
    with standing(tmp_path) as found:
        body = {"version": found.version, "input": {}}
        job = found.client.post("/v1/predictions", json=body, headers={"Cancel-After": "5s"}).json()
        until(lambda: status(found, job) == "canceled", 12)


def test_outputs_have_addresses_of_their_own(here: Standing) -> None:
    jobs = [here.create().json() for _ in range(2)]
    claimed = [here.claim() for _ in jobs]
    urls = [put(here, each, number, b"x").json()["url"] for each in claimed for number in range(3)]
    assert len(set(urls)) == 6
    assert [url.rpartition("/")[2] for url in urls] == ["out-0.png", "out-1.png", "out-2.png"] * 2
    answer = here.worker.get(f"/_worker/files/{urls[0].split('/')[-2]}", headers={"Range": "bytes=0-"})
    assert (answer.status_code, answer.content) == (206, b"x")
    for job in jobs:
        here.client.post(job["urls"]["cancel"])


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("register", {"worker": "w", "model": "me/x", "schema": {}}),
        ("register", {"worker": "w", "model": "me/x", "schema": {"sing": {}}}),
        ("claim", {"worker": "w", "base": "x", "pools": ["sing"]}),
        ("claim", {"worker": "\0", "base": "x", "pools": []}),
        ("claim", {"worker": "w", "base": "x", "pools": [], "wait": -1}),
        ("heartbeat", {"worker": "w", "held": [["x"]]}),
        ("heartbeat", {"worker": "w", "held": [[1, "x"]]}),
        (f"jobs/{'a' * 26}/report", {"fence": "1"}),
        (f"jobs/{'a' * 26}/report", {"fence": 1, "status": "aborted"}),
        (f"jobs/{'a' * 26}/hand-back", {}),
    ],
)
def test_what_makes_no_sense_is_said(here: Standing, path: str, body: dict[str, Any]) -> None:
    answer = here.worker.post(f"/_worker/{path}", json=body)
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("- ")


def test_who_works_is_known(here: Standing) -> None:
    beat(here, {"id": "x", "fence": 1}, details={"hardware": "NVIDIA H100", "starts": {"predict": 3}})
    assert {"name": "NVIDIA H100", "sku": "nvidia-h100"} in here.client.get("/v1/hardware").json()
    assert 'gateway_worker_starts{pool="predict",worker="w"} 3.0' in here.client.get("/metrics").text
