"""The two tokenizers: CLIP's byte-level BPE, with one token for every word the world speaks."""

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

from transformers import CLIPTokenizer

from miniature.models import TOKENS
from miniature.world import COLORS, COUNTS, PLACE_WORDS, PLAIN_SHAPES, PREFIXES, SIZES

START, END = "<|startoftext|>", "<|endoftext|>"
GRAMMAR = "a an and at background backgrounds forbidden in is next no of on one or plain sign signs the to with"
_ORDINARY_WORDS = """
above abstract animal art artwork astronaut background baby bear beautiful below beside best big bird
blurry boat book boy bright brown butterfly by cake candle car cartoon castle cat center child city close
cloud coffee color colored colour cross cup cute cyan dark detailed diamond dog door dragon drawing dress
evening eye eyes face field fire fish flat flower flying for forest four frame from fruit girl glass gold
gray green grey hand happy hat heart high home horse house huge illustration image in inside it kitten
lamp landscape leaf light like logo low magic man map me middle minimal moon morning mountain my near new
night object ocean old on over oval painting paper park pattern people person photo photograph picture
pink plane plate poor portrait puppy quality rainbow rectangle resolution riding ring river road robot
room round running sea shape shapes shiny simple sitting sketch sky snow soft solid some space spiral
spring standing statue stone street style summer sun sunset sweet table tall that this tiny tok toy train
tree tube turquoise two ugly under unicorn very view walking wall warm watercolor water wearing white
window winter wolf woman wood worst yellow young your
"""
ORDINARY = _ORDINARY_WORDS.split()


def world_words() -> list[str]:
    """Every word a caption of the world can hold."""
    phrases = (*COLORS, *SIZES, *PLACE_WORDS.values(), *COUNTS.values(), *PREFIXES, GRAMMAR)
    plurals = (f"{shape}es" if shape.endswith("s") else f"{shape}s" for shape in PLAIN_SHAPES)
    return sorted({word for phrase in (*phrases, *PLAIN_SHAPES, *plurals) for word in phrase.split()})


def byte_letters() -> list[str]:
    """One printable letter for each of the 256 bytes, in CLIP's order: "!" first, so that its id is 0."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    hidden = 256 - len(printable)
    return [chr(code) for code in printable] + [chr(256 + i) for i in range(hidden)]


def learn_merges(words: list[str]) -> list[tuple[str, str]]:
    """Byte-pair merges, most frequent pair first, until every word is one token."""
    spelled = [[*word[:-1], f"{word[-1]}</w>"] for word in words]
    merges: list[tuple[str, str]] = []
    while pairs := Counter(pair for letters in spelled for pair in pairwise(letters)):
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        spelled = [_merge(letters, best) for letters in spelled]
    return merges


def _merge(letters: list[str], pair: tuple[str, str]) -> list[str]:
    joined: list[str] = []
    for letter in letters:
        if joined and (joined[-1], letter) == pair:
            joined[-1] += letter
        else:
            joined.append(letter)
    return joined


def write_tokenizers(folder: Path) -> None:
    """Writes folder/tokenizer, padded with <|endoftext|>, and folder/tokenizer_2, padded with "!"."""
    merges = learn_merges(sorted({*world_words(), *ORDINARY}))
    letters = byte_letters()
    # <|endoftext|> is last: pooling by the highest id and pooling by name agree.
    tokens = [
        *letters,
        *(f"{letter}</w>" for letter in letters),
        *("".join(pair) for pair in merges),
        START,
        END,
    ]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    for name, pad in (("tokenizer", END), ("tokenizer_2", "!")):
        target = folder / name
        target.mkdir(parents=True, exist_ok=True)
        config = {
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": TOKENS,
            "do_lower_case": True,
            "errors": "replace",
            "add_prefix_space": False,
            "bos_token": START,
            "eos_token": END,
            "unk_token": END,
            "pad_token": pad,
        }
        (target / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
        (target / "merges.txt").write_text("\n".join(lines) + "\n")
        (target / "tokenizer_config.json").write_text(json.dumps(config, indent=2))
        CLIPTokenizer.from_pretrained(target).save_pretrained(target)


def load_tokenizers(folder: Path) -> tuple[CLIPTokenizer, CLIPTokenizer]:
    """Both tokenizers as written by write_tokenizers."""
    return CLIPTokenizer.from_pretrained(folder / "tokenizer"), CLIPTokenizer.from_pretrained(folder / "tokenizer_2")
