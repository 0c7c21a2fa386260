"""One job on one coglet: from what was claimed to how it ended."""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event

from fetch.answers import Stop, Stopped
from gateway.agent.coglets import BusyError, Pool, RefusedInputError, StartError
from gateway.agent.inputs import InputProblemError, Inputs
from gateway.agent.link import AwayError, Task
from gateway.agent.listener import Listener, News
from gateway.agent.outputs import Outputs
from gateway.agent.spool import Ending, Spool
from gateway.jobs import ENDED, Json
from local.client import PREFIXES

TICK = 0.5  # seconds between health checks
SETTLED = 0.05  # seconds after its acceptance in which coglet would lose a cancel, or hang in it
AGAIN = 0.2  # seconds between cancels, and between offers to a busy coglet
LAST_NEWS = 2.0  # seconds for the news of a job that coglet has no more
CRASHED = "Worker crashed"
DIED = "the process that runs the predictor died (out of memory?)"


@dataclass
class Wishes:
    """What others want of a job under way; each may be set at any time, and wakes it."""

    dropped: Event = field(default_factory=Event)  # canceled, or somebody else's now
    drained: Event = field(default_factory=Event)  # the agent ends: hand it back
    stop: Stop = field(default_factory=Stop)  # ends downloads under way
    wake: Callable[[], object] = lambda: None

    def drop(self) -> None:
        """The job is not ours any more."""
        self._set(self.dropped)

    def drain(self) -> None:
        """Hand the job back."""
        self._set(self.drained)

    def _set(self, wish: Event) -> None:
        wish.set()
        self.stop.set()
        self.wake()


@dataclass
class Run:
    """A job on a pool."""

    task: Task
    pool: Pool
    inputs: Inputs
    properties: Json
    listener: Listener
    wishes: Wishes
    tell: Callable[[Json], None]  # how it goes, while it goes
    patience: float  # seconds for coglet to take it, and to honour a cancel
    _accepted: float = 0.0
    _asked: float | None = None  # when coglet was first told to cancel
    _told: float = 0.0  # when it was last told

    def into(self, spool: Spool) -> Path | None:
        """Do it all. Where the spool keeps how it ended; None if nobody waits for that."""
        with self._folder() as folder, self.listener.expecting(self.task.name, folder) as (webhook, news):
            self.wishes.wake = lambda: news.put(None)
            ending = self._ending(folder, webhook, news)
            self.pool.used = time.monotonic()
            if self.wishes.dropped.is_set():
                return None
            return spool.end(self.task, ending)

    def _ending(self, folder: Path, webhook: str, news: "SimpleQueue[News | None]") -> Ending:
        try:
            given = self.inputs.ready(self.task.input, self.properties, folder, self.wishes.stop)
            self.pool.start(self.wishes.drained)
            return self._offered(given, webhook) or self._followed(news)
        except (InputProblemError, RefusedInputError) as error:
            return _handed_back(None) if self.wishes.stop.is_set() else Ending("failed", error=str(error))
        except Stopped:
            return _handed_back(None)
        except (StartError, AwayError) as error:
            return _handed_back(str(error))

    def _offered(self, given: Json, webhook: str) -> Ending | None:
        """Hand the job to coglet, which may still be busy with the last one; an ending if it never took it."""
        until = time.monotonic() + self.patience
        while not self.wishes.stop.is_set() and not self._late():
            try:
                self.pool.begin(self.task.name, given, webhook)
            except BusyError as busy:
                trouble = self.pool.trouble() or (str(busy) if time.monotonic() > until else None)
                if trouble:
                    self.pool.stop(0)
                    return _handed_back(trouble)
                time.sleep(AGAIN / 10)
            else:
                self._accepted = time.monotonic()
                self.pool.weights_key = self.task.weights_key
                return None
        return Ending("canceled") if self._late() else _handed_back(None)

    def _followed(self, news: "SimpleQueue[News | None]") -> Ending:
        """Pass on how it goes until it has ended."""
        looked = time.monotonic()
        while True:
            found = _newest(news, AGAIN / 4 if self._unwanted() else TICK)
            if found and (ending := self._heard(found)):
                return ending
            if self._unwanted() and (ending := self._canceled(news)):
                return ending
            if time.monotonic() - looked > TICK:
                looked = time.monotonic()
                if trouble := self.pool.trouble():
                    return self._died(trouble, news)

    def _heard(self, news: News) -> Ending | None:
        """What one webhook means."""
        if news.problem:
            return Ending("failed", error=news.problem) if self._accepted else None
        body = news.body
        if body.get("status") not in ENDED:
            self.tell(body)
            return None
        if body.get("error") == CRASHED and (trouble := self._trouble_soon()):
            self.pool.stop(0)
            return _handed_back(trouble)
        if body["status"] == "canceled" and self.wishes.drained.is_set():
            return _handed_back(None)
        error = PREFIXES.sub("", str(body["error"])) if body.get("error") else None
        results = self.pool.results if self.task.kind == "training" else None
        output = Outputs.of(body.get("output"), results)
        return Ending(body["status"], output, error, str(body.get("logs") or ""), body.get("metrics") or {})

    def _canceled(self, news: "SimpleQueue[News | None]") -> Ending | None:
        """Tell coglet to cancel, again and again; without an answer end it."""
        now = time.monotonic()
        if now - self._accepted < SETTLED or now - self._told < AGAIN:
            return None
        self._asked, self._told = self._asked or now, now
        gone = not self.pool.cancel(self.task.name)
        if gone and (last := _newest(news, LAST_NEWS)) and (ending := self._heard(last)):
            return ending
        if gone or now - self._asked > self.patience:
            self.pool.stop(0)
            return Ending("canceled") if self._late() else _handed_back(None)
        return None

    def _died(self, trouble: str, news: "SimpleQueue[News | None]") -> Ending:
        """coglet will not serve again; what it may have said before is heard."""
        last = _newest(news, TICK)
        self.pool.stop(0)
        if last and last.body.get("status") in ENDED and last.body.get("error") != CRASHED:
            return self._heard(last) or _handed_back(trouble)
        return _handed_back(trouble)

    def _trouble_soon(self) -> str | None:
        """Why the worker died, as coglet will know in a moment; None if a predictor only said that it did."""
        for _ in range(round(LAST_NEWS / AGAIN)):
            if self.pool.trouble():
                return DIED
            time.sleep(AGAIN)
        return None

    def _late(self) -> bool:
        return self.task.deadline is not None and time.time() > self.task.deadline

    def _unwanted(self) -> bool:
        return self.wishes.dropped.is_set() or self.wishes.drained.is_set() or self._late()

    @contextmanager
    def _folder(self) -> Iterator[Path]:
        """Where its files lie meanwhile."""
        folder = Path(tempfile.mkdtemp(dir=self.pool.workspace.folder, prefix="job-"))
        try:
            yield folder
        finally:
            self.listener.withdraw(folder)
            shutil.rmtree(folder, ignore_errors=True)


def _handed_back(error: str | None) -> Ending:
    return Ending(error=error, handed_back=True)


def _newest(news: "SimpleQueue[News | None]", seconds: float) -> News | None:
    """The last of what has come, waited for so long; or how it ended, which other news may overtake."""
    found: News | None = None
    with suppress(Empty):
        found = news.get(timeout=seconds)
        while not (found and (found.problem or found.body.get("status") in ENDED)):
            found = news.get_nowait() or found
    return found
