"""Prompts of any length, with weights -> what SDXL's UNets read.

A text encoder reads rows of 77 tokens: begin, 75 tokens, end. A longer prompt is cut into chunks of 75,
between words where possible, and their states are put in a line; the shorter of two prompts is filled up with
rows of the empty prompt. The pooled vector is that of a prompt's first chunk.

Weights follow compel 2.5 (github.com/damian0815/compel): a token's state moves away from, or towards, that of
the empty prompt at its place; below 1 it is also mixed with that of the prompt with the fragment masked.
compel's own EmbeddingsProvider runs an encoder once per chunk and fragment instead of once per call, knows
no clip_skip, and fails on a fragment without tokens. compel pools the text with the syntax in it; here the
pooled vector is that of the words, and of several alternatives the mean by weight.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from errors import InputError
from sdxl.clip import ProjectedTextModel, TextModel
from sdxl.finetune.tokens import LearnedEmbedding, LearnedTokens
from sdxl.placement import working_device
from sdxl.prompt import Alternative, Prompt, parse
from sdxl.tokenizer import Tokenizer

MAX_CHARACTERS = 20_000
MAX_CHUNKS = 54  # 4050 tokens
MAX_LESSENED = 100  # fragments with a weight below 1: each is one more row to encode
ROWS_AT_ONCE = 32  # of SDXL's second encoder these take 0.2 GB in 16 bit
CACHED, CACHED_TOKENS = 32, 256 * 77  # entries, and their lengths together (160 MB)

Encoder = TextModel | ProjectedTextModel


@dataclass(frozen=True)
class PromptEmbeds:
    """What the UNets read: (1, T, D1 + D2) twice, T = 77 per chunk, and (1, P) twice. Never change one."""

    prompt_embeds: Tensor
    negative_prompt_embeds: Tensor
    pooled_prompt_embeds: Tensor
    negative_pooled_prompt_embeds: Tensor

    def __len__(self) -> int:
        return self.prompt_embeds.shape[1]

    def for_refiner(self, width: int) -> "PromptEmbeds":
        """The second encoder's part, the last `width` channels, which is all that the refiner reads."""
        both = (self.prompt_embeds[..., -width:], self.negative_prompt_embeds[..., -width:])
        return PromptEmbeds(*both, self.pooled_prompt_embeds, self.negative_pooled_prompt_embeds)


@dataclass
class TextEncoders:
    """SDXL's two text encoders. They remember prompts: `clear` after a change to the weights of an encoder."""

    tokenizer: Tokenizer
    text_encoder: TextModel
    tokenizer_2: Tokenizer
    text_encoder_2: ProjectedTextModel
    ready: Callable[..., object] = field(
        default=lambda *_: None, repr=False
    )  # brings both to their device before they work
    _cache: OrderedDict[tuple[str, str, str, str, int, str], PromptEmbeds] = field(
        default_factory=OrderedDict, init=False, repr=False
    )

    def __post_init__(self) -> None:
        for encoder in (self.text_encoder, self.text_encoder_2):
            LearnedEmbedding.install(encoder)

    def encode(
        self,
        prompt: str,
        negative_prompt: str,
        prompt_2: str | None = None,
        negative_prompt_2: str | None = None,
        clip_skip: int | None = None,
        learned: LearnedTokens | None = None,
    ) -> PromptEmbeds:
        """As StableDiffusionXLPipeline.encode_prompt, whose clip_skip leaves the negative prompt alone, but with
        weights, learned tokens and nothing cut off. Raises InputError before anything is encoded."""
        texts = (prompt, negative_prompt, prompt_2 or prompt, negative_prompt_2 or negative_prompt)
        key = (*texts, clip_skip or 0, "" if learned is None else f"{learned.key}/{learned.pooled_at}")
        self._cache[key] = embeds = self._cache.pop(key, None) or self._encode(*key[:5], learned)
        while len(self._cache) > CACHED or sum(map(len, self._cache.values())) > CACHED_TOKENS:
            self._cache.popitem(last=False)
        return embeds

    def clear(self) -> None:
        """Forget all prompts."""
        self._cache.clear()

    @torch.no_grad()
    def _encode(
        self, prompt: str, negative: str, prompt_2: str, negative_2: str, skip: int, learned: LearnedTokens | None
    ) -> PromptEmbeds:
        encoders: tuple[Encoder, Encoder] = (self.text_encoder, self.text_encoder_2)
        deepest = min(int(encoder.config.num_hidden_layers) for encoder in encoders) - 1
        if not 0 <= skip <= deepest:
            raise InputError(f"clip_skip={skip} is out of range; give a number from 0 to {deepest}.")
        first = _Reader(self.tokenizer, {"prompt": prompt, "negative_prompt": negative}, learned)
        second = _Reader(self.tokenizer_2, {"prompt_2": prompt_2, "negative_prompt_2": negative_2}, learned)
        length = max(text.length for text in first.texts + second.texts)
        self.ready(self.text_encoder, self.text_encoder_2)
        layers = (-2 - skip, -2)
        for number, encoder in enumerate(encoders):
            LearnedEmbedding.of(encoder).rows = learned.rows[number] if learned else None
        states, _ = first.read(self.text_encoder, layers, length)
        states_2, pooled = second.read(self.text_encoder_2, layers, length)
        both = [torch.cat(pair, -1)[None] for pair in zip(states, states_2, strict=True)]
        return PromptEmbeds(*both, *(vector[None] for vector in pooled))


