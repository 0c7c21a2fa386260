"""What has a weight, what is text, and that no text is slow to read."""

import re
import time
import warnings
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from errors import InputError
from sdxl.prompt import MAX_WEIGHT, parse

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # compel's imports
    from compel.prompt_parser import Blend, PromptParser

Weighted = list[tuple[str, float]]


def pieces(prompt: str) -> Weighted:
    (only,) = parse(prompt).alternatives
    return [(fragment.text, round(fragment.weight, 6)) for fragment in only.fragments]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a cat++", [("a", 1), ("cat", 1.21)]),
        ("a cat-- here", [("a", 1), ("cat", 0.81), ("here", 1)]),
        ("a (big cat)++ and dog", [("a", 1), ("big cat", 1.21), ("and dog", 1)]),
        ("(a cat)1.5", [("a cat", 1.5)]),
        ("(a cat).5, b", [("a cat", 0.5), (", b", 1)]),
        ("(a cat)0", [("a cat", 0)]),
        ("(a cat)1", [("a cat", 1)]),
        ('"a cat"++ "a dog"0.5', [("a cat", 1.21), ("a dog", 0.5)]),
        ("((a)++ b)++ c", [("a", 1.4641), ("b", 1.21), ("c", 1)]),
        ("(see)++ (saw)++", [("see saw", 1.21)]),
        ("(see)++(saw)--", [("see", 1.21), ("saw", 0.81)]),
        ("well-known++, <s0>++ 猫++ 😀--", [("well-known", 1.21), (",", 1), ("<s0> 猫", 1.21), ("😀", 0.81)]),
        ("(a cat:1.2) sat", [("a cat", 1.2), ("sat", 1)]),
        ("((a cat: 1.2) sat:1.5)", [("a cat", 1.8), ("sat", 1.5)]),
        ("((cat)++:1.5)", [("cat", 1.815)]),
        ("(year 1999:1.5)2", [("year 1999", 3)]),
        ("cat++. Dog", [("cat", 1.21), (". Dog", 1)]),
        (r"(cat \(a big one\))++", [("cat (a big one)", 1.21)]),
        ("(two\n lines)++", [("two lines", 1.21)]),
        ('(6" nails)++', [('6" nails', 1.21)]),
        ("(a cat) and (dog)++", [("(a cat) and", 1), ("dog", 1.21)]),
        ("(a cat)1.5. Then", [("a cat", 1.5), (". Then", 1)]),
        ("( )++", [("", 1)]),
    ],
)
def test_syntax(prompt: str, expected: Weighted) -> None:
    assert [text for text, _ in pieces(prompt)] == [text for text, _ in expected]
    assert [weight for _, weight in pieces(prompt)] == pytest.approx([weight for _, weight in expected])


@pytest.mark.parametrize(
    "prompt",
    [
        *(
            "",
            "  a  cat ",
            "a photo, of a cat.",
            "C++ code",
            "in c++, g++ and Notepad++.",
            "vitamin D--",
            "18+",
        ),
        *(
            "Disney+",
            "well-known",
            "--",
            "wait -- what",
            "a cat - a dog",
            "cat--a big one",
            "cat-->dog",
            "b+w",
        ),
        *(
            "--ar 16:9 --v 5",
            "(16:9)",
            "(at 12:30)",
            "(c)2023 me",
            "(f)1:1.8",
            "(ISO)5D",
            ":-) (:1.2) (^_^)/",
        ),
        *("(a cat)", "((a cat)", "a cat))", "()", "()++", '"quoted" text', 'a 6" nail and an 8"', "[a cat]"),
        *("cat.swap(dog)", "(x).attend(2)", "withLora(a, 1)", '("a", "b").and(1, 1) c', "(hi).blend(there)"),
        *(
            "😀 emoji 🏳️‍🌈",
            "cat" + "+" * 25,
            "cat+-",
            "(50)50",
            "a\nb",
            "\\",
            "(x)-y",
            "a (b:c) (d:-1) (e:11)",
        ),
    ],
)
def test_literal(prompt: str) -> None:
    parsed = parse(prompt)
    assert parsed.is_plain
    assert parsed.text == prompt


def test_escapes_are_the_characters_themselves() -> None:
    assert pieces(r"saber \(fate\), cat\+\+ \"so\" (a\)++ \n") == [('saber (fate), cat++ "so" (a)++ \\n', 1)]


