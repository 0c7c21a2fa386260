"""What an agent is told by its environment."""

import hashlib
import os
import re
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gateway.settings import SettingsError
from local.modes import MODES, Mode
from local.package import ROOT, Package
from local.server import SMI_PATIENCE, has_cuda

FULL_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*/[a-z0-9][a-z0-9._-]*")
OURS = "stability-ai/sdxl"  # what people's code calls the model of this package


@dataclass(frozen=True)
class Settings:
    """Durations are in seconds, `memory` in bytes.

    url, token      the gateway's, and what lets a worker in there
    worker          this agent's name; the same after a restart
    model           owner/name under which the package is registered
    pools           what it does: predict, train
    warm            pools whose coglet is started with the agent and never stopped for being idle
    idle            after which the coglet of another pool is stopped
    together        whether coglets of both pools fit into memory: then neither waits for the other
    drain           how long a job under way may go on after SIGTERM before it is handed back
    patience        for a job to honour a cancel before its process is killed
    private_inputs  inputs may come from the private network
    """

    url: str
    token: str
    worker: str
    model: str
    package: Package
    pools: tuple[Mode, ...]
    state: Path
    warm: tuple[str, ...]
    idle: float
    together: bool
    drain: float
    patience: float
    private_inputs: bool

    @classmethod
    def read(cls, variables: Mapping[str, str] = os.environ) -> "Settings":
        """SettingsError for what is missing or makes no sense, PackageError for the package."""
        package = Package.load(Path(variables.get("GATEWAY_PACKAGE") or ROOT))
        state = Path(variables.get("GATEWAY_AGENT_STATE") or "~/.local/state/sdxl-agent").expanduser().resolve()
        pools = _pools(variables, package)
        name = f"{socket.gethostname()}-{hashlib.sha256(str(state).encode()).hexdigest()[:6]}"
        return cls(
            url=_required(variables, "GATEWAY_URL", "the address of the gateway").rstrip("/"),
            token=_required(variables, "GATEWAY_WORKER_TOKEN", "the token for workers that the gateway was given"),
            worker=variables.get("GATEWAY_WORKER") or name,
            model=_model(variables.get("GATEWAY_MODEL") or default_model(package)),
            package=package,
            pools=pools,
            state=state,
            warm=tuple(_words(variables.get("GATEWAY_WARM", "predict"))),
            idle=_seconds(variables, "GATEWAY_IDLE", 60),
            together=len(pools) > 1 and fits(variables.get("GATEWAY_TOGETHER", "")),
            drain=_seconds(variables, "GATEWAY_DRAIN", 20),
            patience=_seconds(variables, "GATEWAY_PATIENCE", 30),
            private_inputs=variables.get("GATEWAY_PRIVATE_INPUTS") == "1",
        )


def default_model(package: Package) -> str:
    """The name of a package that is given none."""
    plain = re.sub(r"[^a-z0-9._-]+", "-", package.folder.name.lower()).strip("-._") or "model"
    return OURS if package.folder == ROOT else f"local/{plain}"


def fits(told: str) -> bool:
    """Whether both coglets may be in memory. told: yes, no, or what both need in bytes; empty: only without a GPU."""
    if told.lower() in ("yes", "no"):
        return told.lower() == "yes"
    if not told:
        return not has_cuda()
    if not told.isdecimal():
        raise SettingsError(f"GATEWAY_TOGETHER={told!r} is neither yes, no, nor a number of bytes; set it to one")
    return int(told) <= _memory()


def hardware() -> str:
    """What runs the model, as `GET /v1/hardware` names it."""
    return _gpus()[0][0] if has_cuda() and _gpus() else "cpu"


def _memory() -> int:
    """Bytes of the smallest GPU, or of the machine where it has none."""
    if has_cuda() and (gpus := _gpus()):
        return min(size for _, size in gpus)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _gpus() -> list[tuple[str, int]]:
    """Names and bytes."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, timeout=SMI_PATIENCE, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = (line.rpartition(",") for line in listed.splitlines())
    return [(name.strip(), int(size) * 2**20) for name, _, size in rows if size.strip().isdecimal()]


def _pools(variables: Mapping[str, str], package: Package) -> tuple[Mode, ...]:
    names = _words(variables.get("GATEWAY_POOLS", "")) or (["predict", "train"] if package.train else ["predict"])
    if unknown := [name for name in names if name not in MODES]:
        raise SettingsError(f"GATEWAY_POOLS names {unknown[0]!r}; the pools are {' and '.join(MODES)}")
    for name in names:
        package.entry(MODES[name])
    return tuple(MODES[name] for name in dict.fromkeys(names))


def _required(variables: Mapping[str, str], name: str, what: str) -> str:
    if not (value := variables.get(name, "").strip()):
        raise SettingsError(f"{name} is not set; set it to {what}")
    return value


def _model(name: str) -> str:
    if not FULL_NAME.fullmatch(name):
        raise SettingsError(f"GATEWAY_MODEL={name!r} is no owner/name in small letters; set it to one")
    return name


def _words(text: str) -> list[str]:
    return [word for word in re.split(r"[\s,]+", text) if word]


def _seconds(variables: Mapping[str, str], name: str, default: float) -> float:
    try:
        value = float(variables.get(name) or default)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise SettingsError(f"{name}={variables.get(name)!r} is no number of seconds; set it to one")
    return value
