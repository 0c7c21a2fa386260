"""Captions on their way through both text encoders, and the rows of the new tokens, which learn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sdxl.finetune.tokens import LearnedEmbedding, LearnedTokens
from sdxl.text import TextEncoders, token_ids
from sdxl.tokenizer import Tokenizer
from trainer.encoders import Encoder

AT_ONCE = 32  # captions; of SDXL's second encoder these take 0.2 GB in 16 bit
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
    """Captions in tokens, each different one once, the empty one after them; encoded anew as long as the rows learn,
    then remembered. A caption's number is its place among those that were given; `empty` is that of the empty one."""

    def __init__(self, text: TextEncoders, captions: Sequence[str], triggers: Mapping[str, Sequence[int]]) -> None:
        self._text = text
        self.rows: tuple[nn.Parameter, nn.Parameter] | None = None
        self._encoders: tuple[Encoder, Encoder] | None = None
        self._cached: TextEmbeds | None = None
        self.empty = len(captions)
        self.cut: list[int] = []  # captions that are longer than the encoders
        self.forwards = 0  # how often an encoder has worked
        texts = [*captions, ""]
        different = {caption: place for place, caption in enumerate(dict.fromkeys(texts))}
        device = text.text_encoder.device
        self._places = torch.tensor([different[caption] for caption in texts]).to(device)
        blank = torch.zeros(0, 0)
        words = LearnedTokens("training", (blank, blank), triggers, "token")
        both = [self._tokenized(tokenizer, texts, words) for tokenizer in (text.tokenizer, text.tokenizer_2)]
        first = list(map(texts.index, different))
        self._ids = [ids[first].to(device) for ids in both]

    @property
    def remembered(self) -> bool:
        """Whether no encoder is needed any more."""
        return self._cached is not None

    def learn(self, rows: tuple[nn.Parameter, nn.Parameter]) -> None:
        """Read captions with these rows from now on, by the encoders as they are now."""
        self.rows = rows
        self._encoders = Encoder(self._text.text_encoder), Encoder(self._text.text_encoder_2)

    def encode(self, numbers: Tensor) -> TextEmbeds:
        """Those of captions by number (B,), on the device; gradients reach the rows."""
        places = self._places[numbers]
        if self._cached is not None:
            return TextEmbeds(self._cached.prompt_embeds[places], self._cached.text_embeds[places])
        return self._encoded(places)

    @torch.no_grad()
    def remember(self) -> None:
        """Encode all captions for the last time: the rows learn no more, and no encoder works any more."""
        for rows in self.rows or ():
            rows.requires_grad_(False)
        places = torch.arange(self._ids[0].shape[0], device=self._places.device)
        parts = [self._encoded(some) for some in torch.split(places, AT_ONCE)]
        self._cached = TextEmbeds(
            torch.cat([each.prompt_embeds for each in parts]), torch.cat([each.text_embeds for each in parts])
        )
        self._encoders = None
        modules: list[nn.Module] = [self._text.text_encoder, self._text.text_encoder_2]
        for module in modules if self._places.is_cuda else ():
            module.to("cpu")

    def _encoded(self, places: Tensor) -> TextEmbeds:
        """Those at these places among the different ones."""
        assert self.rows is not None
        assert self._encoders is not None
        (first, _), (second, pooled) = (
            encoder(ids[places], rows) for encoder, ids, rows in zip(self._encoders, self._ids, self.rows, strict=True)
        )
        assert pooled is not None
        self.forwards += 2
        return TextEmbeds(torch.cat((first, second), -1), pooled)

    def _tokenized(self, tokenizer: Tokenizer, texts: Sequence[str], words: LearnedTokens) -> Tensor:
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
