"""A training from prepared pictures to a folder of results, step by step."""

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from errors import InputError, WeightsError
from preprocess.examples import Example, read
from sdxl.generate import memory_named
from sdxl.models import Models, load_models
from sdxl.placement import Placement
from sdxl.progress import Bar
from sdxl.stages import Stages
from trainer.checkpoint import NAME, State, restore, save
from trainer.config import Config
from trainer.drawing import draw_pictures
from trainer.job import Job
from trainer.latents import Latents
from trainer.loop import Training, training_steps
from trainer.pictures import loss_curve
from trainer.ranks import Ranks
from trainer.recorded import Recorder
from trainer.report import Course, write_report
from trainer.samples import Samples
from trainer.texts import Captions, triggers_of
from trainer.weight_files import write_replicate, write_weights

TOLD = 0.5  # seconds between two looks at the loss: on a GPU each waits for the card

Say = Callable[[str], None]
Check = Callable[[], None]


def run(job: Job, say: Say, check: Check) -> None:
    """Train, and leave weights, report and pictures in `job.out`. What `check` raises ends it between two steps, with
    the state in `job.checkpoint`."""
    ranks, stages = Ranks.joined(), Stages(job.seconds)
    prepared = read(job.folder)
    with stages.timed("load"):
        models = load(job)
    with stages.timed("class pictures"):
        classes = list(class_examples(models, job, ranks.rank, say, check))
    samples = Samples(models, job, prepared.examples) if ranks.first and job.sample_prompts != () else None
    with stages.timed("samples"):
        before = samples.before() if samples else []
    with stages.timed("latents"), memory_named("the pictures", "ask for a lower resolution"), exact():
        examples = [*prepared.examples, *classes]
        latents = Latents(models, examples, check)
    words = triggers_of(job.config.triggers, job.config.num_tokens)
    captions = Captions(models.text, [each.caption for each in examples], words)
    for number in captions.cut:
        say(f"longer than 75 tokens, what is beyond counts for nothing: {examples[number].caption!r}")
    remedy = "choose a lower resolution or train_batch_size, or gradient_checkpointing=true"
    named = memory_named(f"{job.config.train_batch_size} pictures at once", remedy)
    with stages.timed("train"), named, exact(), ranged(models), away(models.vae):
        pictures = len(prepared.examples)
        recorder = recorder_for(job.config, ranks, models.placement.device, say)
        training = Training.begin(
            models, job.config, captions, latents, pictures=pictures, ranks=ranks, recorder=recorder
        )
        course = _train(training, job, say, check)
    training.require_finite()
    trained = training.learned()
    training.finish()
    ranks.leave()
    if not ranks.first:
        return
    write_weights(job.out, trained, headers(job, training))
    if samples:
        with stages.timed("samples"):
            samples.write(before, samples.after())
    told = {**job.settings, **asdict(job.config), "sample_prompts": job.sample_prompts, "steps": training.steps}
    write_report(job.out, prepared, told, replace(course, seconds=stages.seconds))
    loss_curve(training.losses, training.pivot).save(job.out / "loss.png")


def recorder_for(config: Config, ranks: Ranks, device: torch.device, say: Say) -> Recorder | None:
    """What records the steps of a LoRA on one GPU, where SDXL_ENGINE does not forbid it: eager and diffusers do, and
    graph goes the same way on a CPU. Full fine-tuning, checkpointing and several processes launch each step anew: what
    these do in the middle of a step (casts that are kept, random states, other threads' calls) no recording may hold.
    """
    name = os.environ.get("SDXL_ENGINE") or "auto"
    wanted = name in ("auto", "compile", "graph") if device.type == "cuda" else name == "graph"
    if not wanted or not config.is_lora or config.gradient_checkpointing or ranks.count > 1:
        return None
    return Recorder(device, say)


@contextmanager
def away(module: Module) -> Iterator[None]:
    """In main memory inside: a training wants all of a GPU."""
    device = next(module.parameters()).device
    module.to("cpu")
    try:
        yield
    finally:
        module.to(device)


@contextmanager
def ranged(models: Models) -> Iterator[None]:
    """On a GPU the text encoders work in bfloat16 inside: in float16 the gradients of the rows would underflow. Once
    the captions are remembered they leave it."""
    encoders: list[Any] = [models.text.text_encoder, models.text.text_encoder_2]
    dtype, device = encoders[0].dtype, encoders[0].device
    for encoder in encoders if torch.cuda.is_available() else ():
        encoder.to(torch.bfloat16)
    try:
        yield
    finally:
        for encoder in encoders:
            encoder.to(device, dtype)


