"""The limits that an entry point's signature states, enforced there: coglet does so only where it finds a schema, and
even then lets 10.0 through as a whole number.
"""

import inspect
import math
import re
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, get_args, get_type_hints

from cog import FieldInfo

from errors import InputError

Stated = Mapping[str, tuple[Any, FieldInfo]]


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
    """The inputs by name, whole numbers as int. InputError names the first that breaks its limit, and the limit."""
    return SimpleNamespace(**{name: _checked(name, given[name], *limit) for name, limit in limits.items()})


def _checked(name: str, value: Any, kind: Any, field: FieldInfo) -> Any:
    if value is None:
        return None
    kinds = get_args(kind) or (kind,)
    if int in kinds or float in kinds:
        value = _number(name, value, whole=int in kinds, field=field)
    if field.choices and value not in field.choices:
        raise InputError(f"{name}={value!r} is not known; choose one of {', '.join(map(str, field.choices))}.")
    if field.regex and not re.search(field.regex, str(value)):
        raise InputError(f"{name}={value!r} has not the form {field.regex}; see the input's description.")
    return value


def _number(name: str, value: Any, *, whole: bool, field: FieldInfo) -> Any:
    low = -math.inf if field.ge is None else field.ge
    high = math.inf if field.le is None else field.le
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise InputError(f"{name}={value!r} is no number.")
    if not (math.isfinite(value) and low <= value <= high):
        limits = f"from {low} to {high}" if field.le is not None else f"of {low} or more"
        raise InputError(f"{name}={value} is out of range; give a number {limits}.")
    if whole and value != int(value):
        raise InputError(f"{name}={value} is no whole number; give one such as {int(value)}.")
    return int(value) if whole else value
