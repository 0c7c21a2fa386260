"""The pictures in the README and how-to: `python -m benchmarks.samples` draws them with the miniature, through the
predictor."""

import os
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from predict import Predictor
from tests.predicting import predict, show

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
HEARTS = str(ROOT / "examples" / "heart.tar")
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


TUNED = [
    "a red TOK on a blue background",
    "a large yellow TOK on a black background",
    "a green circle on a white background",
]
SCALES = (None, 0.2, 0.4, 0.6)  # None: without the weights


def draw(predictor: Predictor, **asked: Any) -> Image.Image:
    """One picture of 20 steps."""
    return show(predict(predictor, **{"seed": 5, "num_inference_steps": 20} | asked)[0])


def sheet(pictures: list[Image.Image], columns: int) -> Image.Image:
    """Side by side, row by row."""
    rows = -(-len(pictures) // columns)
    page = Image.new("RGB", (columns * (SIDE + GAP) - GAP, rows * (SIDE + GAP) - GAP), "white")
    for number, picture in enumerate(pictures):
        page.paste(picture, (number % columns * (SIDE + GAP), number // columns * (SIDE + GAP)))
    return page


def plain(predictor: Predictor) -> list[Image.Image]:
    """Ten prompts, and one picture of them repainted: before, and after with the mask on its right half."""
    pictures = [draw(predictor, **asked) for asked in PROMPTS]
    with tempfile.TemporaryDirectory() as name:
        image, mask = Path(name) / "image.png", Path(name) / "mask.png"
        pair = pictures[6]
        pair.save(image)
        hole = Image.new("L", pair.size, 0)
        hole.paste(255, (64, 0, 128, 128))
        hole.save(mask)
        prompt = "a red circle and a yellow star on a white background"
        repainted = draw(predictor, image=image, mask=mask, prompt=prompt, prompt_strength=1)
    return [*pictures, hole.convert("RGB"), repainted]


def tuned(predictor: Predictor) -> list[Image.Image]:
    """A row for each prompt: without the fine-tune, and with it at growing scales."""
    weights = [{} if scale is None else {"replicate_weights": HEARTS, "lora_scale": scale} for scale in SCALES]
    return [draw(predictor, prompt=prompt, guidance_scale=5, **asked) for prompt in TUNED for asked in weights]


def main() -> None:
    """Two pages."""
    os.environ |= {"SDXL_MODEL": "miniature", "SDXL_LOCAL_FILES": HEARTS}
    predictor = Predictor()
    predictor.setup()
    IMAGES.mkdir(exist_ok=True)
    sheet(plain(predictor), COLUMNS).save(IMAGES / "samples.png")
    sheet(tuned(predictor), len(SCALES)).save(IMAGES / "fine-tunes.png")


if __name__ == "__main__":
    main()
