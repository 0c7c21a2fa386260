"""A real server with the real predictor and the miniature, as a user starts it, and ways to talk to it."""

import base64
import io
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests
from PIL import Image

from tests.conftest import ROOT

QUICK: dict[str, Any] = {"num_inference_steps": 2, "disable_safety_checker": True}


class Server:
    """A running `script/serve`; `temporary` is where everything temporary of it lies."""

    def __init__(self, port: int, temporary: Path, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.temporary = temporary
        self.process = process
        self.log = log

    def health(self) -> str:
        try:
            return str(requests.get(f"{self.url}/health-check", timeout=10).json()["status"])
        except requests.ConnectionError:
            return "DOWN"

    def wait_ready(self, seconds: float = 90) -> None:
        end = time.monotonic() + seconds
        while self.health() != "READY":
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.1)

    def post(self, asked: dict[str, Any], route: str = "/predictions", **headers: str) -> requests.Response:
        """POST; a busy answer is tried again, as every client must."""
        body = {"input": asked if route == "/trainings" else QUICK | asked}
        for _ in range(600):
            answer = requests.post(f"{self.url}{route}", json=body, headers=headers, timeout=300)
            if answer.status_code != 409:
                return answer
            time.sleep(0.05)
        raise AssertionError("the worker stays busy")

    def predict(self, **asked: Any) -> dict[str, Any]:
        answer: dict[str, Any] = self.post(asked).json()
        return answer

    def train(self, **asked: Any) -> dict[str, Any]:
        """POST /trainings, to a server in that mode."""
        answer: dict[str, Any] = self.post(asked, "/trainings").json()
        return answer

    def files(self) -> set[Path]:
        """All temporary files but the outputs of the last two predictions, which may still be on their way."""
        found = (path for path in self.temporary.rglob("*") if path.is_file() and "sdxl-outputs-" not in str(path))
        return {path for path in found if path.name not in ("ids", "lock")}

    def worker(self) -> int:
        """The process that runs the predictor: the grandchild."""
        children = subprocess.run(
            ["ps", "-eo", "pid,ppid,rss"], capture_output=True, text=True, check=True
        ).stdout.splitlines()[1:]
        rows = [tuple(map(int, line.split())) for line in children]
        family = {self.process.pid}
        for _ in range(4):
            family |= {pid for pid, parent, _ in rows if parent in family}
        return max((rss, pid) for pid, _, rss in rows if pid in family)[1]


@contextmanager
def serving(*options: str, **environment: str) -> Iterator[Server]:
    """Start `python -m local.server` with options, wait until it is ready, stop it and see that it leaves nothing."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        log, temporary = Path(folder) / "log", Path(folder) / "tmp"
        temporary.mkdir()
        variables = {**os.environ, "PORT": str(port), "SDXL_MODEL": "miniature", "TMPDIR": str(temporary)}
        variables |= {"OMP_NUM_THREADS": "1", **environment}
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "local.server", *options], cwd=ROOT, env=variables, stdout=file, stderr=file
            )
        server = Server(port, temporary, process, log)
        try:
            server.wait_ready()
            yield server
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def decoded(url: str) -> Image.Image:
    """The picture of a data URL."""
    image = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
    image.load()
    return image


def data_url(image: Image.Image, kind: str = "PNG") -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def sentence(error: str) -> str:
    """An error without the prefixes of coglet and Python."""
    return re.sub(r"^((Prediction|Training) failed: |Input validation error: |\w+Error: )+", "", error)
