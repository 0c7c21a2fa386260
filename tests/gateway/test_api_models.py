"""Trainings, the versions that they make, models and deployments."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.gateway.asking import cancel, register
from tests.gateway.standing import FILE, Standing, standing

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


def test_a_version_is_found_under_its_own_model_only(here: Standing, trainer: str) -> None:
    assert here.create(version=f"me/painter:{trainer}").status_code == 422
    assert here.client.get(f"/v1/models/me/painter/versions/{trainer}").status_code == 404
    assert here.client.get(f"/v1/models/me/trainer/versions/{trainer}").json()["id"] == trainer


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
