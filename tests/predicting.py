"""Call `Predictor.run` as coglet does: defaults filled in, files as `cog.Path`."""

import inspect
from pathlib import Path
from typing import Any

import cog
from cog import FieldInfo
from PIL import Image

from predict import Predictor

DEFAULTS = {
    name: parameter.default.default
    for name, parameter in inspect.signature(Predictor.run).parameters.items()
    if isinstance(parameter.default, FieldInfo)
}
QUICK = {"num_inference_steps": 4}


def predict(predictor: Predictor, **asked: Any) -> list[Path]:
    """The files of a prediction with the signature's defaults (but 4 steps), changed by what is asked."""
    given = DEFAULTS | QUICK | asked
    for name in ("image", "mask"):
        if isinstance(given[name], Path):
            given[name] = cog.Path(given[name])
    return [Path(path) for path in predictor.run(**given)]


def show(path: Path) -> Image.Image:
    """The picture in a file, decoded."""
    with Image.open(path) as image:
        image.load()
        return image.copy()
