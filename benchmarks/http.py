"""What the server adds: a synchronous POST to coglet, Cog's own server, against the same prediction in process."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import requests

import weights
from benchmarks.measure import Effort, Row, interleave, spread
from benchmarks.pictures import quiet, started
from local.workspace import PREDICTIONS
from tests.predicting import predict

GROUP = "HTTP"
MOST_MS = 15.0
READY_SECONDS = 120
ASKED: dict[str, Any] = {
    "prompt": "a red circle on a blue background",
    "num_inference_steps": 1,
    "width": 64,
    "height": 64,
    "output_format": "jpg",
    "seed": 3,
}


def rows(effort: Effort) -> list[Row]:
    """The smallest prediction that there is, asked for in turn."""
    predictor = started()
    asked = ASKED | {"disable_safety_checker": predictor.painter.models.safety is None}
    own: list[float] = []
    with quiet(), server() as url:
        inside, over = interleave(
            partial(predict, predictor, **asked), lambda: own.append(post(url, asked)), effort.requests
        )
    del own[0]  # the call that does not count
    added = (median(over.wall) - median(inside.wall)) * 1000
    around = median(wall - predicting for wall, predicting in zip(over.wall, own, strict=True)) * 1000
    spans = median(inside.wall) * 1000, median(over.wall) * 1000
    name = "the smallest prediction, wall"
    return [
        Row(GROUP, f"{name}: what coglet adds", "ms", None, added, most=MOST_MS, spread=spread(inside.wall)),
        Row(GROUP, f"{name}: in process (A), by POST (B)", "ms", *spans, spread=spread(inside.wall)),
        Row(GROUP, f"{name}: a POST less what coglet calls predict_time", "ms", None, around, most=MOST_MS),
    ]


def post(url: str, asked: dict[str, Any]) -> float:
    """One prediction; coglet is briefly busy after each. The seconds that coglet itself saw the predictor work."""
    while (answer := requests.post(f"{url}/predictions", json={"input": asked}, timeout=60)).status_code == 409:
        continue
    finished = answer.json()
    if finished.get("status") != "succeeded":
        raise RuntimeError(f"the server answered {json.dumps(finished)[:500]}")
    shutil.rmtree(PREDICTIONS / finished["id"], ignore_errors=True)  # coglet keeps them for ever
    return float(finished["metrics"]["predict_time"])


@contextmanager
def server() -> Iterator[str]:
    """A coglet of our own, with the miniature; its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with TemporaryDirectory() as folder:
        environment = os.environ | {
            "SDXL_MODEL": "miniature",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "PORT": str(port),
            "COG_PREDICT_TYPE_STUB": "predict.py:Predictor",
            "COG_LOG_LEVEL": "warning",
            "TMPDIR": folder,
            "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}",
        }
        command = [sys.executable, "-m", "cog.server.http", "--host", "127.0.0.1"]
        with (Path(folder) / "log").open("w") as log:
            process = subprocess.Popen(command, cwd=weights.ROOT, env=environment, stdout=log, stderr=log)
        try:
            url = f"http://127.0.0.1:{port}"
            _wait(url, process)
            yield url
        finally:
            process.terminate()
            process.wait(timeout=30)


def _wait(url: str, process: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + READY_SECONDS
    while time.monotonic() < end and process.poll() is None:
        with suppress(requests.RequestException):
            if requests.get(f"{url}/health-check", timeout=5).json()["status"] == "READY":
                return
        time.sleep(0.1)
    raise RuntimeError("coglet did not get ready")
