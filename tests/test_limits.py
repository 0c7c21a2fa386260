"""What a signature says of lists and secrets holds also where coglet, without a schema, lets anything through."""

import time
import tracemalloc
from typing import Any, Optional

import pytest
from cog import Input, Secret

from errors import InputError
from limits import checked, stated


def run(
    names: Optional[list[str]] = Input(default=None),  # noqa: UP045 - as Cog reads it
    scales: list[float] | None = Input(default=None),
    counts: list[int] = Input(default=[1]),
    token: Secret | None = Input(default=None),
    text: str | None = Input(default=None, regex="^a"),
    choice: str = Input(default="a", choices=["a", "b"]),
    below: float | None = Input(default=None, le=2),
) -> None:
    """As an entry point; Cog reads Optional and the union alike."""


LIMITS = stated(run)
BLANK = {name: field.default for name, (_, field) in LIMITS.items()}


def check(**given: Any) -> Any:
    return checked(LIMITS, BLANK | given)


def test_blank_stays_blank() -> None:
    assert vars(check()) == {**dict.fromkeys(BLANK), "counts": [1], "choice": "a"}
    assert check(names=[], scales=[]).names == []


def test_lists_of_the_right_kind_pass() -> None:
    seen = check(names=["a", "", "https://x.test/?t=1"], scales=[1, 0.5, -2], counts=[3.0, 4])
    assert seen.names == ["a", "", "https://x.test/?t=1"]
    assert seen.scales == [1, 0.5, -2]
    assert [(type(count), count) for count in seen.counts] == [(int, 3), (int, 4)]


@pytest.mark.parametrize("given", ["hf_token", Secret("hf_token")])
def test_a_secret_is_wrapped_so_that_it_never_shows(given: Any) -> None:
    seen = check(token=given)
    assert seen.token.get_secret_value() == "hf_token"
    assert "hf_token" not in f"{seen!r} {seen.token} {vars(seen)}"


@pytest.mark.parametrize("given", ["", Secret(""), Secret(None)])
def test_an_empty_secret_is_blank(given: Any) -> None:
    assert check(token=given).token is None


SHORT = "'https://x.test/a.tar', "
NO_LIST = """names={} is no list; send one such as ["..."]."""
URL = "https://me:word@x.test/a.tar?token=abc"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"names": "a.safetensors"}, """names='a.safetensors' is no list; send one such as ["..."]."""),
        ({"names": {"a": 1}}, """names={'a': 1} is no list; send one such as ["..."]."""),
        ({"names": URL}, """names='https://x.test/a.tar' is no list; send one such as ["..."]."""),
        ({"names": "x" * 200}, f"""names='{"x" * 75} ... is no list; send one such as ["..."]."""),
        ({"names": {"a": [1, {"b": None}]}}, """names={'a': [1, {'b': None}]} is no list; send one such as ["..."]."""),
        ({"names": "x://" * 10**6}, f"""names='{"x://" * 18}x:/ ... is no list; send one such as ["..."]."""),
        (
            {"names": f"https://me:{'word' * 1000}@x.test/"},
            """names='https:// ... is no list; send one such as ["..."].""",
        ),
        ({"names": f"http://x/?{'t' * 460} http://me:word{'w' * 99}@y"}, NO_LIST.format("'http://x/ http:// ...")),
        ({"names": {"a" * 10**6: 1}}, f"""names={{'{"a" * 74} ... is no list; send one such as ["..."]."""),
        (
            {"names": [[URL] * 10**5]},
            f"names[0]=[{SHORT * 3}'ht ... is no text; send a string.",
        ),
        ({"names": [[0] * 10**5]}, f"names[0]=[{'0, ' * 25} ... is no text; send a string."),
        ({"scales": [10**400]}, "scales[0]=a number of 1329 bits is out of range; give a finite number."),
        ({"names": ["a", 3]}, "names[1]=3 is no text; send a string."),
        ({"names": [None]}, "names[0]=None is no text; send a string."),
        ({"names": [[URL]]}, "names[0]=['https://x.test/a.tar'] is no text; send a string."),
        ({"scales": 0.5}, "scales=0.5 is no list; send one such as [0.5, 1.0]."),
        ({"scales": [1, "0.5"]}, "scales[1]='0.5' is no number; send one such as 0.5."),
        ({"scales": [True]}, "scales[0]=True is no number; send one such as 0.5."),
        ({"scales": [1, float("nan")]}, "scales[1]=nan is out of range; give a finite number."),
        ({"scales": [float("-inf")]}, "scales[0]=-inf is out of range; give a finite number."),
        ({"counts": [1, 2.5]}, "counts[1]=2.5 is no whole number; give one such as 2."),
        ({"below": 3}, "below=3 is out of range; give a number of 2 or less."),
        ({"text": 5}, "text=5 is no text; send a string."),
        ({"text": "b" * 200}, f"text='{'b' * 75} ... has not the form ^a; see the input's description."),
        ({"choice": "c"}, "choice='c' is not known; choose one of a, b."),
    ],
    ids=lambda value: str(value)[:40],
)
def test_one_sentence_names_the_input_the_value_and_the_remedy(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as refusal:
        check(**given)
    assert str(refusal.value) == message


@pytest.mark.parametrize("value", ["a" * 60_000_000, [["b" * 1000] * 30_000], "\0" * 60_000_000], ids="anz")
def test_a_value_of_megabytes_costs_nothing(value: Any) -> None:
    tracemalloc.start()
    began = time.thread_time()
    with pytest.raises(InputError):
        check(counts=value)
    assert time.thread_time() - began < 0.1
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("given", [7654321, ["7654321"], "7654321\n", "76543 21", Secret("7654321é"), Secret(7654321)])
def test_a_secret_is_not_in_the_error_either(given: Any) -> None:
    with pytest.raises(
        InputError, match=r"^token (is no text|holds a space).*; (send a string|copy it again)\.$"
    ) as bad:
        check(token=given)
    assert "76543" not in str(bad.value)
