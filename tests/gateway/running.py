"""A gateway as `script/gateway` starts it, and agents with coglets beside it, each a process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.conftest import ROOT
from tests.gateway.clients import Address

TOKEN = "r8_for-the-tests-of-the-gateway-0000000"
WORKER_TOKEN = "worker-token-for-the-tests-0000000000"
TOY = ROOT / "tests" / "gateway" / "packages" / "toy"
TERM = 60  # seconds within which a process ends when asked to


def until(holds: Callable[[], object], seconds: float = 60) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.05)


@dataclass(frozen=True)
class Gateway(Address):
    """A running gateway and the workers that it has. folder: all files that they write, logs too."""

    folder: Path
    variables: dict[str, str]
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, name: str, *command: str, **variables: str) -> subprocess.Popen[bytes]:
        """One of its processes, a Python module with arguments; what it says is in a log of its name."""
        environment = {**self.variables, **variables}
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", *command], cwd=ROOT, env=environment, stdout=log, stderr=log
            )
        self.processes.append(process)
        return process

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def agent(self, name: str, model: str, **variables: str) -> None:
        """Start a worker for a model, and wait until the model is there."""
        process = self.start(
            name, "gateway.agent", GATEWAY_MODEL=model, GATEWAY_AGENT_STATE=str(self.folder / name), **variables
        )

        def ready() -> bool:
            assert process.poll() is None, self.log(name)
            return self.curl(f"/v1/models/{model}").status == 200

        until(ready, 120)

    def stop(self) -> None:
        """End everything, the gateway last."""
        for process in reversed(self.processes):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(TERM)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(folder: Path, *, with_worker: bool = False, **variables: str) -> Iterator[Gateway]:
    """A gateway without workers, or with the one of its own; variables are its settings."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    settings = {
        **os.environ,
        "PORT": str(port),
        "GATEWAY_STATE": str(folder / "state"),
        "GATEWAY_TOKEN": TOKEN,
        "GATEWAY_WORKER_TOKEN": WORKER_TOKEN,
        "GATEWAY_URL": url,
        "SDXL_MODEL": "miniature",
        "OMP_NUM_THREADS": "1",
        **variables,
    }
    gateway = Gateway(settings.get("GATEWAY_URL", url), TOKEN, folder, settings)
    try:
        process = gateway.start("gateway", "gateway.serve", *([] if with_worker else ["--no-worker"]))

        def ready() -> bool:
            assert process.poll() is None, gateway.log("gateway")
            return "Replicate's API is at" in gateway.log("gateway")

        until(ready)
        yield gateway
    finally:
        gateway.stop()
