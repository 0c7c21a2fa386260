r"""Prompt syntax: what has a weight, and what is just text.

    cat++  (a cat)++  "a cat"++            weight 1.1 for every +
    cat--  (a cat)--  "a cat"--            weight 0.9 for every -
    (a cat)1.5  "a cat"0.5  (a cat:1.5)    that weight, 0 to 10; weights of nested groups multiply
    ("a cat", "a dog").blend(0.7, 0.3)     a mixture; a last no_normalize keeps the weights from being
                                           scaled to a sum of 1
    ("a cat", "a dog").and(1, 0.5)         prompts side by side, each with a weight
    \(  \)  \"  \+  \-                     the character itself

Syntax and weights are compel's, whose parser takes time exponential in the depth of parentheses; this one is
linear, and only weights out of range are errors. (a cat:1.5) is AUTOMATIC1111's. What people write without a
thought of weights is text:

- parentheses and quotes without a weight, and those without a partner;
- signs before a letter, digit or sign (well-known, black+white, cat-->dog) or on their own (a -- b);
- signs after a single letter or a number (C++, vitamin D--, 18+) or in one of NAMES (g++, Disney+);
- numbers over 10 or that go on: (c)2023, (f)1:1.8, (ISO)5D; (16:9), while (16:1.2) is a weight;
- .blend() and .and() that are not the whole prompt; compel's .swap(), .attend() and withLora().
"""

import math
import re
from dataclasses import dataclass
from typing import Literal, NamedTuple

from errors import InputError

PLUS, MINUS = 1.1, 0.9
MAX_SIGNS = 24  # a longer row of signs is decoration
MAX_FACTOR = 10.0
MAX_WEIGHT = 100.0
NAMES = {"g++", "clang++", "libc++", "notepad++", "disney+", "paramount+", "discovery+", "espn+", "canal+"}
NAMES |= {"google+", "tv+", "lgbt+", "lgbtq+", "lgbtqia+"}

_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_TOKEN = re.compile(r'\\[()"+\-]|[()"\\]|[\s,]+|[^\s,()"\\]+')
_SIGNS = rf"(?:\+{{1,{MAX_SIGNS}}}|-{{1,{MAX_SIGNS}}})(?![\w+\-=<>])"
_OPERATOR = re.compile(_SIGNS + r"|(?:\d+(?:\.\d+)?|\.\d+)(?![\w%°]|[.:,/]\d)")
_COLON = re.compile(r":\s*(\d{1,2}(?:\.\d{0,4})?|\.\d{1,4})\s*$")
_COLON_LENGTH = 16  # characters before ")" in which a weight is looked for
_AFTER_SIGNS = ".;:!?'’]}…"
_COMBINED = re.compile(r"\((.*)\)\.(blend|and|add)\(([^()]*)\)", re.DOTALL)
_ITEM = re.compile(r'(?:\s*+"((?:[^"\\]|\\.)*+)"\s*+|([^,"()]*+))(,|\Z)', re.DOTALL)
_NUMBER = re.compile(r"-?(?:\d+(?:\.\d*)?|\.\d+)")


@dataclass(frozen=True)
class Fragment:
    """A piece of text and how much it counts; 1 is normal."""

    text: str
    weight: float


@dataclass(frozen=True)
class Alternative:
    """One of the prompts that a prompt combines, and its share."""

    fragments: tuple[Fragment, ...]
    weight: float = 1.0


@dataclass(frozen=True)
class Prompt:
    """What a prompt says: usually one alternative; of several either a mixture, or all side by side."""

    alternatives: tuple[Alternative, ...]
    combination: Literal["blend", "and"] = "and"

    @property
    def is_plain(self) -> bool:
        """Whether every word counts 1, so that any text encoder gives the whole meaning."""
        first = self.alternatives[0]
        weights = [first.weight, *(fragment.weight for fragment in first.fragments)]
        return len(self.alternatives) == 1 and all(weight == 1 for weight in weights)

    @property
    def text(self) -> str:
        """The words alone."""
        return ", ".join(" ".join(f.text for f in alternative.fragments) for alternative in self.alternatives)


