"""What an agent owes the gateway, on disk until it was taken: neither of the two need be up for it to arrive.

claimed/JOB.json      a job that was taken and has not ended; the next start hands it back
ended/JOB-FENCE/      how one ended: report.json, written last, and the files of its output
"""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from gateway.agent.link import AwayError, GoneError, Link, RefusedError, Task
from gateway.agent.outputs import Outputs
from gateway.jobs import Json

REPORT = "report.json"
PAUSES = (0.2, 0.5, 1.0, 2.0, 5.0)  # seconds between tries; the last one again and again


@dataclass(frozen=True)
class Ending:
    """How a job ended: a terminal status, or `handed_back` for others to do."""

    status: str = ""
    output: Outputs = field(default_factory=Outputs)
    error: str | None = None
    logs: str = ""
    metrics: Json = field(default_factory=dict)
    handed_back: bool = False


@dataclass(frozen=True)
class Spool:
    """In a folder that outlives the agent."""

    folder: Path

    @classmethod
    def at(cls, folder: Path) -> "Spool":
        """Make the folders, remove what was only half written, and give up what an agent that is gone had begun."""
        spool = cls(folder)
        for path in (spool._claimed, spool._ended):
            path.mkdir(parents=True, exist_ok=True)
        for half in spool._ended.iterdir():
            if not (half / REPORT).exists():
                shutil.rmtree(half, ignore_errors=True)
        for note in spool._claimed.glob("*.json"):
            begun = Task.of(json.loads(note.read_text()))
            if not (spool._ended / begun.name).exists():
                spool.end(begun, Ending(error="the worker was restarted", handed_back=True))
            note.unlink(missing_ok=True)
        return spool

    def claim(self, task: Task) -> None:
        """Note that a job was taken."""
        _write(self._claimed / f"{task.id}.json", asdict(replace(task, input={})))  # some are secret

    def release(self, task: Task) -> None:
        """Nothing more is owed for a job."""
        (self._claimed / f"{task.id}.json").unlink(missing_ok=True)

    def end(self, task: Task, ending: Ending) -> Path:
        """Keep how a job ended; its files are moved here. The entry, for deliver."""
        entry = self._ended / task.name
        shutil.rmtree(entry, ignore_errors=True)
        entry.mkdir()
        for number, file in enumerate(ending.output.files):
            shutil.move(file.path, entry / str(number))
        record = {**asdict(ending), "id": task.id, "fence": task.fence, "keep": task.kind == "training"}
        record["output"]["files"] = [{"name": file.name, "kind": file.kind} for file in ending.output.files]
        _write(entry / REPORT, record)
        self.release(task)
        return entry

    def deliver(self, entry: Path, link: Link, wait: Callable[[float], object]) -> Json:
        """Hand an ending over, with its files in their order, trying until the gateway answers or `wait` says to end;
        then forget it. What was handed over."""
        record: Json = json.loads((entry / REPORT).read_text())
        for pause in _pauses():
            try:
                _send(entry, record, link)
            except AwayError:
                if wait(pause):
                    return record  # the next start goes on with it
                continue
            except GoneError:
                pass  # somebody else's now
            except RefusedError as error:
                if record["status"] != "failed":
                    record |= {"status": "failed", "error": f"the output cannot be stored: {error}", "output": None}
                    continue
            break
        shutil.rmtree(entry, ignore_errors=True)
        return record

    def settle(self, link: Link, wait: Callable[[float], object]) -> None:
        """Deliver what is here from before."""
        for entry in sorted(self._ended.iterdir()):
            self.deliver(entry, link, wait)

    @property
    def _claimed(self) -> Path:
        return self.folder / "claimed"

    @property
    def _ended(self) -> Path:
        return self.folder / "ended"


def _send(entry: Path, record: Json, link: Link) -> None:
    job, fence = record["id"], record["fence"]
    if record["handed_back"]:
        link.hand_back(job, fence, record["error"])
        return
    news: dict[str, Any] = {name: record[name] for name in ("status", "error", "logs", "metrics")}
    if record["output"] is not None:
        output = Outputs(record["output"]["value"], mark=record["output"]["mark"])
        urls = {
            number: link.put(job, fence, number, file["name"], file["kind"], entry / str(number), keep=record["keep"])
            for number, file in enumerate(record["output"]["files"])
        }
        news["output"] = output.filled(urls)
    link.report(job, fence, news)


def _pauses() -> Iterator[float]:
    yield from PAUSES
    while True:
        yield PAUSES[-1]


def _write(path: Path, record: Json) -> None:
    """Whole or not at all."""
    half = path.with_suffix(".half")
    half.write_text(json.dumps(record))
    half.replace(path)
