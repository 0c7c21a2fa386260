"""What a training has changed, to look at: the same prompts and seeds before and after, beside what was trained on."""

from collections.abc import Sequence

from PIL import Image

from preprocess.examples import Example
from sdxl.files import TunedFiles
from sdxl.finetune.formats import Reader
from sdxl.finetune.slot import Slot
from sdxl.finetune.tokens import LearnedTokens
from sdxl.models import Models
from trainer.drawing import draw_pictures
from trainer.job import Job
from trainer.pictures import sample_grid

COUNT = 4  # pictures in a row, where nobody asks for others


class Samples:
    """Of one training. The result is read back by what serves predictions: nothing leaves that cannot be used."""

    def __init__(self, models: Models, job: Job, examples: Sequence[Example]) -> None:
        self._models, self._job, self._examples = models, job, examples[:COUNT]
        own = list(dict.fromkeys(example.caption for example in examples))[:COUNT]
        self.prompts = own if job.sample_prompts is None else list(job.sample_prompts)

    def before(self) -> list[Image.Image]:
        """By the model as it is."""
        return self._draw(None)

    def after(self) -> list[Image.Image]:
        """By the model with the result folded in, which it is left with."""
        models = self._models
        reader = Reader.of(models.parts, models.placement.home(), models.base.dtype)
        tune = reader.read(TunedFiles("0" * 64, self._job.out, "", "the result"))
        Slot(models.parts, models.text.clear).set([(tune, 1.0)])
        return self._draw(tune.learned)

    def write(self, before: Sequence[Image.Image], after: Sequence[Image.Image]) -> None:
        """Each picture, and all of them in a grid."""
        folder = self._job.out / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        for name, row in (("before", before), ("after", after)):
            for number, image in enumerate(row):
                image.save(folder / f"{name}-{number}.png")
        trained = [Image.open(example.image).convert("RGB") for example in self._examples]
        rows = {"trained on": trained, "before": before, "after": after}
        sample_grid(rows, self.prompts).save(self._job.out / "samples.png")

    def _draw(self, learned: LearnedTokens | None) -> list[Image.Image]:
        wanted = [(prompt, self._job.config.seed + number) for number, prompt in enumerate(self.prompts)]
        return list(draw_pictures(self._models, wanted, self._models.native, learned))
