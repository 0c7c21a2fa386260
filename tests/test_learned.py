"""Learned tokens: whole words, in any case, become new rows. What transformers makes of added tokens is the judge."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from sdxl.finetune.tokens import LearnedTokens, PooledAt, combined
from sdxl.models import Models

BASE = Path(__file__).resolve().parent.parent / "miniature" / "weights" / "base"
GENERATOR = torch.Generator().manual_seed(9)
ROWS = (torch.randn(2, 64, generator=GENERATOR) * 0.1, torch.randn(2, 96, generator=GENERATOR) * 0.1)
NAMES = {"TOK": [0, 1], "<s0>": [0], "<s1>": [1]}
PROMPTS = [
    "a photo of TOK on a blue background",
    "TOK",
    "TOK, TOK and TOK!",
    "a red circle next to TOK",
    "<s1> alone, then <s0>",
    "a (TOK) in parentheses",
]


def learned(pooled_at: PooledAt = "token", triggers: dict[str, list[int]] = NAMES) -> LearnedTokens:
    return LearnedTokens("key", ROWS, triggers, pooled_at)


@pytest.fixture(scope="module")
def reference() -> Any:
    """diffusers' pipeline as the public runtime has it: tokens added to both tokenizers, rows to both tables."""
    make: Any = StableDiffusionXLPipeline
    text = {
        "tokenizer": CLIPTokenizer.from_pretrained(BASE / "tokenizer"),
        "text_encoder": CLIPTextModel.from_pretrained(BASE / "text_encoder", dtype=torch.float32),
        "tokenizer_2": CLIPTokenizer.from_pretrained(BASE / "tokenizer_2"),
        "text_encoder_2": CLIPTextModelWithProjection.from_pretrained(BASE / "text_encoder_2", dtype=torch.float32),
    }
    for number, rows in zip(("", "_2"), ROWS, strict=True):
        tokenizer: Any = text[f"tokenizer{number}"]
        encoder: Any = text[f"text_encoder{number}"]
        tokenizer.add_tokens(["<s0>", "<s1>"])
        encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        encoder.get_input_embeddings().weight.data[-2:] = rows
    return make(**text, vae=None, unet=None, scheduler=None, add_watermarker=False)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_it_is_what_transformers_makes_of_added_tokens(models: Models, reference: Any, prompt: str) -> None:
    """Pooled at the token, as SDXL's config has it there; the same prompts, the trigger written out."""
    theirs = reference.encode_prompt(re.sub("TOK", "<s0><s1>", prompt), negative_prompt="", device="cpu")
    ours = models.text.encode(prompt, "", learned=learned())
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    for name, expected in zip(names, theirs, strict=True):
        torch.testing.assert_close(getattr(ours, name), expected, rtol=0, atol=2e-6)


def pooled(models: Models, prompt: str, at: PooledAt) -> Tensor:
    return models.text.encode(prompt, "", learned=learned(at)).pooled_prompt_embeds


def test_where_the_pooled_vector_is_read(models: Models) -> None:
    """At the token what follows it does not count; at the end it does. A prompt without tokens is the same in both."""
    one, other = "TOK on a blue background", "TOK on a red background"
    assert torch.equal(pooled(models, one, "token"), pooled(models, other, "token"))
    assert not torch.equal(pooled(models, one, "end"), pooled(models, other, "end"))
    plain = "a circle on a blue background"
    assert torch.equal(pooled(models, plain, "end"), pooled(models, plain, "token"))
    without = models.text.encode(plain, "").pooled_prompt_embeds
    torch.testing.assert_close(pooled(models, plain, "end"), without, rtol=0, atol=1e-6)


WORDS = st.sampled_from(["TOK", "tok", "Tok", "TOKYO", "xTOK", "TOK2", "TOK_a", "TOK-like", "TOK's", "a", "star", "é"])
GAPS = st.sampled_from([" ", ", ", ". ", "\n", "!", "/", " (", ") "])


