"""What Prometheus is told, and what the log says of it all: enough to find a fault by, and no secret."""

from __future__ import annotations

import io
import json
import logging
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from gateway import logs, metrics
from gateway.jobs import Claimed
from gateway.store import Store
from tests.gateway.receiving import VERSION, claimed, delivering, finished, new_job, new_store, receiver, settle
from tests.gateway.running import Gateway, until
from tests.gateway.serving import served

Numbers = dict[tuple[str, frozenset[tuple[str, str]]], float]


def numbers(store: Store) -> Numbers:
    """All samples, as Prometheus' own parser reads them."""
    families = text_string_to_metric_families(metrics.text(store).decode())
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def of(found: Numbers, name: str, **labels: str) -> float:
    """One of them; 0 for one that nothing happened for."""
    return found.get((name, frozenset(labels.items())), 0.0)


def test_queue_states_and_age(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    for _ in range(3):
        new_job(store)
    job = claimed(store)
    store.report(job.id, job.fence, time.time(), status="processing")
    claimed(store)
    found = numbers(store)
    states = {
        state: of(found, "gateway_jobs", pool="predict", state=state) for state in ("queued", "starting", "processing")
    }
    assert states == {"queued": 1, "starting": 1, "processing": 1}
    assert of(found, "gateway_jobs", pool="train", state="queued") == 0
    assert of(found, "gateway_queue_oldest_seconds", pool="predict") > 0
    assert of(found, "gateway_queue_oldest_seconds", pool="train") == 0


def test_stages_of_jobs_that_ended(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    labels = {"pool": "predict", "status": "succeeded"}
    before = numbers(store)
    job = new_job(store)
    taken = claimed(store)
    store.report(taken.id, taken.fence, job.created_at + 2, status="processing")
    metrics.ended(
        store.report(taken.id, taken.fence, job.created_at + 5, status="succeeded", metrics={"predict_time": 2.5})
    )
    after = numbers(store)

    def grown(stage: str) -> float:
        name = "gateway_job_seconds_sum"
        return of(after, name, stage=stage, **labels) - of(before, name, stage=stage, **labels)

    assert [grown(stage) for stage in ("queue", "predict", "total")] == pytest.approx([2, 2.5, 5])


@pytest.mark.parametrize(
    ("key", "warm", "kind"), [("", (), "plain"), ("k", ("predict:k",), "warm"), ("k", ("predict:other",), "cold")]
)
def test_lora_hits(tmp_path: Path, key: str, warm: tuple[str, ...], kind: str) -> None:
    store = new_store(tmp_path)
    before = of(numbers(store), "gateway_claims_total", pool="predict", weights=kind)
    job = new_job(store, weights_key=key)
    version = store.get_version(job.version)
    assert version
    metrics.claimed(Claimed(job, version, 30.0), frozenset(warm))
    assert of(numbers(store), "gateway_claims_total", pool="predict", weights=kind) == before + 1


def test_starts_of_workers_that_were_heard_of(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    store.seen("here", time.time(), {"starts": {"predict": 3}})
    store.seen("away", time.time() - 300, {"starts": {"predict": 1}})
    store.seen("new", time.time(), {})
    store.seen("odd", time.time(), {"starts": {"predict": "many", "\n": 1}})
    store.seen("odder", time.time(), {"starts": "many"})
    found = numbers(store)
    assert of(found, "gateway_workers") == 4
    assert of(found, "gateway_worker_starts", worker="here", pool="predict") == 3
    assert not any(("worker", "away") in labels for _, labels in found)


def test_tries_of_webhooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.webhooks.PAUSES", (0.0,) * 6)
    store = new_store(tmp_path)
    name, outcomes = "gateway_webhooks_total", ("postponed", "delivered", "refused")
    before = numbers(store)
    with receiver(lambda number: (500 if number == 1 else 200, {})) as hook, delivering(store):
        for url in (hook.url, "http://10.0.0.1/"):
            new_job(store, url)
            finished(store)
        settle(store)
    after = numbers(store)
    grown = [
        of(after, name, event="completed", outcome=each) - of(before, name, event="completed", outcome=each)
        for each in outcomes
    ]
    assert grown == [1, 1, 1]


def test_answers_are_counted_under_the_route_and_not_the_address(tmp_path: Path) -> None:
    async def show(_: Request) -> Response:
        return PlainTextResponse("")

    app = Starlette(routes=[Route("/counted/{number}", show)], middleware=[Middleware(metrics.Measured)])
    with served(lambda _: app) as url:
        for number in range(20):
            httpx.get(f"{url}/counted/{number}")
            httpx.get(f"{url}/{number}")
        httpx.request("BREW", f"{url}/counted/1")
    found = numbers(new_store(tmp_path))
    shown = {"method": "GET", "route": "/counted/{number}"}
    assert of(found, "gateway_http_requests_total", status="200", **shown) == 20
    assert of(found, "gateway_http_seconds_count", **shown) == 20
    assert of(found, "gateway_http_requests_total", method="GET", route="none", status="404") >= 20
    methods = {value for name, labels in found for key, value in labels if key == "method" and name}
    assert "BREW" not in methods


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """What the log has said so far, as dictionaries; logging is left as it was."""
    root, said = logging.getLogger(), io.StringIO()
    handlers, level = root.handlers[:], root.level
    monkeypatch.setattr("sys.stderr", said)
    logs.setup(as_json=True)
    yield lambda: [json.loads(line) for line in said.getvalue().splitlines()]
    root.handlers[:] = handlers
    root.setLevel(level)


def test_a_line_is_json_as_coglet_writes_it_with_the_prediction(lines: Any) -> None:
    logging.getLogger("gateway.queue").info("taken by %s", "w", extra={"job": "abc", "attempt": 2})
    (line,) = lines()
    assert line.pop("timestamp").startswith("20")
    fields = {"message": "taken by w", "attempt": 2, "prediction_id": "abc"}
    assert line == {"level": "INFO", "target": "gateway.queue", "fields": fields}


def test_a_traceback_is_one_line(lines: Any) -> None:
    try:
        raise ValueError("no\nsuch thing")
    except ValueError:
        logging.getLogger("gateway").exception("failed")
    (line,) = lines()
    assert line["level"] == "ERROR"
    assert "ValueError: no\nsuch thing" in line["fields"]["message"]


SECRETS = {
    "Authorization: Bearer r8_abcdefgh12345678": "r8_abcdefgh12345678",
    "headers {'authorization': 'Token 0123456789abcdef'}": "0123456789abcdef",
    "token=hunter2hunter2": "hunter2hunter2",
    "key whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw is": "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    "input data:image/png;base64,iVBORw0KGgo= was": "iVBORw0KGgo",
    "GET https://bucket.example/x.zip?X-Amz-Signature=feedbeef failed": "feedbeef",
    "https://user:pa55word@host/x": "pa55word",
    "postgresql://gateway:pa55word@db/gateway": "pa55word",
    "/v1/files/abcdefghijklmnopqrstuvwxyz/out-0.png": "abcdefghijklmnopqrstuvwxyz",
    "/v1/streams/job/abcdefghijklmnopqrstuvwxyz": "abcdefghijklmnopqrstuvwxyz",
}


@pytest.mark.parametrize("text", list(SECRETS))
def test_secrets_are_masked(lines: Any, text: str) -> None:
    log = logging.getLogger("gateway")
    log.info("%s", text)
    log.info("field", extra={"field": text})
    try:
        raise ValueError(text)
    except ValueError:
        log.exception("failed")
    said = json.dumps(lines())
    assert SECRETS[text] not in said
    assert "***" in said or "pa55word" in text


def test_answers_are_logged_by_route_with_the_prediction(lines: Any) -> None:
    async def show(request: Request) -> Response:
        logging.getLogger("gateway").warning("looked")
        return PlainTextResponse(request.path_params["job_id"])

    cancel = Route("/v1/predictions/{job_id}/cancel", show, methods=["POST"])
    routes = [Route("/v1/predictions/{job_id}", show), cancel]
    app = Starlette(routes=routes, middleware=[Middleware(logs.Logged)])
    with served(lambda _: app) as url:
        httpx.get(f"{url}/v1/predictions/abc?token=secret")
        httpx.post(f"{url}/v1/predictions/abc/cancel?token=secret")
        httpx.get(f"{url}/secret")
    said = [line["fields"] for line in lines() if line["target"] == "gateway.http"]
    assert all(line.pop("seconds") >= 0 for line in said)
    assert said == [
        {"message": "POST /v1/predictions/{job_id}/cancel", "status": 200, "prediction_id": "abc"},
        {"message": "GET an address without a route", "status": 404},
    ]


def test_the_running_gateway_tells_what_became_of_a_job(toy: Gateway) -> None:
    job = toy.curl("/v1/models/local/toy/predictions", "-H", "Prefer: wait", body={"input": {"text": "planted"}}).json()
    about = rf".*prediction_id={job['id']}"
    until(lambda: re.search("taken by a worker" + about, toy.log("gateway")))
    until(lambda: re.search("succeeded" + about, toy.log("gateway")))
    assert "planted" not in toy.log("gateway")
    told = rb'gateway_worker_starts{pool="predict",worker="[^"]+"} 1'
    until(lambda: re.search(told, toy.curl("/metrics").content))
    assert b'gateway_jobs{pool="predict",state="queued"}' in toy.curl("/metrics").content
    assert toy.curl("/metrics", token="").status == 401


def test_jobs_of_lost_workers_and_past_deadlines_are_counted(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    before, now = numbers(store), time.time()
    for _ in range(2):
        new_job(store)
        claimed(store)
    new_job(store, deadline=now)
    metrics.swept(store.sweep(now + 100, attempts=2))
    for _ in range(2):
        store.claim("worker", ["predict"], [VERSION], [], now + 100, 60)
    metrics.swept(store.sweep(now + 200, attempts=2))
    after = numbers(store)

    def grown(name: str, **labels: str) -> float:
        return of(after, name, **labels) - of(before, name, **labels)

    assert grown("gateway_jobs_lost_total", pool="predict") == 2
    ends = {status: {"pool": "predict", "status": status, "stage": "total"} for status in ("failed", "canceled")}
    assert [grown("gateway_job_seconds_count", **labels) for labels in ends.values()] == [2, 1]


@pytest.mark.parametrize(
    "piece", ["a", "a://", "data:", "token ", "bearer=", "/v1/files/", "a://a@", "http://a?", " ", "r8_"]
)
def test_no_text_makes_the_log_slow(piece: str) -> None:
    """Twice the text is not four times the work: beyond its longest message none is looked at."""
    assert len(logs.masked(piece * 1_000_000)) <= logs.LONGEST + 2_000
