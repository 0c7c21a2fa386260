"""Tokens that were learned: new rows beside the frozen tables of both text encoders, and what calls them in a prompt.

A prompt says a trigger (TOK), as a whole word in any case, or a token by its own name (<s0>). Neither tokenizers nor
tables are changed: the rows travel with the call that reads the prompt.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import Embedding
from torch.nn.functional import embedding

PooledAt = Literal["token", "end"]

MOST_TRIGGERS, MOST_ROWS, LONGEST = 100, 1000, 100  # words, rows, characters of a word: every prompt is searched


@dataclass(frozen=True)
class LearnedTokens:
    """Rows for each encoder, (n, D1) and (n, D2), and the triggers: what a prompt says -> the numbers of its rows.

    pooled_at  where encoder 2's pooled vector is read. "end" is right: at the end of the prompt. "token" is what
               transformers does with SDXL's config when a prompt holds an added token: at that token, so that what
               follows it does not count. Replicate's trainer trained with that, and its weights expect it.
    """

    key: str
    rows: tuple[Tensor, Tensor]
    triggers: Mapping[str, Sequence[int]]
    pooled_at: PooledAt
    _numbers: list[Sequence[int]] = field(init=False, repr=False, compare=False)
    _pattern: re.Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        names = sorted(self.triggers, key=len, reverse=True)  # the longest, where several begin
        object.__setattr__(self, "_numbers", [self.triggers[name] for name in names])
        object.__setattr__(self, "_pattern", re.compile("|".join(f"({whole_word(name)})" for name in names), re.I))

    def pieces(self, text: str) -> Iterator[str | Sequence[int]]:
        """A text as strings, to be tokenized, and the numbers of learned rows."""
        at = 0
        for match in self._pattern.finditer(text):
            yield text[at : match.start()]
            yield self._numbers[(match.lastindex or 1) - 1]
            at = match.end()
        yield text[at:]

    def named_in(self, *texts: str | None) -> bool:
        """Whether one of these says a trigger."""
        return any(self._pattern.search(text) for text in texts if text)


def whole_word(name: str) -> str:
    """A pattern for the name where it is no part of a longer word."""
    before = r"(?<!\w)" if re.match(r"\w", name[0]) else ""
    after = r"(?!\w)" if re.match(r"\w", name[-1]) else ""
    return before + re.escape(name) + after


def combined(several: Sequence[LearnedTokens]) -> LearnedTokens | None:
    """All tokens of several fine-tunes. A trigger that is taken already gets a number: TOK, TOK_2, TOK_3."""
    if len(several) < 2:
        return several[0] if several else None
    triggers: dict[str, Sequence[int]] = {}
    start = 0
    for learned in several:
        taken = {name.lower() for name in triggers}
        for name, numbers in learned.triggers.items():
            names = (name, *(f"{name}_{count}" for count in range(2, len(several) * MOST_TRIGGERS)))
            own = next(each for each in names if each.lower() not in taken)
            triggers[own] = [start + number for number in numbers]
        start += len(learned.rows[0])
    pooled_at: PooledAt = "token" if any(learned.pooled_at == "token" for learned in several) else "end"
    first, second = (torch.cat([each.rows[encoder] for each in several]) for encoder in (0, 1))
    return LearnedTokens("+".join(each.key for each in several), (first, second), triggers, pooled_at)


class LearnedEmbedding(Embedding):
    """A frozen table; ids beyond it are `rows`, which whoever encodes a prompt sets first, each time."""

    rows: Tensor | None = None

    @classmethod
    def install(cls, encoder: Any) -> None:
        """In the place of a text encoder's table, on the same weights."""
        table = encoder.get_input_embeddings()
        fresh = cls(table.num_embeddings, table.embedding_dim, _weight=table.weight)  # no random start is drawn
        fresh.weight = table.weight
        encoder.set_input_embeddings(fresh.requires_grad_(False).eval())

    @classmethod
    def of(cls, encoder: Any) -> LearnedEmbedding:
        """That of a text encoder."""
        table = encoder.get_input_embeddings()
        assert isinstance(table, cls)
        return table

    def forward(self, input: Tensor) -> Tensor:
        """ids (B, T) -> (B, T, D)"""
        if self.rows is None:
            return super().forward(input)
        size = self.num_embeddings
        known = super().forward(input.clamp(max=size - 1))
        learned = embedding((input - size).clamp(min=0), self.rows.to(known))
        return torch.where((input >= size)[..., None], learned, known)
