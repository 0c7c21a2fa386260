"""What cog.yaml says about a package: where its entry points are and which environment they run in."""

from dataclasses import dataclass, field
from pathlib import Path

import yaml

from local.modes import PREDICT, TRAIN, Mode

ROOT = Path(__file__).resolve().parent.parent


class PackageError(Exception):
    """The package cannot be used as it is; the message says why."""


@dataclass(frozen=True)
class Package:
    """A folder with a cog.yaml."""

    folder: Path
    run: str
    train: str | None = None
    environment: dict[str, str] = field(default_factory=dict)

    def entry(self, mode: Mode) -> str:
        """The entry point of a mode."""
        found = {PREDICT: self.run, TRAIN: self.train}[mode]
        if found is None:
            path = self.folder / "cog.yaml"
            raise PackageError(f'{path} names no trainer; add a line such as train: "train.py:train"')
        return found

    @classmethod
    def load(cls, folder: Path) -> "Package":
        """Read cog.yaml; the entry points are written FILE:NAME."""
        path = folder / "cog.yaml"
        if not path.is_file():
            raise PackageError(f"{path} does not exist; name the folder of a Cog package")
        config = yaml.safe_load(path.read_text()) or {}
        run = config.get("run") or config.get("predict")
        if not run:
            raise PackageError(f'{path} names no predictor; add a line such as run: "predict.py:Predictor"')
        pairs = (entry.partition("=") for entry in config.get("environment") or [])
        return cls(folder.resolve(), run, config.get("train"), {name: value for name, _, value in pairs})
