"""Replicate's HTTP API on this machine: a gateway, and one worker that runs this model, or the miniature without a GPU.

HOST, PORT             where it listens: 127.0.0.1, 8000
GATEWAY_TOKEN          what clients send as their token; made once and kept in GATEWAY_STATE if unset
GATEWAY_WORKER_TOKEN   what workers on other machines send; made in the same way
GATEWAY_URL            how clients reach it, where that is not http://HOST:PORT
GATEWAY_STATE          folder for all that is kept; default: ~/.local/state/sdxl-gateway
DATABASE_URL           postgresql://... for several gateways; default: SQLite in GATEWAY_STATE
More of the gateway's settings are listed in gateway/settings.py, those of the worker by
`python -m gateway.agent --help`.
"""

import argparse
import os
import secrets
import shlex
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import Popen
from threading import Event, Thread

import requests

from gateway.agent.settings import Settings as AgentSettings
from gateway.settings import Settings, SettingsError, is_loopback
from local.logs import Log
from local.package import ROOT, PackageError
from local.processes import spawn, stop
from local.server import Stop, address

LOOK = 0.2  # seconds between looks at the children
LONGEST = 5.0  # seconds between two starts of one
SETTLED = 2.0  # seconds after which a child is no longer one that does not start
BACKLOG = 2048  # connections that wait while the gateway is started anew
GRACE = 15.0  # seconds for a child to end; the worker has its GATEWAY_DRAIN before that
LINES = """
Replicate's API is at {url} for the model {model}.
A page for people is at {url}/#token={token}

  export REPLICATE_API_TOKEN={token}

Python      export REPLICATE_BASE_URL={url}
            python -c 'import replicate; [picture] = replicate.run("{model}", input={{"prompt": "a red circle"}}); \
open("picture.png", "wb").write(picture.read())'

JavaScript  import Replicate from "replicate";
            import {{ writeFile }} from "node:fs/promises";
            const replicate = new Replicate({{ baseUrl: "{url}/v1" }});  // it takes the token from the environment
            const [picture] = await replicate.run("{model}", {{ input: {{ prompt: "a red circle" }} }});
            await writeFile("picture.png", picture);

curl        curl {url}/v1/models/{model}/predictions -H "Authorization: Bearer $REPLICATE_API_TOKEN" \\
              -H "Content-Type: application/json" -H "Prefer: wait" -d '{{"input": {{"prompt": "a red circle"}}}}'
"""


@dataclass
class Child:
    """A program that is started again when it ends."""

    name: str
    command: list[str]
    variables: dict[str, str]
    log: Log
    grace: float = GRACE
    handles: tuple[int, ...] = ()
    failures: int = 0
    due: float = field(default_factory=time.monotonic)
    process: "Popen[str] | None" = None

    def keep(self) -> None:
        """Start it if it does not run and its time has come."""
        now = time.monotonic()
        if self.process is not None and self.process.poll() is not None:
            self.failures = 0 if now - self.due > SETTLED else self.failures + 1
            pause = min(LONGEST, 2.0 ** (self.failures - 2)) if self.failures else 0.0
            self.log.say(
                f"the {self.name} ended with exit code {self.process.returncode}; again in {pause:g} s", "WARN"
            )
            stop(self.process, Event().wait, grace=0)
            self.process, self.due = None, now + pause
        if self.process is None and now >= self.due:
            self.process = spawn(self.command, folder=ROOT, environment=self.variables, handles=self.handles)
            self.due = now
            Thread(target=_passed_on, args=(self.process,), daemon=True).start()

    def end(self, hurry: Event) -> None:
        """Ask it to end, and see that it does."""
        if self.process is not None:
            stop(self.process, hurry.wait, grace=self.grace)


def _passed_on(process: "Popen[str]") -> None:
    """A child's lines are this program's."""
    assert process.stdout
    for line in process.stdout:
        sys.stderr.write(line)
        sys.stderr.flush()


def kept_token(state: Path, name: str, variables: Mapping[str, str]) -> str:
    """A token from the environment, or one that is made once; nobody else on this machine can read it."""
    if told := variables.get(name, "").strip():
        return told
    path = state / name.lower().replace("_", "-")
    if not path.exists():
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(f"r8_{secrets.token_hex(20)}")  # as long as the hosted service's: some tools check
    return path.read_text().strip()


def listening(host: str, port: int, variables: Mapping[str, str]) -> socket.socket:
    """The socket; SettingsError where anybody could use it, OSError where it cannot be had."""
    found = address(host)
    if not is_loopback(found) and not variables.get("GATEWAY_TOKEN", "").strip():
        raise SettingsError(f"HOST={host} would let anybody on the network in; set GATEWAY_TOKEN to a long secret")
    family = socket.AF_INET6 if ":" in found else socket.AF_INET
    return socket.create_server((found, port), family=family, backlog=BACKLOG)


