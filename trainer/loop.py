"""The training loop: steps that can be stopped after any of them and gone on with, and end where they should."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor, nn

from errors import InputError
from sdxl.models import Models
from trainer.adapters import Adapters
from trainer.config import Config
from trainer.latents import Latents, Size
from trainer.loss import denoising_loss, draw, noisy, snr_weights, strength
from trainer.optimizers import SCHEDULES, clear_gradients, make_optimizer, set_rates
from trainer.order import batches
from trainer.ranks import Ranks
from trainer.recorded import Recorder
from trainer.texts import Captions, first_rows, triggers_of
from trainer.trained import Trained
from trainer.whole_unet import WholeUnet

MODEL, TOKENS = 0, 1  # parameter groups


@dataclass
class Training:
    """Everything that a training is made of; `training_steps` runs it.

    latents and captions have the user's pictures first, then the class pictures from number `pictures` on
    """

    config: Config
    unet: UNet2DConditionModel
    learner: Adapters | WholeUnet
    captions: Captions
    latents: Latents
    pictures: int
    steps: int
    ranks: Ranks
    optimizer: torch.optim.Optimizer
    alphas: Tensor  # cumulative, (1000,)
    average: list[Tensor]  # of all that learns; empty without ema_decay
    recorder: Recorder | None  # None: every batch is launched by itself
    losses: list[float] = field(default_factory=list)

    @classmethod
    def begin(
        cls,
        models: Models,
        config: Config,
        captions: Captions,
        latents: Latents,
        *,
        pictures: int,
        ranks: Ranks,
        recorder: Recorder | None = None,
    ) -> "Training":
        """One before its first step."""
        generator = torch.Generator().manual_seed(config.seed)
        rows = first_rows(models.text, config.num_tokens * len(config.triggers), generator)
        captions.learn(rows)
        learner: Adapters | WholeUnet
        if config.is_lora:
            learner = Adapters(
                models.base,
                rank=config.lora_rank,
                alpha=config.lora_alpha,
                feed_forward=config.lora_feed_forward,
                generator=generator,
                learns=config.model_rate > 0,
            )
        else:
            learner = WholeUnet(models.base, learns=config.model_rate > 0)
        if config.gradient_checkpointing:
            models.base.enable_gradient_checkpointing()
        groups = ((config.model_rate, learner.parameters), (config.ti_lr, list(rows)))
        learning = [each for _, parameters in groups for each in parameters]
        return cls(
            config,
            models.base,
            learner,
            captions,
            latents,
            pictures,
            config.steps(pictures, ranks.count),
            ranks,
            make_optimizer(config.optimizer, groups),
            _alphas(models).to(learning[0].device),
            [each.detach().clone() for each in learning] if config.ema_decay else [],
            recorder,
        )

    @property
    def pivot(self) -> int:
        """The first step in which the tokens no longer learn."""
        return self.config.pivot_step(self.steps)

    @property
    def learning(self) -> list[nn.Parameter]:
        """All that learns, at one time or another."""
        assert self.captions.rows is not None
        return [*self.learner.parameters, *self.captions.rows]

    def factor(self, step: int) -> float:
        """What every learning rate is multiplied with in a step."""
        return SCHEDULES[self.config.lr_scheduler](step, self.steps, self.config.lr_warmup_steps)

    def rates(self, step: int) -> dict[str, float]:
        """What learns -> its learning rate in a step."""
        factor = self.factor(step)
        model, tokens = (group["peak"] * factor for group in self.optimizer.param_groups)
        return {"lora" if self.config.is_lora else "unet": model, "tokens": tokens if step < self.pivot else 0.0}

    def clear(self, strength: float) -> None:
        """Before the first batch of a step: no gradient, and the LoRA as it is by now, at this strength."""
        assert self.captions.rows is not None
        self.learner.refresh(strength)
        self.learner.clear()
        clear_gradients(self.captions.rows)

    @torch.no_grad()
    def learned(self) -> Trained:
        """What is learned by now: the average, where there is one."""
        assert self.captions.rows is not None
        kept = [each.detach().clone() for each in self.learning] if self.average else []
        self._fill(self.average)
        lora, unet = self.learner.lora(), self.learner.weights()
        first, second = (each.detach().cpu().float().clone() for each in self.captions.rows)
        self._fill(kept)
        words = triggers_of(self.config.triggers, self.config.num_tokens)
        return Trained(lora, self.config.lora_alpha, unet, (first, second), words)

    def is_finite(self) -> bool:
        """Whether all that has learned are numbers still."""
        return all(bool(each.detach().isfinite().all()) for each in self.learning)

    def require_finite(self) -> None:
        """InputError where it is not: the last loss was that of the weights before."""
        if not self.is_finite():
            raise InputError("the weights are no numbers any more; choose lower learning rates.")

    def finish(self) -> None:
        """Leave the model as it was found, but for the weights of full fine-tuning."""
        if self.recorder is not None:
            self.recorder.forget()
        self.learner.remove()
        self.unet.disable_gradient_checkpointing()
        self.optimizer.state.clear()

    def _fill(self, values: Sequence[Tensor]) -> None:
        for parameter, value in zip(self.learning, values, strict=bool(values)):
            parameter.copy_(value)


def training_steps(training: Training, start: int) -> Iterator[tuple[int, Tensor]]:
    """Do the steps from number `start` (0 is the first) to the last; after each, yield how many are done by now and
    its loss, which is still on its way on a GPU."""
    config, ranks = training.config, training.ranks
    each = config.gradient_accumulation_steps
    dealt = [(_dealt(training, range(training.pictures), start, salt=0), 1 / each)]
    if others := range(training.pictures, len(training.latents.sizes)):
        dealt.append((_dealt(training, others, start, salt=1), config.prior_loss_weight / each))
    for step in range(start, training.steps):
        _freeze_tokens(training, step)
        training.clear(strength(config.seed, step, config.min_lora_scale))
        loss = torch.zeros((), device=training.alphas.device)
        for number in range(step * each, (step + 1) * each):
            for salt, (batches_of, weight) in enumerate(dealt):
                key = (config.seed, number * ranks.count + ranks.rank, salt)
                loss += _backward(training, next(batches_of), key, weight)
        _move(training, step)
        yield step + 1, loss


def _dealt(training: Training, numbers: Sequence[int], start: int, *, salt: int) -> Iterator[list[int]]:
    """This process's batches of these pictures, from step `start` on."""
    config = training.config
    sizes = [training.latents.sizes[number] for number in numbers]
    order = batches(sizes, batch_size=config.train_batch_size, seed=2 * config.seed + salt)
    own = training.ranks.part(order, start * config.gradient_accumulation_steps)
    return ([numbers[place] for place in batch] for batch in own)