@given(st.lists(st.tuples(WORDS, GAPS), max_size=12))
def test_only_whole_words_are_replaced(parts: list[tuple[str, str]]) -> None:
    text = "".join(word + gap for word, gap in parts)
    pieces = list(learned().pieces(text))
    expected = len(re.findall(r"\btok\b", text, re.IGNORECASE))
    assert sum(not isinstance(piece, str) for piece in pieces) == expected
    kept = "".join(piece if isinstance(piece, str) else "TOK" for piece in pieces)
    assert kept.lower() == text.lower()


def test_a_trigger_may_be_any_text() -> None:
    odd = learned(triggers={"my (cat)+": [0], "my": [1], "<cat-toy>": [0, 1]})
    assert list(odd.pieces("my (cat)+ and my<cat-toy>")) == ["", [0], " and ", [1], "", [0, 1], ""]
    assert odd.named_in(None, "nothing", "MY")
    assert not odd.named_in("mystery")


def test_several_share_a_word_by_number() -> None:
    both = combined([learned(), LearnedTokens("other", (ROWS[0][:1], ROWS[1][:1]), {"tok": [0], "new": [0]}, "end")])
    assert both is not None
    assert both.triggers == {"TOK": [0, 1], "<s0>": [0], "<s1>": [1], "tok_2": [2], "new": [2]}
    assert both.rows[0].shape == (3, 64)
    assert both.pooled_at == "token"
    assert combined([]) is None


def test_a_word_of_a_fine_tune_s_own_is_never_lost() -> None:
    """Not even where it is what another one's is called by its number."""

    def one(name: str) -> LearnedTokens:
        return LearnedTokens(name, (ROWS[0][:1], ROWS[1][:1]), {name: [0]}, "end")

    three = combined([one("TOK"), one("TOK"), one("TOK_2")])
    assert three is not None
    assert three.triggers == {"TOK": [0], "TOK_2": [1], "TOK_2_2": [2]}


@pytest.mark.parametrize("prompt", ["M\u0130N\u0130", "<\u017f0>", "mini", "MINI <S0>"])
def test_letters_whose_capitals_are_several(models: Models, prompt: str) -> None:
    tune = learned(triggers={"mini": [0], "<s0>": [1]})
    embeds = models.text.encode(prompt, "", learned=tune)
    assert bool(torch.isfinite(embeds.prompt_embeds).all())


@pytest.mark.parametrize("count", [10, 74, 75, 76, 80, 150])
def test_tokens_in_prompts_of_any_length(models: Models, count: int) -> None:
    """The pair of rows stays in one chunk, and every one of them is read."""
    prompt = "star " * count + "TOK " + "star " * count
    tune = learned("end")
    embeds = models.text.encode(prompt, "", learned=tune)
    swapped = LearnedTokens("swapped", (ROWS[0].flip(0), ROWS[1].flip(0)), NAMES, "end")
    assert not torch.equal(models.text.encode(prompt, "", learned=swapped).prompt_embeds, embeds.prompt_embeds)
    assert embeds.prompt_embeds.shape[1] % 77 == 0


def test_weights_and_mixtures_hold_tokens_too(models: Models) -> None:
    plain = models.text.encode("TOK on blue", "", learned=learned())
    for prompt in ("TOK++ on blue", "(TOK)0.5 on blue", '("TOK", "a star").blend(0.5, 0.5)'):
        weighted = models.text.encode(prompt, "", learned=learned())
        assert weighted.prompt_embeds.shape == plain.prompt_embeds.shape
        assert not torch.equal(weighted.prompt_embeds, plain.prompt_embeds)


@given(st.text(max_size=60))
@settings(max_examples=30, deadline=None)
def test_no_text_is_too_odd(models: Models, text: str) -> None:
    embeds = models.text.encode(f"TOK {text}", text, learned=learned())
    assert bool(torch.isfinite(embeds.prompt_embeds).all())


def test_the_next_prompt_without_them_is_untouched(models: Models) -> None:
    models.text.clear()
    before = models.text.encode("a <s0> star TOK", "")
    models.text.encode("a <s0> star TOK", "", learned=learned())
    models.text.clear()
    assert torch.equal(models.text.encode("a <s0> star TOK", "").prompt_embeds, before.prompt_embeds)
