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

PREDICTION = """
import sys
from predict import Predictor
from tests.predicting import predict

predictor = Predictor()
predictor.setup()
before = set(sys.modules)
predict(predictor, refine="expert_ensemble_refiner", prompt="a (red)++ circle", seed=1)
print(sorted({"transformers", "torch._dynamo", "sympy", "peft"} & before))
print(sorted(set(sys.modules) - before))
"""

NARROW = """
import sys
import sdxl.narrow

made = [name for name, module in sys.modules.items() if type(vars(module).get("__loader__")) is sdxl.narrow._Unread]
print(sorted(made))
print(sorted({"transformers", "torch._dynamo", "sympy", "peft", "diffusers.hooks"} & set(sys.modules)))

import diffusers
from diffusers import AutoencoderTiny, StableDiffusionXLPipeline
from diffusers.loaders import lora_base
from diffusers.models import autoencoders
from transformers import PreTrainedModel

assert autoencoders.AutoencoderTiny is AutoencoderTiny
assert not isinstance(sdxl.narrow, lora_base.PreTrainedModel)
assert isinstance(object.__new__(PreTrainedModel), lora_base.PreTrainedModel)
assert diffusers.hooks.HookRegistry is sys.modules["diffusers.hooks"].HookRegistry
print(issubclass(sdxl.narrow.UNet2DConditionModel, diffusers.ModelMixin), "torch._dynamo" in sys.modules)
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


def test_setup_imports_no_compiler_and_no_transformers_and_a_prediction_imports_nothing() -> None:
    """An import in the middle of a prediction would take locks of Python's, where a cancel may come."""
    said = run(PREDICTION, SDXL_MODEL="miniature", SDXL_OFFLOAD="").splitlines()
    assert said[-2] == "[]"
    assert said[-1] == "[]"


def test_a_prediction_imports_no_compiler_where_weights_move_either() -> None:
    found = run(PREDICTION, SDXL_MODEL="miniature", SDXL_OFFLOAD="stream").splitlines()[-1]
    assert "torch._dynamo" not in found
    assert "diffusers.hooks" not in found


def test_what_is_postponed_comes_when_it_is_asked_for() -> None:
    """Whoever uses diffusers and transformers in the same process later has all of them."""
    first, second, last = run(NARROW).splitlines()
    assert first == "['diffusers.models.autoencoders', 'diffusers.models.transformers', 'diffusers.models.unets']"
    assert second == "[]"
    assert last == "True True"
