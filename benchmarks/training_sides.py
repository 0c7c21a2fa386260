"""The two sides of `benchmarks/training.py`: the recipe of diffusers' SDXL LoRA script (A), and this trainer (B)."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler, training_utils
from diffusers.optimization import get_scheduler
from peft import LoraConfig
from PIL import Image
from torch import Tensor
from transformers import CLIPTokenizer

import weights
from benchmarks import wide_model
from preprocess.examples import Example
from sdxl.engine import Engines
from sdxl.models import Models, config_of
from sdxl.placement import Placement
from sdxl.text import TextEncoders
from sdxl.tokenizer import Tokenizer
from tests.training import config
from trainer.config import Config
from trainer.latents import Latents, time_ids
from trainer.loop import Training
from trainer.ranks import Ranks
from trainer.run import recorder_for
from trainer.texts import Captions, triggers_of

LAYERS = ["to_k", "to_q", "to_v", "to_out.0"]
BASE = weights.CONFIGS / "base"
CPU = torch.device("cpu")


def models_of(make: Callable[[str], Any], device: torch.device = CPU) -> Models:
    """SDXL's base around parts by name, without a refiner and a safety checker."""
    return Models(
        text=TextEncoders(
            tokenizer=Tokenizer(BASE / "tokenizer"),
            text_encoder=make("text_encoder"),
            tokenizer_2=Tokenizer(BASE / "tokenizer_2"),
            text_encoder_2=make("text_encoder_2"),
        ),
        vae=make("vae"),
        base=make("unet"),
        scheduler_config=DDPMScheduler.load_config(BASE / "scheduler"),
        safety=None,
        placement=Placement(device, "resident"),
        engines=Engines(Placement(device, "resident")),
        _refiner=None,
    )


def narrow(divisor: int) -> Models:
    """Every layer that SDXL has, at a fraction of its width, float32."""
    torch.manual_seed(0)
    return models_of(lambda part: wide_model.started(part, divisor))


def picture(folder: Path, side: int, caption: str) -> list[Example]:
    """A square of noise, which is all there is to train on: a batch has it as often as it has places."""
    path = folder / f"{side}.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)).save(path)
    return [Example(path.name, path, None, caption, (side, side), (0, 0), (side, side))]


def settings(rank: int, batch: int, **asked: Any) -> Config:
    """What both sides are asked to do; the batch is one of the user's, with nothing beside it."""
    shared = {"lora_rank": rank, "lora_alpha": float(rank), "train_batch_size": batch, "caption_dropout": 0.0}
    return config(**{"max_train_steps": 1000} | shared | asked)


def begin(models: Models, asked: Config, examples: Sequence[Example]) -> Training:
    """B: a training as trainer.run begins one."""
    latents = Latents(models, examples, lambda: None)
    words = triggers_of(asked.triggers, asked.num_tokens)
    captions = Captions(models.text, [example.caption for example in examples], words)
    ranks = Ranks()
    recorder = recorder_for(asked, ranks, models.placement.device, print)
    return Training.begin(models, asked, captions, latents, pictures=len(examples), ranks=ranks, recorder=recorder)


def adapted(unet: Any, rank: int) -> Any:
    """A: the UNet with PEFT's layers in it."""
    unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=LAYERS))
    return unet


