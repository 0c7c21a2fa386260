"""A training as one process per GPU, joined by accelerate; this one waits, passes on what they say, and ends them."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

import errors
from trainer.job import Job
from trainer.run import run

FAILURE = "failure.json"
GRACE = 45.0  # seconds in which processes that were told to end write their state; torchrun itself takes 30
ROOT = Path(__file__).resolve().parent.parent


def processes() -> int:
    """How many: SDXL_TRAIN_PROCESSES, else one per GPU."""
    return int(os.environ.get("SDXL_TRAIN_PROCESSES") or max(1, torch.cuda.device_count()))


def train(job: Job, say: Callable[[str], None], check: Callable[[], None]) -> None:
    """`trainer.run.run`, here or in as many processes as there are GPUs."""
    count = processes()
    if count == 1:
        run(job, say, check)
        return
    job.write()
    say(f"training in {count} processes")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
    command += ["-m", "trainer.launched", str(job.folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stderr=subprocess.STDOUT, stdout=subprocess.PIPE, start_new_session=True
    ) as child:
        try:
            _pass_on(child, check)
        finally:
            child.terminate()
            try:
                child.wait(GRACE)
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)  # its workers too
    if child.returncode:
        raise _failure(job, child.returncode)


def _pass_on(child: "subprocess.Popen[bytes]", check: Callable[[], None]) -> None:
    """What the processes write, as it comes, bars too, until all have ended."""
    assert child.stdout is not None
    os.set_blocking(child.stdout.fileno(), False)
    while True:
        check()
        data = child.stdout.read()
        if data:
            sys.stderr.write(data.decode(errors="replace"))
        elif child.poll() is not None:
            return
        else:
            time.sleep(0.05)


def _failure(job: Job, code: int) -> Exception:
    """What a process has left word of, as the error that it was."""
    path = job.folder / FAILURE
    if not path.exists():
        return RuntimeError(f"a training process ended with exit code {code}; the log says more")
    said = json.loads(path.read_text())
    kind: type[Exception] = getattr(errors, said["kind"], RuntimeError)
    return kind(said["message"])
