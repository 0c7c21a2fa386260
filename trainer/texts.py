"""Captions on their way through both text encoders, and the rows of the new tokens, which learn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from sdxl.finetune.tokens import LearnedEmbedding, LearnedTokens
from sdxl.text import TextEncoders, token_ids

LENGTH = 77  # places of a text encoder, begin and end among them


def triggers_of(words: Sequence[str], each: int) -> dict[str, list[int]]:
    """Which rows each word stands for."""
    return {word: list(range(number * each, (number + 1) * each)) for number, word in enumerate(words)}


def first_rows(text: TextEncoders, count: int, generator: torch.Generator) -> tuple[nn.Parameter, nn.Parameter]:
    """Random rows as long as those of the tables, float32: a coarser type would lose most small steps. (n, D) each."""
    made = []
    for encoder in (text.text_encoder, text.text_encoder_2):
        table = LearnedEmbedding.of(encoder).weight
        rows = torch.randn(count, table.shape[1], generator=generator) * float(table.float().std())
        made.append(nn.Parameter(rows.to(table.device)))
    return made[0], made[1]


@dataclass(frozen=True)
class TextEmbeds:
    """What the UNet reads of captions: prompt_embeds (B, 77, D1 + D2), text_embeds (B, P)."""

    prompt_embeds: Tensor
    text_embeds: Tensor


class Captions:
    """Captions in tokens, the empty one after them; encoded anew as long as the rows learn, then remembered."""

    def __init__(self, text: TextEncoders, captions: Sequence[str], triggers: Mapping[str, Sequence[int]]) -> None:
        self._text = text
        self._triggers = triggers
        self.rows: tuple[nn.Parameter, nn.Parameter] | None = None
        self._cached: TextEmbeds | None = None
        self.empty = len(captions)
        self.cut: list[int] = []  # captions that are longer than the encoders
        self.forwards = 0  # how often an encoder has worked
        both = (text.tokenizer, text.tokenizer_2)
        blank = torch.zeros(0, 0)
        words = LearnedTokens("training", (blank, blank), triggers, "token")
        texts = [*captions, ""]
        self._ids = [self._tokenized(tokenizer, texts, words) for tokenizer in both]

    @property
    def remembered(self) -> bool:
        """Whether no encoder is needed any more."""
        return self._cached is not None

    def encode(self, picked: Tensor) -> TextEmbeds:
        """Those of captions by number (B,); gradients reach the rows."""
        if self._cached is not None:
            places = picked.to(self._cached.text_embeds.device)
            return TextEmbeds(self._cached.prompt_embeds[places], self._cached.text_embeds[places])
        states, pooled = [], None
        for number, encoder in enumerate((self._text.text_encoder, self._text.text_encoder_2)):
            # A view: of a parameter, torch would make one of the encoder
            LearnedEmbedding.of(encoder).rows = self.rows[number][:] if self.rows else None
            ids = self._ids[number][picked].to(encoder.device)
            output = encoder(ids, output_hidden_states=True)
            self.forwards += 1
            states.append(output.hidden_states[-2])
            if isinstance(encoder, CLIPTextModelWithProjection):
                places = ids.argmax(-1)  # the learned token, else the first end: see LearnedTokens.pooled_at
                last = output.last_hidden_state[torch.arange(len(ids), device=ids.device), places]
                pooled = encoder.text_projection(last)
        assert pooled is not None
        return TextEmbeds(torch.cat(states, -1), pooled)

    @torch.no_grad()
    def remember(self) -> None:
        """Encode all captions for the last time: the rows do not change any more."""
        parts = [self.encode(torch.tensor([number])) for number in range(self.empty + 1)]
        self._cached = TextEmbeds(
            torch.cat([each.prompt_embeds for each in parts]), torch.cat([each.text_embeds for each in parts])
        )

    def release(self) -> None:
        """Leave the encoders as they were found."""
        for encoder in (self._text.text_encoder, self._text.text_encoder_2):
            LearnedEmbedding.of(encoder).rows = None

    def _tokenized(self, tokenizer: CLIPTokenizer, texts: Sequence[str], words: LearnedTokens) -> Tensor:
        """(N, 77)"""
        begin, end, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
        rows = []
        for number, text in enumerate(texts):
            ids = token_ids(tokenizer, text, words)
            if len(ids) > LENGTH - 2 and number not in self.cut:
                self.cut.append(number)
            ids = ids[: LENGTH - 2]
            rows.append([begin, *ids, end, *[pad] * (LENGTH - 2 - len(ids))])
        return torch.tensor(rows)
