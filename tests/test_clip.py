"""CLIP's text encoders, eye and tokenizers: transformers' own, to the bit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModel,
)

import weights
from errors import WeightsError
from sdxl.clip import ProjectedTextModel, TextModel, VisionModel
from sdxl.tokenizer import Tokenizer

BASE = weights.MINIATURE / "base"
FOLDERS = [folder / name for folder in (BASE, weights.CONFIGS / "base") for name in ("tokenizer", "tokenizer_2")]
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def pair(name: str, **changed: Any) -> tuple[Any, Any]:
    """transformers' encoder and ours, with the same weights."""
    kinds: dict[str, tuple[Any, Any]] = {
        "text_encoder": (CLIPTextModel, TextModel),
        "text_encoder_2": (CLIPTextModelWithProjection, ProjectedTextModel),
    }
    theirs, ours = kinds[name]
    theirs = theirs.from_pretrained(BASE / name, dtype=torch.float32, **changed)
    ours = ours(json.loads((BASE / name / "config.json").read_text()) | changed)
    ours.load_state_dict(theirs.state_dict())
    assert list(ours.state_dict()) == list(theirs.state_dict())
    return theirs, ours.eval()


def ids_and_mask(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rows with begin, end and a masked fragment at different places."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, 1000, (4, 77), generator=generator)
    mask = torch.ones_like(ids)
    for row, (end, begin) in enumerate([(9, 3), (40, 2), (75, 60), (1, 1)]):
        ids[row, 0], ids[row, end + 1 :] = 1080, 1081
        mask[row, begin : begin + 3] = 0
    return ids, mask


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("end", [2, 1081])  # SDXL's config.json has 2 there, which is wrong; newer ones the number
@pytest.mark.parametrize("name", ["text_encoder", "text_encoder_2"])
def test_text_encoders_are_transformers(name: str, end: int, dtype: torch.dtype) -> None:
    theirs, ours = pair(name, eos_token_id=end)
    ids, mask = ids_and_mask()
    theirs.to(dtype), ours.to(dtype)
    for asked in (None, mask, torch.ones_like(mask)):
        with torch.no_grad():
            expected = theirs(ids, asked, output_hidden_states=True)
            found = ours(ids, asked, output_hidden_states=True)
        assert len(found.hidden_states) == len(expected.hidden_states)
        assert all(map(torch.equal, found.hidden_states, expected.hidden_states))
        assert torch.equal(found.last_hidden_state, expected.last_hidden_state)
        assert torch.equal(found.pooled, expected["pooler_output" if name == "text_encoder" else "text_embeds"])
        assert torch.equal(found[0], expected[0])  # as diffusers' pipelines ask


def test_what_a_config_leaves_out_is_as_in_transformers() -> None:
    tellings: list[dict[str, Any]] = [{}, {"num_hidden_layers": 1, "hidden_act": "gelu"}]
    for told in tellings:
        with torch.device("meta"):
            theirs, ours = CLIPTextModelWithProjection(CLIPTextConfig(**told)), ProjectedTextModel(told)
            eyes = CLIPVisionModel(CLIPVisionConfig(**told)), VisionModel(told)
        for known, found in ((theirs, ours), eyes):
            wanted = {name: each.shape for name, each in known.state_dict().items()}
            assert {name: each.shape for name, each in found.state_dict().items()} == wanted
            for name in ("num_attention_heads", "hidden_act", "layer_norm_eps"):
                assert getattr(found.config, name) == getattr(known.config, name)
        assert ours.config.eos_token_id == theirs.config.eos_token_id


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_eye_is_transformers(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    told: dict[str, Any] = {**SMALL, "image_size": 32, "patch_size": 8}
    theirs: Any = CLIPVisionModel(CLIPVisionConfig(**told))
    ours = VisionModel(told)
    ours.load_state_dict(theirs.state_dict())
    pixels = torch.randn(3, 3, 32, 32).to(dtype)
    with torch.no_grad():
        assert torch.equal(ours.to(dtype)(pixels), theirs.to(dtype).eval()(pixels).pooler_output)


PIECES = ["a red circle", "!", "  ", "\n", "<|endoftext|>", "<|ENDOFTEXT|>", "<|startoftext|>", "don't", "I'LL", "猫"]
PIECES += ["e\u0301", "😀", "C++", "123", "x" * 40, "</w>", "<s0>", "ß", "İ", "\x00", "a_b", "...!!!", "\u200d", "ſ"]
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=5), max_size=8).map(" ".join) | st.text(max_size=40)
BOTH: list[tuple[Any, Tokenizer]] = [(CLIPTokenizer.from_pretrained(each), Tokenizer(each)) for each in FOLDERS]


@settings(deadline=None, max_examples=300)
@given(text=TEXTS, together=st.booleans())
def test_tokenizers_are_transformers(text: str, together: bool) -> None:
    text = text.replace(" ", "") if together else text
    for theirs, ours in BOTH:
        assert ours.encode(text) == theirs(text, add_special_tokens=False, verbose=False).input_ids


def test_the_numbers_of_tokens() -> None:
    for theirs, ours in BOTH:
        assert len(ours) == len(theirs)
        assert ours.get_added_vocab() == theirs.get_added_vocab()
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            assert getattr(ours, name) == getattr(theirs, name)
        some = range(0, len(ours), 97)
        assert ours.convert_ids_to_tokens(some) == theirs.convert_ids_to_tokens(list(some))


def test_tokens_that_a_folder_adds(tmp_path: Path) -> None:
    theirs: Any = CLIPTokenizer.from_pretrained(FOLDERS[0])
    theirs.add_tokens(["<s0>", "<s1>"])
    theirs.save_pretrained(tmp_path)
    ours, text = Tokenizer(tmp_path), "a <s0><s1> star"
    assert ours.encode(text) == theirs(text, add_special_tokens=False).input_ids
    assert (len(ours), ours.get_added_vocab()) == (len(theirs), theirs.get_added_vocab())


def test_a_folder_that_is_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"tokenizer is no tokenizer: "):
        Tokenizer(tmp_path / "tokenizer")
    (tmp_path / "tokenizer_config.json").write_text("{}")
    (tmp_path / "tokenizer.json").write_text("[]")
    with pytest.raises(WeightsError, match="is no tokenizer: "):
        Tokenizer(tmp_path)
