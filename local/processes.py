"""Child processes that never outlive their parent."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

PR_SET_PDEATHSIG = 1


def _die_with_parent() -> Callable[[], None] | None:
    """What a child runs before exec so that the kernel kills it when its parent is gone (Linux only)."""
    if not sys.platform.startswith("linux"):
        return None
    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

    def ask() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    return ask


def spawn(
    command: Sequence[str], *, folder: Path, environment: Mapping[str, str], handles: Sequence[int] = ()
) -> "subprocess.Popen[str]":
    """Start command in a session of its own, so that Ctrl-C reaches only us; its output is one pipe of lines. It
    inherits the open files that handles name."""
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
        pass_fds=handles,
        preexec_fn=_die_with_parent(),
    )


def stop(process: "subprocess.Popen[str]", wait: Callable[[float], bool], *, grace: float) -> None:
    """SIGTERM, then after grace seconds, or as soon as wait says so, SIGKILL to all that is left of its session."""
    if process.poll() is None:
        process.terminate()
        for _ in range(round(grace * 20)):
            if process.poll() is not None or wait(0.05):
                break
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
