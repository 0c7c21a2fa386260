"""Cog's entry point for trainings. Cog reads the signature without running it: everything in it is a literal."""

import contextvars
import fcntl
import hashlib
import json
import os
import pathlib
import re
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, fields, replace
from functools import partial
from types import SimpleNamespace
from typing import Any, Optional, cast

import torch
from cog import BaseModel, Input, Path
from transformers.utils.logging import disable_progress_bar

import weights
from errors import InputError, reported
from fetch import answers
from fetch.disk import read_ahead
from fetch.inputs import guard_downloads
from fetch.sources import Tokens
from limits import checked, stated
from preprocess import prepare
from preprocess.archive import unpack
from preprocess.wishes import Wishes
from sdxl.files import ModelFiles
from sdxl.finetune.tokens import whole_word
from sdxl.models import narrower, native_side
from sdxl.workers import Stop, beside
from trainer.archive import pack
from trainer.checkpoint import NAME, State, place, require_same, sweep
from trainer.config import Config
from trainer.job import Job
from trainer.launch import train as train_job

SCRATCH, LOCK = "sdxl-training-", ".lock"  # a folder for each training that goes on
LOOK = 0.1  # seconds in which a cancel reaches a download
RESULTS = "sdxl-trained-"  # a folder for each result; coglet reads it after train() is over
LARGEST = 2 << 30  # bytes of an archive of pictures
DOCUMENTED = 512  # pixels of resolution, where the model is made for more
RATES = {"unet_learning_rate": 1e-6, "ti_lr": 3e-4, "lora_lr": 1e-4}  # the defaults

# In train mode no setup() runs, and coglet fetches what inputs name before train() does.
guard_downloads(beside, allow_private=os.environ.get("SDXL_PRIVATE_INPUTS") == "1", most=LARGEST)


class TrainingOutput(BaseModel):
    """What clients read: `training.output["weights"]`."""

    weights: Path


