"""The miniature, loaded once for all tests: real classes, trained weights, a CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # one process for each core: threads of torch would only wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def scheduler_config() -> dict[str, Any]:
    """The scheduler config of SDXL 1.0, which the miniature shares."""
    folder = ROOT / "miniature" / "weights" / "base" / "scheduler"
    config: dict[str, Any] = json.loads((folder / "scheduler_config.json").read_text())
    return config


@pytest.fixture(scope="session")
def models() -> Any:
    """The miniature as `predict.py` loads it; nothing may change it, `test_state.py` proves it."""
    import weights
    from sdxl.models import load_models
    from sdxl.placement import Placement

    placement = Placement(torch.device("cpu"), "resident")
    return load_models(weights.resolve("miniature"), placement, torch.float32)


@pytest.fixture(scope="session")
def fresh() -> list[str]:
    """What the probes of test_state.py give in a process that has done nothing else."""
    code = "import json\nfrom tests.test_state import started, digests\nprint(json.dumps(digests(started())))"
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    found: list[str] = json.loads(run.stdout.splitlines()[-1])
    return found


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Archives hold the time they were made at, and their bytes would be another name in each process."""
    return argname if isinstance(val, bytes) else None
