"""The official clients and curl, each as its users write it."""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from typing import Any

from replicate.client import Client

from tests.conftest import ROOT

VENV = ROOT / ".venv"
JAVASCRIPT = """
const Replicate = require("replicate");
const given = JSON.parse(process.env.GIVEN);
const replicate = new Replicate({ baseUrl: process.env.BASE, auth: process.env.REPLICATE_API_TOKEN });
const sleep = (seconds) => new Promise((resolve) => setTimeout(resolve, seconds * 1000));
(async () => { %s })().then(
  (result) => process.stdout.write("\\n" + JSON.stringify(result ?? null)),
  (error) => { console.error(error); process.exit(1); },
);
"""
PYTHON = """
import json, os, sys
given = json.loads(os.environ["GIVEN"])
result = None
%s
print()
print(json.dumps(result), end="")
"""


@cache
def client(url: str, token: str) -> Client:
    """One for all tests: it has no way to be closed, so its connections are closed beside it."""
    made = Client(base_url=url, api_token=token)
    made.poll_interval = 0.05
    atexit.register(made._client.close)
    return made


@dataclass(frozen=True)
class Address:
    """Where a gateway is, without /v1, and a token for it."""

    url: str
    token: str

    def python1(self, url: str | None = None, token: str | None = None) -> Client:
        """The first major version of the Python client, in this process."""
        return client(url or self.url, token or self.token)

    def python1_script(self, code: str, **given: Any) -> Any:
        """Code against its module, configured by the environment alone; what it leaves in `result`."""
        return self._python(code, {"REPLICATE_BASE_URL": self.url}, given)

    def python2_script(self, code: str, **given: Any) -> Any:
        """The same for the second major version, in which `replicate` is the module too."""
        beside = {"PYTHONPATH": str(VENV / "replicate2"), "REPLICATE_BASE_URL": f"{self.url}/v1"}
        return self._python(code, beside, given)

    def _python(self, code: str, variables: dict[str, str], given: dict[str, Any]) -> Any:
        # A deprecation of the clients' own is none of ours.
        return self._run([sys.executable, "-W", "ignore", "-c", PYTHON % code], variables, given)

    def javascript(self, code: str, **given: Any) -> Any:
        """The body of an async function that knows `replicate` and `given`; what it returns."""
        variables = {"NODE_PATH": str(VENV / "js" / "node_modules"), "BASE": f"{self.url}/v1"}
        return self._run(["node", "-e", JAVASCRIPT % code], variables, given)

    def _run(self, command: list[str], variables: dict[str, str], given: dict[str, Any]) -> Any:
        environment = {
            **os.environ,
            "REPLICATE_API_TOKEN": self.token,
            "REPLICATE_POLL_INTERVAL": "0.05",
            "GIVEN": json.dumps(given),
            **variables,
        }
        run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
        assert run.returncode == 0, run.stderr + run.stdout
        return json.loads(run.stdout.rpartition("\n")[2])

    def curl(self, path: str, *options: str, token: str | None = None, body: Any = None) -> Answer:
        """One request as a shell user makes it; `path` may be a whole URL, token "" sends none."""
        url = path if path.startswith("http") else f"{self.url}{path}"
        sent = self.token if token is None else token
        command = ["curl", "-sS", "-i", "--max-time", "100", *options]
        command += ["-H", f"Authorization: Bearer {sent}"] if sent else []
        command += ["-H", "Content-Type: application/json", "-d", json.dumps(body)] if body is not None else []
        run = subprocess.run([*command, url], capture_output=True, check=False)
        assert run.returncode == 0, run.stderr.decode()
        head, _, content = run.stdout.partition(b"\r\n\r\n")
        while head.startswith(b"HTTP/1.1 100"):
            head, _, content = content.partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        return Answer(int(status.split()[1]), headers, content)


@dataclass(frozen=True)
class Answer:
    """What curl got; the names of headers in lower case."""

    status: int
    headers: dict[str, str]
    content: bytes

    def json(self) -> Any:
        """The body."""
        return json.loads(self.content)
