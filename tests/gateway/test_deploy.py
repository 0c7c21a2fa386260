"""What `deploy/` says is what the gateway has: variables, paths, tables, and files for the images."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import kubernetes_validate
import psycopg
import pytest
import requests
import yaml

import gateway.agent.__main__ as agent
from gateway import serve
from gateway.app import create_app
from gateway.ids import new_id
from gateway.jobs import Job, Kind, Model, Version
from gateway.settings import PREFIX, Settings
from gateway.store import open_store
from tests.gateway.databases import Postgres

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
TOKENS = {"GATEWAY_TOKEN": "t" * 20, "GATEWAY_WORKER_TOKEN": "w" * 20}


def documents() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in MANIFESTS:
        for document in yaml.safe_load_all(path.read_text()):
            yield f"{path.stem}-{document['kind']}-{document.get('metadata', {}).get('name')}", document


ALL = dict(documents())
PODS = {
    document["metadata"]["name"]: document["spec"]["template"]
    for document in ALL.values()
    if document["kind"] in ("Deployment", "StatefulSet")
}
CONTAINERS = {name: pod["spec"]["containers"][0] for name, pod in PODS.items()}


def secret(name: str) -> Any:
    """A value that a manifest takes from the Secret or the ConfigMap."""
    return {**ALL["secrets.example-Secret-gateway"]["stringData"], **ALL["settings-ConfigMap-gateway"]["data"]}[name]


@pytest.mark.parametrize("name", [name for name, each in ALL.items() if "." not in each["apiVersion"].split("/")[0]
                                  or each["apiVersion"].split("/")[0].endswith("networking.k8s.io")])  # fmt: skip
def test_manifests_are_what_kubernetes_takes(name: str) -> None:
    kubernetes_validate.validate(ALL[name], kubernetes_validate.latest_version(), strict=True)


def test_the_kustomization_names_all_manifests() -> None:
    named = set(yaml.safe_load((DEPLOY / "kubernetes" / "kustomization.yaml").read_text())["resources"])
    there = {path.name.replace(".example", "") for path in MANIFESTS} - {"kustomization.yaml"}
    assert named == there


def test_services_policies_and_scalers_find_their_pods() -> None:
    labels = [pod["metadata"]["labels"] for pod in PODS.values()]
    for name, document in ALL.items():
        spec = document.get("spec", {})
        for selector in (spec.get("selector"), spec.get("podSelector")):
            wanted = (selector or {}).get("matchLabels", selector)
            if wanted:
                assert any(wanted.items() <= each.items() for each in labels), name
        if "scaleTargetRef" in spec:
            assert spec["scaleTargetRef"]["name"] in PODS
            assert document["metadata"]["name"] == spec["scaleTargetRef"]["name"]
            assert (spec["minReplicaCount"], spec["triggers"][0]["type"]) == (0, "postgresql")


def test_probes_ask_for_what_the_gateway_serves(tmp_path: Path) -> None:
    settings = Settings(database=f"sqlite:///{tmp_path}/a.db", files=str(tmp_path / "files"))
    paths = {getattr(route, "path", None) for route in create_app(settings).routes}
    container = CONTAINERS["gateway"]
    probes = [container[name]["httpGet"] for name in ("livenessProbe", "readinessProbe", "startupProbe")]
    assert {probe["path"] for probe in probes} == {"/healthz", "/readyz"}
    assert {probe["path"] for probe in probes} <= paths
    assert {probe["port"] for probe in probes} == {port["name"] for port in container["ports"]}
    assert "/healthz" in (DEPLOY / "Dockerfile.gateway").read_text()


def variables() -> Iterator[tuple[str, str]]:
    """(who is told, the variable)"""
    for name, container in CONTAINERS.items():
        yield from ((name, each["name"]) for each in container.get("env", []))
    yield from (("gateway", each) for each in ALL["settings-ConfigMap-gateway"]["data"])
    for name, service in COMPOSE["services"].items():
        yield from ((name, each) for each in service["environment"])


@pytest.mark.parametrize(("who", "name"), sorted(set(variables())))
def test_variables_are_known(who: str, name: str) -> None:
    if who == "postgres":
        assert name.startswith(("POSTGRES_", "PGDATA"))
    elif who.startswith("worker"):
        assert re.search(rf"\b{name}\b", agent.__doc__ or "")
    elif not name.startswith("AWS_"):
        of_settings = {PREFIX + field.name.upper() for field in fields(Settings)}
        read_by_it = (ROOT / "gateway" / "front.py").read_text()
        assert name in of_settings or re.search(rf"\b{name}\b", f"{serve.__doc__} {read_by_it}")


def test_workers_have_the_time_to_drain() -> None:
    for name, pod in PODS.items():
        if name.startswith("worker"):
            told = {each["name"]: each.get("value") for each in CONTAINERS[name]["env"]}
            assert pod["spec"]["terminationGracePeriodSeconds"] >= int(told["GATEWAY_DRAIN"]) + 30
    worker = COMPOSE["services"]["worker"]
    assert int(worker["stop_grace_period"].rstrip("s")) >= int(worker["environment"]["GATEWAY_DRAIN"]) + 30


def test_no_secret_is_written_down() -> None:
    for each in ALL.values():
        if each["kind"] == "Secret":
            assert {value for value in each["stringData"].values() if "PASSWORD@" not in value} == {""}
    for line in (DEPLOY / "example.env").read_text().splitlines():
        if re.match(r"\w*(PASSWORD|TOKEN)=", line):
            assert line.endswith("=")


def test_the_scalers_queries_count_the_queue(postgres: Postgres) -> None:
    url = postgres.new_database()
    store = open_store(url)
    queries = {
        document["metadata"]["name"]: document["spec"]["triggers"][0]["metadata"]["query"]
        for document in ALL.values()
        if document["kind"] == "ScaledObject"
    }

    def counted() -> dict[str, int]:
        with psycopg.connect(url) as connection:
            return {name: connection.execute(query.encode()).fetchall()[0][0] for name, query in queries.items()}

    assert counted() == {"worker-predict": 1, "worker-train": 0}  # somebody has to register the model
    version = Version("0" * 64, "me/sdxl", 1.0, {}, "0" * 64)
    store.put_model(Model("me", "sdxl", 1.0))
    store.put_version(version)
    assert counted() == {"worker-predict": 0, "worker-train": 0}
    kinds: list[Kind] = ["prediction", "prediction", "training"]
    for kind in kinds:
        store.create(Job(new_id(), kind, "me", "me/sdxl", version.id, {}, 1.0))
    running = store.claim("w", ["predict"], [version.id], [], 1.0, 30.0)
    assert running is not None
    assert counted() == {"worker-predict": 2, "worker-train": 1}
    store.report(running.job.id, running.job.fence, 2.0, status="succeeded")
    assert counted() == {"worker-predict": 1, "worker-train": 1}
    store.close()


def copied(dockerfile: str, to: Path) -> list[str]:
    """What an image is made of, without its packages; the image's command."""
    to.mkdir(exist_ok=True)
    text = (DEPLOY / dockerfile).read_text()
    ignored = (DEPLOY / f"{dockerfile}.dockerignore").read_text().split()
    for line in re.findall(r"^COPY (.+)$", text, re.MULTILINE):
        *sources, target = line.split()
        for source in sources:
            assert f"!{source.split('/')[0]}" in ignored
            place = to / target if (ROOT / source).is_dir() else to / Path(source).name
            (shutil.copytree if (ROOT / source).is_dir() else shutil.copy)(ROOT / source, place)
    (command,) = re.findall(r'^CMD (\["python".+\])$', text, re.MULTILINE)
    found: list[str] = yaml.safe_load(command)
    return [sys.executable, *found[1:]]


