"""The fine-tunes that a request asks for: fetched, read, remembered, folded in.

SDXL_LOCAL_FILES  files that a request may name by their path, separated as in PATH; script/predict sets it
"""

import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Literal

import weights
from errors import InputError
from fetch.answers import Stop
from fetch.sources import Tokens
from sdxl.few_step import Recipe, chosen, named, of_model
from sdxl.finetune.formats import FineTune, Reader
from sdxl.finetune.slot import Slot
from sdxl.finetune.tokens import LearnedTokens, PooledAt, combined
from sdxl.models import Models
from sdxl.request import Request
from sdxl.workers import Workers

MOST = 10  # fine-tunes in one request
SCALE = 10.0  # the largest, either way
RECENT = 2**30  # bytes of factors that are remembered, those in use and of the start among them
BOOT_SCALE = 0.6  # lora_scale's default, so that the first request finds its weights folded in
THREADS = 4  # a cancelled download that is just connecting holds one for a while
TokenPooling = Literal["auto"] | PooledAt


@dataclass(frozen=True)
class Wish:
    """A source, and at what scale. `main` is replicate_weights: it takes the place of the weights that the model was
    started with, its names are looked for on Replicate first, and a full UNet among them is used whole."""

    source: str
    scale: float
    main: bool = False


@dataclass(frozen=True)
class Used:
    """A fine-tune at its scale; `shown` is where this request got it, without tokens, queries and passwords."""

    tune: FineTune
    scale: float
    shown: str
    main: bool

    @property
    def recipe(self) -> Recipe | None:
        """Of few-step weights; what counts nothing wants nothing."""
        return (self.tune.recipe or named(self.shown)) if self.scale else None

    def settled(self, few_step: str) -> "Used":
        """At the scale that it works at. A full UNet as a model is used whole: the reference runtime knows no scale for
        it. Few-step weights were distilled at 1, and lora_scale's default was made for subjects."""
        distilled = few_step != "off" and self.scale == BOOT_SCALE and self.recipe is not None
        return replace(self, scale=1.0) if self.main and (self.tune.whole or distilled) else self


@dataclass(frozen=True)
class Tuning:
    """What is in the model, the tokens that came with it, and the recipe if it draws in few steps."""

    used: Sequence[Used]
    learned: LearnedTokens | None
    recipe: Recipe | None

    def fitted(self, request: Request) -> Request:
        """The request, with scheduler, steps and guidance as few-step weights want them, but for what it asks for."""
        return replace(request, sampling=request.sampling.fitted(self.recipe))

    def lines(self, request: Request) -> Iterator[str]:
        """What the logs should say of it."""
        prompts, sampling = request.prompts, request.sampling
        for each in self.used:
            yield f"Using weights: {each.shown} at {each.scale:g}"
            if each.tune.left_out:
                yield f"Not used of them: {', '.join(each.tune.left_out)}"
        if self.learned is not None:
            said = (prompts.prompt, prompts.negative_prompt, prompts.prompt_2, prompts.negative_prompt_2)
            words = ", ".join(self.learned.triggers)
            yield f"Learned words: {words}{'' if self.learned.named_in(*said) else '; no prompt says one of them'}"
        if self.recipe is not None:
            yield f"{self.recipe.title}: {sampling.said()}"
        if sampling.refine != "no_refiner" and any(each.tune.changes for each in self.used):
            yield "The refiner is a model of its own, without these weights; with refine=no_refiner they show most."

    def said(self) -> dict[str, object]:
        """For the picture's file."""
        return {"weights": [{"source": each.shown, "scale": each.scale} for each in self.used]} if self.used else {}


def wished(asked: SimpleNamespace) -> list[Wish]:
    """What a request asks for, in order. InputError before anything is fetched."""
    sources, scales = asked.lora_weights or [], asked.lora_scales
    if scales is not None and len(scales) != len(sources):
        raise InputError(f"lora_scales has {len(scales)} numbers for {len(sources)} lora_weights; give one for each.")
    if len(sources) > MOST:
        raise InputError(f"lora_weights has {len(sources)} entries, {MOST} are the most; leave some out.")
    for index, scale in enumerate(scales or ()):
        if not -SCALE <= scale <= SCALE:
            raise InputError(f"lora_scales[{index}]={scale} is out of range; give a number from {-SCALE} to {SCALE}.")
    if not all(source.strip() for source in sources):
        raise InputError("lora_weights has an empty entry; name a source or leave it out.")
    wishes = list(map(Wish, sources, scales or [1.0] * len(sources)))
    if asked.replicate_weights and asked.replicate_weights.strip():
        wishes.insert(0, Wish(asked.replicate_weights, asked.lora_scale, main=True))
    return wishes


