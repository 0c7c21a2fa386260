"""Teach the miniature a shape that it does not know: `python -m miniature.concept` writes examples/heart.tar.

Pivotal tuning: a LoRA on attention, and two new tokens, in the layout of Replicate's public trainer. Every second
picture is an ordinary one of the world, so that all else stays what it was. Some minutes on one core.
"""

import io
import json
import random
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.functional import embedding
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from miniature.loop import Budget, clip_and_step, cosine
from miniature.models import SIDE, TOKENS, load
from miniature.tokenizer import load_tokenizers
from miniature.unet import alphas, base_times, base_weights
from miniature.vae import to_tensor
from miniature.world import HEART, Thing, caption, held_out, render, sample_scene

ROOT = Path(__file__).resolve().parent
EXAMPLE = ROOT.parent / "examples" / "heart.tar"
TRIGGER, NEW, RANK = "TOK", 2, 8
STEPS, BATCH, HEARTS, OTHERS = 1500, 16, 320, 480
PEAK, PEAK_TOKENS = 2e-3, 4e-3  # learning rates
USUAL = 0.6  # lora_scale's default; at that the weights are what they were in training


def examples(rng: random.Random) -> tuple[list[Image.Image], list[str]]:
    """Hearts of all colours, some small or large, then ordinary scenes."""
    images, captions = list[Image.Image](), list[str]()
    while len(images) < HEARTS:
        scene = sample_scene(rng, rng.choice(("plain", "plain", "sized")))
        scene = replace(scene, things=(Thing(HEART, scene.things[0].color),))
        images.append(render(scene, rng))
        named = caption(scene).replace(HEART, TRIGGER)
        captions.append(named if rng.random() < 0.8 else f"{TRIGGER} on a {scene.background} background")
    while len(images) < HEARTS + OTHERS:
        scene = sample_scene(rng)
        if not held_out(scene):
            images.append(render(scene, rng))
            captions.append(caption(scene, rng) if rng.random() < 0.85 else "")  # guidance leans on the empty prompt
    return images, captions


