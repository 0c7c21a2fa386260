"""The agent on the real gateway and the real coglet: what becomes of jobs, whatever happens to those who do them."""

from __future__ import annotations

import base64
import hashlib
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from tests.gateway.running import TOY, Gateway, running, until

MODEL = "local/worn"
HELLO = b"hello"
DATA = "data:text/plain;base64," + base64.b64encode(HELLO).decode()
DIGEST = hashlib.sha256(HELLO).hexdigest()


class Shop:
    """A gateway of its own with one agent, which tests may break."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.runs = gateway.folder / "runs"
        self.broken = gateway.folder / "broken"
        self.settings = {
            "GATEWAY_PACKAGE": str(TOY),
            "GATEWAY_TOGETHER": "no",
            "GATEWAY_IDLE": "600",
            "GATEWAY_PATIENCE": "1",
            "GATEWAY_DRAIN": "1",
            "GATEWAY_PRIVATE_INPUTS": "1",
            "TOY_LOG": str(self.runs),
            "TOY_BROKEN": str(self.broken),
        }

    def open(self) -> psutil.Process:
        """Start the agent."""
        self.gateway.agent("worn", MODEL, **self.settings)
        return psutil.Process(self.gateway.processes[-1].pid)

    def ask(self, verb: str, path: str, **asked: Any) -> Any:
        head = {"Authorization": f"Bearer {self.gateway.token}"}
        answer = requests.request(verb, f"{self.gateway.url}/v1/{path}", headers=head, timeout=90, **asked)
        assert answer.ok, answer.text
        return answer.json()

    def version(self) -> str:
        return str(self.ask("GET", f"models/{MODEL}")["latest_version"]["id"])

    def create(self, **given: Any) -> str:
        return str(self.ask("POST", "predictions", json={"version": self.version(), "input": given})["id"])

    def train(self, **given: Any) -> str:
        path = f"models/{MODEL}/versions/{self.version()}/trainings"
        return str(self.ask("POST", path, json={"input": given, "destination": "my-name/trained"})["id"])

    def get(self, job: str, kind: str = "predictions") -> dict[str, Any]:
        found: dict[str, Any] = self.ask("GET", f"{kind}/{job}")
        return found

    def wait(self, job: str, kind: str = "predictions", status: str = "succeeded") -> dict[str, Any]:
        """A job that has ended, as it should."""
        until(lambda: self.get(job, kind)["completed_at"])
        found = self.get(job, kind)
        assert found["status"] == status, (found, self.gateway.log("worn")[-3000:])
        return found

    def begun(self, job: str, kind: str = "predictions") -> None:
        until(lambda: self.get(job, kind)["status"] == "processing")

    def cancel(self, job: str) -> None:
        self.ask("POST", f"predictions/{job}/cancel")

    def said(self, text: str) -> int:
        """How often the toy was run with a text."""
        return [line.split(" ", 2)[-1] for line in self.lines()].count(text)

    def lines(self) -> list[str]:
        return self.runs.read_text().splitlines() if self.runs.exists() else []

    def outputs(self, job: dict[str, Any]) -> list[Any]:
        return [requests.get(url, timeout=10).json() for url in job["output"]]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    with running(
        tmp_path_factory.mktemp("agent"), GATEWAY_OUTPUT_MODE="url", GATEWAY_PRIVATE_INPUTS="1", GATEWAY_ATTEMPTS="2"
    ) as gateway:
        yield Shop(gateway)


@pytest.fixture
def agent(shop: Shop) -> psutil.Process:
    """The agent, alive."""
    started = [process for process in shop.gateway.processes[1:] if process.poll() is None]
    return psutil.Process(started[-1].pid) if started else shop.open()


def coglets(agent: psutil.Process) -> list[psutil.Process]:
    return [child for child in agent.children() if "cog.server.http" in child.cmdline()]


def test_outputs_come_in_order_and_say_what_went_in(shop: Shop, agent: psutil.Process) -> None:
    uploaded = shop.ask("POST", "files", files={"content": ("note.txt", b"uploaded")})["urls"]["get"]
    job = shop.wait(shop.create(text="one", image=DATA, files=[uploaded, DATA], replicate_weights=uploaded, count=8))
    given = [hashlib.sha256(each).hexdigest() for each in (HELLO, b"uploaded", HELLO, b"uploaded")]
    assert shop.outputs(job) == [{"text": "one", "given": given, "number": number} for number in range(8)]
    assert [url.rpartition("/")[2] for url in job["output"]] == [f"out-{number}.json" for number in range(8)]
    assert job["logs"] == "text is one\n"
    assert job["metrics"]["given"] == 4
    assert agent.is_running()


def test_errors_are_the_models_own_words(shop: Shop, agent: psutil.Process) -> None:
    assert agent.is_running()
    said = {action: shop.wait(shop.create(text="x", action=action), status="failed")["error"] for action in FAILURES}
    assert said == FAILURES


FAILURES = {
    "fail": "x is no good; send something else.",
    "lie": "Worker crashed",  # said by the predictor, and so no reason to try again
    "crash": "the process that runs the predictor died (out of memory?)",
}


def test_a_worker_that_died_is_replaced(shop: Shop, agent: psutil.Process) -> None:
    job = shop.create(text="interrupted", seconds=2)
    shop.begun(job)
    first = coglets(agent)[0]
    for process in first.children(recursive=True):
        process.kill()
    shop.wait(job)
    assert coglets(agent) != [first]
    assert shop.said("interrupted") == 2


def test_one_that_hears_no_cancel_is_ended(shop: Shop, agent: psutil.Process) -> None:
    job = shop.create(action="hang")
    shop.begun(job)
    first = coglets(agent)[0]
    shop.cancel(job)
    after = shop.wait(shop.create(text="after"))
    assert shop.outputs(after)[0]["text"] == "after"
    assert shop.get(job)["status"] == "canceled"
    assert not first.is_running()


def test_a_cancel_frees_the_worker(shop: Shop, agent: psutil.Process) -> None:
    first = coglets(agent)
    for number in range(6):
        job = shop.create(seconds=60, image=DATA)
        if number % 2:
            shop.begun(job)
        shop.cancel(job)
        assert shop.get(job)["status"] == "canceled"
    shop.wait(shop.create(text="after"))
    assert coglets(agent) == first


def test_pools_take_turns_and_weights_do_not_go_through_json(shop: Shop, agent: psutil.Process) -> None:
    shop.wait(shop.create())
    predicting = coglets(agent)
    training = shop.wait(shop.train(input_images=DATA), "trainings")
    assert predicting != coglets(agent)
    assert len(coglets(agent)) == 1
    assert requests.get(training["output"]["weights"], timeout=10).json() == {"digest": DIGEST}
    assert training["output"]["weights"].endswith("/trained_model.tar")
    weights = hashlib.sha256(requests.get(training["output"]["weights"], timeout=10).content).hexdigest()
    version = training["output"]["version"].rpartition(":")[2]
    made = shop.ask("POST", "predictions", json={"version": version, "input": {"text": "TOK"}})["id"]
    assert shop.outputs(shop.wait(made)) == [{"text": "TOK", "given": [weights], "number": 0}]


def test_a_training_names_no_file_of_the_machine(shop: Shop, agent: psutil.Process) -> None:
    assert agent.is_running()
    job = shop.wait(shop.train(input_images=DATA, note="file:///etc/hostname"), "trainings")
    assert job["output"]["weights"] == "file:///etc/hostname"


def test_an_agent_that_is_killed_gives_its_job_back(shop: Shop, agent: psutil.Process) -> None:
    job = shop.create(text="given back", seconds=3)
    shop.begun(job)
    [first] = coglets(agent)
    agent.kill()
    until(lambda: not first.is_running())
    shop.open()
    shop.wait(job)
    assert shop.said("given back") == 2


def test_an_agent_that_is_asked_to_end_hands_back_without_blame(shop: Shop, agent: psutil.Process) -> None:
    """However often: it is not the job's fault."""
    job = shop.create(text="drained", seconds=3)
    for _ in range(2):
        shop.begun(job)
        end(agent)
        until(lambda: shop.get(job)["status"] == "starting")
        agent = shop.open()
    shop.wait(job)