def test_the_gateways_image_has_all_that_it_runs(tmp_path: Path) -> None:
    command = copied("Dockerfile.gateway", tmp_path / "app")
    quiet = {name: value for name, value in os.environ.items() if not name.startswith(("GATEWAY", "PYTHON"))}
    told = {**quiet, **TOKENS, "GATEWAY_STATE": str(tmp_path / "data"), "HOST": "127.0.0.1", "PORT": "0"}
    with subprocess.Popen(
        command, cwd=tmp_path / "app", env=told, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            assert process.stdout is not None
            url = next(found[1] for line in process.stdout if (found := re.search(r"API is at (http\S+)", line)))
            for path in ("/healthz", "/readyz"):
                assert requests.get(url + path, timeout=20).status_code == 200
            bearer = {"Authorization": f"Bearer {TOKENS['GATEWAY_TOKEN']}"}
            assert "gateway_jobs" in requests.get(url + "/metrics", headers=bearer, timeout=20).text
        finally:
            process.terminate()
        assert process.wait(60) == 0


def test_the_workers_image_has_all_that_it_runs(tmp_path: Path) -> None:
    command = copied("Dockerfile.worker", tmp_path)
    told = {name: value for name, value in os.environ.items() if not name.startswith(("GATEWAY", "PYTHON"))}
    run = subprocess.run([*command, "--help"], cwd=tmp_path, env=told, capture_output=True, text=True, check=True)
    assert "GATEWAY_URL" in run.stdout


def test_compose_names_what_there_is() -> None:
    services = COMPOSE["services"]
    for service in services.values():
        if "build" in service:
            assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
        assert {volume.split(":")[0] for volume in service["volumes"]} <= set(COMPOSE["volumes"])
        assert set(service["networks"]) <= set(COMPOSE["networks"])
        assert set(service.get("depends_on", [])) <= set(services)
    asked = set(re.findall(r"\$\{(\w+)", (DEPLOY / "compose.yaml").read_text()))
    assert asked == set(re.findall(r"^(\w+)=", (DEPLOY / "example.env").read_text(), re.MULTILINE))