class Reference:
    """A: examples/text_to_image/train_text_to_image_lora_sdxl.py of diffusers, one process, on an `adapted` UNet.

    Left out is what would only cost it time: accelerate around each call, the data loader, the tracker. `foreach` is
    torch's own choice on a GPU; on a CPU it would go through the tensors in Python.
    """

    def __init__(self, models: Models, asked: Config, examples: Sequence[Example]) -> None:
        self.config, self.device = asked, models.placement.device
        self.unet: Any = models.base.train()
        self.vae: Any = models.vae
        self.text = models.text
        self.dtype, self.vae_dtype = self.unet.dtype, self.vae.dtype  # diffusers looks at every module to know them
        if asked.gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()
        self.learning = [each for each in self.unet.parameters() if each.requires_grad]
        self.together = True if self.device.type != "meta" else None  # which torch has not for it
        self.optimizer = torch.optim.AdamW(self.learning, lr=asked.lora_lr, weight_decay=1e-2, foreach=self.together)
        self.schedule = get_scheduler("constant", optimizer=self.optimizer)
        make: Any = DDPMScheduler.from_config
        self.noise: Any = make(dict(models.scheduler_config))
        chosen = [examples[number % len(examples)] for number in range(asked.train_batch_size)]
        self.sizes = [time_ids(example) for example in chosen]
        self.pixels = torch.stack([_pixels(example) for example in chosen]).to(self.device)
        self.ids = [
            _ids(BASE / name, [example.caption for example in chosen]).to(self.device)
            for name in ("tokenizer", "tokenizer_2")
        ]
        self.told = 0.0

    def step(self, latents: Tensor | None = None, embeds: tuple[Tensor, Tensor] | None = None) -> None:
        """One of the script's; what is given has been made before."""
        latents = self.encoded() if latents is None else latents
        noise = torch.randn_like(latents)
        steps = self.noise.config.num_train_timesteps
        timesteps = torch.randint(0, steps, (len(latents),), device=self.device).long()
        loss = self.loss(latents, noise, timesteps, embeds or self.embeds())
        self.told += loss.detach().repeat(len(latents)).mean().item()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.learning, self.config.max_grad_norm, foreach=self.together)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()

    def encoded(self) -> Tensor:
        """Pictures -> latents, (B, 4, h, w)."""
        found: Tensor = self.vae.encode(self.pixels.to(self.vae_dtype)).latent_dist.sample()
        return found * float(config_of(self.vae).scaling_factor)

    def embeds(self) -> tuple[Tensor, Tensor]:
        """Captions -> states (B, 77, D1 + D2), pooled (B, P)."""
        states = []
        encoders: tuple[Any, ...] = (self.text.text_encoder, self.text.text_encoder_2)
        for encoder, ids in zip(encoders, self.ids, strict=True):
            found = encoder(ids.to(encoder.device), output_hidden_states=True)
            pooled, hidden = found[0], found.hidden_states[-2]
            states.append(hidden.view(*hidden.shape[:2], -1))
        return torch.cat(states, -1), pooled.view(len(pooled), -1)

    def loss(self, latents: Tensor, noise: Tensor, timesteps: Tensor, embeds: tuple[Tensor, Tensor]) -> Tensor:
        """Of noise and timesteps that have been drawn."""
        noised = self.noise.add_noise(latents, noise, timesteps).to(self.dtype)
        ids = torch.cat([torch.tensor([each]).to(self.device, self.dtype) for each in self.sizes])
        states, pooled = (each.to(self.dtype) for each in embeds)
        conditions = {"time_ids": ids, "text_embeds": pooled}
        predicted = self.unet(noised, timesteps, states, added_cond_kwargs=conditions, return_dict=False)[0]
        compute_snr: Any = training_utils.compute_snr
        snr = compute_snr(self.noise, timesteps)
        gamma = self.config.snr_gamma * torch.ones_like(timesteps)
        factors = torch.stack([snr, gamma], dim=1).min(dim=1)[0] / snr
        errors = torch.nn.functional.mse_loss(predicted.float(), noise.float(), reduction="none")
        loss: Tensor = (errors.mean(dim=list(range(1, errors.ndim))) * factors).mean()
        return loss

    def factors(self) -> dict[str, tuple[Any, Any]]:
        """Each layer's parameters, down and up, by diffusers' name of the layer."""
        found = {name: layer for name, layer in self.unet.named_modules() if hasattr(layer, "lora_A")}
        return {name: (layer.lora_A["default"].weight, layer.lora_B["default"].weight) for name, layer in found.items()}


def reference(models: Models, asked: Config, examples: Sequence[Example]) -> Reference:
    """A, around weights of its own."""
    theirs = copy.deepcopy(models)
    adapted(theirs.base, asked.lora_rank)
    return Reference(theirs, asked, examples)


def both(models: Models, asked: Config, examples: Sequence[Example]) -> tuple[Reference, Training]:
    """Both sides around weights of their own, which are the same."""
    return reference(models, asked, examples), begin(models, asked, examples)


def _pixels(example: Example) -> Tensor:
    with Image.open(example.image) as image:
        return torch.tensor(np.asarray(image, np.float32) / 127.5 - 1).permute(2, 0, 1)


def _ids(folder: Path, captions: list[str]) -> Tensor:
    tokenizer: Any = CLIPTokenizer.from_pretrained(folder)
    ids: Tensor = tokenizer(
        captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    ).input_ids
    return ids
