"""Inputs against the version's own schema, before anything is queued, and what no URL among them may name."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from fetch.network import is_public
from gateway.guard import PLAIN
from gateway.jobs import Json, Kind

COMPONENTS: dict[Kind, str] = {"prediction": "Input", "training": "TrainingInput"}
# Inputs that are text to the schema and that the model fetches: URLs, or names on a hub.
WEIGHTS = frozenset({"replicate_weights", "lora_weights", "lora", "loras", "hf_lora", "extra_lora", "weights"})
OURS = frozenset({"nullable", "default", "format", "example", "examples"})  # not JSON schema's, or for people
LONGEST_URL = 4096  # characters
REMEDY = "send an http(s) URL, a data: URL, or the URL of an uploaded file"
SCHEME = re.compile(r"([a-z][a-z0-9+.-]*):", re.IGNORECASE)


def _type(error: ValidationError) -> str:
    given = next(name for kinds, name in NAMES if isinstance(error.instance, kinds))
    wanted = error.validator_value
    return f"Invalid type. Expected: {wanted if isinstance(wanted, str) else '/'.join(wanted)}, given: {given}"


def _other(error: ValidationError) -> str:
    return str(error.message)


NAMES: tuple[tuple[Any, str], ...] = (
    (bool, "boolean"), (int, "integer"), (float, "number"), (str, "string"), (list, "array"), (dict, "object"),
    (object, "null"),
)  # fmt: skip
# Replicate's words for what JSON schema finds wrong; {} is the schema's value.
WORDS: dict[str, Callable[[ValidationError], str]] = {
    "type": _type,
    "enum": lambda error: f"Must be one of the following: {', '.join(map(repr, error.validator_value))}",
    "minimum": lambda error: f"Must be greater than or equal to {error.validator_value}",
    "maximum": lambda error: f"Must be less than or equal to {error.validator_value}",
    "minLength": lambda error: f"String length must be greater than or equal to {error.validator_value}",
    "maxLength": lambda error: f"String length must be less than or equal to {error.validator_value}",
    "minItems": lambda error: f"Must have at least {error.validator_value} items",
    "maxItems": lambda error: f"Must have at most {error.validator_value} items",
    "pattern": lambda error: f"Does not match pattern {error.validator_value!r}",
    "additionalProperties": lambda _: "Has a key that is not known here",
}


def problems(validator: Draft202012Validator, value: Any, root: str) -> list[str]:
    """Lines such as `- input.width: Must be less than or equal to 2048`; empty if all is well."""
    errors: Iterator[ValidationError] = validator.iter_errors(value)
    found = {line for error in errors for line in _lines(error, root)}
    return sorted(found)


def _lines(error: ValidationError, root: str) -> Iterator[str]:
    place = root + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in error.absolute_path)
    if error.validator == "required":
        for name in error.validator_value:
            if name not in error.instance:
                yield f"- {place or 'body'}: {name} is required"
    elif error.validator == "anyOf" and error.context:  # of something or null: the something is what was meant
        meant = [each for each in error.context if each.validator_value != "null"] or [error]
        yield from (line for each in meant[:1] for line in _lines(each, root))
    else:
        say = WORDS.get(str(error.validator), _other)
        yield f"- {(place or 'body').lstrip('.')}: {say(error)[:500]}"


@dataclass(frozen=True)
class Checker:
    """Of one version's inputs for one kind of job. `own`: how the gateway's own URLs begin."""

    properties: Json
    validator: Draft202012Validator
    own: str
    private: bool
    secrets: frozenset[str] = field(default=frozenset())

    @classmethod
    def of(cls, document: Json, kind: Kind, *, own: str, private: bool) -> Checker | None:
        """From Cog's OpenAPI document; None if such jobs are not for this version."""
        schemas = (document.get("components") or {}).get("schemas") or {}
        if (component := COMPONENTS[kind]) not in schemas:
            return None
        whole = {
            "$ref": f"#/components/schemas/{component}",
            "components": {"schemas": {name: plain(schema) for name, schema in schemas.items()}},
        }
        properties: Json = schemas[component].get("properties", {})
        secrets = frozenset(name for name, schema in properties.items() if is_secret(schema))
        return cls(properties, Draft202012Validator(whole), own, private, secrets)

    def checked(self, given: Mapping[str, Any]) -> tuple[Json, list[str]]:
        """The inputs that the version has, and what is wrong with them; the rest is dropped, as Replicate does."""
        known = {name: value for name, value in given.items() if name in self.properties}
        wrong = problems(self.validator, known, "input")
        return known, wrong or sorted(self._wrong_urls(known))

    def is_file(self, name: str) -> bool:
        """Whether an input is a file, or a list of files, or may be one in a data: URL."""
        return _is_uri(self.properties[name]) or name in WEIGHTS

    def _wrong_urls(self, known: Json) -> Iterator[str]:
        for name, value in known.items():
            check = self._file if _is_uri(self.properties[name]) else self._weights if name in WEIGHTS else None
            for place, text in texts(value, f"input.{name}") if check else ():
                if check and (wrong := check(text)):
                    yield f"- {place}: {wrong}"

    def _file(self, text: str) -> str | None:
        if text.lstrip()[:5].lower() == "data:":
            return None if "," in text else "A data: URL has a comma before its content"
        return self._url(text)

    def _weights(self, text: str) -> str | None:
        """A name on a hub is nobody's file; what looks like an option, a path or another scheme might become one."""
        if not text or text.lstrip()[:5].lower() == "data:":
            return None
        if text[0] in "-/~.\\" or "\\" in text or ".." in text.split("/"):
            return f"{text[:80]!r} is not a URL; {REMEDY}, or a name as owner/model"
        return self._url(text) if SCHEME.match(text) or "//" in text else None

    def _url(self, text: str) -> str | None:
        if len(text) > LONGEST_URL or not PLAIN.fullmatch(text):
            return f"{text[:80]!r} is not a URL; {REMEDY}"
        if text.startswith(self.own):
            return None
        try:
            parts = urlsplit(text)
            host, port = parts.hostname or "", parts.port
        except ValueError:
            return f"{text[:80]!r} is not a URL; {REMEDY}"
        if parts.scheme.lower() not in ("http", "https") or not host or port == 0:
            return f"{text[:80]!r} is not an http(s) URL; {REMEDY}"
        if parts.username is not None or parts.password is not None:
            return f"The URL of {host!r} holds a user name or password; leave it out"
        if not self.private and _is_private(host):
            return f"Host {host!r} is not on the public internet; {REMEDY}"
        return None