@contextmanager
def exact() -> Iterator[None]:
    """On a GPU no kernel in which threads race for who adds first, where there is a choice. For attention's gradients
    there is none: the same seed gives the same bytes on a CPU, and nearly so on a GPU."""
    before = torch.are_deterministic_algorithms_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    memory: Any = torch.utils.deterministic
    filled, memory.fill_uninitialized_memory = memory.fill_uninitialized_memory, False
    torch.use_deterministic_algorithms(torch.cuda.is_available(), warn_only=True)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warned)
        memory.fill_uninitialized_memory = filled
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn


def load(job: Job) -> Models:
    """The model without what a training does not need. On a GPU it works in bfloat16, whose range gradients need. The
    VAE keeps the type of its file, and so does a model whose UNet learns as a whole: rounding would change it.
    """
    # By number: threads read the files, and a GPU that is "the current one" is so for one thread only
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    files = replace(job.files, refiner=None, safety_checker=None)
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    models = load_models(files, Placement(device, "resident"), dtype)
    if device.type == "cuda":
        for part in models.parts.values() if job.config.is_lora else ():
            part.to(torch.bfloat16)
    return models


def class_examples(models: Models, job: Job, rank: int, say: Say, check: Check) -> Iterator[Example]:
    """Pictures of the class prompts by the model as it is, in turns: what it should go on drawing."""
    if not job.class_prompts or not job.config.prior_loss_weight:
        return
    say(f"drawing {job.num_class_images} class pictures")
    folder, side = job.folder / f"classes-{rank}", job.config.resolution
    folder.mkdir(exist_ok=True)
    prompts = [job.class_prompts[number % len(job.class_prompts)] for number in range(job.num_class_images)]
    wanted = [(prompt, job.config.seed + number) for number, prompt in enumerate(prompts)]
    for number, image in enumerate(draw_pictures(models, wanted, side)):
        check()
        path = folder / f"{number:04}.png"
        image.save(path)
        size = (image.height, image.width)
        yield Example(path.name, path, None, prompts[number], size, (0, 0), size)


def headers(job: Job, training: Training) -> dict[str, object]:
    """What the headers of the weights say of the training."""
    config = job.config
    return {
        "steps": training.steps,
        "seed": config.seed,
        "resolution": config.resolution,
        "images": training.pictures,
        "batch_size": config.train_batch_size * config.gradient_accumulation_steps * training.ranks.count,
        "unet_learning_rate": config.model_rate,
        "optimizer": config.optimizer,
        "lr_scheduler": config.lr_scheduler,
    }


def _train(training: Training, job: Job, say: Say, check: Check) -> Course:
    """All steps that are left, with a bar; the state is kept every now and then, and when it ends early."""
    start = _resumed(training, job)
    rates = [training.rates(step) for step in range(start)]
    pending, looked, done = list[Tensor](), time.monotonic(), start
    with Bar(total=training.steps, initial=start, unit="step", disable=not training.ranks.first) as bar:
        try:
            for done, loss in training_steps(training, start):
                pending.append(loss)
                rates.append(training.rates(done - 1))
                due = done % job.config.checkpointing_steps == 0
                if due or done == training.steps or time.monotonic() - looked > TOLD:
                    _tell(training, pending, bar)
                    looked = time.monotonic()
                if due:
                    _keep(training, job, done, say)
                check()
        except BaseException:
            _tell(training, pending, bar)
            if training.ranks.first and done > start and training.is_finite():
                save(training, done, job.settings, job.checkpoint)
            raise
    if training.ranks.first and job.config.save_checkpoints:
        save(training, done, job.settings, job.out / "checkpoint" / NAME)
    by_name = {name: [each[name] for each in rates] for name in training.rates(0)}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return Course(training.losses, by_name, training.pivot, {}, device)


def _resumed(training: Training, job: Job) -> int:
    """How many steps are done already."""
    if job.resume is None:
        return 0
    return restore(training, State.read(job.resume))


def _tell(training: Training, pending: list[Tensor], bar: Bar) -> None:
    """Read the losses that have come, and show the last."""
    if not pending:
        return
    training.losses += torch.stack(pending).tolist()
    last = training.losses[-1]
    bar.set_postfix_str(f"loss={last:.4f}", refresh=False)
    bar.update(len(pending))
    pending.clear()
    if not math.isfinite(last):
        first = next(step for step, loss in enumerate(training.losses, 1) if not math.isfinite(loss))
        raise InputError(f"the loss was no number any more at step {first}; choose lower learning rates.")


def _keep(training: Training, job: Job, done: int, say: Say) -> None:
    """A checkpoint for going on, and the weights so far if they are wanted."""
    if not training.ranks.first:
        return
    training.require_finite()
    try:
        save(training, done, job.settings, job.checkpoint)
    except WeightsError as error:  # the training can do without
        say(str(error))
    if job.config.save_checkpoints:
        folder = job.out / "checkpoints" / f"step-{done:06}"
        folder.mkdir(parents=True, exist_ok=True)
        write_replicate(folder, training.learned(), headers(job, training) | {"steps": done})
