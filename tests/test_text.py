"""Text embeddings: diffusers' for plain prompts, compel's for weighted ones, of any length."""

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from errors import InputError
from sdxl import text as text_module
from sdxl.clip import ProjectedTextModel, TextModel
from sdxl.modules import blank, fill
from sdxl.reading import read_tensors
from sdxl.text import PromptEmbeds, TextEncoders
from sdxl.tokenizer import Tokenizer

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # imports of diffusers and compel
    from compel import Compel, ReturnedEmbeddingsType, SplitLongTextMode
    from diffusers import StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline

BASE = Path(__file__).resolve().parent.parent / "miniature" / "weights" / "base"
LONG = "a red circle and a blue square, " * 20  # more than 75 tokens, whatever the tokenizer


def load(dtype: torch.dtype = torch.float32) -> TextEncoders:
    folder, folder_2 = BASE / "text_encoder", BASE / "text_encoder_2"
    return TextEncoders(
        Tokenizer(BASE / "tokenizer"),
        fill(blank(folder, TextModel), read_tensors(folder, torch.device("cpu"), dtype)),
        Tokenizer(BASE / "tokenizer_2"),
        fill(blank(folder_2, ProjectedTextModel), read_tensors(folder_2, torch.device("cpu"), dtype)),
    )


def reference() -> dict[str, Any]:
    """transformers' own, by the names of a pipeline's components."""
    return {
        "tokenizer": CLIPTokenizer.from_pretrained(BASE / "tokenizer"),
        "text_encoder": CLIPTextModel.from_pretrained(BASE / "text_encoder", dtype=torch.float32),
        "tokenizer_2": CLIPTokenizer.from_pretrained(BASE / "tokenizer_2"),
        "text_encoder_2": CLIPTextModelWithProjection.from_pretrained(BASE / "text_encoder_2", dtype=torch.float32),
    }


@pytest.fixture(scope="module")
def shared() -> TextEncoders:
    return load()


@pytest.fixture
def encoders(shared: TextEncoders) -> TextEncoders:
    shared.clear()
    return shared


@pytest.fixture(scope="module")
def theirs() -> dict[str, Any]:
    return reference()


@pytest.fixture(scope="module")
def pipes(theirs: dict[str, Any]) -> tuple[Any, Any]:
    """diffusers' base and refiner pipelines, text parts only."""
    rest = {"vae": None, "unet": None, "scheduler": None, "add_watermarker": False}
    base: Any = StableDiffusionXLPipeline
    refiner: Any = StableDiffusionXLImg2ImgPipeline
    return base(**theirs, **rest), refiner(**{**theirs, "tokenizer": None, "text_encoder": None}, **rest)


def tensors(embeds: PromptEmbeds) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        embeds.prompt_embeds,
        embeds.negative_prompt_embeds,
        embeds.pooled_prompt_embeds,
        embeds.negative_pooled_prompt_embeds,
    )


def assert_equal(ours: PromptEmbeds, theirs: tuple[Tensor, ...], limit: float = 1e-5) -> None:
    for mine, other in zip(tensors(ours), theirs, strict=True):
        torch.testing.assert_close(mine, other, atol=limit, rtol=0)


@contextmanager
def calls(encoders: TextEncoders) -> Iterator[list[int]]:
    """The batch sizes of all forward passes of the two encoders."""
    batches: list[int] = []
    hooks = [
        encoder.register_forward_hook(lambda _, args, __: batches.append(len(args[0])))
        for encoder in (encoders.text_encoder, encoders.text_encoder_2)
    ]
    yield batches
    for hook in hooks:
        hook.remove()


TEXTS = st.lists(
    st.sampled_from(["a", "red", "blue", "circle", "on", "green,", ".", "é", "猫", "the!", "3", "4k", ""]), max_size=14
).map(" ".join)


