"""Tells the gateway how a job goes, while it goes."""

from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import file_digest
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import Any

from gateway.agent.link import AwayError, GoneError, Link, RefusedError, Task
from gateway.agent.outputs import Output, Outputs
from gateway.agent.run import Wishes
from gateway.jobs import Json

INTERVAL = 0.25  # seconds between two reports


@dataclass
class Reporter:
    """Sends the newest news, in a thread of its own; what the gateway did not take is forgotten, since more comes."""

    link: Link
    task: Task
    wishes: Wishes
    _news: "SimpleQueue[Json | None]" = field(default_factory=SimpleQueue)
    _ended: Event = field(default_factory=Event)
    _sent: dict[tuple[int, str], str] = field(default_factory=dict)  # URLs of outputs so far

    def __enter__(self) -> "Reporter":
        Thread(target=self._work, name="reporter", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._news.put(None)

    def tell(self, body: Json) -> None:
        """Take news of coglet's."""
        self._news.put(body)

    def _work(self) -> None:
        while (body := self._newest()) is not None:
            with suppress(AwayError, RefusedError, FileNotFoundError):  # the files go when the job ends
                try:
                    self.link.report(self.task.id, self.task.fence, self._report(body))
                except GoneError:
                    self.wishes.drop()
                    return
            if self._ended.wait(INTERVAL):
                return

    def _newest(self) -> Json | None:
        found = self._news.get()
        with suppress(Empty):
            while found is not None:
                found = self._news.get_nowait()
        return None if self._ended.is_set() else found

    def _report(self, body: Json) -> Json:
        news: dict[str, Any] = {"status": "processing", "logs": str(body.get("logs") or "")}
        if body.get("metrics"):
            news["metrics"] = body["metrics"]
        if body.get("output") is not None:
            output = Outputs.of(body["output"], None)
            news["output"] = output.filled(dict(enumerate(map(self._url, range(10**6), output.files))))
        return news

    def _url(self, number: int, file: Output) -> str:
        with Path(file.path).open("rb") as content:
            key = number, file_digest(content, "sha256").hexdigest()
        if key not in self._sent:
            keep = self.task.kind == "training"
            self._sent[key] = self.link.put(
                self.task.id, self.task.fence, number, file.name, file.kind, file.path, keep=keep
            )
        return self._sent[key]
