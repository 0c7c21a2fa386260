"""Trainings of the miniature, from prepared pictures to files: what they do, how often, and that it can be repeated."""

import json
import math
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load

from errors import InputError, WeightsError
from preprocess.examples import read
from sdxl.finetune.tokens import LearnedTokens
from sdxl.generate import encode_image
from sdxl.models import Models
from tests.painting import difference
from tests.training import SQUARE, config, files, job, trained
from trainer.checkpoint import State
from trainer.latents import Latents, time_ids
from trainer.loop import Training, training_steps
from trainer.loss import draw
from trainer.ranks import Ranks
from trainer.run import load as load_job
from trainer.run import run
from trainer.samples import Samples
from trainer.texts import Captions, triggers_of

WEIGHTS = ("lora.safetensors", "embeddings.pti", "TOK.safetensors", "lora_kohya.safetensors", "lora_peft.safetensors")


class StopError(Exception):
    """The training was cancelled."""


def weights_of(found: dict[str, bytes]) -> dict[str, bytes]:
    return {name: found[name] for name in WEIGHTS}


def losses(found: dict[str, bytes]) -> list[float]:
    told: list[float] = json.loads(found["training_report.json"])["losses"]
    return told


def moved(found: dict[str, bytes], start: dict[str, bytes]) -> dict[str, bool]:
    """Which kinds of weights are not what they were: the ups of a LoRA start at 0."""
    lora = load(found["lora.safetensors"])
    rows, first = (load(each["embeddings.pti"])["text_encoders_0"] for each in (found, start))
    return {
        "lora": any(bool(each.any()) for name, each in lora.items() if ".up." in name),
        "tokens": not torch.equal(rows, first),
    }


def begun(folder: Path, **asked: Any) -> tuple[Training, Any]:
    """A training before its first step, and its job."""
    made = job(folder, **asked)
    models = load_job(made)
    examples = read(folder).examples
    captions = Captions(
        models.text, [each.caption for each in examples], triggers_of(made.config.triggers, made.config.num_tokens)
    )
    latents = Latents(models, examples, lambda: None)
    return Training.begin(models, made.config, captions, latents, pictures=len(examples), ranks=Ranks()), models


def test_the_same_seed_gives_the_same_bytes_and_0_is_a_seed(tmp_path: Path) -> None:
    found = [trained(tmp_path / str(number), seed=seed) for number, seed in enumerate((0, 0, 1))]
    assert weights_of(found[0]) == weights_of(found[1])
    assert losses(found[0]) == losses(found[1])
    assert losses(found[0]) != losses(found[2])
    assert json.loads(found[0]["training_report.json"])["settings"]["seed"] == 0


@pytest.mark.parametrize(
    ("asked", "steps"), [({"max_train_steps": 7}, 7), ({"max_train_steps": 0, "num_train_epochs": 3}, 6)]
)
def test_steps_are_those_that_were_asked(tmp_path: Path, asked: dict[str, Any], steps: int) -> None:
    """max_train_steps exactly; else so many passes over 4 pictures in batches of 2."""
    assert len(losses(trained(tmp_path / "job", **asked))) == steps


def test_accumulated_batches_make_one_step(tmp_path: Path) -> None:
    assert len(losses(trained(tmp_path / "job", gradient_accumulation_steps=3, max_train_steps=2))) == 2
    assert config(max_train_steps=0, num_train_epochs=3, gradient_accumulation_steps=3).steps(pictures=13) == 9


def test_lora_alone_tokens_alone_and_both(tmp_path: Path) -> None:
    """Each changes what it should, and nothing else."""
    start = trained(tmp_path / "start", ti_lr=0, max_train_steps=1)
    asked: dict[str, dict[str, Any]] = {
        "lora": {"ti_lr": 0},
        "tokens": {"lora_lr": 0},
        "both": {},
        "pivot": {"pivot": 0},
    }
    found = {name: moved(trained(tmp_path / name, **rates), start) for name, rates in asked.items()}
    assert found["lora"] == {"lora": True, "tokens": False}
    assert found["tokens"] == {"lora": False, "tokens": True}
    assert found["both"] == {"lora": True, "tokens": True}
    assert found["pivot"] == {"lora": True, "tokens": False}


