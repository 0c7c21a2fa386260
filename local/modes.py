"""The two things that a server does, one at a time, and all that differs between them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mode:
    """The words are those of Cog's CLI and of coglet.

    verb       what the script and coglet's mode are called
    noun       what a request is; with an s it is the path on the server
    prefix     what the names of the schema's components begin with
    stub       the variable by which coglet is told the entry point
    doing      what is going on
    output     what the output's file is called, without its ending
    shown      what it is called in the end, usually
    by_path    whether a server of our own is given the paths of files: those of a training may be larger than requests
    kept       how many requests' folders stay below coglet's: their answers may still be on the way
    """

    verb: str
    noun: str
    prefix: str
    stub: str
    doing: str
    output: str
    shown: str
    by_path: bool
    kept: int

    @property
    def route(self) -> str:
        """The path on the server."""
        return f"/{self.noun}s"

    @property
    def component(self) -> str:
        """The schema of the inputs."""
        return f"{self.prefix}Input"


PREDICT = Mode(
    verb="predict",
    noun="prediction",
    prefix="",
    stub="COG_PREDICT_TYPE_STUB",
    doing="predicting",
    output="output",
    shown="output.0.png ...",
    by_path=False,
    kept=8,
)
TRAIN = Mode(
    verb="train",
    noun="training",
    prefix="Training",
    stub="COG_TRAIN_TYPE_STUB",
    doing="training",
    output="trained_model",
    shown="trained_model.tar",
    by_path=True,
    kept=2,
)
MODES = {mode.verb: mode for mode in (PREDICT, TRAIN)}