def train(
    input_images: Path = Input(
        description="A .zip or .tar (plain or gzip) of the pictures to learn from: 5 to 50 are usual. Captions may lie beside them: NAME.txt, caption.csv or metadata.jsonl; masks as NAME.mask.png."
    ),
    seed: Optional[int] = Input(
        description="The same seed gives the same weights: bit for bit on a CPU, as near as its kernels allow on a GPU. Blank: a random one, which the log names.",
        ge=0,
        le=4294967295,
        default=None,
    ),
    resolution: Optional[int] = Input(
        description="Side in pixels of the squares that are trained on, or of squares as large as what buckets hold; a multiple of 8. Blank: 512, and 128 for the miniature.",
        ge=64,
        le=2048,
        default=None,
    ),
    train_batch_size: int = Input(description="Pictures per step and GPU.", ge=1, le=64, default=4),
    num_train_epochs: int = Input(
        description="How often to go through all pictures. Counts where max_train_steps is 0.",
        ge=1,
        le=100000,
        default=4000,
    ),
    max_train_steps: int = Input(
        description="Steps to train, exactly. Takes precedence over num_train_epochs; 0: that one decides.",
        ge=0,
        le=1000000,
        default=1000,
    ),
    is_lora: bool = Input(
        description="Train a LoRA. False: fine-tune the whole UNet, which gives a file of 5 GB and takes a GPU of 48 GB or more (less with optimizer=adamw8bit and gradient_checkpointing).",
        default=True,
    ),
    unet_learning_rate: float = Input(
        description="Learning rate of the UNet in full fine-tuning: 1e-6 to 1e-5. 0: it does not learn. The default is SDXL's; for the miniature it stands for 13 times as much.",
        ge=0,
        le=1,
        default=1e-6,
    ),
    ti_lr: float = Input(
        description="Learning rate of the new tokens (textual inversion). 0: they stay as they start. The default is SDXL's; for the miniature it stands for 13 times as much.",
        ge=0,
        le=1,
        default=3e-4,
    ),
    lora_lr: float = Input(
        description="Learning rate of the LoRA. 0: the tokens alone learn. The default is SDXL's; for the miniature it stands for 13 times as much.",
        ge=0,
        le=1,
        default=1e-4,
    ),
    lora_rank: int = Input(
        description="Rank of the LoRA: 4 to 128 are usual; more can learn more.", ge=1, le=512, default=32
    ),
    lr_scheduler: str = Input(
        description="How learning rates go on after the first steps: constant; linear to 0; along a cosine to 0.",
        choices=["constant", "linear", "cosine"],
        default="constant",
    ),
    lr_warmup_steps: int = Input(
        description="Steps in which the learning rates of linear and cosine rise from 0; constant has none.",
        ge=0,
        le=100000,
        default=100,
    ),
    token_string: str = Input(
        description="The word that is to call what the pictures show; rare ones such as TOK work best. Several, separated by commas, learn apart where captions say them.",
        default="TOK",
    ),
    caption_prefix: str = Input(
        description="What the captions of BLIP begin with, and those in which no token_string is said; must hold it. The default stands for 'a photo of' and your token_string.",
        default="a photo of TOK",
    ),
    mask_target_prompts: Optional[str] = Input(
        description="What in the pictures matters, such as 'a photo of a dog': the rest then counts less. Several, separated by |.",
        default=None,
    ),
    crop_based_on_salience: bool = Input(
        description="Cut squares around what matters (mask_target_prompts, faces or masks; else the middle). False: see aspect_ratio_buckets.",
        default=True,
    ),
    use_face_detection_instead: bool = Input(
        description="Let faces be what matters, instead of mask_target_prompts.", default=False
    ),
    clipseg_temperature: float = Input(
        description="How blurred masks of mask_target_prompts are: 0.5 to 1 are usual; less is sharper, and errs more.",
        ge=0.01,
        le=100,
        default=1.0,
    ),
    verbose: bool = Input(description="Write into the log what each picture's caption and size are.", default=True),
    checkpointing_steps: int = Input(
        description="Steps between checkpoints, from which resume_from goes on; a cancelled training leaves its last one.",
        ge=1,
        le=10000000,
        default=200,
    ),
    input_images_filetype: str = Input(
        description="What input_images is; infer looks at the content.",
        choices=["zip", "tar", "infer"],
        default="infer",
    ),
    num_tokens: int = Input(
        description="New tokens that each word of token_string stands for.", ge=1, le=32, default=2
    ),
    pivot: float = Input(
        description="Share of the steps in which the tokens learn, with the LoRA; afterwards the LoRA learns alone.",
        ge=0,
        le=1,
        default=0.5,
    ),
    lora_alpha: Optional[float] = Input(
        description="The LoRA counts alpha / rank times in training; the files come out so that scale 1 is that. Blank: the rank.",
        ge=0.01,
        le=4096,
        default=None,
    ),
    min_lora_scale: float = Input(
        description="The LoRA is trained at scales from this to 1, so that it works at all of them: Replicate's lora_scale is 0.6 if nobody says otherwise, other tools use 1. 1: at 1 alone.",
        ge=0.1,
        le=1,
        default=0.6,
    ),
    lora_feed_forward: bool = Input(
        description="A LoRA on the feed-forward layers too: it learns more, in a larger file. The oldest loaders use its attention part only.",
        default=False,
    ),
    aspect_ratio_buckets: bool = Input(
        description="Where crop_based_on_salience is False: keep the pictures' shapes, in groups of equal size. False: squares from the middle.",
        default=True,
    ),
    optimizer: str = Input(
        description="adamw8bit holds its state in 8 bits; prodigy finds the learning rates itself, of those given only 0 counts.",
        choices=["adamw", "adamw8bit", "prodigy"],
        default="adamw",
    ),
    gradient_accumulation_steps: int = Input(
        description="Batches whose gradients make one step: larger batches in the same memory.", ge=1, le=256, default=1
    ),
    gradient_checkpointing: bool = Input(
        description="Compute twice what would be kept: a third slower, in far less memory.", default=False
    ),
    max_grad_norm: float = Input(
        description="Longer gradients are cut to this norm. 0: never.", ge=0, le=1000, default=1.0
    ),
    snr_gamma: float = Input(
        description="Min-SNR weighting of the timesteps (arXiv 2303.09556); 5 is usual. 0: all count the same.",
        ge=0,
        le=100,
        default=5.0,
    ),
    noise_offset: float = Input(
        description="Noise common to a whole channel, for very dark and bright pictures: 0.05 is usual.",
        ge=0,
        le=1,
        default=0.0,
    ),
    caption_dropout: float = Input(
        description="Share of the captions that are left out, so that guidance keeps its ground.",
        ge=0,
        le=1,
        default=0.05,
    ),
    ema_decay: float = Input(
        description="Give out the average of the weights, which forgets by this per step: 0.99 is usual. 0: the last ones.",
        ge=0,
        le=0.9999,
        default=0.0,
    ),
    class_prompt: Optional[str] = Input(
        description="Prior preservation: what the model should go on drawing as before, such as 'a photo of a dog'. It draws class pictures of it first. Several, separated by |.",
        default=None,
    ),
    num_class_images: int = Input(description="How many pictures class_prompt has it draw.", ge=1, le=1000, default=32),
    prior_loss_weight: float = Input(
        description="What the class pictures count, beside the 1 of yours.", ge=0, le=10, default=1.0
    ),
    sample_prompts: Optional[str] = Input(
        description="Prompts of the sample pictures in the result, before and after, separated by |. Blank: captions of the training; 'none': no samples.",
        default=None,
    ),
    save_checkpoints: bool = Input(
        description="Put the weights of every checkpoint into the result, under checkpoints/, and the last state for resume_from.",
        default=False,
    ),
    resume_from: Optional[str] = Input(
        description="Go on from a checkpoint: 'last' is that of a cancelled or failed training of the same pictures and settings on this machine; or the URL of a result with save_checkpoints. With more max_train_steps, what is a share of the steps moves: pivot, linear, cosine.",
        default=None,
    ),
) -> TrainingOutput:
    """Weights that draw what the pictures show: a LoRA, or the whole UNet, and new words for it."""
    with reported():
        return TrainingOutput(weights=_given_out(beside(partial(_train, checked(LIMITS, locals())))))


