"""A training that is ready to be run, by this process or by one per GPU: a folder with all that it needs."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from sdxl.files import ModelFiles
from trainer.config import Config

FILE = "job.json"


@dataclass(frozen=True)
class Job:
    """folder          holds examples.json and what it names; what comes out goes to `out`
    files           the model
    class_prompts   what the model draws class pictures of, `num_class_images` of them
    sample_prompts  None: captions of the training; (): no samples
    settings        what a checkpoint of this training must agree with, as JSON has it
    checkpoint      where the state is written now and then
    resume          a state to go on from
    seconds         stage -> how long it took, of those that are over
    """

    folder: Path
    files: ModelFiles
    config: Config
    class_prompts: tuple[str, ...]
    num_class_images: int
    sample_prompts: tuple[str, ...] | None
    settings: Mapping[str, Any]
    checkpoint: Path
    resume: Path | None
    seconds: Mapping[str, float]

    @property
    def out(self) -> Path:
        """Where the result goes."""
        return self.folder / "out"

    def write(self) -> None:
        """Into its folder, for another process."""
        values = {**asdict(self), "config": asdict(self.config)}
        (self.folder / FILE).write_text(json.dumps(values, indent=1, default=str))

    @classmethod
    def read(cls, folder: Path) -> "Job":
        """What `write` wrote."""
        values: dict[str, Any] = json.loads((folder / FILE).read_text())
        files = {name: Path(path) if path else None for name, path in values["files"].items()}
        config = {**values["config"], "triggers": tuple(values["config"]["triggers"])}
        prompts = values["sample_prompts"]
        known = {
            **values,
            "folder": folder,
            "files": ModelFiles(**files),  # type: ignore[arg-type]
            "config": Config(**config),
            "class_prompts": tuple(values["class_prompts"]),
            "sample_prompts": None if prompts is None else tuple(prompts),
            "checkpoint": Path(values["checkpoint"]),
            "resume": Path(values["resume"]) if values["resume"] else None,
        }
        return cls(**{each.name: known[each.name] for each in fields(cls)})