@pytest.mark.parametrize(
    ("asked", "learns"),
    [
        ({"lora_lr": 0, "pivot": 1.0}, (False, True)),
        ({"ti_lr": 0}, (True, False)),
        ({"is_lora": False, "unet_learning_rate": 0}, (False, True)),
        ({"is_lora": False, "ti_lr": 0}, (True, False)),
    ],
    ids=str,
)
def test_what_has_no_learning_rate_costs_no_gradient(
    asked: dict[str, Any], learns: tuple[bool, bool], tmp_path: Path
) -> None:
    training, _ = begun(tmp_path / "job", max_train_steps=1, **asked)
    list(training_steps(training, 0))
    assert training.captions.rows is not None
    groups = (training.learner.parameters, training.captions.rows)
    assert tuple(any(each.grad is not None for each in group) for group in groups) == learns


def test_full_fine_tuning_trains_every_weight(tmp_path: Path, models: Models) -> None:
    """Even at a rate at which 16 bits would round most steps away, the weights move before they are written."""
    training, loaded = begun(
        tmp_path / "job", is_lora=False, unet_learning_rate=1e-6, max_train_steps=2, ti_lr=0, max_grad_norm=0
    )
    for _ in training_steps(training, 0):
        pass
    before = dict(models.base.named_parameters())
    found = training.learned().unet
    assert found.keys() == before.keys()
    same = [name for name, each in found.items() if torch.equal(each, before[name])]
    assert same == []
    training.finish()
    assert not any(each.requires_grad for each in loaded.base.parameters())


def test_full_fine_tuning_gives_a_unet(tmp_path: Path, models: Models) -> None:
    found = trained(tmp_path / "job", is_lora=False, max_train_steps=1)
    assert "lora.safetensors" not in found
    assert load(found["unet.safetensors"]).keys() == models.base.state_dict().keys()
    assert load(found["embeddings.pti"])["text_encoders_0"].shape == (2, 64)


def test_no_text_encoder_works_after_the_pivot(tmp_path: Path) -> None:
    training, _ = begun(tmp_path / "job", max_train_steps=6, pivot=0.5)
    counts = []
    for _ in training_steps(training, 0):
        counts.append(training.captions.forwards)
    before, cached = 2 * 3, 2  # two encoders in each of three steps; then all captions together, once
    assert counts == [2, 4, 6, before + cached, before + cached, before + cached]


def test_captions_are_read_as_predictions_read_prompts(tmp_path: Path) -> None:
    """The same states and the same pooled vector, learned rows in them, and the empty prompt."""
    training, models = begun(tmp_path / "job")
    captions, rows = training.captions, training.captions.rows
    assert rows is not None
    words = triggers_of(("TOK",), 2)
    learned = LearnedTokens("x", (rows[0].detach(), rows[1].detach()), words, "token")
    with torch.no_grad():
        found = captions.encode(torch.tensor([0, captions.empty]))
    caption = read(tmp_path / "job").examples[0].caption
    assert "TOK" in caption
    expected = models.text.encode(caption, "", learned=learned)
    assert torch.allclose(found.prompt_embeds[:1], expected.prompt_embeds, atol=1e-5)
    assert torch.allclose(found.text_embeds[:1], expected.pooled_prompt_embeds, atol=1e-5)
    assert torch.allclose(found.prompt_embeds[1:], expected.negative_prompt_embeds, atol=1e-5)
    assert torch.allclose(found.text_embeds[1:], expected.negative_pooled_prompt_embeds, atol=1e-5)


def test_long_captions_are_cut_and_counted(tmp_path: Path) -> None:
    made = job(tmp_path / "job")
    models = load_job(made)
    captions = Captions(models.text, ["a red TOK " * 40, "a TOK"], triggers_of(("TOK",), 2))
    assert captions.cut == [0]