def parse(prompt: str) -> Prompt:
    """Read a prompt, in time linear in its length. Raises InputError only for weights that cannot be used."""
    return _combined(prompt.strip()) or Prompt((Alternative(_fragments(prompt)),))


def _combined(prompt: str) -> Prompt | None:
    """A blend or conjunction, if the prompt is one."""
    match = _COMBINED.fullmatch(prompt)
    items = _items(match[1]) if match else []
    if match is None or not items:
        return None
    options = [option.strip() for option in match[3].split(",") if option.strip()]
    name, blend = match[2], match[2] == "blend"
    normalize = blend and options[-1:] != ["no_normalize"]
    options = options if normalize or not blend else options[:-1]
    if not all(_NUMBER.fullmatch(option) for option in options):
        return None
    weights = [float(option) for option in options] or [1.0] * len(items)
    total = math.fsum(weights)
    if len(weights) != len(items):
        raise InputError(f".{name}() has {len(weights)} weights for {len(items)} prompts; give one for each.")
    if max(map(abs, weights)) > MAX_FACTOR or (abs(total) < 1e-3 and (normalize or not blend)):
        raise InputError(f"{name}({match[3]:.99}) has no use; give weights from -10 to 10 and not 0 in sum.")
    shares = [weight / (total if normalize else 1.0) for weight in weights]
    parts = (Alternative(_fragments(item), share) for item, share in zip(items, shares, strict=True))
    return Prompt(tuple(parts), "blend" if blend else "and")


def _items(text: str) -> list[str]:
    """Quoted strings, or bare words, between commas; none if there is anything else."""
    items, at, more = [], 0, bool(text.strip())
    while more:
        match = _ITEM.match(text, at)
        if match is None:
            return []
        items.append(match[2].strip() if match[1] is None else match[1])
        at, more = match.end(), match[3] == ","
    return items


class _Token(NamedTuple):
    """Text at a place in the source, or the begin (with its factor) or the end of a group."""

    kind: Literal["text", "begin", "end"]
    text: str = ""
    start: int = 0
    factor: float = 1.0


def _fragments(source: str) -> tuple[Fragment, ...]:
    """Text with weights, neighbours of equal weight joined."""
    tokens = _scan(source)
    if all(token.kind == "text" for token in tokens):
        return (Fragment("".join(token.text for token in tokens), 1.0),)
    scales = [1.0]
    pieces: list[tuple[float, list[str]]] = []
    for kind, text, _, factor in tokens:
        if kind == "begin":
            scales.append(scales[-1] * factor)
        elif kind == "end":
            scales.pop()
        elif text.strip() and (not pieces or pieces[-1][0] != scales[-1]):
            pieces.append((scales[-1], []))
        if pieces:
            pieces[-1][1].append(text or " ")  # where a weight begins or ends, a word does
    fragments = tuple(Fragment(" ".join("".join(words).split()), weight) for weight, words in pieces)
    if heavy := [fragment for fragment in fragments if fragment.weight > MAX_WEIGHT]:
        raise InputError(f"{heavy[0].text:.40} has the weight {heavy[0].weight:.3g}; give at most {MAX_WEIGHT:g}.")
    return fragments or (Fragment("", 1.0),)


def _scan(source: str) -> list[_Token]:
    """Read text once, from left to right, with a stack of the parentheses that are open."""
    tokens: list[_Token] = []
    opened, at = list[int](), 0  # where in `tokens`, and in the source
    while match := _TOKEN.match(source, at):
        text, start, at = match[0], match.start(), match.end()
        if text == "(":
            opened.append(len(tokens))
            tokens.append(_Token("text", text, start))
        elif text == ")" and opened:
            at = _close(tokens, opened.pop(), source, start)
        elif text == '"' and (start == 0 or source[start - 1] in "(," or source[start - 1].isspace()):
            at = _quote(tokens, source, start)
        elif text[0] == "\\":
            tokens.append(_Token("text", text[-1], start))
        else:
            tokens += _run(text, start)
    return tokens


