"""`cog predict` and `cog train` without Docker: one request, to a server of its own or a running one."""

import argparse
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import requests

from local import answers, schema
from local.annotations import Json, SchemaError
from local.files import READABLE, ValueProblemError, check_size
from local.following import Logs
from local.logs import SERVER, Entry, follow
from local.modes import MODES, TRAIN, Mode
from local.outputs import OutputError, check_writable, receiving, save
from local.package import ROOT, Package, PackageError
from local.processes import spawn, stop
from local.screen import Screen
from local.values import Inputs

PREFIXES = re.compile(
    r"^((Prediction|Training) failed: )*((Input|Value|Weights|Dataset|UnsafeContent|Runtime)Error: )?"
)
PATIENCE = 60.0  # seconds for a cancelled request to end: a training then writes its checkpoint
OTHER_MODE = re.compile(r"TypeError: .*\(\) got an unexpected keyword argument")  # coglet asks whatever it runs
JSON = {"Content-Type": "application/json"}
Answer = dict[str, Any]


class FailedError(Exception):
    """There is no output; the message is for the user."""


def arguments(mode: Mode) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog=f"script/{mode.verb}", description=__doc__)
    add = parser.add_argument
    add("-i", "--input", action="append", default=[], metavar="NAME=VALUE", help="an input; NAME=@FILE sends a file")
    add("--json", metavar="JSON", help="all inputs as a JSON object, @FILE or - for stdin")
    add("-o", "--output", metavar="PATH", help=f"where the output goes; default {mode.shown} in this folder")
    add("--url", default=os.environ.get("COG_URL"), help="use the server at this URL (COG_URL) instead of a new one")
    add("--package", type=Path, default=ROOT, help="folder with cog.yaml")
    options = parser.parse_args(sys.argv[2:])
    if options.json and options.input:
        parser.error("use either -i or --json")
    return options


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A server, ours or not."""

    def __init__(self, url: str, mode: Mode, process: "subprocess.Popen[str] | None" = None) -> None:
        """process is None when it is not ours."""
        self.url, self._mode, self._process = url.rstrip("/"), mode, process
        self.trouble = ""

    def health(self) -> str:
        """What the server says about itself; nothing when it does not answer."""
        try:
            return str(requests.get(f"{self.url}/health-check", timeout=15).json().get("status", ""))
        except (requests.RequestException, ValueError):
            return ""

    def wait_until_ready(self) -> None:
        """Return when requests are accepted."""
        silent = 0
        while (status := self.health()) not in ("READY", "BUSY"):
            if self._process and self._process.poll() is not None:
                raise FailedError(self.trouble or "the server ended before it was ready")
            silent = 0 if status else silent + 1
            if not self._process and (silent > 20 or status in ("SETUP_FAILED", "DEFUNCT", "UNHEALTHY")):
                raise FailedError(f"the server at {self.url} {'is ' + status if status else 'does not answer'}")
            time.sleep(0.1)

    def ask(self, body: bytes, screen: Screen) -> requests.Response:
        """The answer to a request, of which only the head has come; a busy server is waited for."""
        while True:
            try:
                url = self.url + self._mode.route
                answer = requests.post(url, body, headers=JSON, timeout=(10, None), stream=True)
            except requests.RequestException as error:
                raise FailedError(f"the server at {self.url} went away: {error}") from error
            if answer.status_code == 409 and self.health() in ("READY", "BUSY"):
                screen.status("the server is busy")
                time.sleep(0.2)
                continue
            if answer.status_code != 200:
                raise FailedError(_refusal(answer))
            return answer

    def cancel(self, identifier: str) -> None:
        """Stop the request, and return when it has ended. coglet loses a cancel that comes while its worker still reads
        the request, so it is told again."""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            try:
                answer = requests.post(f"{self.url}{self._mode.route}/{identifier}/cancel", timeout=2)
            except requests.RequestException:
                return
            if answer.status_code == 404:
                return
            time.sleep(0.2)


def _refusal(answer: requests.Response) -> str:
    """Why the server did not even begin."""
    try:
        detail = answer.json()["detail"]
        return "; ".join(f"{problem['loc'][-1]}: {problem['msg']}" for problem in detail)
    except (ValueError, KeyError, TypeError, IndexError):
        return f"the server answered {answer.status_code}: {answer.text[:500]}"


def _failure(answer: Answer, mode: Mode) -> str:
    """Why there is no output."""
    error = str(answer.get("error") or f"the {mode.noun} was {answer.get('status')}")
    if error == "Worker crashed":
        return "the process that runs the predictor died (out of memory?)"
    if OTHER_MODE.search(error):
        return (
            f"this server does no {mode.noun}s; script/serve{' --train' if mode is TRAIN else ''} starts one that does"
        )
    return PREFIXES.sub("", error)


@contextmanager
def own_server(package: Path, mode: Mode, screen: Screen, readable: list[str]) -> Iterator[Server]:
    """A server for one request, with its log on the screen; readable are the files it may read."""
    port = free_port()
    server = Server(f"http://127.0.0.1:{port}", mode)
    command = [sys.executable, "-P", "-m", "local.server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--setup-attempts", "1", "--package", str(package.resolve())]
    command += ["--train"] if mode is TRAIN else []
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LOG_FORMAT": "json"}
    if readable:
        environment[READABLE] = os.pathsep.join([*filter(None, [os.environ.get(READABLE)]), *readable])

    def receive(entry: Entry) -> None:
        ours = entry.target == SERVER and not entry.message.startswith("ready")
        if ours and entry.level == "ERROR":
            server.trouble = entry.message
        elif entry.said or ours:
            screen.line(entry.message)

    process = spawn(command, folder=ROOT, environment=environment)
    assert process.stdout
    server._process = process
    pump = follow(process.stdout, receive)
    try:
        yield server
    finally:
        stop(process, threading.Event().wait, grace=15)
        pump.join(timeout=5)


@contextmanager
def some_server(options: argparse.Namespace, mode: Mode, screen: Screen, readable: list[str]) -> Iterator[Server]:
    """The server at --url, or one of our own."""
    if options.url:
        yield Server(options.url, mode)
        return
    with own_server(options.package, mode, screen, readable) as server:
        yield server


def document(options: argparse.Namespace, mode: Mode) -> Json:
    """The schema: of the running server, or made from source."""
    if not options.url:
        package = Package.load(options.package)
        package.entry(mode)
        return dict(json.loads(schema.generate(package)))
    try:
        answer = requests.get(f"{options.url.rstrip('/')}/openapi.json", timeout=10)
        answer.raise_for_status()
        return dict(answer.json())
    except (requests.RequestException, ValueError) as error:
        raise FailedError(f"{options.url} gives no schema: {error}") from error


def run(options: argparse.Namespace, mode: Mode, screen: Screen) -> None:
    """Check, serve, ask, save."""
    check_writable(options.output)
    inputs = Inputs(document(options, mode), mode, ours=not options.url)
    given = inputs.from_json(options.json) if options.json else inputs.from_flags(options.input)
    identifier = f"cli-{secrets.token_hex(8)}"
    body = json.dumps({"id": identifier, "input": given}).encode()
    check_size("the whole request", len(body))
    screen.status("starting the server")
    with some_server(options, mode, screen, inputs.paths) as server:
        server.wait_until_ready()
        screen.status(mode.doing)
        logs = Logs(screen)
        with logs.following(f"{server.url}{mode.route}/{identifier}") if options.url else nullcontext():
            response = _asked(server, body, identifier, screen)
        with receiving(options.output) as folder:
            answer = _read(response, folder)
            if options.url:
                logs.show(str(answer.get("logs") or ""), whole=True)
            if answer.get("status") != "succeeded":
                raise FailedError(_failure(answer, mode))
            paths, text = save(answer.get("output"), options.output, mode.output, folder)
        screen.close()
        for shown in [*paths, *([] if text is None else [text])]:
            print(shown, flush=True)  # noqa: T201


def _asked(server: Server, body: bytes, identifier: str, screen: Screen) -> requests.Response:
    """The answer; Ctrl-C cancels what the server does for it."""
    try:
        return server.ask(body, screen)
    except KeyboardInterrupt:
        screen.status("canceling")
        server.cancel(identifier)
        raise


def _read(response: requests.Response, folder: Path) -> Answer:
    """The whole answer; its files lie in folder."""
    try:
        answer = answers.read(response.iter_content(2**20), folder)
    except requests.RequestException as error:
        raise FailedError(f"the server went away: {error}") from error
    if not isinstance(answer, dict):
        raise answers.AnswerError("the answer is no JSON object; is it a Cog?")
    return answer


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> int:
    """script/predict and script/train: 0 when there is an output, 1 when not, 130 after Ctrl-C."""
    signal.signal(signal.SIGTERM, _interrupt)
    mode = MODES[sys.argv[1]]
    options, screen = arguments(mode), Screen()
    try:
        run(options, mode, screen)
    except (SchemaError, PackageError, ValueProblemError, OutputError, answers.AnswerError, FailedError) as error:
        screen.close()
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    except KeyboardInterrupt:
        screen.close()
        print("canceled", file=sys.stderr)  # noqa: T201
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
