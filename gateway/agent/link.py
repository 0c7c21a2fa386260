"""The agent's side of the worker protocol: one method for each call of docs/gateway.md."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests
from requests.auth import AuthBase

from fetch.answers import Stop
from fetch.network import Adapter
from gateway.jobs import Json, Kind

SHORT = (5.0, 30.0)  # seconds to connect, and until an answer begins
SLACK = 20.0  # seconds that a long poll may take beyond what was asked for
PASSING = {401, 403, 408, 425, 429}  # beside 5xx: an operator or time mends them, and the job need not suffer


class GoneError(Exception):
    """The job is not this worker's any more: canceled, ended, or given to another."""


class AwayError(Exception):
    """The gateway cannot be reached, or does not let this worker in: to be tried again."""


class RefusedError(Exception):
    """The gateway will not take this, now or later; the message says why."""


class _Bearer(AuthBase):
    """Set here so that no password of ~/.netrc takes its place."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


@dataclass(frozen=True)
class Task:
    """A job as it was claimed. deadline: unix seconds or None; lease: seconds until it must be heard of again."""

    id: str
    kind: Kind
    fence: int
    input: Json
    weights_key: str
    deadline: float | None
    lease: float

    @classmethod
    def of(cls, answer: Json) -> "Task":
        """From the answer to a claim."""
        given: Json = {name: answer.get(name) for name in cls.__dataclass_fields__}
        return cls(**{**given, "weights_key": given["weights_key"] or "", "lease": float(given["lease"] or 30)})

    @property
    def name(self) -> str:
        """What coglet calls it: a job that comes back is another one to it."""
        return f"{self.id}-{self.fence}"


@dataclass
class Link:
    """Calls to one gateway, from any thread."""

    url: str
    token: str
    _own: threading.local = field(default_factory=threading.local)

    def register(self, about: Json) -> Json:
        """Make the model and its version known."""
        return self._json("register", about)

    def claim(
        self, worker: str, base: str, pools: Sequence[str], warm: Sequence[str], wait: float, stop: Stop
    ) -> Task | None:
        """The next job, waited for so many seconds, or until `stop`."""
        asked = {"worker": worker, "base": base, "pools": list(pools), "warm": list(warm), "wait": wait}
        answer = self._ask("POST", "claim", session=self._long(stop), json=asked, timeout=(SHORT[0], wait + SLACK))
        return None if answer.status_code == 204 else Task.of(answer.json())

    def report(self, job: str, fence: int, news: Json) -> None:
        """Tell how a job goes: whole values."""
        self._json(f"jobs/{job}/report", {"fence": fence, **news})

    def hand_back(self, job: str, fence: int, error: str | None) -> None:
        """Give a job up for others to do."""
        self._json(f"jobs/{job}/hand-back", {"fence": fence, **({"error": error} if error else {})})

    def heartbeat(
        self, worker: str, held: Sequence[tuple[str, int]], wait: float, details: Json, stop: Stop
    ) -> list[str]:
        """Keep what is held; the ids of what is not this worker's any more, as soon as there are any, or `stop`."""
        asked = {"worker": worker, "held": [list(pair) for pair in held], "wait": wait, "details": details}
        answer = self._ask("POST", "heartbeat", session=self._long(stop), json=asked, timeout=(SHORT[0], wait + SLACK))
        return list(answer.json().get("drop", []))

    def put(self, job: str, fence: int, number: int, name: str, kind: str, file: Path, *, keep: bool) -> str:
        """Hand over an output; the URL that stands for it."""
        asked = {"fence": str(fence), "name": name, **({"keep": "1"} if keep else {})}
        with file.open("rb") as body:
            sent = body if file.stat().st_size else b""  # an empty file would be sent in chunks
            answer = self._ask(
                "PUT",
                f"jobs/{job}/files/{number}",
                params=asked,
                data=sent,
                headers={"Content-Type": kind or "application/octet-stream"},
                timeout=(SHORT[0], 300.0),
            )
        return str(answer.json()["url"])

    def file(self, file_id: str, headers: dict[str, str] | None = None) -> requests.Response:
        """A file of the gateway, of which only the head has come."""
        own = {"Accept-Encoding": "identity", **(headers or {})}
        return self._ask("GET", f"files/{file_id}", headers=own, stream=True, timeout=SHORT)

    def _json(self, path: str, body: Json) -> Json:
        answer: Json = self._ask("POST", path, json=body, timeout=SHORT).json()
        return answer

    def _ask(self, verb: str, path: str, *, session: requests.Session | None = None, **asked: Any) -> requests.Response:
        url = f"{self.url}/_worker/{path}"
        try:
            answer = (session or self._session()).request(verb, url, allow_redirects=False, **asked)
        except (requests.RequestException, TimeoutError, OSError) as error:
            raise AwayError(f"the gateway at {self.url} does not answer ({type(error).__name__})") from error
        status = answer.status_code
        if status == 410:
            raise GoneError(path)
        if status >= 500 or status in PASSING:
            raise AwayError(f"the gateway at {self.url} answers {status}: {_detail(answer)}")
        if status >= 300:
            raise RefusedError(f"the gateway answers {status}: {_detail(answer)}")
        return answer

    def _session(self) -> requests.Session:
        """One for each thread: they are not made to be shared."""
        if not hasattr(self._own, "session"):
            self._own.session = requests.Session()
            self._own.session.auth = _Bearer(self.token)
        session: requests.Session = self._own.session
        return session

    def _long(self, stop: Stop) -> requests.Session:
        """One whose waiting `stop` cuts short."""
        if getattr(self._own, "stop", None) is not stop:
            self._own.stop, self._own.long = stop, requests.Session()
            self._own.long.auth = _Bearer(self.token)
            for scheme in ("http://", "https://"):
                self._own.long.mount(scheme, Adapter(checked=False, stop=stop))
        session: requests.Session = self._own.long
        return session


def _detail(answer: requests.Response) -> str:
    """What the answer says for people."""
    try:
        return str(answer.json()["detail"])[:500]
    except (ValueError, KeyError, TypeError):
        return answer.reason or "nothing more"
