"""From nothing to ready: what happens in which order, and what the log says of it."""

import os
import re
import subprocess
import sys

from tests.conftest import ROOT

SETUP = """
import sys
import predict

wanted = predict.fetched
begun = []

def fetched(model):
    begun.append(hasattr(sys.modules.get("torch"), "Tensor"))
    return wanted(model)

predict.fetched = fetched
predictor = predict.Predictor()
predictor.setup()
print("torch was there:", begun)
"""


def run(code: str, **environment: str) -> str:
    """What a fresh process says."""
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_cogs_entry_point_is_light() -> None:
    """Cog imports it to see what is there; what is heavy comes while the weights are on their way."""
    heavy = {"torch", "diffusers", "transformers", "numpy", "PIL", "painter"}
    assert run(f"import sys, predict; print(sorted({heavy!r} & set(sys.modules)))") == "[]\n"


def test_weights_are_on_their_way_before_torch_is_imported() -> None:
    said = run(SETUP, SDXL_MODEL="miniature")
    assert said.splitlines()[-1] == "torch was there: [False]"
    times = r"imports \d+\.\d s, download \d+\.\d s, weights \d+\.\d s, engines \d+\.\d s, fine-tunes \d+\.\d s"
    assert re.search(rf"^Ready: {times}; \d+\.\d s in all$", said, re.MULTILINE), said


def test_a_model_that_is_none_is_said_once_the_imports_are_done() -> None:
    code = "import predict\ntry:\n    predict.Predictor().setup()\nexcept Exception as error:\n    print(error)"
    assert "SDXL_MODEL='/nowhere' is neither a known model nor an existing path" in run(code, SDXL_MODEL="/nowhere")
