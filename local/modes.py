"""The two things that a server does, one at a time, and all that differs between them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mode:
    """What is said and asked for in one mode; the words are those of coglet and of Cog's CLI."""

    verb: str  # of coglet's --x-mode, and of the script
    noun: str
    doing: str
    component: str  # of the schema: the inputs
    stub: str  # the environment variable that tells coglet the entry point
    output: str  # what a single file of the output is called
    prefix: str  # of the names of components

    @property
    def route(self) -> str:
        """The path on the server, without slashes."""
        return f"{self.noun}s"


PREDICT = Mode(
    verb="predict",
    noun="prediction",
    doing="predicting",
    component="Input",
    stub="COG_PREDICT_TYPE_STUB",
    output="output",
    prefix="",
)
TRAIN = Mode(
    verb="train",
    noun="training",
    doing="training",
    component="TrainingInput",
    stub="COG_TRAIN_TYPE_STUB",
    output="trained_model.tar",
    prefix="Training",
)
MODES = {mode.verb: mode for mode in (PREDICT, TRAIN)}
