"""local/server.py on the real coglet: it serves, cancels, recovers, gives up, stops, and leaves nothing behind."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from local import schema
from local.modes import PREDICT, TRAIN
from local.package import ROOT, Package
from local.server import has_cuda
from local.watchdog import GRACE
from local.workspace import PREDICTIONS, Workspace

ECHO = Path(__file__).parent / "fixtures" / "echo"


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(condition: Callable[[], Any], seconds: float = 20) -> Any:
    """The first true value of condition."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError("it did not happen in time")


class Serving:
    """A server under test, as a user starts it."""

    def __init__(self, temporary: Path, *options: str, **variables: str) -> None:
        """Start it on a free port; what it writes goes to a file."""
        self.route = (TRAIN if "--train" in options else PREDICT).route
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = temporary / f"log-{self.port}"
        environment = {**os.environ, "PORT": str(self.port), "TMPDIR": str(temporary), **variables}
        command = [sys.executable, "-m", "local.server", "--package", str(ECHO), *options]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=log, stdin=subprocess.DEVNULL)
        self.seen: set[psutil.Process] = set()

    def family(self) -> list[psutil.Process]:
        """coglet and its worker, in this order."""
        try:
            found = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            found = []
        self.seen |= set(found)
        return sorted(found, key=lambda process: process.create_time())

    def status(self) -> str:
        """The health that coglet reports."""
        try:
            return str(requests.get(f"{self.url}/health-check", timeout=5).json()["status"])
        except requests.RequestException:
            return ""

    def ready(self) -> "Serving":
        """Wait until it serves."""
        until(lambda: self.status() == "READY" or self.process.poll() is not None, seconds=60)
        assert self.process.poll() is None, self.log.read_text()
        self.family()
        return self

    def post(self, identifier: str | None = None, **inputs: Any) -> requests.Response:
        """One request; 409 is tried again, as every client has to."""
        body = {"input": inputs, **({"id": identifier} if identifier else {})}
        while (answer := requests.post(f"{self.url}{self.route}", json=body, timeout=60)).status_code == 409:
            time.sleep(0.02)
        return answer

    def end(self, number: int = signal.SIGTERM) -> int:
        """Signal it, and make sure that nothing is left; the exit code."""
        self.family()
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(20)
        _, alive = psutil.wait_procs(self.seen, timeout=5)
        assert not alive
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", self.port))
        return code


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A folder with a short name, for the sockets in it; it must be empty but for logs when the test is over."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="serve-") as folder:
        yield Path(folder)
        assert [path.name for path in Path(folder).iterdir() if not path.name.startswith("log-")] == []


Start = Callable[..., Serving]


@pytest.fixture
def start(temporary: Path) -> Iterator[Start]:
    """Starts servers, and ends those that the test has not ended."""
    servers: list[Serving] = []

    def begin(*options: str, **variables: str) -> Serving:
        servers.append(Serving(temporary, *options, **variables))
        return servers[-1]

    yield begin
    for server in servers:
        server.end()


