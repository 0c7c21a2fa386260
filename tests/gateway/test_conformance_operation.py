"""Replicate's own clients when a gateway is behind TLS, throttles, forgets, is killed, or has many fine-tunes to run."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from tests.conftest import ROOT
from tests.gateway.clients import Address
from tests.gateway.running import TOY, Gateway, free_port, running, until
from tests.gateway.standing import TOKEN, standing
from tests.gateway.test_conformance_protocol import begin, reached
from tests.gateway.tls import certificate

EXAMPLES = str(ROOT / "examples")


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


# C9, and the issue's own line: https:// in both directions


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gateway, str]]:
    """A gateway behind TLS, and the https URL of a file elsewhere that its workers are allowed to fetch."""
    folder, outer, plain, web, files = tmp_path_factory.mktemp("secure"), *(free_port() for _ in range(4))
    authority = str(certificate(folder)[0])
    variables = dict.fromkeys(("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"), authority)
    variables["GATEWAY_PRIVATE_INPUTS"] = "1"
    url = f"https://127.0.0.1:{outer}"
    with running(folder, with_worker=False, PORT=str(plain), GATEWAY_URL=url, **variables) as gateway:
        gateway.start("proxy", "tests.gateway.tls", str(outer), str(plain), str(folder))
        gateway.start("files", "http.server", "--bind", "127.0.0.1", "--directory", EXAMPLES, str(files))
        gateway.start("web", "tests.gateway.tls", str(web), str(files), str(folder))
        for port in (outer, web, files):
            until(partial(listens, port))
        with pytest.MonkeyPatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            patch.setenv("CURL_CA_BUNDLE", authority)
            gateway.agent("toy", "local/toy", GATEWAY_PACKAGE=str(TOY), GATEWAY_URL=f"http://127.0.0.1:{plain}")
            yield gateway, f"https://127.0.0.1:{web}/hearts.zip"


def test_c09_outputs_are_files_at_https_addresses(secure: tuple[Gateway, str]) -> None:
    gateway, _ = secure
    python = """
import replicate
outputs = replicate.run("local/toy", input={"text": "hi", "count": 3})
result = [[type(output).__name__, output.url, json.loads(output.read())["number"]] for output in outputs]
"""
    javascript = """
const outputs = await replicate.run("local/toy", { input: { text: "hi", count: 3 } });
return Promise.all(outputs.map(async (output) => [output.constructor.name, output.url().href, (await new Response(output).json()).number]));
"""
    for found in (gateway.python1_script(python), gateway.python2_script(python), gateway.javascript(javascript)):
        assert [(kind, number) for kind, _, number in found] == [
            ("FileOutput", 0),
            ("FileOutput", 1),
            ("FileOutput", 2),
        ]
        assert all(url.startswith(f"{gateway.url}/v1/files/") for _, url, _ in found)


def test_c12_the_lines_of_the_issue_with_an_https_address(secure: tuple[Gateway, str]) -> None:
    gateway, url = secure
    python = """
import time, replicate
version = replicate.models.get("local/toy").latest_version.id
training = replicate.trainings.create(version="local/toy:" + version, input={"input_images": given["url"]}, destination="my-name/my-model")
while training.status not in ("succeeded", "failed"):
    time.sleep(0.1)
    training.reload()
assert training.status == "succeeded", training.error
result = [training.status, training.error, len(replicate.run("my-name/my-model", input={"text": "TOK"}))]
"""
    assert gateway.python1_script(python, url=url) == ["succeeded", None, 1]


# C15


def test_c15_who_asks_too_often_is_told_and_the_clients_wait(tmp_path: Path) -> None:
    with standing(tmp_path, calls=600, creates=3) as here:
        address = Address(here.url, TOKEN)
        answers = [here.client.get("/v1/account") for _ in range(640)]
        assert answers[0].headers.keys() >= {"ratelimit-limit", "ratelimit-remaining", "ratelimit-reset"}
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert refused.json()["detail"] == "Request was throttled. Expected available in 1 second."
        assert refused.headers["retry-after"] == "1"
        assert address.python1().accounts.current().username == "my-name"
        # JavaScript tries a POST again at once, five times, whatever Retry-After says.
        burst = """
