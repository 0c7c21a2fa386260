"""The limits that an entry point's signature states, enforced there: coglet does so only where it finds a schema, and
even then lets 10.0 through as a whole number.
"""

import inspect
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from types import NoneType, SimpleNamespace
from typing import Any, get_args, get_origin, get_type_hints

from cog import FieldInfo, Secret

from errors import InputError

Stated = Mapping[str, tuple[Any, FieldInfo]]
EXAMPLES = {str: '["..."]', int: "[1, 2]", float: "[0.5, 1.0]"}
SHOWN = 80  # characters of a value in an error
LOOKED_AT = 500  # characters of a value that they are taken from


def stated(function: Callable[..., Any]) -> Stated:
    """What a signature says of each input: its type and its `Input(...)`. To be read when the module is loaded: coglet
    puts the bare defaults in the place of the `Input`s afterwards.
    """
    types = get_type_hints(function)
    return {
        name: (types[name], each.default)
        for name, each in inspect.signature(function).parameters.items()
        if isinstance(each.default, FieldInfo)
    }


def checked(limits: Stated, given: Mapping[str, Any]) -> SimpleNamespace:
    """The inputs by name: whole numbers as int, secrets as `Secret`, a blank one as None. InputError names the first
    that breaks its limit, and the limit.
    """
    return SimpleNamespace(**{name: _checked(name, given[name], *limit) for name, limit in limits.items()})


def _checked(name: str, value: Any, kind: Any, field: FieldInfo) -> Any:
    if value is None:
        return None
    kind = _without_none(kind)
    if get_origin(kind) is list:
        (kind,) = get_args(kind)
        if not isinstance(value, list):
            example = EXAMPLES.get(kind, "[...]")
            raise InputError(f"{name}={_shown(value)} is no list; send one such as {example}.")
        return [_typed(f"{name}[{index}]", item, kind, field) for index, item in enumerate(value)]
    value = _typed(name, value, kind, field)
    if field.choices and value not in field.choices:
        known = ", ".join(map(str, field.choices))
        raise InputError(f"{name}={_shown(value)} is not known; choose one of {known}.")
    if field.regex and not re.search(field.regex, str(value)):
        raise InputError(f"{name}={_shown(value)} has not the form {field.regex}; see the input's description.")
    return value


def _without_none(kind: Any) -> Any:
    """T of Optional[T], of T | None and of T itself."""
    first, *more = [each for each in get_args(kind) if each is not NoneType] or [kind]
    return first if NoneType in get_args(kind) and not more else kind


def _typed(name: str, value: Any, kind: Any, field: FieldInfo) -> Any:
    """One value of one type. What is no text, number or secret is checked where it is used."""
    if kind is Secret:
        return _secret(name, value)
    if kind in (int, float):
        return _number(name, value, whole=kind is int, field=field)
    if kind is str and not isinstance(value, str):
        raise InputError(f"{name}={_shown(value)} is no text; send a string.")
    return value


def _number(name: str, value: Any, *, whole: bool, field: FieldInfo) -> Any:
    low = -math.inf if field.ge is None else field.ge
    high = math.inf if field.le is None else field.le
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise InputError(f"{name}={_shown(value)} is no number; send one such as {1 if whole else 0.5}.")
    if not (abs(value) <= sys.float_info.max and low <= value <= high):
        raise InputError(f"{name}={_shown(value)} is out of range; give {_range(field)}.")
    if whole and value != int(value):
        raise InputError(f"{name}={value} is no whole number; give one such as {int(value)}.")
    return int(value) if whole else value


def _range(field: FieldInfo) -> str:
    """The numbers that are in range, in words."""
    if field.le is None:
        return "a finite number" if field.ge is None else f"a number of {field.ge} or more"
    return f"a number of {field.le} or less" if field.ge is None else f"a number from {field.ge} to {field.le}"


def _secret(name: str, value: Any) -> Secret | None:
    """Wrapped, so that printing it shows nothing; coglet passes on as it is what is no string. Sent in a header, a
    line break would put the whole value into Python's error.
    """
    text = value.get_secret_value() if isinstance(value, Secret) else value
    if not isinstance(text, str | None):
        raise InputError(f"{name} is no text (its value is not shown); send a string.")
    if text and re.search(r"[^!-~]", text):
        raise InputError(f"{name} holds a space, a line break or a character that no token has; copy it again.")
    return Secret(text) if text else None


def _shown(value: Any) -> str:
    """The value as an error may show it: not all of a long one, and no query or password of a URL, as tokens are."""
    pieces, text = _pieces(value), ""
    while len(text) <= LOOKED_AT and (piece := next(pieces, None)) is not None:
        text += piece
    whole = len(text) <= LOOKED_AT
    if not whole:  # the @ that ends a password may be behind the cut
        text = re.sub(r"(\w+://)[^\s/@]*$", r"\1", text[:LOOKED_AT])
    text = re.sub(r"(\w+://)(?:[^\s/@]*@)?([^\s?#'\"]*)[^\s'\"]*", r"\1\2", text)
    return text if whole and len(text) <= SHOWN else f"{text[: SHOWN - 4]} ..."


def _pieces(value: Any) -> Iterator[str]:
    """What repr(value) is made of, one after the other, so that nobody need make a hundred megabytes of it."""
    if isinstance(value, str):
        yield repr(value[:LOOKED_AT])
    elif isinstance(value, list | dict):
        start, end = "[]" if isinstance(value, list) else "{}"
        yield start
        for count, each in enumerate(value):
            yield ", " if count else ""
            yield from _pieces(each)
            if isinstance(value, dict):
                yield ": "
                yield from _pieces(value[each])
        yield end
    elif isinstance(value, int) and abs(value) > sys.float_info.max:
        yield f"a number of {value.bit_length()} bits"  # Python refuses to write out more than 4,300 digits
    else:
        yield repr(value)