@pytest.fixture(scope="module")
def echo() -> Iterator[Serving]:
    """One server for all tests that leave it whole."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="serve-") as folder:
        server = Serving(Path(folder)).ready()
        yield server
        assert server.end() == 0


def test_serves_the_generated_schema(echo: Serving) -> None:
    served = requests.get(f"{echo.url}/openapi.json", timeout=5).json()
    assert served == json.loads(schema.generate(Package.load(ECHO)))


def test_prediction_sees_cog_yamls_environment_and_a_model_this_machine_can_run(echo: Serving) -> None:
    answer = echo.post(text="hi", count=2, extension="jpg").json()
    assert answer["status"] == "succeeded"
    assert answer["output"] == ["data:image/jpeg;base64,aGk="] * 2
    assert "greeting=hello" in answer["logs"]
    if not os.environ.get("SDXL_MODEL") and not has_cuda():
        assert "model=miniature" in answer["logs"]
        assert echo.log.read_text().count("using the miniature model") == 1


@pytest.mark.parametrize(
    ("inputs", "message"),
    [({"seconds": 61}, "greater than the maximum"), ({"action": "fly"}, "not one of"), ({"count": "1"}, "not of type")],
)
def test_bad_input_is_422(echo: Serving, inputs: dict[str, Any], message: str) -> None:
    answer = echo.post(**inputs)
    assert answer.status_code == 422
    assert message in answer.json()["detail"][0]["msg"]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("echo 'GPU 0: NVIDIA H100 (UUID: GPU-1)'", True),
        ("echo 'No devices found.'", False),
        ("echo 'GPU 0: x'; exit 9", False),
        ("exec sleep 60", False),
        (None, False),
    ],
)
def test_only_a_gpu_that_nvidia_smi_lists_counts(
    said: str | None, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if said:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{said}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    else:
        monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("local.server.GPUS", tmp_path / "gpus")
    monkeypatch.setattr("local.server.SMI_PATIENCE", 1.0)
    assert has_cuda() == expected
    (tmp_path / "gpus" / "0000:01:00.0").mkdir(parents=True)
    assert has_cuda()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not has_cuda()


def test_failure_is_reported(echo: Serving) -> None:
    answer = echo.post(action="fail", text="x")
    assert (answer.status_code, answer.json()["status"]) == (200, "failed")
    assert answer.json()["error"].endswith("ValueError: text is 'x'; choose another one")
    assert echo.post().json()["status"] == "succeeded"


def test_cancel_ends_a_prediction_before_its_end_and_the_next_is_served(echo: Serving) -> None:
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(echo.post, "to-cancel", seconds=30)
        until(lambda: echo.status() == "BUSY")
        time.sleep(0.3)
        assert requests.post(f"{echo.url}/predictions/to-cancel/cancel", timeout=5).status_code == 200
        assert waiting.result().json()["status"] == "canceled"
        assert echo.post(text="next").json()["status"] == "succeeded"
    said = echo.log.read_text()
    assert "0/20" in said
    assert "20/20" not in said  # the end of its 30 seconds


def test_many_at_once_are_all_served(echo: Serving) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda number: echo.post(text=str(number)).json(), range(24)))
    assert {answer["status"] for answer in answers} == {"succeeded"}
    assert len({answer["output"][0] for answer in answers}) == 24


def test_folders_of_old_predictions_are_removed(echo: Serving) -> None:
    names = [f"folder-{echo.port}-{number}" for number in range(PREDICT.kept + 6)]
    for name in names:
        echo.post(name, big=1000)
    until(lambda: not (PREDICTIONS / names[5]).exists())
    kept = [name for name in names if (PREDICTIONS / name).exists()]
    assert kept == names[-PREDICT.kept :]


@pytest.mark.parametrize("identifier", ["../../tmp/x", "/etc", "..", ".", "", "a/b", "a\0", "-x" * 200])
def test_no_id_makes_a_server_delete_anything_else(
    identifier: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed: list[str] = []
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("local.workspace.shutil.rmtree", lambda path, **_: removed.append(str(path)))
    workspace = Workspace(PREDICT.kept)
    for name in (identifier, *(f"x{number}" for number in range(PREDICT.kept + 1))):
        workspace.started(name)
    workspace.close()
    assert removed[0] == str(PREDICTIONS / "x0")
    assert not any(str(identifier) == Path(path).name for path in removed)


def test_worker_that_dies_is_replaced(start: Start) -> None:
    server = start().ready()
    old = server.family()
    assert server.post(action="crash").json()["error"] == "Worker crashed"
    until(lambda: server.status() == "READY")
    assert server.post().json()["status"] == "succeeded"
    psutil.Process(server.family()[0].pid).kill()  # and now coglet itself
    until(lambda: server.status() == "READY")
    assert server.post().json()["status"] == "succeeded"
    assert not set(old) & set(server.family())
    log = server.log.read_text()
    assert "the process that runs the predictor died (out of memory?); starting again in 1 s" in log
    assert "coglet ended with exit code -9; starting again in 2 s" in log
    assert server.end() == 0


def test_setup_that_keeps_failing_ends_the_server(start: Start) -> None:
    server = start("--setup-attempts", "2", ECHO_SETUP_FAILS="1")
    assert server.process.wait(30) == 1
    log = server.log.read_text()
    reason = "setup failed: RuntimeError: the echo predictor was told to fail in setup"
    assert log.count(reason) >= 2  # once for each try; what setup printed before, coglet may lose
    assert f"{reason}; starting again in 1 s" in log
    assert log.endswith(f"ERROR: {reason} (2 times in a row)\n")


def test_long_setup_is_no_failure_and_a_term_during_it_leaves_nothing(start: Start) -> None:
    server = start(ECHO_SETUP_SECONDS="30", SDXL_MODEL="some")
    until(lambda: server.status() == "STARTING" and len(server.family()) == 2)
    time.sleep(1.5)
    assert server.log.read_text().count("echo: setting up") == 1
    assert "miniature" not in server.log.read_text()
    assert server.end(signal.SIGINT) == 0
    assert "ready: POST" not in server.log.read_text()


def test_term_waits_for_the_prediction_under_way(start: Start) -> None:
    server = start("--host", "localhost").ready()
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(server.post, seconds=1.5)
        until(lambda: server.status() == "BUSY")
        assert server.end() == 0
        assert waiting.result().json()["status"] == "succeeded"


def test_second_signal_does_not_wait(start: Start) -> None:
    """The prediction would be over within the time that one signal leaves it, and then be answered."""
    server = start().ready()
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(server.post, seconds=GRACE - 3)
        until(lambda: server.status() == "BUSY")
        server.family()
        server.process.terminate()
        time.sleep(0.3)
        assert server.end() == 0
        assert isinstance(waiting.exception(), requests.RequestException)
    assert "20/20" not in server.log.read_text()


def test_killed_server_takes_its_children_along_and_the_next_cleans_up(start: Start, temporary: Path) -> None:
    server = start().ready()
    name = f"killed-{server.port}"
    server.post(name)
    assert server.end(signal.SIGKILL) == -9
    assert len(list(temporary.glob("cog-local-*"))) == 1
    assert (PREDICTIONS / name).exists()
    second = start().ready()
    assert len(list(temporary.glob("cog-local-*"))) == 1
    assert not (PREDICTIONS / name).exists()
    third = start().ready()
    assert len(list(temporary.glob("cog-local-*"))) == 2
    assert (second.post().json()["status"], third.post().json()["status"]) == ("succeeded", "succeeded")


def test_taken_port_and_unknown_host_are_said_in_one_line(start: Start, echo: Serving) -> None:
    for variables in ({"PORT": str(echo.port)}, {"HOST": "no.such.host.invalid"}):
        server = start(**variables)
        assert server.process.wait(10) == 1
        (line,) = [line for line in server.log.read_text().splitlines() if "ERROR" in line]
        assert str(echo.port) in line or "no.such.host.invalid" in line
