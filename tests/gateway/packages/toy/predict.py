"""A quick predictor for the tests of gateway/: what comes out says what went in, and it can misbehave in every way."""

import hashlib
import json
import os
import pathlib
import signal
import tempfile
import time
from typing import Optional

import cog
import requests
from cog import BaseRunner, Input, Path


class Predictor(BaseRunner):
    def setup(self) -> None:
        if pathlib.Path(os.environ.get("TOY_BROKEN", "/nowhere")).exists():
            raise RuntimeError("the toy was told to fail in setup")
        if log := os.environ.get("TOY_LOG"):
            with open(log, "a") as file:  # noqa: PTH123
                file.write(f"setup {time.time()}\n")

    def run(
        self,
        text: str = Input(description="Said by every output.", default="hello"),
        image: Optional[Path] = Input(description="Its digest is said by every output.", default=None),
        files: Optional[list[Path]] = Input(description="Their digests too.", default=None),
        replicate_weights: Optional[str] = Input(description="A URL; the digest of what is there, too.", default=None),
        count: int = Input(description="How many outputs.", ge=0, le=8, default=1),
        seconds: float = Input(description="How long it takes.", ge=0, le=600, default=0),
        action: str = Input(
            description="What happens.",
            choices=["return", "fail", "crash", "lie", "hang"],
            default="return",
        ),
    ) -> list[Path]:
        if log := os.environ.get("TOY_LOG"):
            with open(log, "a") as file:  # noqa: PTH123
                file.write(f"run {time.time()} {text}\n")
        print(f"text is {text}")
        given = [digest(pathlib.Path(each).read_bytes()) for each in [*([image] if image else []), *(files or [])]]
        assert all(isinstance(each, pathlib.Path) for each in [*([image] if image else []), *(files or [])])
        if replicate_weights:
            given.append(digest(requests.get(replicate_weights, timeout=10).content))
        act(action, text)
        start = time.monotonic()
        for step in range(20 if seconds else 0):
            while time.monotonic() < start + seconds * (step + 1) / 20:
                time.sleep(0.01)  # a cancel does not interrupt a sleep
            print(f"{5 * (step + 1)}%|{'#' * step:20}| {step + 1}/20")
        cog.current_scope().record_metric("given", len(given))
        folder = pathlib.Path(tempfile.mkdtemp())
        paths = [folder / f"{number}.json" for number in range(count)]
        for number, path in enumerate(paths):
            path.write_text(json.dumps({"text": text, "given": given, "number": number}))
        return [Path(path) for path in paths]


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def act(action: str, text: str) -> None:
    if action == "fail":
        raise ValueError(f"{text} is no good; send something else.")
    if action == "lie":
        raise ValueError("Worker crashed")
    if action == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    while action == "hang":
        try:
            time.sleep(600)
        except BaseException:  # noqa: BLE001 - it does not want to be canceled
            print("no")
