"""Learned tokens out of the files of a fine-tune: their rows, and the words that call them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from errors import WeightsError
from sdxl.finetune.contents import BUNDLED, TOKEN_KEYS, Chosen, Contents, as_object, is_finite
from sdxl.finetune.tokens import LONGEST, MOST_ROWS, MOST_TRIGGERS, LearnedTokens, PooledAt

METADATA = ("trigger", "modelspec.trigger_phrase", "ss_trigger_words", "trigger_word")  # where headers name the word
SPECIAL = "special_params.json"  # or, where the file is alone, in its header
ENCODERS = ("text_encoder", "text_encoder_2")

Rows = tuple[Tensor, Tensor]


def read_tokens(
    chosen: Chosen, parts: Mapping[str, Module], home: torch.device, *, key: str, name: str
) -> LearnedTokens | None:
    """All tokens of a fine-tune; `name` is the word for those that no file names. None if it has none."""
    rows, triggers = list[Rows](), dict[str, list[int]]()
    pooled_at: PooledAt = "end"
    for file in (chosen.tokens, chosen.weights):
        if file is None:
            continue
        start = sum(len(first) for first, _ in rows)
        if pair := _pair(file):
            rows.append(pair)
            triggers |= {word: [start + each for each in own] for word, own in _words(file, len(pair[0]), name).items()}
            pooled_at = _pooled_at(file, pooled_at)
        for word, bundled in _bundled(file).items():
            start = sum(len(first) for first, _ in rows)
            rows.append(bundled)
            triggers[word] = list(range(start, start + len(bundled[0])))
    if not rows:
        return None
    for pair in rows:
        _require_fit(pair, parts)
    _require_modest(triggers, sum(len(first) for first, _ in rows))
    first, second = (torch.cat([pair[encoder].float() for pair in rows]).to(home) for encoder in (0, 1))
    return LearnedTokens(f"{key}/{name}", (first, second), triggers, pooled_at)


def _pair(file: Contents) -> Rows | None:
    if keys := file.token_keys:
        return file.tensors[keys[0]], file.tensors[keys[1]]
    if file.only_tokens:
        raise WeightsError("its tokens are for one text encoder only, and SDXL has two; choose weights for SDXL 1.0.")
    return None


def _bundled(file: Contents) -> dict[str, Rows]:
    found = dict[str, dict[str, Tensor]]()
    for key, tensor in file.tensors.items():
        if match := BUNDLED.fullmatch(key):
            found.setdefault(match[1], {})[match[2]] = tensor
    for word, rows in found.items():
        if set(rows) != set(TOKEN_KEYS[1]):
            raise WeightsError(f"the token {word!r:.80} has rows for one text encoder only; SDXL has two.")
    return {word: (rows["clip_l"], rows["clip_g"]) for word, rows in sorted(found.items())}


def _pooled_at(file: Contents, otherwise: PooledAt) -> PooledAt:
    """As they were trained: at the token by Replicate's trainer, unless the header says that they were not."""
    stated = file.metadata.get("pooled_at", "token" if file.token_keys == TOKEN_KEYS[0] else otherwise)
    return "token" if stated == "token" else "end"


def _words(file: Contents, count: int, name: str) -> dict[str, list[int]]:
    """Each token by its own name, and all of them by the word that stands for them."""
    words = {f"<s{number}>": [number] for number in range(count)}
    written = file.beside(SPECIAL) or as_object(file.metadata.get("special_params", "{}"), "special_params")
    for word, text in written.items():
        numbers = [int(number) for number in re.findall(r"<s(\d{1,4})>", str(text))]
        if not numbers or max(numbers) >= count or re.sub(r"<s\d{1,4}>", "", str(text)).strip():
            said = f"{SPECIAL} gives {word!r:.80} the meaning {str(text)!r:.80}"
            raise WeightsError(f"{said}, and there are {count} tokens; write <s0> to <s{count - 1}>.")
        words[word] = numbers
    if not written:
        stated: Any = next((file.metadata[key] for key in METADATA if file.metadata.get(key)), name)
        words |= {stated.strip(): list(range(count))} if stated.strip() else {}
    return words


def _require_fit(pair: Rows, parts: Mapping[str, Module]) -> None:
    for rows, part in zip(pair, ENCODERS, strict=True):
        encoder: Any = parts[part]
        width = int(encoder.config.hidden_size)
        if rows.dim() != 2 or rows.shape[1] != width or not len(rows) or len(rows) != len(pair[0]):
            shapes = " and ".join("x".join(map(str, each.shape)) for each in pair)
            raise WeightsError(
                f"its token rows are {shapes}, and {part} of this model reads rows of {width}; "
                "choose weights made for SDXL 1.0."
            )
        if not is_finite(rows):
            raise WeightsError("its token rows hold values that are no numbers; the training failed.")


def _require_modest(triggers: Mapping[str, list[int]], rows: int) -> None:
    """Every prompt is searched for every word: a file with a million of them would stop the server."""
    if len(triggers) > MOST_TRIGGERS + rows or rows > MOST_ROWS:
        raise WeightsError(
            f"it has {len(triggers)} words for {rows} tokens; {MOST_TRIGGERS} and {MOST_ROWS} are the most."
        )
    for word in triggers:
        if not word.strip() or len(word) > LONGEST or not word.isprintable():
            raise WeightsError(f"{word[:40]!r} is no word to call a token by; give one of 1 to {LONGEST} characters.")
