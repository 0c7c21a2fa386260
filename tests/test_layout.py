"""The shape of the code: imports point one way, Cog can read the signatures, functions stay short."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from predict import Predictor
from sdxl.eight_bit import QUANTIZATIONS
from sdxl.few_step import CHOICES
from sdxl.finetune.tokens import PooledAt
from sdxl.output import FORMATS
from sdxl.request import REFINE
from sdxl.schedulers import SCHEDULERS
from sdxl.sizes import ASPECT_RATIOS
from tests.conftest import ROOT
from train import train
from trainer.optimizers import OPTIMIZERS, SCHEDULES

# Who may import whom of ours; everyone may import errors and its own folder.
MAY_IMPORT = {
    "predict": {"painter", "sdxl", "weights", "fetch", "limits"},
    "painter": {"sdxl", "weights", "fetch", "tuning"},
    "train": {"preprocess", "trainer", "sdxl", "weights", "fetch", "limits"},
    "trainer": {"sdxl", "preprocess"},
    "preprocess": {"sdxl", "fetch"},
    "tuning": {"sdxl", "weights", "fetch"},
    "limits": set(),
    "weights": {"fetch", "sdxl"},
    "fetch": set(),
    "errors": set(),
    "sdxl": set(),
    "local": set(),
    "gateway": {"fetch", "local"},
    "miniature": set(),
    "benchmarks": {"predict", "miniature", "weights", "sdxl", "local", "fetch", "trainer", "preprocess", "tests"},
}
OURS = set(MAY_IMPORT) | {"tests"}
LONG = {"predict.py:run", "train.py:train"}  # the signatures that Cog reads


def sources() -> list[Path]:
    names = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    return [ROOT / name for name in names if (ROOT / name).exists()]


def imported(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found & OURS


def test_imports_point_one_way() -> None:
    for path in sources():
        top = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if top == "tests":
            continue
        extra = imported(path) - MAY_IMPORT[top] - {top, "errors"}
        assert not extra, f"{path.relative_to(ROOT)} imports {extra}"


def test_functions_and_files_stay_short() -> None:
    for path in sources():
        if "tests" in path.parts:
            continue
        text = path.read_text()
        name = path.relative_to(ROOT)
        lines = text.count("\n")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                length = (node.end_lineno or 0) - node.lineno + 1
                if f"{name}:{node.name}" in LONG:
                    lines -= length
                else:
                    assert length <= 60, f"{name}: {node.name} has {length} lines"
        assert lines <= 320, f"{name} has grown to {lines} lines"


@pytest.mark.parametrize("file", ["predict.py", "train.py"])
def test_every_input_is_literal(file: str) -> None:
    """Cog reads these files without importing them; what it cannot read it drops in silence."""
    source = (ROOT / file).read_text()
    calls = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "Input"]
    assert len(calls) > 30
    for call in calls:
        for keyword in call.keywords:
            ast.literal_eval(keyword.value)
            text = ast.get_source_segment(source, keyword.value) or ""
            if keyword.arg == "description":
                assert "\n" not in text, f"{file}:{call.lineno}: one plain string"
                assert "\\" not in text, f"{file}:{call.lineno}: no escapes"


@pytest.mark.parametrize(
    ("name", "choices"),
    [
        ("scheduler", list(SCHEDULERS)),
        ("refine", list(REFINE)),
        ("aspect_ratio", ["custom", "match_input_image", *ASPECT_RATIOS]),
        ("output_format", list(FORMATS)),
        ("token_pooling", ["auto", *get_args(PooledAt)]),
        ("quantization", list(QUANTIZATIONS)),
        ("few_step", list(CHOICES)),
    ],
)
def test_choices_are_what_the_code_knows(name: str, choices: list[str]) -> None:
    assert inspect.signature(Predictor.run).parameters[name].default.choices == choices


def test_choices_of_trainings_are_what_the_code_knows() -> None:
    inputs = inspect.signature(train).parameters
    assert inputs["optimizer"].default.choices == list(OPTIMIZERS)
    assert inputs["lr_scheduler"].default.choices == list(SCHEDULES)


@pytest.mark.parametrize(
    "module", ["errors", "weights", "fetch.inputs", "predict", "train", "sdxl.generate", "trainer.run", "local.schema"]
)
def test_importing_does_nothing(module: str, tmp_path: Path) -> None:
    """No output, no file, no thread left, no flag set."""
    code = (
        f"import threading, {module}\nimport sys\n"
        "assert threading.active_count() == 1, threading.enumerate()\n"
        "torch = sys.modules.get('torch')\n"
        "assert torch is None or (torch.is_grad_enabled() and not torch.cuda.is_initialized())\n"
    )
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


def test_fetching_needs_no_torch() -> None:
    """Downloads begin before torch is imported."""
    code = "import sys, weights, fetch.inputs; assert 'torch' not in sys.modules and 'diffusers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
