"""coglet's log: read as JSON, written for people or as JSON."""

import json
import os
import re
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import IO, Any

LEVELS = {"TRACE": 0, "DEBUG": 1, "INFO": 2, "WARN": 3, "ERROR": 4}
PREDICTION = "coglet::prediction"
SETUP = "coglet::setup"
SERVER = "local.server"
WORKER = re.compile(r"worker::(\S+) \[(\w+)\] (.*)")  # how coglet's worker writes when nobody takes its log


@dataclass(frozen=True)
class Entry:
    """One line of the log."""

    message: str
    target: str = SERVER
    level: str = "INFO"
    time: str = ""
    fields: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, line: str) -> "Entry":
        """Read a line; what is not JSON came from Python itself, such as a traceback."""
        if match := WORKER.fullmatch(line.rstrip("\n")):
            return cls(match[3], match[1], match[2].upper())
        try:
            record = json.loads(line)
            fields = dict(record["fields"])
            message = str(fields.pop("message", ""))
            return cls(message, record["target"], record["level"], record["timestamp"], fields)
        except (ValueError, KeyError, TypeError):
            return cls(line.rstrip("\n"), "python")

    @property
    def said(self) -> bool:
        """Whether the predictor itself printed this."""
        return "source" in self.fields or self.target in (SETUP, "coglet::user", "python")

    @property
    def begun(self) -> str | None:
        """The id of the prediction that this line says has begun."""
        begins = self.target == PREDICTION and self.message == "Starting prediction" and not self.said
        return str(self.fields.get("prediction_id")) if begins else None

    def text(self) -> str:
        """The line for people."""
        if self.target == "python":
            return self.message
        fields = "".join(f" {key}={value}" for key, value in self.fields.items() if key not in ("source", "slot"))
        level = "" if self.level == "INFO" else f"{self.level}: "
        return f"{self.time[11:19]} {level}{self.message}{'' if self.said else fields}"

    def json(self) -> str:
        """The line for machines, as coglet writes it."""
        record = {"timestamp": self.time, "level": self.level, "target": self.target}
        return json.dumps({**record, "fields": {"message": self.message, **self.fields}}, ensure_ascii=False)


class Log:
    """Where a server's lines go: stderr, in the form and from the level on that the environment asks for."""

    def __init__(self) -> None:
        """LOG_FORMAT is console or json, COG_LOG_LEVEL debug, info, warn or error."""
        self._json = os.environ.get("LOG_FORMAT", "console") == "json"
        level = os.environ.get("COG_LOG_LEVEL", "info").upper().replace("WARNING", "WARN")
        self._level = LEVELS.get(level, LEVELS["INFO"])

    def write(self, entry: Entry) -> None:
        """Write one line."""
        if LEVELS.get(entry.level, 4) >= self._level:
            line = entry.json() if self._json else entry.text()
            sys.stderr.write(line + "\n")
            sys.stderr.flush()

    def say(self, message: str, level: str = "INFO") -> None:
        """Write a line of the server's own."""
        self.write(Entry(message, level=level, time=datetime.now(UTC).isoformat()))


def follow(stream: IO[str], receive: Callable[[Entry], None]) -> threading.Thread:
    """Give every line of stream to receive, in a thread that ends with the stream."""

    def pump() -> None:
        with stream:
            for line in stream:
                if line.strip():
                    receive(Entry.parse(line))

    thread = threading.Thread(target=pump, daemon=True)
    thread.start()
    return thread
