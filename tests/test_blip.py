"""What is made of a sentence of BLIP; `test_preprocess.py` has it speak."""

import pytest

from preprocess.blip import plain


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("arafed man in a suit", "man in a suit"),
        ("there is a arafed dog on a bed", "there is a dog on a bed"),
        ("a carafe and arafat", "a carafe and arafat"),
        (" a red circle ", "a red circle"),
        ("arafed", ""),
    ],
)
def test_words_that_are_none(said: str, meant: str) -> None:
    assert plain(said) == meant
