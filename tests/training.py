"""Trainings in tests: pictures of the drawn world as the preparation leaves them, and a job with everything stated."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

import weights
from miniature.world import HEART, Thing, caption, render, sample_scene
from preprocess.examples import Example, Prepared, write
from trainer.config import Config
from trainer.job import Job
from trainer.run import run

SQUARE = (128, 128)


def config(**asked: Any) -> Config:
    """Short and strong; what is not asked is as train.py's defaults have it."""
    values: dict[str, Any] = {
        "seed": 0,
        "resolution": 128,
        "train_batch_size": 2,
        "num_train_epochs": 4000,
        "max_train_steps": 4,
        "is_lora": True,
        "unet_learning_rate": 1e-4,
        "ti_lr": 4e-3,
        "lora_lr": 2e-3,
        "lora_rank": 4,
        "lora_alpha": 4.0,
        "min_lora_scale": 0.6,
        "lora_feed_forward": False,
        "lr_scheduler": "constant",
        "lr_warmup_steps": 0,
        "triggers": ("TOK",),
        "num_tokens": 2,
        "pivot": 0.5,
        "optimizer": "adamw",
        "gradient_accumulation_steps": 1,
        "gradient_checkpointing": False,
        "max_grad_norm": 1.0,
        "snr_gamma": 5.0,
        "noise_offset": 0.0,
        "caption_dropout": 0.05,
        "ema_decay": 0.0,
        "prior_loss_weight": 1.0,
        "checkpointing_steps": 1000,
        "save_checkpoints": False,
    }
    return Config(**values | asked)


def job(
    folder: Path, *, count: int = 4, sizes: tuple[tuple[int, int], ...] = (SQUARE,), masks: bool = False, **asked: Any
) -> Job:
    """A job over hearts in these sizes, (height, width), in turns. What is no field of Job is one of Config."""
    (folder / "out").mkdir(parents=True)
    write(Prepared(tuple(hearts(folder, count, sizes, masks=masks)), (), ()), folder)
    own = {"class_prompts", "num_class_images", "sample_prompts", "checkpoint", "resume"}
    values: dict[str, Any] = {
        "folder": folder,
        "files": weights.resolve("miniature"),
        "config": config(**{name: value for name, value in asked.items() if name not in own}),
        "class_prompts": (),
        "num_class_images": 4,
        "sample_prompts": (),
        "settings": {},
        "checkpoint": folder / "checkpoint" / "state.safetensors",
        "resume": None,
        "seconds": {},
    }
    return Job(**values | {name: value for name, value in asked.items() if name in own})


def hearts(folder: Path, count: int, sizes: tuple[tuple[int, int], ...], *, masks: bool) -> list[Example]:
    """Pictures with captions that say TOK, and the left half as mask if wanted."""
    order, found = random.Random(1), []
    for number in range(count):
        height, width = sizes[number % len(sizes)]
        scene = sample_scene(order, "plain")
        scene = replace(scene, things=(Thing(HEART, scene.things[0].color),))
        image = folder / f"{number}.png"
        render(scene, order, width, height).save(image)
        mask = folder / f"{number}.mask.png" if masks else None
        if mask is not None:
            half = Image.new("L", (width, height), 0)
            ImageDraw.Draw(half).rectangle((0, 0, width // 2 - 1, height), 255)
            half.save(mask)
        text = caption(scene).replace(HEART, "TOK")
        found.append(Example(image.name, image, mask, text, (height * 2, width * 2), (3, 5), (height, width)))
    return found


def trained(folder: Path, check: Callable[[], None] = lambda: None, **asked: Any) -> dict[str, bytes]:
    """Run a job to its end; the files it leaves."""
    made = job(folder, **asked)
    run(made, lambda _: None, check)
    return files(made.out)


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder by its name there."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