class FineTunes:
    """The fine-tunes of one loaded model, which `name` names; `boot` is the source of those it was started with."""

    def __init__(self, models: Models, boot: str | None, name: str = "") -> None:
        self._reader = Reader.of(models.parts, models.placement.home(), models.base.dtype)
        self._slot = Slot(models.parts, models.text.clear)
        self._workers = Workers(THREADS, "fetch")
        self._stopper = Workers(1, "stop")  # setting an event takes locks, which a prediction must not
        self._recent: OrderedDict[tuple[str, str], FineTune] = OrderedDict()
        weights.fine_tune_store().sweep()
        self._own = of_model(name, models.scheduler_config)
        self._boot: Used | None = None
        if boot:
            wish = Wish(boot, BOOT_SCALE, main=True)
            self._boot = _used(wish, *self._read(wish, _boot_tokens(), Stop(), local=True))
            self._remember(self._boot.tune)
            at_start = self._boot.settled("auto")
            self._slot.set([(at_start.tune, at_start.scale)])

    def use(
        self,
        wishes: Sequence[Wish],
        tokens: Tokens,
        *,
        boot_scale: float,
        token_pooling: TokenPooling,
        few_step: str = "auto",
    ) -> Tuning:
        """Bring the model into the state that a request asks for: its wishes, on top of the weights that the model was
        started with unless one of them takes their place. Whole or not at all.
        """
        used = self._fetched(wishes, tokens)
        if self._boot is not None and not any(wish.main for wish in wishes):
            used.insert(0, replace(self._boot, scale=boot_scale))
        used = [each.settled(few_step) for each in used]
        self._slot.set([(each.tune, each.scale) for each in used])
        learned = combined([each.tune.learned for each in used if each.tune.learned])
        if learned is not None and token_pooling != "auto":
            learned = replace(learned, pooled_at=token_pooling)
        own = None if any(each.main and each.tune.whole for each in used) else self._own
        return Tuning(used, learned, chosen(few_step, [*(each.recipe for each in used), own]))

    def _fetched(self, wishes: Sequence[Wish], tokens: Tokens) -> list[Used]:
        """All of them, fetched at the same time; a cancel ends the downloads."""
        stop = Stop()
        try:
            jobs = [self._workers.submit(partial(self._read, wish, tokens, stop)) for wish in wishes]
            used = [_used(wish, *job.result()) for wish, job in zip(wishes, jobs, strict=True)]
        except BaseException:
            self._stopper.submit(stop.set)
            raise
        for each in used:
            self._remember(each.tune)
        while len(self._recent) > len(used) and sum(tune.size() for tune in self._recent.values()) > RECENT:
            self._recent.popitem(last=False)
        return used

    def _remember(self, tune: FineTune) -> None:
        self._recent[tune.key, tune.name] = tune
        self._recent.move_to_end((tune.key, tune.name))

    def _read(self, wish: Wish, tokens: Tokens, stop: Stop, *, local: bool = False) -> tuple[FineTune, str]:
        """The fine-tune and where it came from; on another thread."""
        first: Literal["replicate", "huggingface"] = "replicate" if wish.main else "huggingface"
        source = wish.source.strip()
        with weights.fine_tune(
            source, tokens=tokens, first=first, stop=stop, local=local or weights.local_files()
        ) as files:
            return self._recent.get((files.key, files.name)) or self._reader.read(files), files.shown


def _used(wish: Wish, tune: FineTune, shown: str) -> Used:
    return Used(tune, wish.scale, shown, wish.main)


def _boot_tokens() -> Tokens:
    """The operator's own, out of the environment."""
    huggingface, civitai, replicate = map(os.environ.get, ("HF_TOKEN", "CIVITAI_API_TOKEN", "REPLICATE_API_TOKEN"))
    return Tokens(huggingface=huggingface, civitai=civitai, replicate=replicate)