def _given_out(result: pathlib.Path) -> Path:
    """What coglet sends on: the file, in base64 in its answer. With SDXL_RESULT_PATHS=1, for who sees this disk, the
    address of it: a whole UNet is 5 GB."""
    by_path = os.environ.get("SDXL_RESULT_PATHS") == "1"
    return cast(Path, result.as_uri()) if by_path else Path(result)


def _train(asked: SimpleNamespace, stop: Stop) -> pathlib.Path:
    """A training, step by step: check, unpack, prepare, fetch, train, pack. What it has used is gone at the end."""
    started, model = time.perf_counter(), os.environ.get("SDXL_MODEL")
    # The log has one bar, that of the steps: clients read the progress from it
    disable_progress_bar()  # type: ignore[no-untyped-call]
    _require_ordinary(asked)
    local = weights.resolve(model) if weights.local_folder(model) else None
    side = asked.resolution or (min(DOCUMENTED, native_side(local)) if local else DOCUMENTED)
    wishes, config = _wishes(asked, side), _config(asked, side, narrower(local) if local else 1.0)
    archive = _received("input_images", asked.input_images)
    with ExitStack() as held:
        folder, cut = held.enter_context(_scratch()), held.enter_context(_cut(stop))
        unpacked = unpack(archive, asked.input_images_filetype, folder / "unpacked", check=stop.check)
        settings = _settings(asked, wishes, config)
        checkpoint = place(weights.cache_root() / "trainings", [_digest(archive), model or "sdxl-1.0"], settings)
        resume = _resumed(asked, checkpoint, settings, held, cut)
        if resume and asked.seed is None:
            config = replace(config, seed=State.read(resume).seed)
        print(f"Using seed: {config.seed}")
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        files = held.enter_context(_on_its_way(model, cut))
        helper = partial(weights.helper, model, stop=cut)
        prepared = prepare(unpacked, wishes, helper, folder, device, say=print, check=stop.check)
        for example in prepared.examples if asked.verbose else ():
            print(f"{example.name}: {example.size[1]}x{example.size[0]}, {example.caption}")
        seconds = {"prepare": round(time.perf_counter() - started, 3)}
        job = Job(
            folder=folder,
            files=files.result(),
            config=config,
            class_prompts=_listed(asked.class_prompt) or (),
            num_class_images=asked.num_class_images,
            sample_prompts=() if _is_none(asked.sample_prompts) else _listed(asked.sample_prompts),
            settings=settings,
            checkpoint=checkpoint,
            resume=resume,
            seconds=seconds,
        )
        train_job(job, print, stop.check)
        result = _result_folder() / "trained_model.tar"
        pack(job.out, result)
        shutil.rmtree(checkpoint.parent, ignore_errors=True)  # what was learned is in the result
    return result


LIMITS = stated(train)


def _wishes(asked: SimpleNamespace, side: int) -> Wishes:
    """What is asked of the pictures."""
    given: dict[str, Any] = {each.name: getattr(asked, each.name, None) for each in fields(Wishes)}
    return Wishes(**given | {"triggers": _triggers(asked), "resolution": side})


def _config(asked: SimpleNamespace, side: int, narrower: float) -> Config:
    """What is asked of the training; a blank seed is drawn. The documented learning rates are SDXL's: left as they are,
    they stand for those of a model so much narrower (arXiv 2203.03466: rates go with 1 / width)."""
    settled = {
        **{name: rate * narrower for name, rate in RATES.items() if getattr(asked, name) == rate},
        "triggers": _triggers(asked),
        "resolution": side,
        "lora_alpha": float(asked.lora_rank if asked.lora_alpha is None else asked.lora_alpha),
        "seed": secrets.randbelow(2**32) if asked.seed is None else asked.seed,
    }
    values: dict[str, Any] = {each.name: getattr(asked, each.name, None) for each in fields(Config)}
    return Config(**values | settled)


