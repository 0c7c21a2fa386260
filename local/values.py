"""From `-i name=value` to the JSON that the schema asks for; what is wrong is said before anything starts."""

import difflib
import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from local.annotations import Json
from local.files import WEIGHTS, LocalFiles, ValueProblemError, data_url, existing, secret
from local.modes import PREDICT, Mode

PYTHON_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
}
NOUNS = {
    "string": "a text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "array": "a list",
    "object": "a JSON object",
}
Read = Callable[[str, str], str]


class Inputs:
    """The inputs that a document describes."""

    def __init__(self, document: Json, mode: Mode = PREDICT, *, ours: bool = False) -> None:
        """ours: the server is our own, and reads the files in `paths` itself."""
        self._components = document["components"]["schemas"]
        if mode.component not in self._components:
            raise ValueProblemError(f"by its schema this server does no {mode.noun}s")
        schema = self._components[mode.component]
        self._properties: Json = schema["properties"]
        self._required: list[str] = schema.get("required", [])
        self._local = LocalFiles(weights_by_path=ours, files_by_path=ours and mode.by_path)
        self.paths = self._local.paths

    def from_flags(self, flags: list[str]) -> Json:
        """The inputs of repeated -i."""
        given: dict[str, list[str]] = {}
        for flag in flags:
            name, equals, value = flag.partition("=")
            if not equals:
                start = re.split(r"\W", flag)[0]  # the rest may be a secret
                raise ValueProblemError(f"-i {start}: write name=value, or name=@file")
            if len(value) > 1 and value[0] == value[-1] == '"':
                value = value[1:-1]
            given.setdefault(name, []).append(value)
        return self._checked({name: self._parse(name, values) for name, values in self._known(given).items()})

    def from_json(self, text: str) -> Json:
        """The inputs of --json: an object, @file, or - for stdin."""
        try:
            if text in ("-", "@-"):
                text = sys.stdin.read()
            elif text.startswith("@"):
                text = Path(text[1:]).read_text(encoding="utf-8")
            given = json.loads(text)
        except (OSError, ValueError) as error:
            raise ValueProblemError(f"--json: {error}") from error
        if not isinstance(given, dict):
            raise ValueProblemError("--json: write an object with a value for each input")
        self._known(given)
        return self._checked({name: self._files(name, value) for name, value in given.items() if value is not None})

    def _files(self, name: str, value: Any) -> Any:
        if isinstance(value, list):
            return [self._files(name, item) for item in value]
        if not isinstance(value, str):
            return value
        if read := self._reader(name):
            return read(name, value)
        return data_url(name, value[1:]) if value.startswith("@") else value

    def _known(self, given: Json) -> Json:
        for name in given:
            if name not in self._properties:
                near = difflib.get_close_matches(name, self._properties, n=3, cutoff=0.5)
                hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(self._properties)}"
                raise ValueProblemError(f"there is no input {name}; {hint}")
        return given

    def _schema(self, name: str) -> Json:
        schema = self._properties[name]
        for part in schema.get("allOf", ()):
            schema = {**self._components[part["$ref"].rpartition("/")[2]], **schema}
        return dict(schema)

    def _reader(self, name: str) -> Read | None:
        """Who reads the texts of this input, where that is not Cog's way."""
        item = _item(self._schema(name))
        if item.get("format") == "password":
            return secret
        if item.get("format") == "uri":
            return self._local.file
        if name in WEIGHTS and item.get("type") == "string" and "format" not in item:
            return self._local.weights
        return None

    def _parse(self, name: str, values: list[str]) -> Any:
        schema, read = self._schema(name), self._reader(name)
        many = schema.get("type") == "array"
        if many and len(values) == 1 and isinstance(whole := _json(values[0]), list):
            return self._files(name, whole) if read else whole
        if not many and len(values) > 1:
            raise ValueProblemError(f"{name} takes one value, but {len(values)} are given")
        given = [read(name, value) if read else _scalar(name, value, _item(schema)) for value in values]
        return given if many else given[0]

    def _checked(self, given: Json) -> Json:
        missing = [name for name in self._required if name not in given]
        if missing:
            raise ValueProblemError(f"needed is also -i {missing[0]}=...")
        for name, value in given.items():
            schema = self._schema(name)
            if problem := _type_problem(value, schema) or _limit_problem(value, schema):
                raise ValueProblemError(f"{name}{_shown(value, schema)}: {problem}")
        return given


def _item(schema: Json) -> Json:
    """The schema of one value."""
    return dict(schema["items"]) if schema.get("type") == "array" else schema


def _shown(value: Any, schema: Json) -> str:
    if _item(schema).get("format") == "password":
        return ""
    text = value if isinstance(value, str) else json.dumps(value)
    return f"={text if len(text) < 80 else text[:76] + ' ...'}"


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _scalar(name: str, text: str, schema: Json) -> Any:
    """One value; int and float of any size, unlike Cog's own CLI with its 32 bits."""
    if text.startswith("@") and (file := existing(text[1:])) and file.is_file():
        return data_url(name, text[1:])
    kinds = [variant["type"] for variant in schema.get("anyOf", ())] or [schema["type"]]
    for kind in kinds:
        convert = CONVERT.get(kind)
        if convert:
            try:
                return convert(text)
            except ValueError:
                continue
    if "string" in kinds:
        return text
    raise ValueProblemError(f"{name}={text}: it must be {' or '.join(NOUNS[kind] for kind in kinds)}")


def _bool(text: str) -> bool:
    known = {"true": True, "false": False}
    if text.lower() not in known:
        raise ValueError(text)
    return known[text.lower()]


def _object(text: str) -> Any:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError(text)
    return value


CONVERT: dict[str, Callable[[str], Any]] = {"integer": int, "number": float, "boolean": _bool, "object": _object}


def _type_problem(value: Any, schema: Json) -> str | None:
    variants = schema.get("anyOf", [schema])
    for variant in variants:
        kind = variant["type"]
        if isinstance(value, PYTHON_TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool)):
            if isinstance(value, float) and not math.isfinite(value):
                return "it must be a finite number"
            items = list(value) if isinstance(value, list) else []
            inner = [_type_problem(item, variant["items"]) for item in items]
            return next((problem for problem in inner if problem), None)
    return f"it must be {' or '.join(NOUNS[variant['type']] for variant in variants)}"


def _limit_problem(value: Any, schema: Json) -> str | None:
    if "enum" in schema and value not in schema["enum"]:
        return f"it must be one of {', '.join(map(str, schema['enum']))}"
    if "minimum" in schema and value < schema["minimum"]:
        return f"the smallest allowed is {schema['minimum']}"
    if "maximum" in schema and value > schema["maximum"]:
        return f"the largest allowed is {schema['maximum']}"
    if isinstance(value, str):
        if len(value) < schema.get("minLength", 0):
            return f"at least {schema['minLength']} characters are needed"
        if len(value) > schema.get("maxLength", len(value)):
            return f"at most {schema['maxLength']} characters are allowed"
        if not re.search(schema.get("pattern", ""), value):
            return f"it must match {schema['pattern']}"
    return None
