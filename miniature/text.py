"""The text encoders: trained to tell what a caption asks for, then frozen.

Linear heads read every attribute from the end-of-text state, and from each colour and shape word its role and
colour; so both the pooled vector and the single tokens are of use to a UNet.
"""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from miniature.loop import Average, Budget, clip_and_step, cosine, save, set_rate
from miniature.models import TEXT_WIDTHS, TOKENS, TextModel, load, make_text_encoders
from miniature.tokenizer import ORDINARY, load_tokenizers, write_tokenizers
from miniature.world import COLORS, PLACES, PLAIN_SHAPES, SHAPES, SIZES, Scene, caption, sample_scene

CAPTIONS = 30_000
HELD_OUT = 500  # captions that only measure
LENGTH = 40  # tokens per caption in training; the rest of the 77 would be padding
NOISE_SHARE = 0.1
IGNORED = -100
ATTRIBUTES = (len(COLORS) + 1, len(COLORS) + 1, 7, len(COLORS) + 1, 7, len(SIZES), len(PLACES), 4)
ROLES = 5  # colour or shape of the first or second thing, colour of the background


def garnish(text: str, rng: random.Random) -> str:
    """The caption with, in one of ten cases, a word that means nothing to the world."""
    if rng.random() >= NOISE_SHARE:
        return text
    letters = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 7)))
    word = rng.choice(("TOK", letters, rng.choice([w for w in ORDINARY if w not in COLORS])))
    words = text.split()
    place = rng.choice((0, len(words), rng.randint(0, len(words))))
    return " ".join((*words[:place], word, *words[place:]))


def attributes(scene: Scene, text: str) -> list[int]:
    """Labels in the order of ATTRIBUTES: background, colour and shape of two things, size, place, count."""
    colors, nothing = list(COLORS), len(COLORS)
    named = f"{scene.background} background" in text or f"on {scene.background}" in text
    distinct = list(dict.fromkeys(scene.things))
    labels = [colors.index(scene.background) if named else nothing]
    for i in range(2):
        known = i < len(distinct)
        labels += [colors.index(distinct[i].color) if known else nothing]
        labels += [SHAPES.index(distinct[i].shape) if known else len(SHAPES)]
    return [*labels, list(SIZES).index(scene.size), list(PLACES).index(scene.place), len(scene.things)]


def word_labels(tokens: list[str]) -> tuple[list[int], list[int]]:
    """Per token its role (ROLES) and the colour it belongs to (COLORS); IGNORED for all other words."""
    words = [token.removesuffix("</w>") for token in tokens]
    roles, tints = [IGNORED] * len(words), [IGNORED] * len(words)
    colors, shapes = (
        list(COLORS),
        {form for s in PLAIN_SHAPES for form in (s, f"{s}s", f"{s}es")} | {"sign", "signs"},
    )
    thing, tint = -1, IGNORED
    for i, word in enumerate(words):
        if word in COLORS:
            tint = colors.index(word)
            belongs = words[i + 1 : i + 2] and (words[i + 1] in shapes or words[i + 1] == "forbidden")
            thing += bool(belongs)
            roles[i], tints[i] = (min(2 * thing, 2) if belongs else 4), tint
        elif word in shapes and thing >= 0:
            roles[i], tints[i] = min(2 * thing + 1, 3), tint
    return roles, tints


