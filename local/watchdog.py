"""coglet as a child process, and a watchdog that starts it anew when it can no longer serve.

After its worker has died coglet stays up and answers 409 to every prediction for ever; so do servers whose setup
failed, with 503. Both are seen by health checks, as cog's own platform does.
"""

import getpass
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen
from threading import Event, Thread
from typing import Any

import requests

from local.logs import Entry, Log, follow
from local.modes import Mode
from local.package import Package
from local.processes import spawn, stop
from local.workspace import Workspace

INTERVAL = 0.5  # between health checks, which coglet answers from memory
GRACE = 10.0  # for predictions under way when the server is stopped, as docker stop gives
SETTLED = 60.0  # a server that was ready for so long starts the back-off from the beginning
LONGEST = 60.0  # between two starts
LAST_WORDS = 0.5  # coglet says that setup failed before it has passed on what setup printed


class SetupFailedError(Exception):
    """Setup failed too often in a row."""


@dataclass
class Coglet:
    """One running coglet."""

    process: "Popen[str]"
    url: str
    mode: Mode
    pump: Thread

    @classmethod
    def start(
        cls,
        package: Package,
        mode: Mode,
        workspace: Workspace,
        log: Log,
        variables: dict[str, str],
        *,
        host: str,
        port: int,
        upload_url: str | None,
    ) -> "Coglet":
        """Start coglet in the package's folder; `python` there is this Python."""
        command = [sys.executable, "-m", "cog.server.http", "--host", host, "--x-mode", mode.verb]
        command += ["--upload-url", upload_url] if upload_url else []
        environment = {
            **variables,
            "PATH": f"{Path(sys.executable).parent}:{variables.get('PATH', '')}",
            "PORT": str(port),
            mode.stub: package.entry(mode),
            "LOG_FORMAT": "json",
            "COG_LOG_LEVEL": "debug" if variables.get("COG_LOG_LEVEL") == "debug" else "info",
            "TMPDIR": str(workspace.temporary),
            # Compiled kernels are worth keeping; torch would put them below TMPDIR.
            "TORCHINDUCTOR_CACHE_DIR": variables.get("TORCHINDUCTOR_CACHE_DIR")
            or f"{tempfile.gettempdir()}/torchinductor_{getpass.getuser()}",
        }

        def receive(entry: Entry) -> None:
            if prediction := entry.begun:
                workspace.started(prediction)
            log.write(entry)

        process = spawn(command, folder=package.folder, environment=environment)
        assert process.stdout
        shown = f"[{host}]" if ":" in host else {"0.0.0.0": "127.0.0.1"}.get(host, host)
        return cls(process, f"http://{shown}:{port}", mode, follow(process.stdout, receive))

    def health(self, patience: float = 15) -> dict[str, Any]:
        """What coglet says about itself; nothing if it does not answer in time (seconds), which a busy one may not."""
        try:
            answer: dict[str, Any] = requests.get(f"{self.url}/health-check", timeout=patience).json()
        except (requests.RequestException, ValueError):
            return {}
        return answer

    def trouble(self, health: dict[str, Any]) -> str | None:
        """Why this coglet will never serve again, if so."""
        if self.process.poll() is not None:
            return f"coglet ended with exit code {self.process.returncode}"
        if health.get("status") == "SETUP_FAILED":
            logs = str(health.get("setup", {}).get("logs", ""))
            return f"setup failed: {logs.rpartition('setup failed: ')[2].strip()}"
        dead_worker = "channel closed" in health.get("user_healthcheck_error", "")
        if health.get("status") == "DEFUNCT" or dead_worker:
            return "the process that runs the predictor died (out of memory?)"
        return None


class Watchdog:
    """Keeps a coglet serving."""

    def __init__(
        self, start: Callable[[], Coglet], workspace: Workspace, log: Log, asked: Event, hurry: Event, *, attempts: int
    ) -> None:
        """asked ends everything; hurry ends it without waiting for predictions under way."""
        self._start, self._workspace, self._log = start, workspace, log
        self._asked, self._hurry, self._attempts = asked, hurry, attempts

    def run(self) -> None:
        """Start coglet again and again until asked to stop; SetupFailedError when it never gets ready."""
        failures, restarts = 0, 0
        while not self._asked.is_set():
            coglet = self._start()
            began = time.monotonic()
            try:
                trouble, ready = self._watch(coglet)
            finally:
                stop(coglet.process, self._hurry.wait, grace=GRACE if self._asked.is_set() else 0.0)
                coglet.pump.join(timeout=5)
            if trouble is None:
                return
            failures = 0 if ready else failures + 1
            if failures >= self._attempts:
                raise SetupFailedError(trouble + (f" ({failures} times in a row)" if failures > 1 else ""))
            restarts = 0 if ready and time.monotonic() - began > SETTLED else restarts + 1
            pause = min(2.0 ** (restarts - 1), LONGEST)
            self._log.say(f"{trouble}; starting again in {pause:.0f} s", "WARN")
            self._workspace.clear()
            self._asked.wait(pause)

    def _watch(self, coglet: Coglet) -> tuple[str | None, bool]:
        """(trouble, whether it was ready before), or (None, ...) when asked to stop."""
        ready = False
        while not self._asked.wait(INTERVAL if ready else 0.1):
            health = coglet.health()
            if not ready and health.get("status") in ("READY", "BUSY"):
                ready = True
                self._log.say(f"ready: POST {coglet.url}{coglet.mode.route}")
            if trouble := coglet.trouble(health):
                self._asked.wait(LAST_WORDS)
                return trouble, ready
        return None, ready