def _settings(asked: SimpleNamespace, wishes: Wishes, config: Config) -> dict[str, Any]:
    """What a checkpoint must agree with: all that changes what a step does, as JSON has it."""
    classes = {name: getattr(asked, name) for name in ("class_prompt", "num_class_images") if asked.class_prompt}
    found: dict[str, Any] = json.loads(json.dumps(asdict(wishes) | config.settings() | classes))
    return found


def _require_ordinary(asked: SimpleNamespace) -> None:
    """class_prompt is for what the model knows already."""
    for word in _triggers(asked):
        if word and re.search(whole_word(word), asked.class_prompt or "", re.IGNORECASE):
            raise InputError(f"class_prompt says {word!r}, the word to be learned; name what the model draws already.")


def _triggers(asked: SimpleNamespace) -> tuple[str, ...]:
    return tuple(word.strip() for word in asked.token_string.split(","))


def _is_none(text: Optional[str]) -> bool:
    return (text or "").strip().lower() == "none"


def _listed(text: Optional[str]) -> Optional[tuple[str, ...]]:
    """The parts of a text between |; None if it is blank."""
    parts = tuple(part.strip() for part in (text or "").split("|") if part.strip())
    return parts or None


def _received(name: str, path: object) -> pathlib.Path:
    """The file that coglet has fetched. What is no upload and no URL it passes on as a string."""
    if isinstance(path, Path) or pathlib.Path(str(path)) in weights.local_files():
        return pathlib.Path(str(path))
    raise InputError(f"{name}: {str(path)[:80]!r} is no file; send an http(s) URL or a data: URL.")


def _resumed(
    asked: SimpleNamespace, last: pathlib.Path, settings: Mapping[str, Any], held: ExitStack, cut: answers.Stop
) -> Optional[pathlib.Path]:
    """The state to go on from, if that is asked: the last one here, or that in the result of another training."""
    sweep(last)
    source = (asked.resume_from or "").strip()
    if not source:
        return None
    if source == "last" and not last.is_file():
        raise InputError("resume_from='last': no training of these pictures and settings has ended early here.")
    path = last if source == "last" else _fetched_state(source, held, cut)
    require_same(State.read(path), settings, asked.seed)
    return path


def _fetched_state(source: str, held: ExitStack, cut: answers.Stop) -> pathlib.Path:
    """The state in the result of a training with save_checkpoints."""
    fetched = weights.fine_tune(source, tokens=Tokens(), first="replicate", stop=cut, local=weights.local_files())
    files = held.enter_context(fetched)
    found = next(files.folder.rglob(NAME), None)
    if found is None:
        raise InputError(f"resume_from: {files.shown} holds no checkpoint/{NAME}; give a result with save_checkpoints.")
    return found


@contextmanager
def _cut(stop: Stop) -> Iterator[answers.Stop]:
    """What ends every download once the training is asked to stop, or leaves this: a thread looks."""
    cut, left = answers.Stop(), threading.Event()

    def look() -> None:
        while not (stop.asked or left.wait(LOOK)):
            pass
        cut.set()

    looking = threading.Thread(target=look, name="cut", daemon=True)
    looking.start()
    try:
        yield cut
    finally:
        left.set()
        looking.join()


@contextmanager
def _on_its_way(model: Optional[str], cut: answers.Stop) -> Iterator[Future[ModelFiles]]:
    """The model's files, fetched while the pictures are prepared. No more than fetched: modules are not built by two
    threads, since what builds them replaces functions of torch meanwhile."""
    context = contextvars.copy_context()  # prints find their training by it
    with ThreadPoolExecutor(1, "fetch") as pool:
        try:
            yield pool.submit(context.run, _fetched, model, cut)
        finally:
            cut.set()


def _fetched(model: Optional[str], cut: answers.Stop) -> ModelFiles:
    """What a training needs of the model. The kernel is asked to read it now, not when the model is loaded."""
    files = weights.resolve(model, parts=("base", "vae"), stop=cut)
    read_ahead(files.base)
    return files


@contextmanager
def _scratch() -> Iterator[pathlib.Path]:
    """A folder for as long as the training lasts; those of killed ones, which nobody locks any more, go."""
    root = pathlib.Path(tempfile.gettempdir())
    for lock in root.glob(f"{SCRATCH}*/{LOCK}"):
        with suppress(OSError), lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.parent, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=SCRATCH, ignore_cleanup_errors=True) as folder:
        path = pathlib.Path(folder)
        with (path / LOCK).open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            (path / "out").mkdir()
            yield path


def _result_folder() -> pathlib.Path:
    """A fresh one; that of this process's training before goes, for coglet removes none."""
    own = f"{RESULTS}{os.getpid()}-"
    for old in pathlib.Path(tempfile.gettempdir()).glob(f"{own}*"):
        shutil.rmtree(old, ignore_errors=True)
    return pathlib.Path(tempfile.mkdtemp(prefix=own))


def _digest(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