@settings(deadline=None, max_examples=40)
@given(
    prompt=TEXTS,
    negative=TEXTS,
    prompt_2=st.none() | TEXTS,
    negative_2=st.none() | TEXTS,
    clip_skip=st.sampled_from([None, 0, 1]),
)
def test_plain_as_diffusers(
    shared: TextEncoders,
    pipes: tuple[Any, Any],
    prompt: str,
    negative: str,
    prompt_2: str | None,
    negative_2: str | None,
    clip_skip: int | None,
) -> None:
    texts = {"negative_prompt": negative, "clip_skip": clip_skip, "device": torch.device("cpu")}
    theirs = pipes[0].encode_prompt(prompt, prompt_2=prompt_2, negative_prompt_2=negative_2, **texts)
    ours = shared.encode(prompt, negative, prompt_2, negative_2, clip_skip)
    assert_equal(ours, theirs)
    width = shared.text_encoder_2.config.hidden_size
    # diffusers' refiner does not read prompt_2: it has no first encoder to read the prompt with.
    refined = pipes[1].encode_prompt(prompt_2 or prompt, **{**texts, "negative_prompt": negative_2 or negative})
    assert_equal(ours.for_refiner(width), refined)


def compels(theirs: dict[str, Any], split: SplitLongTextMode = SplitLongTextMode.SENTENCES) -> list[Compel]:
    kind = ReturnedEmbeddingsType.PENULTIMATE_HIDDEN_STATES_NON_NORMALIZED
    options: dict[str, Any] = {"truncate_long_prompts": False, "split_long_text_mode": split}
    return [
        Compel(theirs[f"tokenizer{number}"], theirs[f"text_encoder{number}"], returned_embeddings_type=kind, **options)
        for number in ("", "_2")
    ]


@pytest.mark.parametrize(
    "prompt",
    [
        *("a red circle++ on blue", "a red circle-- on blue", "(red circle)1.5, (blue)0.4 and (green square)0"),
        *("((a red)++ circle)-- square", "(red)0", '"red circle"++ here', "a (circle)0.3 (square)2"),
        *('("red circle", "blue square++").blend(0.7, 0.3)', '("a", "red circle--").blend(0.7, 0.6, no_normalize)'),
        *('("red circle++", "blue square").and(1, 0.5)', '("red circle", "blue square").and()'),
        *("red " * 90 + "circle++ " + "blue " * 40, "red circle-- " + "blue " * 200 + "(green square)0.5"),
        f'("red", "{"blue " * 90}").blend(0.5, 0.5)',
    ],
)
def test_weighted_as_compel(encoders: TextEncoders, theirs: dict[str, Any], prompt: str) -> None:
    expected = torch.cat([compel(prompt) for compel in compels(theirs, SplitLongTextMode.WORDS)], -1)
    ours = encoders.encode(prompt, "")
    torch.testing.assert_close(ours.prompt_embeds, expected, atol=1e-4, rtol=0)
    assert ours.negative_prompt_embeds.shape == expected.shape


TERMS = st.builds(
    "{}{}".format,
    st.lists(st.sampled_from(["red", "circle", "blue", "big"]), min_size=1, max_size=3)
    .map(" ".join)
    .map("({})".format),
    st.sampled_from(["++", "--", "1.5", "0.5", "0", "1"]),
)


@settings(deadline=None, max_examples=25)
@given(terms=st.lists(TERMS, min_size=1, max_size=4))
def test_any_weights_as_compel(shared: TextEncoders, theirs: dict[str, Any], terms: list[str]) -> None:
    prompt = " and ".join(terms)
    expected = torch.cat([compel(prompt) for compel in compels(theirs)], -1)
    torch.testing.assert_close(shared.encode(prompt, "").prompt_embeds, expected, atol=1e-4, rtol=0)


def test_pooled_vector_is_that_of_the_words(encoders: TextEncoders) -> None:
    plain = encoders.encode("a red circle on blue", "ugly square")
    weighted = encoders.encode("a (red circle)++ on blue--", "ugly-- square")
    torch.testing.assert_close(weighted.pooled_prompt_embeds, plain.pooled_prompt_embeds)
    torch.testing.assert_close(weighted.negative_pooled_prompt_embeds, plain.negative_pooled_prompt_embeds)
    blend = encoders.encode('("a red circle on blue", "ugly square").blend(3, 1)', "").pooled_prompt_embeds
    mean = 0.75 * plain.pooled_prompt_embeds + 0.25 * plain.negative_pooled_prompt_embeds
    torch.testing.assert_close(blend, mean)
    both = encoders.encode('("a red circle on blue", "ugly square").and(3, 1)', "").pooled_prompt_embeds
    torch.testing.assert_close(both, mean)


