"""script/gateway: one command, which says what to paste, and keeps what it started alive."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import requests

from tests.conftest import ROOT
from tests.gateway.running import TOY, free_port, until


class Served:
    """`gateway.serve` as its user starts it, with nothing set that need not be."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        kept = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")}
        self.variables = {
            **kept,
            "PORT": str(self.port),
            "GATEWAY_STATE": str(folder / "state"),
            "GATEWAY_PACKAGE": str(TOY),
            "GATEWAY_POOLS": "predict",
        }
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        with (self.folder / "out").open("ab") as out, (self.folder / "log").open("ab") as log:
            command = [sys.executable, "-m", "gateway.serve"]
            process = subprocess.Popen(command, cwd=ROOT, env=self.variables, stdout=out, stderr=log)
        until(lambda: process.poll() is not None or "Replicate's API is at" in self.said)
        assert process.poll() is None, self.log
        return process

    @property
    def said(self) -> str:
        return (self.folder / "out").read_text()

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    @property
    def token(self) -> str:
        return str(re.findall(r"export REPLICATE_API_TOKEN=(\S+)", self.said)[-1])

    def child(self, module: str) -> psutil.Process:
        [found] = [each for each in psutil.Process(self.process.pid).children() if module in each.cmdline()]
        return found

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def start_again(self) -> None:
        (self.folder / "out").write_text("")
        self.process = self._start()

    def predict(self) -> str:
        """What the lines for curl do."""
        until(lambda: requests.get(f"{self.url}/v1/models/local/toy", headers=self.head, timeout=10).ok)
        asked = {"url": f"{self.url}/v1/models/local/toy/predictions", "json": {"input": {"text": "hi"}}}
        made = requests.post(**asked, headers={**self.head, "Prefer": "wait"}, timeout=70)  # type: ignore[arg-type]
        assert made.ok, made.text
        return str(made.json()["status"])

    @property
    def head(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served(tmp_path_factory.mktemp("serve"))
    yield served
    if served.process.poll() is None:
        served.stop()


def test_it_says_what_to_paste_and_that_works(served: Served) -> None:
    assert f"REPLICATE_BASE_URL={served.url}\n" in served.said
    assert f'baseUrl: "{served.url}/v1"' in served.said
    assert 'replicate.run("local/toy"' in served.said
    assert served.predict() == "succeeded"
    [curl] = re.findall(r"^curl +(curl .*?)\n\n", served.said + "\n\n", re.DOTALL | re.MULTILINE)
    shell = {**os.environ, "REPLICATE_API_TOKEN": served.token}
    answer = subprocess.run(["sh", "-c", f"{curl} -sS"], env=shell, capture_output=True, text=True, check=True).stdout
    assert '"status":"succeeded"' in answer.replace(" ", "")


def test_its_token_is_kept_where_only_its_user_reads(served: Served) -> None:
    kept = served.folder / "state" / "gateway-token"
    assert kept.read_text() == served.token
    assert kept.stat().st_mode & 0o777 == 0o600
    assert kept.parent.stat().st_mode & 0o777 == 0o700
    assert served.token not in served.log
    answer = requests.get(f"{served.url}/v1/account", headers={"Authorization": "Bearer wrong"}, timeout=10)
    assert answer.status_code == 401


def test_what_dies_is_started_again_and_no_connection_is_refused(served: Served) -> None:
    for module in ("gateway.front", "gateway.agent"):
        child = served.child(module)
        child.kill()
        assert served.predict() == "succeeded"
        assert served.child(module) != child


def test_it_ends_whole_and_goes_on_where_it_was(served: Served) -> None:
    token = served.token
    children = psutil.Process(served.process.pid).children(recursive=True)
    assert served.stop() == 0
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    served.start_again()
    assert served.token == token
    listed = requests.get(f"{served.url}/v1/predictions", headers=served.head, timeout=10).json()["results"]
    assert len(listed) >= 4
    assert served.predict() == "succeeded"


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"HOST": "0.0.0.0"}, "set GATEWAY_TOKEN to a long secret"),
        ({"HOST": "0.0.0.0", "GATEWAY_TOKEN": "short"}, "GATEWAY_TOKEN"),
        ({"HOST": "nowhere.invalid"}, "HOST=nowhere.invalid"),
        ({"GATEWAY_PACKAGE": "/nowhere"}, "/nowhere/cog.yaml does not exist"),
        ({"GATEWAY_POOLS": "dance"}, "GATEWAY_POOLS names 'dance'"),
        ({"GATEWAY_IDLE": "long"}, "GATEWAY_IDLE='long' is no number of seconds"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(variables: dict[str, str], said: str, tmp_path: Path) -> None:
    settings = {**os.environ, "PORT": str(free_port()), "GATEWAY_STATE": str(tmp_path / "state"), **variables}
    run = subprocess.run(
        [sys.executable, "-m", "gateway.serve"], cwd=ROOT, env=settings, capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 1
    assert said in run.stderr
    assert "Traceback" not in run.stderr
    assert run.stdout == ""


def test_a_port_in_use_is_said(served: Served, tmp_path: Path) -> None:
    settings = {**served.variables, "GATEWAY_STATE": str(tmp_path / "state")}
    command = [sys.executable, "-m", "gateway.serve"]
    run = subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True, timeout=60)
    assert (run.returncode, "choose another PORT" in run.stderr) == (1, True)


def test_a_worker_alone_needs_a_gateway_and_a_token() -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")}
    for options, said in (
        (["--worker-only"], "--worker-only needs --gateway URL"),
        (["--worker-only", "--gateway", "http://127.0.0.1:1"], "GATEWAY_WORKER_TOKEN is not set"),
    ):
        command = [sys.executable, "-m", "gateway.serve", *options]
        run = subprocess.run(command, cwd=ROOT, env=kept, capture_output=True, text=True, timeout=60)
        assert run.returncode
        assert said in run.stderr