def test_tokens_rest_after_the_pivot(tmp_path: Path) -> None:
    training, _ = begun(tmp_path / "job", max_train_steps=4, pivot=0.5)
    assert training.captions.rows is not None
    course = [training.captions.rows[0].detach().clone() for _ in training_steps(training, 0)]
    assert [torch.equal(*pair) for pair in pairwise(course)] == [False, True, True]


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_tokens_learn_however_few_steps_there_are(steps: int) -> None:
    """The pivot is a share of the steps, not of passes over the pictures. Tokens alone learn to the end."""
    assert config(pivot=0.5).pivot_step(steps) == math.ceil(steps / 2)
    assert config(pivot=0.5, lora_lr=0).pivot_step(steps) == steps
    assert config(pivot=0.5, ti_lr=0).pivot_step(steps) == 0


def test_several_words_learn_apart(tmp_path: Path) -> None:
    """Only the word that captions say has a gradient."""
    training, _ = begun(
        tmp_path / "job", triggers=("TOK", "OTHER"), num_tokens=3, max_train_steps=1, pivot=1.0, caption_dropout=0.0
    )
    assert training.captions.rows is not None
    start = [rows.detach().clone() for rows in training.captions.rows]
    list(training_steps(training, 0))
    for rows, before in zip(training.captions.rows, start, strict=True):
        assert rows.shape[0] == 6
        assert not torch.equal(rows[:3], before[:3])
        assert torch.allclose(rows[3:], before[3:], rtol=1e-5)
    assert training.learned().triggers == {"TOK": [0, 1, 2], "OTHER": [3, 4, 5]}


