"""Serve a Cog package over HTTP without Docker: coglet, the server of Cog's own images, and a watchdog over it."""

import argparse
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from local import schema
from local.annotations import SchemaError
from local.logs import Log
from local.modes import PREDICT, TRAIN
from local.package import ROOT, Package, PackageError
from local.watchdog import Coglet, SetupFailedError, Watchdog
from local.workspace import Workspace

GPUS = Path("/proc/driver/nvidia/gpus")
SMI_PATIENCE = 5.0  # seconds; with a broken driver nvidia-smi may hang


def has_cuda() -> bool:
    """Whether there is an NVIDIA GPU that CUDA_VISIBLE_DEVICES does not hide; torch is not imported for it."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1"):
        return False
    if GPUS.is_dir() and any(GPUS.iterdir()):
        return True
    # Images for both kinds of machine bring nvidia-smi along, and WSL has no /proc entry: only its answer counts.
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, timeout=SMI_PATIENCE, check=True)
    except (OSError, subprocess.SubprocessError):
        return False
    return any(line.startswith(b"GPU ") for line in listed.stdout.splitlines())


def address(host: str) -> str:
    """The IP address of host: coglet takes no names."""
    try:
        found = socket.getaddrinfo(host, None, family=socket.AF_INET, type=socket.SOCK_STREAM)
    except socket.gaierror:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return str(found[0][4][0])


def check_port(host: str, port: int) -> None:
    """Raise OSError if the port cannot be listened on."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))


def environment(package: Package, log: Log) -> dict[str, str]:
    """What the predictor sees: cog.yaml's environment, ours over it, and a model that this machine can run."""
    variables = {**package.environment, **os.environ}
    if "SDXL_MODEL" not in variables and not has_cuda():
        variables["SDXL_MODEL"] = "miniature"
        log.say("no CUDA GPU here: using the miniature model (SDXL_MODEL picks another)")
    return variables


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="script/serve", description=__doc__)
    parser.add_argument("--host", default=os.environ.get("HOST") or "127.0.0.1", help="HOST, default 127.0.0.1")
    parser.add_argument("--port", type=int, default=os.environ.get("PORT") or 5000, help="PORT, default 5000")
    parser.add_argument("--train", action="store_true", help="serve trainings instead of predictions")
    parser.add_argument("--upload-url", help="where outputs are PUT instead of being returned as data URLs")
    parser.add_argument("--setup-attempts", type=int, default=3, help="failed setups in a row before giving up")
    parser.add_argument("--package", type=Path, default=ROOT, help="folder with cog.yaml")
    return parser.parse_args()


class Stop:
    """Set by SIGTERM, SIGINT and SIGHUP; a second signal ends the waiting for predictions under way."""

    def __init__(self) -> None:
        """Take over the signals."""
        self.asked, self.hurry = threading.Event(), threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._receive)

    def _receive(self, _number: int, _frame: FrameType | None) -> None:
        (self.hurry if self.asked.is_set() else self.asked).set()


def serve(options: argparse.Namespace, log: Log, stop: Stop) -> None:
    """Serve until told to stop."""
    package, mode = Package.load(options.package), TRAIN if options.train else PREDICT
    package.entry(mode)
    schema.write(package)
    host = address(options.host)
    check_port(host, options.port)
    variables = environment(package, log)
    workspace = Workspace(mode.kept)

    def start(port: int = options.port) -> Coglet:
        addressed = {"host": host, "port": port, "upload_url": options.upload_url}
        return Coglet.start(package, mode, workspace, log, variables, **addressed)

    try:
        Watchdog(start, workspace, log, stop.asked, stop.hurry, attempts=options.setup_attempts).run()
    finally:
        workspace.close()


def report(action: Callable[[], None], log: Log, options: argparse.Namespace) -> int:
    """Run action; what the user can mend is said in one line. The exit code."""
    try:
        action()
    except (SchemaError, PackageError, SetupFailedError) as error:
        log.say(str(error), "ERROR")
        return 1
    except socket.gaierror as error:
        log.say(f"HOST={options.host}: {error.strerror}", "ERROR")
        return 1
    except OSError as error:
        log.say(f"cannot listen on {options.host}:{options.port}: {error.strerror}; choose another PORT", "ERROR")
        return 1
    return 0


def main() -> int:
    """script/serve."""
    options, log = arguments(), Log()
    return report(lambda: serve(options, log, Stop()), log, options)


if __name__ == "__main__":
    sys.exit(main())
