"""What a training may ask of its pictures, and the trigger in every caption."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from errors import InputError
from tests.preparing import wishes


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"resolution": 60}, "resolution is 60; give a multiple of 8 from 64 to 2048"),
        ({"resolution": 56}, "resolution is 56"),
        ({"resolution": 2056}, "resolution is 2056"),
        ({"triggers": ()}, "token_string is empty"),
        ({"triggers": ("",)}, "token_string has ''; give one word"),
        ({"triggers": ("TOK", " ")}, "token_string has ' '"),
        ({"triggers": ("TOK:2",)}, "token_string has 'TOK:2'; give one word of letters and digits, such as TOK"),
        ({"triggers": ("<s0>",)}, "token_string has '<s0>'"),
        ({"triggers": ("../x",)}, "token_string has '../x'"),
        ({"triggers": (".x",)}, "token_string has '.x'"),
        ({"triggers": ("a\nb",)}, "token_string has"),
        ({"triggers": ("--",)}, "token_string has '--'"),
        ({"triggers": ("x" * 101,)}, "token_string has"),
        ({"triggers": ("TOK", "tok")}, "token_string names 'TOK, tok': one word twice"),
        ({"caption_prefix": "a photo of a cat"}, "caption_prefix 'a photo of a cat' does not say 'TOK'"),
        ({"caption_prefix": "a photo of TOKYO"}, "does not say 'TOK', the word to be learned; write for example"),
        ({"mask_target_prompts": " | ,"}, "mask_target_prompts ' | ,' says nothing"),
        ({"mask_target_prompts": "|".join("abcdefghijklmnopqr")}, "names 18 things; name at most 16"),
        ({"clipseg_temperature": 0.0}, "clipseg_temperature is 0.0; give a number above 0"),
        ({"clipseg_temperature": -1.0}, "clipseg_temperature is -1.0"),
        ({"clipseg_temperature": float("nan")}, "clipseg_temperature is nan"),
        ({"clipseg_temperature": float("inf")}, "clipseg_temperature is inf"),
    ],
)
def test_what_is_refused_is_said(given: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=re.escape(words)):
        wishes(**given)


@pytest.mark.parametrize(
    ("triggers", "prefix", "meant"),
    [
        (("TOK",), "a photo of TOK, ", "a photo of TOK"),
        (("TOK",), "a photo of tok", "a photo of TOK"),
        (("zwx",), "a photo of TOK, ", "a photo of zwx"),
        (("zwx", "bob"), "a photo of TOK", "a photo of zwx"),
        (("zwx", "bob"), "BOB, as TOK", "bob, as TOK"),
        (("TOK",), "", ""),
        (("TOK",), " , ", ""),
        ((r"a\\1".replace("\\", "_"),), "TOK", "a__1"),
    ],
)
def test_the_prefix_holds_the_trigger(triggers: tuple[str, ...], prefix: str, meant: str) -> None:
    assert wishes(triggers=triggers, caption_prefix=prefix).prefix == meant


@pytest.mark.parametrize(
    ("caption", "forced"),
    [
        ("a red car", "a photo of TOK, a red car"),
        ("TOK in Paris", "TOK in Paris"),
        ("tok in Paris, Tok!", "TOK in Paris, TOK!"),
        ("Stoked in TOKYO", "a photo of TOK, Stoked in TOKYO"),
        ("TOK_2 and tok2", "a photo of TOK, TOK_2 and tok2"),
        ("", "a photo of TOK"),
    ],
)
def test_the_trigger_is_forced_into_a_caption(caption: str, forced: str) -> None:
    assert wishes().forced(caption) == forced


def test_without_a_prefix_the_trigger_itself_comes_first() -> None:
    assert wishes(caption_prefix="").forced("a red car") == "TOK, a red car"
    assert wishes(caption_prefix="").forced("") == "TOK"


def test_several_triggers() -> None:
    given = wishes(triggers=("zwx", "zwx dog"), caption_prefix="a photo of zwx")
    assert given.forced("the ZWX DOG runs") == "the zwx dog runs"
    assert given.forced("a Zwx") == "a zwx"


@given(st.text(max_size=60), st.sampled_from(["TOK", "ohwx", "Σίγμα", "c-3po", "İx"]))
def test_every_caption_says_the_trigger_and_keeps_its_own_words(text: str, trigger: str) -> None:
    given = wishes(triggers=(trigger,), caption_prefix=f"a photo of {trigger}")
    forced = given.forced(text)
    assert given.named_in(forced)
    assert given.forced(forced) == forced
    assert forced.casefold().endswith(text.casefold()) or not text


def test_prompts() -> None:
    assert wishes(mask_target_prompts=" a cat | a dog,, a cat ").prompts == ("a cat", "a dog")
    assert wishes(mask_target_prompts=None).prompts == wishes(mask_target_prompts=" ").prompts == ()
