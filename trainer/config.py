"""What a training is asked to do, once its pictures are prepared."""

import json
import math
from dataclasses import asdict, dataclass

from errors import InputError
from trainer.optimizers import OPTIMIZERS, SCHEDULES

FREE = ("max_train_steps", "num_train_epochs", "checkpointing_steps", "save_checkpoints", "seed")


@dataclass(frozen=True)
class Config:
    """The inputs of train.py under their names there, but for what only the preparation of the pictures needs.

    triggers are the words of token_string; lora_alpha is a number, blank is settled; resolution that of class pictures.
    """

    seed: int
    resolution: int
    train_batch_size: int
    num_train_epochs: int
    max_train_steps: int
    is_lora: bool
    unet_learning_rate: float
    ti_lr: float
    lora_lr: float
    lora_rank: int
    lora_alpha: float
    min_lora_scale: float
    lora_feed_forward: bool
    lr_scheduler: str
    lr_warmup_steps: int
    triggers: tuple[str, ...]
    num_tokens: int
    pivot: float
    optimizer: str
    gradient_accumulation_steps: int
    gradient_checkpointing: bool
    max_grad_norm: float
    snr_gamma: float
    noise_offset: float
    caption_dropout: float
    ema_decay: float
    prior_loss_weight: float
    checkpointing_steps: int
    save_checkpoints: bool

    def __post_init__(self) -> None:
        assert self.optimizer in OPTIMIZERS
        assert self.lr_scheduler in SCHEDULES
        if not (self.ti_lr and self.pivot) and not self.model_rate:
            name = "lora_lr" if self.is_lora else "unet_learning_rate"
            off = "ti_lr" if not self.ti_lr else "pivot"
            raise InputError(f"{name}=0 and {off}=0 leave nothing that learns; give one of them a value above 0.")

    @property
    def model_rate(self) -> float:
        """The learning rate of the LoRA or of the UNet."""
        return self.lora_lr if self.is_lora else self.unet_learning_rate

    def steps(self, pictures: int, processes: int = 1) -> int:
        """How many there are: max_train_steps exactly, or what so many passes over the pictures take."""
        each = self.train_batch_size * self.gradient_accumulation_steps * processes
        return self.max_train_steps or self.num_train_epochs * math.ceil(pictures / each)

    def pivot_step(self, steps: int) -> int:
        """The first step in which the tokens no longer learn; 0 where they never do. Alone, they learn to the end."""
        if not self.ti_lr:
            return 0
        return math.ceil(self.pivot * steps) if self.model_rate else steps

    def settings(self) -> dict[str, object]:
        """What a checkpoint must agree with: all that changes what a step does."""
        return {name: value for name, value in json.loads(json.dumps(asdict(self))).items() if name not in FREE}
