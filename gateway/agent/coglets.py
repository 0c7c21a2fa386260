"""One coglet for each pool, there when it is needed."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

import requests

from gateway.jobs import Json
from local.client import free_port
from local.logs import Log
from local.modes import Mode
from local.package import Package
from local.processes import stop
from local.watchdog import Coglet
from local.workspace import Workspace

LOOK = 0.05  # seconds between questions whether coglet is ready
NEWS_INTERVAL = "0.25"  # seconds between two webhooks of one job
PATIENCE = 2.0  # seconds for a health check: the one that a worker's death meets has no answer
ASK = (5.0, 30.0)  # seconds to connect, and until coglet answers
PROXIES = ("NO_PROXY", "no_proxy")


class StartError(Exception):
    """coglet did not get ready; the message says why."""


class BusyError(Exception):
    """coglet takes nothing now: it is starting, or still busy with what came before."""


class RefusedInputError(Exception):
    """coglet says that these inputs are none; the message is for who sent them."""


@dataclass
class Pool:
    """What runs the jobs of one pool. origin: where the agent keeps files for it."""

    mode: Mode
    package: Package
    variables: dict[str, str]
    log: Log
    origin: str
    starts: int = 0
    failures: int = 0  # starts in a row that came to nothing
    weights_key: str | None = None  # of its last job: what is in its memory
    used: float = field(default_factory=time.monotonic)
    _coglet: Coglet | None = None

    def __post_init__(self) -> None:
        self.workspace = Workspace(self.mode.kept)

    @property
    def up(self) -> bool:
        """Whether there is a coglet, ready or getting so."""
        return self._coglet is not None and self._coglet.process.poll() is None

    @property
    def warm(self) -> str:
        """What a job need not wait for here, as a claim says it."""
        return f"{self.mode.verb}:{self.weights_key or ''}"

    @property
    def results(self) -> Path:
        """Where its predictor may leave files."""
        return self.workspace.temporary

    def start(self, asked: Event) -> None:
        """Return when coglet is ready, at once if it is; StartError for a setup that fails or when asked to end."""
        if self.up:
            return
        self.stop(0)
        self.failures += 1
        self.starts += 1
        variables = {**self.variables, **self._own_variables()}
        addressed: dict[str, Any] = {"host": "127.0.0.1", "port": free_port(), "upload_url": None}
        coglet = Coglet.start(self.package, self.mode, self.workspace, self.log, variables, **addressed)
        self._coglet = coglet
        while (health := coglet.health()).get("status") not in ("READY", "BUSY"):
            if trouble := coglet.trouble(health):
                self.stop(0)
                raise StartError(trouble)
            if asked.wait(LOOK):
                self.stop(0)
                raise StartError("the worker is being shut down")
        self.used, self.failures = time.monotonic(), 0

    def stop(self, grace: float) -> None:
        """End coglet and all that it started, after so many seconds by force."""
        if coglet := self._coglet:
            stop(coglet.process, Event().wait, grace=grace)
            coglet.pump.join(timeout=5)
            self.workspace.clear()
        self._coglet, self.weights_key = None, None

    def close(self, grace: float) -> None:
        """Stop for good; nothing stays on disk."""
        self.stop(grace)
        self.workspace.close()

    def trouble(self) -> str | None:
        """Why coglet will never serve again, if so."""
        if self._coglet is None:
            return "coglet was stopped"
        return self._coglet.trouble(self._coglet.health(PATIENCE))

    def begin(self, name: str, given: Json, webhook: str) -> None:
        """Hand over a job. BusyError, RefusedInputError."""
        body = {"id": name, "input": given, "webhook": webhook}
        try:
            answer = requests.put(self._url(name), json=body, headers={"Prefer": "respond-async"}, timeout=ASK)
        except requests.RequestException as error:
            raise BusyError("coglet does not answer") from error
        if answer.status_code in (409, 503):
            raise BusyError(f"coglet answers {answer.status_code}")
        if answer.status_code >= 400:
            raise RefusedInputError(_detail(answer))

    def cancel(self, name: str) -> bool:
        """Ask to stop a job; False when coglet has it no more."""
        try:
            return requests.post(f"{self._url(name)}/cancel", timeout=ASK).status_code != 404
        except requests.RequestException:
            return True

    def _url(self, name: str) -> str:
        assert self._coglet is not None
        return f"{self._coglet.url}{self.mode.route}/{name}"

    def _own_variables(self) -> dict[str, str]:
        """What tells coglet and the package about us; no proxy stands between."""
        direct = {name: ",".join(filter(None, [self.variables.get(name), "127.0.0.1"])) for name in PROXIES}
        return {
            **direct,
            "COG_THROTTLE_RESPONSE_INTERVAL": NEWS_INTERVAL,
            "SDXL_OWN_FILES": self.origin,
            "SDXL_RESULT_PATHS": "1",
        }


def _detail(answer: requests.Response) -> str:
    """What coglet says of inputs that it does not take."""
    try:
        detail = answer.json()["detail"]
        return "; ".join(f"{problem['loc'][-1]}: {problem['msg']}" for problem in detail)
    except (ValueError, KeyError, TypeError, IndexError):
        return f"coglet answers {answer.status_code}: {answer.text[:500]}"