def test_long_prompts_are_chunks(encoders: TextEncoders) -> None:
    ids = encoders.tokenizer.encode(LONG)
    count = -(-len(ids) // 75)
    ours = encoders.encode(LONG, "green")
    assert count > 1
    assert len(ours) % 77 == 0
    assert count <= len(ours) // 77 <= count + 1
    assert ours.prompt_embeds.shape == ours.negative_prompt_embeds.shape
    short, empty = encoders.encode("green", ""), encoders.encode("", "")
    torch.testing.assert_close(ours.negative_prompt_embeds[:, :77], short.prompt_embeds)
    for at in range(77, len(ours), 77):
        torch.testing.assert_close(ours.negative_prompt_embeds[:, at : at + 77], empty.prompt_embeds)
    torch.testing.assert_close(ours.negative_pooled_prompt_embeds, short.pooled_prompt_embeds)


def test_encoders_are_filled_up_to_the_same_length(encoders: TextEncoders) -> None:
    ours = encoders.encode("red", "", prompt_2=LONG)
    other = encoders.encode(LONG, "")
    width = encoders.text_encoder_2.config.hidden_size
    torch.testing.assert_close(ours.prompt_embeds[..., -width:], other.prompt_embeds[..., -width:])
    empty = encoders.encode("", "").prompt_embeds
    torch.testing.assert_close(ours.prompt_embeds[:, 77:154, :-width], empty[..., :-width])


def test_pooled_vector_of_a_long_prompt_is_diffusers(encoders: TextEncoders, pipes: tuple[Any, Any]) -> None:
    theirs = pipes[0].encode_prompt("red " * 200, device=torch.device("cpu"), negative_prompt="")
    ours = encoders.encode("red " * 200, "")
    torch.testing.assert_close(ours.pooled_prompt_embeds, theirs[2], atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.prompt_embeds[:, :77], theirs[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("lead", range(5))
def test_words_are_not_cut(encoders: TextEncoders, lead: int) -> None:
    """The second chunk is that of whole words: there is a number of words after which the rest encodes the same."""
    words = ["red"] * (70 + lead) + ["xqzvkwpjgh", "blue", "circle"]  # the odd word is several tokens
    ours = encoders.encode(" ".join(words), "").prompt_embeds
    assert ours.shape[1] == 154
    starts = [encoders.encode(" ".join(words[at:]), "").prompt_embeds for at in range(68, len(words))]
    assert any(torch.allclose(ours[:, 77:], start, atol=1e-5) for start in starts)


def test_word_longer_than_a_chunk(encoders: TextEncoders) -> None:
    assert len(encoders.encode("xqzvkwpjgh" * 60, "")) >= 154


def test_one_forward_for_each_encoder(encoders: TextEncoders) -> None:
    with calls(encoders) as batches:
        first = encoders.encode("a red circle", "blue")
        assert batches == [2, 2]
        assert encoders.encode("a red circle", "blue") is first
        assert batches == [2, 2]
        encoders.encode("a red circle", "blue", clip_skip=1)
        assert batches == [2] * 4
        encoders.encode("a (red)-- circle++", "blue (square)0.5")  # two of them again without a part, the empty one
        assert batches == [2] * 4 + [5] * 2
        encoders.clear()
        again = encoders.encode("a red circle", "blue")
        assert batches == [2] * 4 + [5] * 2 + [2] * 2
    assert again is not first
    assert all(torch.equal(a, b) for a, b in zip(tensors(again), tensors(first), strict=True))


def test_cache_is_bounded(encoders: TextEncoders) -> None:
    with calls(encoders) as batches:
        for number in range(text_module.CACHED + 1):
            encoders.encode(f"{number}", "")
            encoders.encode("1", "")  # used again and again, so it stays
        batches.clear()
        encoders.encode("1", "")
        encoders.encode(f"{text_module.CACHED}", "")
        assert not batches
        encoders.encode("0", "")
        assert batches
        for number in range(10):
            encoders.encode(f"{number} " + "red " * 3500, "")
        batches.clear()
        encoders.encode("9 " + "red " * 3500, "")
        assert not batches
        encoders.encode("0 " + "red " * 3500, "")
        assert batches


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (("red " * 5001, ""), "prompt has 20004 characters, 20000 are the most"),
        (("red " * 4500, ""), "prompt has 60 chunks of 75 tokens, 54 are the most"),
        (("red", "red " * 4500), "negative_prompt has 60 chunks"),
        (("red", "", "red " * 4500), "prompt_2 has 60 chunks"),
        (("red", "", None, "red " * 4500), "negative_prompt_2 has 60 chunks"),
        (("(red)-- blue " * 101, ""), "prompt has 101 parts of weight below 1, 100 are the most"),
        (("(" + ", ".join(["red"] * 60) + ").blend()", ""), "prompt has 60 chunks"),
        (("red", "", None, None, 40), "clip_skip=40 is out of range; give a number from 0 to"),
        (("red", "", None, None, -1), "clip_skip=-1 is out of range"),
    ],
)
def test_too_much_is_refused_before_any_work(encoders: TextEncoders, texts: tuple[Any, ...], message: str) -> None:
    with calls(encoders) as batches, pytest.raises(InputError, match=message):
        encoders.encode(*texts)
    assert not batches


def test_largest_allowed(encoders: TextEncoders) -> None:
    most = encoders.encode("red " * 4050, "(blue)-- red " * 100)
    assert len(most) == 54 * 77
    assert all(bool(tensor.isfinite().all()) for tensor in tensors(most))


def test_bfloat16_and_inference_mode(encoders: TextEncoders, caplog: pytest.LogCaptureFixture) -> None:
    half = load(torch.bfloat16)
    prompt = f'("a (red)-- circle++", "{LONG}").blend(0.7, 0.3)'
    with torch.inference_mode():
        ours = half.encode(prompt, "blue--")
    for mine, other in zip(tensors(ours), tensors(encoders.encode(prompt, "blue--")), strict=True):
        assert mine.dtype == torch.bfloat16
        assert (mine.float() - other).abs().mean() < 0.05 * other.abs().mean()
    assert not caplog.records


def test_added_tokens(pipes: tuple[Any, Any], tmp_path: Path) -> None:
    """A folder's tokenizers may know more tokens than CLIP's."""
    known, tables = reference(), list[Tensor]()
    for number in ("", "_2"):
        tokenizer, encoder = known[f"tokenizer{number}"], known[f"text_encoder{number}"]
        tokenizer.add_tokens(["<s0>", "<s1>"])
        encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        tokenizer.save_pretrained(tmp_path / f"tokenizer{number}")
        tables.append(encoder.get_input_embeddings().weight.detach())
    plain: Any = load()
    for encoder, table in zip((plain.text_encoder, plain.text_encoder_2), tables, strict=True):
        encoder.set_input_embeddings(torch.nn.Embedding(table.shape[0], table.shape[1], _weight=table))
    ours = TextEncoders(
        Tokenizer(tmp_path / "tokenizer"),
        plain.text_encoder,
        Tokenizer(tmp_path / "tokenizer_2"),
        plain.text_encoder_2,
    )
    pipe = copy.copy(pipes[0])
    pipe.register_modules(**known)
    theirs = pipe.encode_prompt("red <s0><s1> circle", negative_prompt="", device=torch.device("cpu"))
    assert_equal(ours.encode("red <s0><s1> circle", ""), theirs)
    weighted = torch.cat([compel("red <s0>++ circle") for compel in compels(known)], -1)
    torch.testing.assert_close(ours.encode("red <s0>++ circle", "").prompt_embeds, weighted, atol=1e-4, rtol=0)
    # A pair of added tokens stands for one word: it goes to the second chunk as a whole.
    split = ours.encode("red " * 74 + "<s0><s1> blue", "").prompt_embeds
    torch.testing.assert_close(split[:, 77:], ours.encode("<s0><s1> blue", "").prompt_embeds)