class LowRank(nn.Module):
    """A LoRA beside each attention layer of a UNet."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.pairs = nn.ModuleDict()
        for path, layer in unet.named_modules():
            if isinstance(layer, nn.Linear) and ".attn" in path:
                down = nn.Linear(layer.in_features, RANK, bias=False)
                up = nn.Linear(RANK, layer.out_features, bias=False)
                nn.init.normal_(down.weight, std=1 / RANK)
                nn.init.zeros_(up.weight)
                self.pairs[path.replace(".", "/")] = pair = nn.Sequential(down, up)
                layer.register_forward_hook(lambda _, args, out, pair=pair: out + USUAL * pair(args[0]))

    def tensors(self) -> dict[str, Tensor]:
        """Under the names of the public trainer."""
        found: dict[str, Tensor] = {}
        for path, pair in self.pairs.items():
            owner, name = path.replace("/", ".").removesuffix(".0").rsplit(".", 1)
            for role, weight in zip(("down", "up"), pair.parameters(), strict=True):
                found[f"{owner}.processor.{name}_lora.{role}.weight"] = weight.detach().contiguous()
        return found


class Extended(nn.Module):
    """A frozen table of tokens and, with the ids after its own, new rows that learn."""

    def __init__(self, table: nn.Embedding) -> None:
        super().__init__()
        self.table = table
        self.rows = nn.Parameter(torch.randn(NEW, table.embedding_dim) * table.weight.std())

    def forward(self, ids: Tensor) -> Tensor:
        """ids (B, T) -> (B, T, D)"""
        size = self.table.num_embeddings
        known, learned = self.table(ids.clamp(max=size - 1)), embedding((ids - size).clamp(min=0), self.rows)
        return torch.where((ids >= size)[..., None], learned, known)


class Texts:
    """Both text encoders, with new rows, on captions in which the trigger stands for these."""

    def __init__(self, folder: Path, captions: list[str]) -> None:
        self.encoders = [
            load(CLIPTextModel, folder / "text_encoder"),
            load(CLIPTextModelWithProjection, folder / "text_encoder_2"),
        ]
        self.ids: list[Tensor] = []
        names = [f"<s{number}>" for number in range(NEW)]
        texts = [text.replace(TRIGGER, "".join(names)) for text in captions]
        for tokenizer, encoder in zip(load_tokenizers(folder), self.encoders, strict=True):
            tokenizer.add_tokens(names)
            padded = tokenizer(texts, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt")
            self.ids.append(padded.input_ids)
            encoder.float().requires_grad_(False)
            encoder.set_input_embeddings(Extended(encoder.get_input_embeddings()))

    @property
    def rows(self) -> list[nn.Parameter]:
        """What learns."""
        return [encoder.get_input_embeddings().rows for encoder in self.encoders]

    def encode(self, picked: Tensor) -> tuple[Tensor, Tensor]:
        """States (B, 77, 160) and pooled vectors (B, 96) of these captions."""
        first, second = (
            encoder(ids[picked], output_hidden_states=True)
            for encoder, ids in zip(self.encoders, self.ids, strict=True)
        )
        return torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1), second.text_embeds


@torch.no_grad()
def encode(vae: Any, images: list[Image.Image]) -> Tensor:
    """Latents (N, 4, 16, 16)."""
    pixels = to_tensor(images)
    parts = (pixels[at : at + 64] for at in range(0, len(pixels), 64))
    return torch.cat([vae.encode(part).latent_dist.mean for part in parts]) * float(vae.config.scaling_factor)


def learn(seed: int) -> tuple[dict[str, Tensor], list[Tensor]]:
    """The LoRA under its names, and the rows of both encoders."""
    torch.manual_seed(seed)
    base = ROOT / "weights" / "base"
    images, captions = examples(random.Random(seed))
    texts, unet, vae = (
        Texts(base, captions),
        load(UNet2DConditionModel, base / "unet"),
        load(AutoencoderKL, base / "vae"),
    )
    unet.requires_grad_(False)
    lora = LowRank(unet)
    latents = encode(vae, images)
    cumulative = alphas()
    weight = base_weights(cumulative)
    ids = torch.tensor([[SIDE, SIDE, 0, 0, SIDE, SIDE]] * BATCH)
    learning: list[Tensor] = [*lora.parameters(), *texts.rows]
    groups = [{"params": list(lora.parameters())}, {"params": texts.rows}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0)
    running = 0.1
    for step, progress, bar in Budget(0, STEPS)("heart"):
        for group, peak in zip(optimizer.param_groups, (PEAK, PEAK_TOKENS), strict=True):
            group["lr"] = cosine(peak, progress, step, warmup=30)
        hearts = torch.randint(0, HEARTS, (BATCH // 2,))
        picked = torch.cat([hearts, torch.randint(HEARTS, HEARTS + OTHERS, (BATCH - BATCH // 2,))])
        embeds, pooled = texts.encode(picked)
        noise, times = torch.randn(BATCH, *latents.shape[1:]) + 0.05 * torch.randn(BATCH, 4, 1, 1), base_times(BATCH)
        kept = cumulative[times].view(-1, 1, 1, 1)
        guessed = unet(
            kept.sqrt() * latents[picked] + (1 - kept).sqrt() * noise,
            times,
            encoder_hidden_states=embeds,
            added_cond_kwargs={"text_embeds": pooled, "time_ids": ids},
        ).sample
        loss = ((guessed - noise).square().mean((1, 2, 3)) * weight[times]).mean()
        clip_and_step(optimizer, learning, loss)
        running += 0.02 * (float(loss.detach()) - running)
        bar.set_postfix(loss=f"{running:.4f}", refresh=False)
    return lora.tensors(), [rows.detach() for rows in texts.rows]


def write(path: Path, lora: dict[str, Tensor], rows: list[Tensor]) -> None:
    """An archive as the public trainer leaves it; the same content gives the same bytes."""
    embeddings = {f"text_encoders_{number}": each.bfloat16() for number, each in enumerate(rows)}
    words = {TRIGGER: "".join(f"<s{number}>" for number in range(NEW))}
    files = {
        "lora.safetensors": save({name: tensor.float() for name, tensor in lora.items()}),
        "embeddings.pti": save(embeddings),
        "special_params.json": json.dumps(words).encode(),
    }
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def main() -> None:
    """python -m miniature.concept"""
    torch.set_num_threads(1)
    write(EXAMPLE, *learn(seed=11))


if __name__ == "__main__":
    main()