def is_secret(schema: Json) -> bool:
    """Whether an input is not to be shown again."""
    return bool(schema.get("x-cog-secret")) or schema.get("format") == "password"


def is_uri_output(document: Json) -> bool:
    """Whether what comes out is files."""
    output = ((document.get("components") or {}).get("schemas") or {}).get("Output") or {}
    return _is_uri(output)


def weights_in(values: Mapping[str, Any]) -> list[Any]:
    """What a worker has to load for these inputs."""
    named = (values.get("replicate_weights"), values.get("lora_weights"))
    return [value for value in named if value]


def texts(value: Any, place: str) -> Iterator[tuple[str, str]]:
    """(place, text) of each text in a value."""
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from texts(item, f"{place}[{number}]")
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from texts(item, f"{place}.{name}")


def plain(schema: Any) -> Any:
    """OpenAPI 3.0 as JSON schema has it: `nullable` is a type of its own, formats are ours to check."""
    if isinstance(schema, list):
        return [plain(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {name: plain(value) for name, value in schema.items() if name not in OURS}
    if isinstance(schema.get("properties"), dict):  # whose keys are names, "format" as any other
        kept["properties"] = {name: plain(value) for name, value in schema["properties"].items()}
    return {"anyOf": [kept, {"type": "null"}]} if schema.get("nullable") is True else kept


def _is_uri(schema: Json) -> bool:
    return "uri" in (schema.get("format"), (schema.get("items") or {}).get("format"))


def _is_private(host: str) -> bool:
    """Told by the host's spelling; a name is looked up by who fetches it, and checked again there."""
    if host == "localhost" or host.endswith((".localhost", ".internal", ".local")):
        return True
    try:
        return not is_public(host)
    except ValueError:
        pass
    try:  # 2130706433, 0x7f.1, 0177.0.0.1: all of them 127.0.0.1 to a resolver
        return not is_public(str(ipaddress.IPv4Address(socket.inet_aton(host))))
    except OSError:
        return False
