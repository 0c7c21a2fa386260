"""A quick training for the tests of gateway/."""

import hashlib
import json
import os
import pathlib
import tempfile
import time

from cog import BaseModel, Input, Path


class TrainingOutput(BaseModel):
    weights: Path


def train(
    input_images: Path = Input(description="Any file; its digest is the weights."),
    seconds: float = Input(description="How long it takes.", ge=0, le=600, default=0),
    note: str = Input(description="Given back, where it should be an address of a file.", default=""),
) -> TrainingOutput:
    if log := os.environ.get("TOY_LOG"):
        with open(log, "a") as file:  # noqa: PTH123
            file.write(f"train {time.time()} {note}\n")
    for _ in range(round(20 * seconds)):
        time.sleep(0.05)  # a cancel is heard between two sleeps
    path = pathlib.Path(tempfile.mkdtemp()) / "trained_model.tar"
    path.write_text(json.dumps({"digest": hashlib.sha256(pathlib.Path(input_images).read_bytes()).hexdigest()}))
    if os.environ.get("SDXL_RESULT_PATHS") == "1":
        return TrainingOutput(weights=note or path.as_uri())
    return TrainingOutput(weights=Path(path))