def test_blend_and_conjunction() -> None:
    blend = parse(' ("a cat++", "a dog").blend(0.6, 0.2) ')
    assert blend.combination == "blend"
    assert [part.weight for part in blend.alternatives] == [pytest.approx(0.75), pytest.approx(0.25)]
    assert [piece.text for piece in blend.alternatives[0].fragments] == ["a", "cat"]
    assert blend.text == "a cat, a dog"
    assert not blend.is_plain
    raw = parse('("a cat, big", "a dog").blend(0.6, -0.6, no_normalize)')
    assert [part.weight for part in raw.alternatives] == [0.6, -0.6]
    both = parse('("a cat", dog).and(1, .5)')
    assert (both.combination, [part.weight for part in both.alternatives]) == ("and", [1.0, 0.5])
    assert [part.weight for part in parse('("a", "b").blend()').alternatives] == [0.5, 0.5]


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ('("a", "b").blend(1)', "1 weights for 2 prompts"),
        ('("a", "b").and(1, 2, 3)', "3 weights for 2 prompts"),
        ('("a", "b").blend(1, -1)', "not 0 in sum"),
        ('("a", "b").and(1, 1000)', "from -10 to 10"),
        ("(((a)9)9)9", f"at most {MAX_WEIGHT:g}"),
    ],
)
def test_weights_that_cannot_be_used(prompt: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        parse(prompt)


WORDS = st.text("abcdefgh", min_size=2, max_size=5)
SIGNS = st.sampled_from(["+", "++", "+++", "-", "--", "---"])
OPERATORS = SIGNS | st.sampled_from(["1.5", "0.5", "0", "2", "1", "0.25"])


def grouped(children: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    inside = st.lists(children, min_size=1, max_size=3).map(" ".join)
    return st.builds("({}){}".format, inside, OPERATORS)


TERMS = WORDS | st.builds("{}{}".format, WORDS, SIGNS) | st.builds('"{} {}"{}'.format, WORDS, WORDS, OPERATORS)
NESTED = TERMS | grouped(TERMS) | grouped(TERMS | grouped(TERMS)) | grouped(grouped(grouped(TERMS)))
PROMPTS = st.lists(st.tuples(NESTED, st.sampled_from([" ", ", ", " . "])).map("".join), min_size=1, max_size=4).map(
    lambda terms: "".join(terms).rstrip(" ,.")
)


def words(fragments: Any) -> Weighted:
    """Single words and signs, so that spaces do not count."""
    return [(word, f.weight) for f in fragments for word in re.findall(r"\w+|[^\w\s]", f.text)]


@pytest.fixture(scope="module")
def compel_parser() -> PromptParser:
    return PromptParser()


@settings(deadline=None, max_examples=100, suppress_health_check=list(HealthCheck))
@given(prompt=PROMPTS)
def test_as_compel(compel_parser: PromptParser, prompt: str) -> None:
    expected = compel_parser.parse_conjunction(prompt).prompts[0]
    (ours,) = parse(prompt).alternatives
    assert words(ours.fragments) == words(expected.children)
    assert [f.weight for f in ours.fragments] == [f.weight for f in expected.children]


@settings(deadline=None, max_examples=20, suppress_health_check=list(HealthCheck))
@given(
    prompts=st.lists(st.tuples(WORDS, st.builds("{}{}".format, WORDS, SIGNS)).map(" ".join), min_size=2, max_size=3),
    name=st.sampled_from(["blend", "and"]),
    data=st.data(),
)
def test_combinations_as_compel(compel_parser: PromptParser, prompts: list[str], name: str, data: Any) -> None:
    weights = data.draw(st.lists(st.sampled_from([0.5, 1.0, 2.0, 0.3]), min_size=len(prompts), max_size=len(prompts)))
    joined = ", ".join(f'"{prompt}"' for prompt in prompts)
    text = f"({joined}).{name}({', '.join(map(str, weights))})"
    theirs, ours = compel_parser.parse_conjunction(text), parse(text)
    if name == "blend":
        (theirs,) = theirs.prompts
        assert isinstance(theirs, Blend)
        weights = [weight / sum(weights) for weight in weights]
    assert [words(part.fragments) for part in ours.alternatives] == [words(p.children) for p in theirs.prompts]
    assert [part.weight for part in ours.alternatives] == pytest.approx(weights)


@settings(deadline=None, max_examples=300)
@given(prompt=st.text('ab 1.,:+-()"\\😀', max_size=60) | st.text(max_size=60))
def test_any_text_is_a_prompt(prompt: str) -> None:
    try:
        parsed = parse(prompt)
    except InputError:
        return
    assert all(part.fragments for part in parsed.alternatives)
    assert all(0 <= f.weight <= MAX_WEIGHT for part in parsed.alternatives for f in part.fragments)
    assert {*parsed.text} <= {*prompt, " ", ","}
    if not {*prompt} & {*'+-()"\\'}:
        assert parsed.is_plain
        assert parsed.text == prompt


@pytest.mark.parametrize(
    "unit",
    [
        *("(", ")", "()", '"', ' "a" ', "a+", "a++ ", "cat++ ", "(a)++", "(a)1.5 ", "(a:1.2)", "\\", '\\"', "+", "1"),
        *(" ", '("', "(a ", ").and(", '("a",', "😀", "-", "a,", "'+", '"\\', "+!"),
    ],
)
def test_no_text_is_slow(unit: str) -> None:
    start = time.process_time()
    for prompt in (unit * 10_000, "(" + unit * 10_000 + ")++", "(" * 10_000 + unit + ")1" * 10_000):
        parse(prompt)
    parse("(" + unit * 10_000 + ").and(1")
    assert time.process_time() - start < 6


def test_nested_weights_are_refused_not_followed() -> None:
    with pytest.raises(InputError):
        parse("(a " * 10_000 + ")+" * 10_000)
    assert parse("(a " * 100 + ")-" * 100).text.count("a") == 100