def _freeze_tokens(training: Training, step: int) -> None:
    """From the pivot on the rows stay as they are, and no text encoder works any more."""
    if step >= training.pivot and not training.captions.remembered:
        training.captions.remember()
        if training.recorder is not None:
            training.recorder.forget()


def _backward(training: Training, numbers: Sequence[int], key: tuple[int, ...], weight: float) -> Tensor:
    """Add the gradients of one batch of pictures of one size, and return its loss times the weight."""
    config, device = training.config, training.alphas.device
    draws = draw(
        training.latents.shape(numbers),
        key=key,
        train_timesteps=len(training.alphas),
        dropout=config.caption_dropout,
    )
    inputs = [
        _uploaded(each, device)
        for each in (
            torch.where(draws.dropped, training.captions.empty, torch.tensor(numbers)),
            training.latents.places(numbers),
            draws.sample,
            draws.noise + config.noise_offset * draws.offset,
            draws.timesteps,
        )
    ]
    size = training.latents.sizes[numbers[0]]
    work = partial(_passes, training, size, weight)
    return work(*inputs) if training.recorder is None else training.recorder((key[-1], size), work, inputs)


def _uploaded(tensor: Tensor, device: torch.device) -> Tensor:
    """On the device, at some time: from pinned memory, else the host would wait until all before it is done."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _passes(
    training: Training,
    size: Size,
    weight: float,
    captions: Tensor,
    places: Tensor,
    sample: Tensor,
    noise: Tensor,
    timesteps: Tensor,
) -> Tensor:
    """Forward and backward: all that a batch has the device do, given numbers (B,) and draws (B, 4, h, w) there."""
    batch = training.latents.batch(size, places, sample)
    embeds = training.captions.encode(captions)
    alphas = training.alphas[timesteps]
    predicted = _predict(
        training.unet,
        noisy(batch.latents, noise, alphas),
        timesteps,
        embeds.prompt_embeds,
        embeds.text_embeds,
        batch.time_ids,
    )
    loss = denoising_loss(predicted, noise, batch.mask, snr_weights(alphas, training.config.snr_gamma)) * weight
    loss.backward()  # type: ignore[no-untyped-call]
    training.learner.collect()
    return loss.detach()


def _predict(
    unet: UNet2DConditionModel,
    latents: Tensor,
    timesteps: Tensor,
    prompt_embeds: Tensor,
    text_embeds: Tensor,
    time_ids: Tensor,
) -> Tensor:
    """The UNet's noise, (B, 4, h, w). On a GPU it works in 16 bits, whatever its weights are kept in."""
    dtype = next(unet.parameters()).dtype  # `unet.dtype` walks through all modules, 4 ms each time
    mixed: Any = contextlib.nullcontext()
    if latents.is_cuda and dtype == torch.float32:
        mixed = torch.autocast("cuda", torch.bfloat16)
    with mixed:
        found: Tensor = unet(
            latents.to(dtype),
            timesteps,
            encoder_hidden_states=prompt_embeds.to(dtype),
            added_cond_kwargs={"text_embeds": text_embeds.to(dtype), "time_ids": time_ids},
            return_dict=False,
        )[0]
    return found


def _move(training: Training, step: int) -> None:
    """One step of the optimiser with the gradients that have come together."""
    config, optimizer = training.config, training.optimizer
    learning = [each for each in training.learning if each.grad is not None]
    gradients = [each.grad for each in learning if each.grad is not None]
    training.ranks.mean(gradients)
    if config.max_grad_norm:
        torch.nn.utils.clip_grad_norm_(learning, config.max_grad_norm)
    set_rates(optimizer, training.factor(step))
    optimizer.step()
    if training.average:
        decay = min(config.ema_decay, (1 + step) / (10 + step))  # a young average forgets faster
        torch._foreach_lerp_(training.average, [each.detach() for each in training.learning], 1 - decay)


def _alphas(models: Models) -> Tensor:
    """The cumulative alphas of the schedule that the model was trained with."""
    make: Any = DDPMScheduler.from_config
    scheduler = make(dict(models.scheduler_config))
    alphas: Tensor = scheduler.alphas_cumprod
    return alphas