@dataclass(frozen=True)
class Texts:
    """Training captions: ids of both tokenizers, roles and tints (N, LENGTH), attributes (N, 8)."""

    ids_1: Tensor
    ids_2: Tensor
    attributes: Tensor
    roles: Tensor
    tints: Tensor

    def pick(self, rows: Tensor) -> "Texts":
        """The captions of some rows."""
        return Texts(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


def draw_texts(tokenizers: tuple[CLIPTokenizer, CLIPTokenizer], count: int, seed: int) -> Texts:
    """Random captions with their labels."""
    rng = random.Random(seed)
    scenes = [sample_scene(rng) for _ in range(count)]
    plain = [caption(scene, rng) for scene in scenes]
    texts = [garnish(text, rng) for text in plain]
    ids = [_ids(tokenizer, texts, LENGTH) for tokenizer in tokenizers]
    words = [word_labels([str(t) for t in tokenizers[0].convert_ids_to_tokens(row)]) for row in ids[0].tolist()]
    labels = [attributes(scene, text) for scene, text in zip(scenes, plain, strict=True)]
    roles, tints = (torch.tensor([pair[i] for pair in words]) for i in range(2))
    return Texts(ids[0], ids[1], torch.tensor(labels), roles, tints)


def _ids(tokenizer: CLIPTokenizer, texts: list[str], length: int) -> Tensor:
    encoded = tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    ids: Tensor = encoded.input_ids
    return ids


class Heads(nn.Module):
    """Linear readers of one text feature."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.whole = nn.ModuleList(nn.Linear(width, size) for size in ATTRIBUTES)
        self.role = nn.Linear(width, ROLES)
        self.tint = nn.Linear(width, len(COLORS))

    def whole_loss(self, state: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """state (B, D), labels (B, 8) -> loss, share of captions with every attribute right."""
        scores = [head(F.layer_norm(state, state.shape[-1:])) for head in self.whole]
        losses = [F.cross_entropy(score, labels[:, i]) for i, score in enumerate(scores)]
        right = torch.stack([score.argmax(-1) == labels[:, i] for i, score in enumerate(scores)]).all(0)
        return torch.stack(losses).mean(), right.float().mean()

    def word_loss(self, states: Tensor, texts: Texts) -> Tensor:
        """states (B, T, D) -> loss of the words' roles and colours."""
        normed = F.layer_norm(states, states.shape[-1:])
        role = F.cross_entropy(self.role(normed).flatten(0, 1), texts.roles.flatten(), ignore_index=IGNORED)
        tint = F.cross_entropy(self.tint(normed).flatten(0, 1), texts.tints.flatten(), ignore_index=IGNORED)
        return role + tint


def train_text(work: Path, budget: Budget) -> None:
    """Trains both encoders: work/tokenizer, tokenizer_2, text_encoder, text_encoder_2."""
    torch.manual_seed(3)
    write_tokenizers(work)
    tokenizers = load_tokenizers(work)
    data = draw_texts(tokenizers, budget.amount(CAPTIONS) + HELD_OUT, seed=3)
    first, second = make_text_encoders(len(tokenizers[0]))
    heads = nn.ModuleList(Heads(width) for width in (*TEXT_WIDTHS, TEXT_WIDTHS[1]))
    learning = nn.ModuleList([first, second, heads])
    optimizer = torch.optim.AdamW(learning.parameters(), weight_decay=1e-3, fused=True)
    average = Average(learning, 0.995)
    held = data.pick(torch.arange(HELD_OUT))
    for step, progress, bar in budget("text"):
        set_rate(optimizer, cosine(2e-3, progress, step))
        batch = data.pick(torch.randint(HELD_OUT, len(data.ids_1), (64,)))
        loss, _ = text_loss(first, second, heads, batch)
        clip_and_step(optimizer, learning.parameters(), loss)
        average.update(step)
        if step % 200 == 0:
            with torch.no_grad():
                bar.set_postfix(loss=float(loss.detach()), right=text_loss(first, second, heads, held)[1])
    average.swap()
    save(first.eval(), work / "text_encoder")
    save(second.eval(), work / "text_encoder_2")


def text_loss(first: TextModel, second: TextModel, heads: Any, texts: Texts) -> tuple[Tensor, list[float]]:
    """Loss of all heads, and per feature the share of captions read without a mistake."""
    rows = torch.arange(len(texts.ids_1))
    end = texts.ids_1.argmax(1)
    states_1 = first(texts.ids_1, output_hidden_states=True).hidden_states[-2]
    output_2 = second(texts.ids_2, output_hidden_states=True)
    states_2 = output_2.hidden_states[-2]
    pairs = [
        head.whole_loss(state, texts.attributes)
        for head, state in zip(heads, (states_1[rows, end], states_2[rows, end], output_2.text_embeds), strict=True)
    ]
    words = heads[0].word_loss(states_1, texts) + heads[1].word_loss(states_2, texts)
    return torch.stack([loss for loss, _ in pairs]).mean() + 0.25 * words, [round(float(r), 3) for _, r in pairs]


@dataclass(frozen=True)
class TextEncoders:
    """Tokenizers and frozen encoders, as a pipeline uses them."""

    tokenizers: tuple[CLIPTokenizer, CLIPTokenizer]
    first: TextModel
    second: TextModel

    @classmethod
    def load(cls, work: Path) -> "TextEncoders":
        """From a work folder."""
        first = load(CLIPTextModel, work / "text_encoder")
        second = load(CLIPTextModelWithProjection, work / "text_encoder_2")
        return cls(load_tokenizers(work), first, second)

    @torch.no_grad()
    def encode(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Prompts -> embeddings (B, 77, 160) and pooled embeddings (B, 96)."""
        ids_1, ids_2 = (_ids(tokenizer, texts, TOKENS) for tokenizer in self.tokenizers)
        states = self.first(ids_1, output_hidden_states=True).hidden_states[-2]
        output = self.second(ids_2, output_hidden_states=True)
        return torch.cat([states, output.hidden_states[-2]], -1), output.text_embeds