def _close(tokens: list[_Token], place: int, source: str, end: int) -> int:
    """Make a group of the tokens from `place` on if it has a weight; returns where to read on."""
    written, after = _operator(source, end + 1)
    inside = _colon(tokens, source, tokens[place].start + 1, end)
    if (written is None and inside is None) or len(tokens) == place + 1:
        tokens.append(_Token("text", ")", end))
        return end + 1
    factor = (1.0 if written is None else written) * (1.0 if inside is None else inside)
    tokens[place] = _Token("begin", factor=factor)
    tokens.append(_Token("end"))
    return after


def _quote(tokens: list[_Token], source: str, start: int) -> int:
    """Make a group of what is in quotes if it has a weight; returns where to read on."""
    match = _QUOTED.match(source, start)
    factor, after = _operator(source, match.end()) if match else (None, start)
    if match is None or factor is None or not match[1].strip():
        tokens.append(_Token("text", '"', start))
        return start + 1
    # No quote in it but escaped ones: this goes one level deep.
    inner = (_Token(kind, text, start, factor) for kind, text, _, factor in _scan(match[1]))
    tokens += [_Token("begin", factor=factor), *inner, _Token("end")]
    return after


def _operator(source: str, at: int) -> tuple[float | None, int]:
    """The weight after a group and where it ends; None if there is none, or one too large to be meant."""
    if match := _OPERATOR.match(source, at):
        value = _power(match[0]) if match[0][0] in "+-" else float(match[0])
        return (value, match.end()) if value <= MAX_FACTOR else (None, at)
    return None, at


def _colon(tokens: list[_Token], source: str, begin: int, end: int) -> float | None:
    """The weight in (text:1.2), taken out of the tokens."""
    low = max(begin, end - _COLON_LENGTH)
    match = _COLON.search(source[low:end])
    if match is None or low + match.start() <= begin or float(match[1]) > MAX_FACTOR:
        return None
    colon = low + match.start()
    before = source[colon - 1]
    if before == "\\" or ("." not in match[1] and (before.isdigit() or before.isspace())):
        return None
    while tokens[-1].kind == "text" and tokens[-1].start >= colon:
        tokens.pop()
    if tokens[-1].kind == "text":
        tokens[-1] = tokens[-1]._replace(text=tokens[-1].text[: colon - tokens[-1].start])
    return float(match[1])


def _run(text: str, start: int) -> list[_Token]:
    """Characters without a space: a word, perhaps with a weight and with punctuation after that."""
    core = text.rstrip(_AFTER_SIGNS)
    word = core.rstrip(core[-1]) if core[-1:] in ("+", "-") else core
    signs = core[len(word) :]
    if not signs or len(signs) > MAX_SIGNS or not _takes_weight(word, signs):
        return [_Token("text", text, start)]
    rest = [_Token("text", text[len(core) :], start)] if len(core) < len(text) else []
    return [_Token("begin", factor=_power(signs)), _Token("text", word, start), _Token("end"), *rest]


def _power(signs: str) -> float:
    return math.pow(PLUS if signs[0] == "+" else MINUS, len(signs))


def _takes_weight(word: str, signs: str) -> bool:
    """Whether signs after this word are a weight and no part of a name."""
    if not word or word[-1] in "+-" or (word + signs).lower() in NAMES:
        return False
    last = re.split(r"[^A-Za-z0-9]", word)[-1]
    letters = any(character.isalpha() for character in word)
    return not word.isascii() or (letters and not (len(last) == 1 and last.isalpha()))
