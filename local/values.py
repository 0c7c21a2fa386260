"""From `-i name=value` to the JSON that the schema asks for; what is wrong is said before anything starts."""

import base64
import difflib
import json
import mimetypes
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from local.annotations import Json

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
MIME_TYPES = {".webp": "image/webp", ".safetensors": "application/octet-stream", ".jsonl": "application/jsonl"}


class ValueProblemError(Exception):
    """The inputs on the command line cannot be used; the message is for the user."""


class Inputs:
    """The inputs that a document describes."""

    def __init__(self, document: Json, component: str = "Input") -> None:
        """component is Input or TrainingInput."""
        self._components = document["components"]["schemas"]
        schema = self._components[component]
        self._properties: Json = schema["properties"]
        self._required: list[str] = schema.get("required", [])

    def from_flags(self, flags: list[str]) -> Json:
        """The inputs of repeated -i."""
        given: dict[str, list[str]] = {}
        for flag in flags:
            name, equals, value = flag.partition("=")
            if not equals:
                raise ValueProblemError(f"-i {flag}: write name=value, or name=@file")
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
        return data_url(name, value[1:]) if isinstance(value, str) and value.startswith("@") else value

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

    def _parse(self, name: str, values: list[str]) -> Any:
        schema = self._schema(name)
        if schema.get("type") == "array":
            if len(values) == 1 and isinstance(whole := _json(values[0]), list):
                return whole
            return [_scalar(name, value, schema["items"]) for value in values]
        if len(values) > 1:
            raise ValueProblemError(f"{name} takes one value, but {len(values)} are given")
        return _scalar(name, values[0], schema)

    def _checked(self, given: Json) -> Json:
        missing = [name for name in self._required if name not in given]
        if missing:
            raise ValueProblemError(f"needed is also -i {missing[0]}=...")
        for name, value in given.items():
            schema = self._schema(name)
            if problem := _type_problem(value, schema) or _limit_problem(value, schema):
                shown = value if isinstance(value, str) else json.dumps(value)
                raise ValueProblemError(f"{name}={shown if len(shown) < 80 else shown[:76] + ' ...'}: {problem}")
        return given


def data_url(name: str, path: str) -> str:
    """The content of a file, with its MIME type."""
    file = Path(path).expanduser()
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ValueProblemError(f"{name}=@{path}: {error.strerror}") from error
    suffix = file.suffix.lower()
    kind = MIME_TYPES.get(suffix) or mimetypes.guess_type(file.name)[0] or "application/octet-stream"
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _scalar(name: str, text: str, schema: Json) -> Any:
    """One value; int and float of any size, unlike Cog's own CLI with its 32 bits."""
    if schema.get("format") == "uri":
        plain = not re.match(r"@|https?:|data:", text)
        if not plain and not text.startswith("@"):
            return text
        return data_url(name, text.removeprefix("@"))
    if text.startswith("@") and Path(text[1:]).expanduser().is_file():
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