@dataclass(frozen=True)
class _Chunk:
    """A chunk's row, the weights of its 77 places, and how much to mix in of rows with a fragment masked."""

    row: int
    weights: tuple[float, ...]
    without: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class _Text:
    """A prompt, and the chunks of each of its alternatives."""

    prompt: Prompt
    chunks: list[list[_Chunk]]

    @property
    def length(self) -> int:
        """How many chunks its states fill."""
        lengths = [len(part) for part in self.chunks]
        return max(lengths) if self.prompt.combination == "blend" else sum(lengths)

    def mix(self, states: Tensor, empty: Tensor, length: int) -> Tensor:
        """Its states (length * 77, D), from those of all rows (R, 77, D) and of the empty prompt (77, D)."""
        parts = [torch.cat([_weigh(chunk, states, empty) for chunk in part]) for part in self.chunks]
        weights = [part.weight for part in self.prompt.alternatives]
        if self.prompt.combination == "blend":
            padded = torch.stack([_pad(part, empty, self.length) for part in parts], -1).float()
            parts = [padded @ torch.tensor(weights, device=padded.device)]
        elif not self.prompt.is_plain:
            blank = [_pad(part[:0], empty, len(part) // 77).float() for part in parts]
            parts = [torch.lerp(blank[i], part.float(), weights[i]) for i, part in enumerate(parts)]
        return _pad(torch.cat(parts), empty, length).to(states.dtype)

    def pool(self, pooled: Tensor) -> Tensor:
        """Its pooled vector (P,), from those of all rows (R, P)."""
        weights = [part.weight for part in self.prompt.alternatives]
        total = sum(weights) if self.prompt.combination == "and" else 1.0
        vectors = [pooled[part[0].row] * (w / total) for part, w in zip(self.chunks, weights, strict=True)]
        return torch.stack(vectors).sum(0)


def _weigh(chunk: _Chunk, states: Tensor, empty: Tensor) -> Tensor:
    """The states of a chunk (77, D)."""
    state = states[chunk.row]
    if chunk.without:
        rest = 1 - math.fsum(share for _, share in chunk.without)
        state = sum((states[row].float() * share for row, share in chunk.without), state.float() * rest)
    if all(weight == 1 for weight in chunk.weights):
        return state
    weights = torch.tensor(chunk.weights, device=state.device)[:, None]
    return torch.lerp(empty.float(), state.float(), weights)


def _pad(states: Tensor, empty: Tensor, length: int) -> Tensor:
    """States (T, D), and rows of the empty prompt to make `length` chunks of it."""
    missing = length - len(states) // 77
    return torch.cat([states, empty.to(states.dtype).repeat(missing, 1)]) if missing else states


def token_ids(tokenizer: Tokenizer, text: str, learned: LearnedTokens | None) -> list[int]:
    """The numbers of a text's tokens, begin and end not among them; learned ones come after the vocabulary."""
    ids = list[int]()
    for piece in learned.pieces(text) if learned else (text,):
        if isinstance(piece, str):
            ids += tokenizer.encode(piece)
        else:
            ids += [len(tokenizer) + number for number in piece]
    return ids


class _Reader:
    """Texts on their way through one encoder: equal rows are encoded once, and all rows at the same time."""

    def __init__(self, tokenizer: Tokenizer, texts: dict[str, str], learned: LearnedTokens | None) -> None:
        self.tokenizer, self.learned = tokenizer, learned
        self.size = len(tokenizer)  # learned rows have the numbers from here on
        self.added = frozenset(tokenizer.get_added_vocab().values())
        self.rows: dict[tuple[tuple[int, ...], tuple[int, int]], int] = {}  # tokens, masked ones
        self.texts = [self._text(name, text) for name, text in texts.items()]

    def _text(self, name: str, text: str) -> _Text:
        """A text in chunks, if it is not too much to encode."""
        if len(text) > MAX_CHARACTERS:
            raise InputError(f"{name} has {len(text)} characters, {MAX_CHARACTERS} are the most; shorten it.")
        prompt = parse(text)
        parts = prompt.alternatives
        if (count := sum(piece.weight < 1 for part in parts for piece in part.fragments)) > MAX_LESSENED:
            raise InputError(f"{name} has {count} parts of weight below 1, {MAX_LESSENED} are the most; use fewer.")
        chunks = [self._chunks(part) for part in parts]
        if (count := sum(map(len, chunks))) > MAX_CHUNKS:
            raise InputError(f"{name} has {count} chunks of 75 tokens, {MAX_CHUNKS} are the most; shorten it.")
        return _Text(prompt, chunks)

    def _row(self, ids: Sequence[int], masked: tuple[int, int] = (0, 0)) -> int:
        """The number of a row, new or known."""
        return self.rows.setdefault((tuple(ids), masked), len(self.rows))

    def _chunks(self, part: Alternative) -> list[_Chunk]:
        ids, weights = list[int](), list[float]()
        lessened = list[tuple[int, int, float]]()  # first token, end, share of the prompt without them
        for fragment in part.fragments:
            own = token_ids(self.tokenizer, fragment.text, self.learned)
            if fragment.weight < 1:
                share = math.tan((1 - max(fragment.weight, 1e-5)) * math.pi / 2)
                lessened.append((len(ids), len(ids) + len(own), share))
            ids += own
            weights += [fragment.weight] * len(own)
        total = 1 + math.fsum(share for _, _, share in lessened)
        chunks = []
        for begin, end in self._cuts(ids):
            within = [(max(a, begin) - begin, min(b, end) - begin, share / total) for a, b, share in lessened]
            without = tuple((self._row(ids[begin:end], (a, b)), share) for a, b, share in within if a < b)
            places = (1.0, *weights[begin:end], *[1.0] * (76 - end + begin))
            chunks.append(_Chunk(self._row(ids[begin:end]), places, without))
        return chunks

    def _cuts(self, ids: list[int]) -> list[tuple[int, int]]:
        """Where chunks begin and end: between words, or inside one longer than a chunk. Added tokens have no
        mark at their end; neighbours among them are taken for one word."""
        added = [token in self.added or token >= self.size for token in ids]
        known = self.tokenizer.convert_ids_to_tokens([min(token, self.size - 1) for token in ids])
        words = [token.endswith("</w>") for token in known]
        cuts, begin = [], 0
        while len(ids) - begin > 75:
            places = range(begin + 75, begin, -1)
            good = (at for at in places if added[at - 1] != added[at] or (words[at - 1] and not added[at]))
            cuts.append((begin, next(good, begin + 75)))
            begin = cuts[-1][1]
        return [*cuts, (begin, len(ids))]

    def read(self, encoder: Encoder, layers: Sequence[int], length: int) -> tuple[list[Tensor], list[Tensor]]:
        """Per text: states (length * 77, D) out of its layer, and pooled vector (P,)."""
        alone = all(text.prompt.is_plain and text.length == length for text in self.texts)
        empty = 0 if alone else self._row(())
        states, pooled = self._run(encoder, layers)
        mixed = [text.mix(z, z[empty], length) for text, z in zip(self.texts, states, strict=True)]
        return mixed, [text.pool(pooled) for text in self.texts]

    def _run(self, encoder: Encoder, layers: Sequence[int]) -> tuple[list[Tensor], Tensor]:
        """All rows: states (R, 77, D) of each layer, and pooled vectors (R, P)."""
        begin, end, pad = (getattr(self.tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad"))
        ids = torch.tensor([[begin, *row, end, *[pad] * (75 - len(row))] for row, _ in self.rows])
        mask = torch.ones_like(ids)
        for i, (_, (low, high)) in enumerate(self.rows):
            mask[i, 1 + low : 1 + high] = 0
        masked = any(high for _, (_, high) in self.rows)
        device = working_device(encoder)
        outputs = []
        for batch in (slice(at, at + ROWS_AT_ONCE) for at in range(0, len(ids), ROWS_AT_ONCE)):
            attention_mask = mask[batch].to(device) if masked else None
            outputs.append(encoder(ids[batch].to(device), attention_mask, output_hidden_states=True))
        states = [torch.cat([output.hidden_states[layer] for output in outputs]) for layer in layers]
        if self.learned is not None and isinstance(encoder, ProjectedTextModel):
            last = torch.cat([output.last_hidden_state for output in outputs])
            return states, encoder.text_projection(last[torch.arange(len(ids)), self._pooled_places(ids)])
        return states, torch.cat([output.pooled for output in outputs])

    def _pooled_places(self, ids: Tensor) -> Tensor:
        """Which place of each row (R, 77) the pooled vector is read at: the first end, or the token with the highest
        number, which a learned one has."""
        assert self.learned is not None
        end = ids == self.tokenizer.eos_token_id
        return (ids if self.learned.pooled_at == "token" else end.int()).argmax(-1)