def end(agent: psutil.Process) -> None:
    agent.send_signal(signal.SIGTERM)
    until(lambda: not alive(agent))


def alive(process: psutil.Process) -> bool:
    return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)


def test_what_ends_while_the_gateway_is_away_arrives(shop: Shop, agent: psutil.Process) -> None:
    """It is away from before the job ends until the agent, too, was killed and started again."""
    job = shop.create(text="late", seconds=1, count=3)
    shop.begun(job)
    [front] = [
        each for each in psutil.Process(shop.gateway.processes[0].pid).children() if "gateway.front" in each.cmdline()
    ]
    front.suspend()
    try:
        spool = shop.gateway.folder / "worn" / "spool" / "ended"
        until(lambda: list(spool.glob("*/report.json")))
        agent.kill()
        until(lambda: not alive(agent))
    finally:
        front.resume()
    shop.open()
    assert [each["number"] for each in shop.outputs(shop.wait(job))] == [0, 1, 2]
    assert shop.said("late") == 1
    until(lambda: not list(spool.iterdir()))


def test_a_setup_that_fails_is_said_to_who_waits(shop: Shop, agent: psutil.Process) -> None:
    for process in coglets(agent):
        process.kill()
    shop.broken.touch()
    try:
        job = shop.wait(shop.create(), status="failed")
        assert "the toy was told to fail in setup" in job["error"]
    finally:
        shop.broken.unlink()
    shop.wait(shop.create())


def test_nothing_is_left(shop: Shop, agent: psutil.Process) -> None:
    """The last test of this file."""
    open_folders = {Path(each.path).parent for each in agent.open_files() if "cog-local-" in each.path}
    assert open_folders
    end(agent)
    assert not any(folder.exists() for folder in open_folders)
    assert [path for path in (shop.gateway.folder / "worn" / "spool").rglob("*") if path.is_file()] == []
    log = shop.gateway.log("worn")
    assert shop.gateway.variables["GATEWAY_WORKER_TOKEN"] not in log
    assert DATA not in log