const all = await Promise.allSettled(Array.from({ length: 8 }, () => replicate.predictions.create({ version: given.version, input: {} })));
return [all.filter((each) => each.status === "fulfilled").length, all.find((each) => each.status === "rejected").reason.message];
"""
        made, message = address.javascript(burst, version=here.version)
        assert 3 <= made <= 4  # one more if a twentieth of a minute has passed
        assert "Request was throttled" in message
        assert len(here.client.get("/v1/predictions").json()["results"]) == made


# C16


def test_c16_a_client_waits_through_the_death_of_the_gateway(toy: Gateway) -> None:
    """Queued, running, and ended meanwhile: each ends once, and nobody who polls meets a refused connection."""
    version = toy.curl("/v1/models/local/toy").json()["latest_version"]["id"]
    running_, queued = begin(toy, version, seconds=1.0, text="one"), begin(toy, version, text="two")
    until(lambda: reached(running_, "processing"))
    (front,) = [
        process
        for process in psutil.Process(toy.processes[0].pid).children(recursive=True)
        if "gateway.front" in process.cmdline()
    ]
    threading.Timer(0.2, os.kill, (front.pid, signal.SIGKILL)).start()
    for prediction in (running_, queued):
        prediction.wait()
        assert prediction.status == "succeeded"
        assert len(prediction.output or []) == 1


# C18


def test_c18_what_is_old_is_removed_and_trained_weights_stay(tmp_path: Path) -> None:
    with standing(tmp_path, keep=1.0) as here:
        python1 = Address(here.url, TOKEN).python1()
        prediction = python1.predictions.create(version=here.version, input={"prompt": "mine"})
        job = here.claim()
        put = here.worker.put(f"/_worker/jobs/{job['id']}/files/0?fence={job['fence']}&name=0.png", content=b"picture")
        lost = urlsplit(put.json()["url"]).path
        assert here.report(job, status="succeeded", output=[put.json()["url"]], logs="said").status_code == 200
        python1.trainings.create(f"me/painter:{here.version}", {"prompt": "x"}, "my-name/kept")
        asked = {"worker": "w", "base": here.version, "pools": ["train"], "warm": [], "wait": 1}
        job = here.worker.post("/_worker/claim", json=asked).json()
        path = f"/_worker/jobs/{job['id']}/files/0?fence={job['fence']}&name=trained_model.tar&keep=1"
        weights = here.worker.put(path, content=b"weights").json()["url"]
        kept = urlsplit(weights).path
        assert here.report(job, status="succeeded", output={"weights": weights}).status_code == 200
        moment = time.time()

    until(lambda: time.time() > moment + 1.1)
    with standing(tmp_path, keep=1.0) as here:  # which cleans up when it starts
        python1 = Address(here.url, TOKEN).python1()
        until(lambda: here.client.get(f"/v1/predictions/{prediction.id}").json()["data_removed"])
        shown = python1.predictions.get(prediction.id)
        assert (shown.status, shown.output, shown.logs, shown.input) == ("succeeded", None, "", {})
        until(lambda: here.anonymous("GET", lost).status_code == 404)
        assert here.anonymous("GET", kept).content == b"weights"


# C20


def test_c20_jobs_of_one_fine_tune_follow_each_other(toy: Gateway) -> None:
    """Seven fine-tunes in turns, three jobs each: a worker changes weights about as often as there are fine-tunes."""
    version = toy.curl("/v1/models/local/toy").json()["latest_version"]["id"]
    files = [
        toy.python1().files.create(path).urls["get"] for path in sorted(Path(__file__).parent.glob("test_*.py"))[:7]
    ]
    blocking = begin(toy, version, seconds=60)
    until(lambda: reached(blocking, "processing"))
    jobs = [begin(toy, version, replicate_weights=url) for _ in range(3) for url in files]
    blocking.cancel()
    for job in jobs:
        job.wait()
    assert {job.status for job in jobs} == {"succeeded"}
    order = [(job.input or {})["replicate_weights"] for job in sorted(jobs, key=lambda job: job.started_at or "")]
    assert sum(one != other for one, other in pairwise(order)) <= 8