def near(bound: socket.socket) -> str:
    """The URL on this machine."""
    host, port = bound.getsockname()[:2]
    named = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{named}:{port}"


def settled(bound: socket.socket, state: Path, told: Mapping[str, str]) -> dict[str, str]:
    """The environment with all that the gateway and its workers must agree on."""
    host, port = bound.getsockname()[:2]
    variables = {
        **told,
        "GATEWAY_HOST": str(host),
        "GATEWAY_PORT": str(port),
        "GATEWAY_PUBLIC_URL": told.get("GATEWAY_URL") or near(bound),
        "GATEWAY_DATABASE": told.get("DATABASE_URL") or told.get("GATEWAY_DATABASE") or f"sqlite:///{state}/gateway.db",
        "GATEWAY_FILES": told.get("GATEWAY_FILES") or str(state / "files"),
    }
    for name in ("GATEWAY_TOKEN", "GATEWAY_WORKER_TOKEN"):
        variables[name] = kept_token(state, name, variables)
    return variables


def children_of(options: argparse.Namespace, variables: dict[str, str], bound: socket.socket, log: Log) -> list[Child]:
    """The gateway and, unless that is not wanted, a worker."""
    handle = bound.fileno()
    gateway = Child("gateway", [sys.executable, "-m", "gateway.front", str(handle)], variables, log, handles=(handle,))
    if options.no_worker:
        return [gateway]
    grace = AgentSettings.read(variables).drain + GRACE
    return [gateway, Child("worker", [sys.executable, "-m", "gateway.agent"], variables, log, grace)]


def serve(options: argparse.Namespace, log: Log) -> None:
    """Keep both running until told to stop."""
    state = Path(os.environ.get("GATEWAY_STATE") or "~/.local/state/sdxl-gateway").expanduser().resolve()
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    asked = Stop()
    with listening(options.host, options.port, os.environ) as bound:
        variables = settled(bound, state, os.environ)
        url = Settings.read(variables).public_url
        variables |= {"GATEWAY_URL": near(bound), "GATEWAY_AGENT_STATE": str(state / "worker")}
        model = AgentSettings.read(variables).model
        children, told = children_of(options, variables, bound, log), False
        try:
            while not asked.asked.wait(LOOK):
                for child in children:
                    child.keep()
                ready = "account" if options.no_worker else f"models/{model}"
                if not told and _answers(f"{near(bound)}/v1/{ready}", variables["GATEWAY_TOKEN"]):
                    told = True
                    token = shlex.quote(variables["GATEWAY_TOKEN"])
                    print(LINES.format(url=url, model=model, token=token), flush=True)  # noqa: T201
        finally:
            for child in reversed(children):
                child.end(asked.hurry)


def _answers(url: str, token: str) -> bool:
    try:
        return requests.get(url, headers={"Authorization": f"Bearer {token}"}, timeout=1).ok
    except requests.RequestException:
        return False


def arguments() -> argparse.Namespace:
    """The command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="script/gateway", description=__doc__, formatter_class=raw)
    parser.add_argument("--host", default=os.environ.get("HOST") or "127.0.0.1", help="HOST, default 127.0.0.1")
    parser.add_argument("--port", type=int, default=os.environ.get("PORT") or 8000, help="PORT, default 8000")
    one = parser.add_mutually_exclusive_group()
    one.add_argument("--no-worker", action="store_true", help="the gateway alone; workers come from elsewhere")
    one.add_argument("--worker-only", action="store_true", help="a worker alone, for the gateway at --gateway")
    parser.add_argument("--gateway", metavar="URL", default=os.environ.get("GATEWAY_URL"), help="of --worker-only")
    options = parser.parse_args()
    if options.worker_only and not options.gateway:
        parser.error("--worker-only needs --gateway URL")
    return options


def main() -> int:
    """script/gateway: 0 when told to stop, 1 for what the user can mend."""
    options, log = arguments(), Log()
    if options.worker_only:
        os.environ["GATEWAY_URL"] = options.gateway
        os.execv(sys.executable, [sys.executable, "-m", "gateway.agent"])
    try:
        serve(options, log)
    except (SettingsError, PackageError) as error:
        log.say(str(error), "ERROR")
        return 1
    except socket.gaierror as error:
        log.say(f"HOST={options.host}: {error.strerror}", "ERROR")
        return 1
    except OSError as error:
        log.say(f"cannot listen on {options.host}:{options.port}: {error.strerror}; choose another PORT", "ERROR")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