def test_latents_and_conditioning_are_those_of_each_picture(tmp_path: Path, models: Models) -> None:
    """In every bucket: the size that was prepared, not one that was forgotten somewhere."""
    sizes = (SQUARE, (96, 160), (160, 96))
    made = job(tmp_path / "job", count=6, sizes=sizes, masks=True)
    examples = read(made.folder).examples
    latents = Latents(models, examples, lambda: None)
    for number, example in enumerate(examples):
        height, width = sizes[number % 3]
        assert latents.shape([number]) == (1, 4, height // 8, width // 8)
        assert time_ids(example) == [height * 2, width * 2, 3, 5, height, width]
        draws = draw(latents.shape([number]), key=(number,), train_timesteps=1000, dropout=0.0)
        batch = latents.batch((height, width), latents.places([number]), draws.sample)
        assert batch.time_ids.tolist() == [time_ids(example)]
        assert batch.mask is not None
        assert batch.mask[0, 0, :, : width // 16].min() == 1
        assert batch.mask[0, 0, :, width // 16 :].max() == 0
        with Image.open(example.image) as image:
            posterior = encode_image(models, image)
        assert torch.allclose(batch.latents, posterior.mean + posterior.std * draws.sample, atol=1e-6)


def test_what_the_unet_sees_is_the_size_and_the_conditioning(tmp_path: Path) -> None:
    training, models = begun(tmp_path / "job", count=6, sizes=(SQUARE, (96, 160)), max_train_steps=8)
    seen = []

    def look(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append((tuple(args[0].shape[2:]), kwargs["added_cond_kwargs"]["time_ids"][0].tolist()))

    models.base.register_forward_pre_hook(look, with_kwargs=True)
    list(training_steps(training, 0))
    expected = {((16, 16), (256, 256, 3, 5, 128, 128)), ((12, 20), (192, 320, 3, 5, 96, 160))}
    assert {(size, tuple(ids)) for size, ids in seen} == expected


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit", "prodigy"])
def test_resuming_gives_what_was_never_interrupted(tmp_path: Path, optimizer: str) -> None:
    """Bit for bit, before and after the pivot, with an average."""
    asked: dict[str, Any] = {"max_train_steps": 6, "ema_decay": 0.9, "optimizer": optimizer, "lr_scheduler": "cosine"}
    whole = trained(tmp_path / "whole", **asked)
    for stop in (2, 5):
        done = iter(range(100))

        def check(stop: int = stop, done: Any = done) -> None:
            if next(done) == 4 + stop - 1:  # the four pictures are encoded first
                raise StopError

        made = job(tmp_path / f"part{stop}", **asked)
        with pytest.raises(StopError):
            run(made, lambda _: None, check)
        assert State.read(made.checkpoint).step == stop
        again = job(tmp_path / f"rest{stop}", **asked, resume=made.checkpoint)
        run(again, lambda _: None, lambda: None)
        found = files(again.out)
        assert weights_of(found) == weights_of(whole)
        assert losses(found) == losses(whole)


def test_a_state_that_is_beyond_or_none_is_not_resumed(tmp_path: Path) -> None:
    late = job(tmp_path / "late", max_train_steps=2, checkpointing_steps=2)
    run(late, lambda _: None, lambda: None)
    less = job(tmp_path / "less", max_train_steps=1, resume=late.checkpoint)
    with pytest.raises(InputError, match="max_train_steps=1"):
        run(less, lambda _: None, lambda: None)
    late.checkpoint.write_bytes(b"nothing")
    damaged = job(tmp_path / "damaged", resume=late.checkpoint)
    with pytest.raises(WeightsError, match="no checkpoint"):
        run(damaged, lambda _: None, lambda: None)


def test_checkpoints_are_in_the_result_where_they_are_asked_for(tmp_path: Path) -> None:
    found = trained(tmp_path / "with", max_train_steps=4, checkpointing_steps=2, save_checkpoints=True)
    for step in ("000002", "000004"):
        assert f"checkpoints/step-{step}/lora.safetensors" in found
        assert f"checkpoints/step-{step}/embeddings.pti" in found
    assert load(found["checkpoints/step-000004/lora.safetensors"]).keys() == load(found["lora.safetensors"]).keys()
    assert "checkpoint/state.safetensors" in found
    assert not any(name.startswith("checkpoint") for name in trained(tmp_path / "without", checkpointing_steps=2))


def test_the_average_is_given_out(tmp_path: Path) -> None:
    """And training goes on from the weights themselves: the losses are the same."""
    plain, average = (trained(tmp_path / str(decay), ema_decay=decay) for decay in (0.0, 0.9))
    assert losses(plain) == losses(average)
    assert weights_of(plain)["lora.safetensors"] != weights_of(average)["lora.safetensors"]


def test_class_pictures_are_drawn_and_trained_on(tmp_path: Path) -> None:
    prompts = ("a red circle on a white background", "a blue star on a yellow background")
    made = job(tmp_path / "job", class_prompts=prompts, num_class_images=3, max_train_steps=2)
    run(made, lambda _: None, lambda: None)
    assert len(list((made.folder / "classes-0").glob("*.png"))) == 3
    plain = trained(tmp_path / "plain", max_train_steps=2)
    ignored = trained(
        tmp_path / "ignored", max_train_steps=2, class_prompts=prompts, num_class_images=3, prior_loss_weight=0.0
    )
    assert losses(files(made.out)) != losses(plain)
    assert losses(ignored) == losses(plain)


@pytest.mark.parametrize(
    "asked",
    [
        {"noise_offset": 0.1},
        {"snr_gamma": 0.0},
        {"caption_dropout": 1.0},
        {"lr_scheduler": "linear"},
        {"lr_scheduler": "cosine", "lr_warmup_steps": 2},
        {"max_grad_norm": 0.0001},
        {"lora_alpha": 1.0},
        {"min_lora_scale": 1.0},
        {"lora_feed_forward": True},
        {"optimizer": "prodigy"},
        {"optimizer": "adamw8bit"},
        {"masks": True},
        {"num_tokens": 4},
        {"pivot": 1.0},
    ],
    ids=str,
)
def test_every_option_does_something(tmp_path: Path, asked: dict[str, Any]) -> None:
    plain = trained(tmp_path / "plain")
    assert weights_of(trained(tmp_path / "asked", **asked)) != weights_of(plain)


def test_checkpointing_gradients_changes_nothing(tmp_path: Path) -> None:
    plain = trained(tmp_path / "plain")
    assert weights_of(trained(tmp_path / "asked", gradient_checkpointing=True)) == weights_of(plain)


def test_the_result_can_be_seen(tmp_path: Path) -> None:
    made = job(tmp_path / "job", sample_prompts=None, max_train_steps=1)
    run(made, lambda _: None, lambda: None)
    found = files(made.out)
    assert {"loss.png", "samples.png", "samples/before-3.png", "samples/after-3.png", "captions.csv"} <= found.keys()
    with Image.open(made.out / "samples/after-0.png") as image:
        assert image.size == SQUARE


@pytest.mark.parametrize("is_lora", [True, False])
def test_samples_are_what_a_fresh_model_draws_with_the_result(is_lora: bool, tmp_path: Path) -> None:
    """The model of the training has drawn before it learned: nothing of that may be left in it."""
    asked: dict[str, Any] = {"is_lora": is_lora, "lora_lr": 0.05, "unet_learning_rate": 1e-3}
    made = job(tmp_path / "job", sample_prompts=("a blue TOK",), max_train_steps=2, **asked)
    run(made, lambda _: None, lambda: None)
    fresh = Samples(load_job(made), made, read(made.folder).examples).after()
    with Image.open(made.out / "samples/after-0.png") as image:
        assert difference(image, fresh[0]) == 0


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_weights_that_are_no_numbers_are_not_given_out(tmp_path: Path, steps: int) -> None:
    """The last loss is that of the weights before the last step."""
    wild: dict[str, Any] = {"lora_lr": 1.0, "ti_lr": 1.0, "lora_alpha": 4096.0, "max_train_steps": steps}
    made = job(tmp_path / "job", checkpointing_steps=1, **wild)
    with suppress(InputError):
        run(made, lambda _: None, lambda: None)
    found = files(made.out)
    if "lora.safetensors" in found:
        assert all(bool(each.isfinite().all()) for each in load(found["lora.safetensors"]).values())
    if made.checkpoint.exists():
        assert all(bool(each.float().isfinite().all()) for each in State.read(made.checkpoint).tensors.values())


def test_a_checkpoint_that_cannot_be_written_does_not_end_the_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    said = list[str]()
    made = job(tmp_path / "job", checkpointing_steps=2, checkpoint=tmp_path / "file" / "below" / "state.safetensors")
    run(made, said.append, lambda: None)
    assert len(losses(files(made.out))) == 4
    assert ["cannot be written" in line for line in said] == [True, True]


def test_a_loss_that_is_no_number_ends_the_training(tmp_path: Path) -> None:
    made = job(tmp_path / "job", lora_lr=1.0, ti_lr=1.0, max_grad_norm=0.0, max_train_steps=200, lora_alpha=4096.0)
    with pytest.raises(InputError, match="lower learning rates"):
        run(made, lambda _: None, lambda: None)


@pytest.mark.parametrize(
    ("asked", "words"), [({"lora_lr": 0, "ti_lr": 0}, "lora_lr=0 and ti_lr=0"), ({"lora_lr": 0, "pivot": 0}, "pivot=0")]
)
def test_nothing_that_learns_is_refused(asked: dict[str, float], words: str) -> None:
    with pytest.raises(InputError, match=words):
        config(**asked)


def test_two_processes_train_as_one_with_twice_the_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through accelerate, on CPUs: they average their gradients, and only the first writes."""
    from trainer.launch import train

    monkeypatch.setenv("SDXL_TRAIN_PROCESSES", "2")
    said = list[str]()
    made = job(tmp_path / "job", max_train_steps=3, checkpointing_steps=2, save_checkpoints=True)
    train(made, said.append, lambda: None)
    found = files(made.out)
    assert said == ["training in 2 processes"]
    assert len(losses(found)) == 3
    again = job(tmp_path / "again", max_train_steps=3, checkpointing_steps=2, save_checkpoints=True)
    train(again, said.append, lambda: None)
    assert weights_of(files(again.out)) == weights_of(found)
    assert weights_of(found) != weights_of(trained(tmp_path / "one", max_train_steps=3))
    wrong = job(tmp_path / "wrong", max_train_steps=2, resume=made.out / "checkpoint" / "state.safetensors")
    with pytest.raises(InputError, match="max_train_steps=2"):
        train(wrong, said.append, lambda: None)
