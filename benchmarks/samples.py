"""The picture in the README: `python -m benchmarks.samples` draws it with the miniature, through the predictor."""

import os
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from predict import Predictor
from tests.predicting import predict, show

PAGE = Path(__file__).resolve().parent.parent / "docs" / "images" / "samples.png"
SIDE, GAP, COLUMNS = 128, 6, 6
REFINED = {"refine": "expert_ensemble_refiner"}

PROMPTS: list[dict[str, Any]] = [
    {"prompt": "a red circle on a blue background"},
    {"prompt": "a green square on a white background", **REFINED},
    {"prompt": "a yellow star on a black background", **REFINED},
    {"prompt": "a white triangle on a purple background"},
    {"prompt": "three blue circles on a yellow background", **REFINED},
    {"prompt": "two red squares on a white background", **REFINED},
    {"prompt": "a red circle and a blue square on a white background", **REFINED},
    {"prompt": "a yellow triangle and a green star on a black background", **REFINED},
    {"prompt": "a small orange square at the top on a blue background"},
    {"prompt": "a large purple circle on the left on a green background", **REFINED},
]


def main() -> None:
    """Ten prompts, and one picture of them repainted: before, and after with the mask on its right half."""
    os.environ["SDXL_MODEL"] = "miniature"
    predictor = Predictor()
    predictor.setup()
    pictures = [show(predict(predictor, seed=5, num_inference_steps=20, **asked)[0]) for asked in PROMPTS]
    with tempfile.TemporaryDirectory() as name:
        image, mask = Path(name) / "image.png", Path(name) / "mask.png"
        pair = pictures[6]
        pair.save(image)
        hole = Image.new("L", pair.size, 0)
        hole.paste(255, (64, 0, 128, 128))
        hole.save(mask)
        asked = {"image": image, "mask": mask, "prompt": "a red circle and a yellow star on a white background"}
        (repainted,) = predict(predictor, seed=5, num_inference_steps=20, prompt_strength=1, **asked)
        pictures += [hole.convert("RGB"), show(repainted)]
    rows = -(-len(pictures) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (SIDE + GAP) - GAP, rows * (SIDE + GAP) - GAP), "white")
    for number, picture in enumerate(pictures):
        sheet.paste(picture, (number % COLUMNS * (SIDE + GAP), number // COLUMNS * (SIDE + GAP)))
    PAGE.parent.mkdir(exist_ok=True)
    sheet.save(PAGE)


if __name__ == "__main__":
    main()
