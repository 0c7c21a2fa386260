"""The signature of run() or train(), read from source as Cog 0.23.1 reads it."""

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from local.annotations import InputType, Json, Ordered, SchemaError, Source, field_type, input_type, output_type
from local.literals import literal, unwrapped

Function = ast.FunctionDef | ast.AsyncFunctionDef

CONSTRAINTS = {
    "ge": "minimum",
    "le": "maximum",
    "min_length": "minLength",
    "max_length": "maxLength",
    "regex": "pattern",
}
KEYWORDS = {"default", "description", "choices", "deprecated", "accept", *CONSTRAINTS}
KINDS: dict[str, type | tuple[type, ...]] = {
    "ge": (int, float),
    "le": (int, float),
    "min_length": int,
    "max_length": int,
    "regex": str,
    "description": str,
    "choices": list,
    "deprecated": bool,
    "accept": str,
}
JSON_KINDS: dict[str, type | tuple[type, ...]] = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "object": dict,
}


@dataclass(frozen=True)
class Parameter:
    """One input."""

    name: str
    type: InputType
    options: dict[str, Any]


@dataclass(frozen=True)
class Signature:
    """What a schema is made of."""

    parameters: tuple[Parameter, ...]
    output: Json
    streaming: bool


def find_function(source: Source, name: str, *, methods: tuple[str, ...]) -> Function:
    """The function called name, or the one method among methods of the class called name."""
    for node in source.tree.body:
        if isinstance(node, Function) and node.name == name:
            return node
        if isinstance(node, ast.ClassDef) and node.name == name:
            found = [item for item in node.body if isinstance(item, Function) and item.name in methods]
            if len(found) != 1:
                names = " or ".join(f"{method}()" for method in methods) or "nothing: Cog calls a function here"
                raise source.fail(node, f"class {name} must define exactly one of {names}, and itself")
            return found[0]
    raise SchemaError(f"{source.path}: there is no {name}")


def read_signature(source: Source, function: Function, *, method: bool) -> Signature:
    """Everything that the schema says about function."""
    unwrapped(source, function)
    arguments = function.args
    odd = arguments.posonlyargs + arguments.kwonlyargs + [a for a in (arguments.vararg, arguments.kwarg) if a]
    if odd:
        raise source.fail(odd[0], f"{odd[0].arg}: Cog reads plain parameters only, not *, / or **")
    given = arguments.args
    if method:
        if not given or given[0].arg != "self":
            raise source.fail(function, f"the first parameter of {function.name}() must be self")
        given = given[1:]
    missing = [None] * (len(given) - len(arguments.defaults))
    defaults: Sequence[ast.expr | None] = [*missing, *arguments.defaults[-len(given) or len(arguments.defaults) :]]
    parameters = tuple(_parameter(source, argument, default) for argument, default in zip(given, defaults, strict=True))
    if function.returns is None:
        raise source.fail(function, f"{function.name}() needs a return annotation")
    output = output_type(source, function.returns, lambda name: _model(source, name, ()))
    return Signature(parameters, output, _streaming(source, function, output))


def _streaming(source: Source, function: Function, output: Json) -> bool:
    names = set()
    for decorator in function.decorator_list:
        text = source.segment(decorator)
        head, _, tail = text.partition(".")
        names.add(source.names.get(head, head) + (f".{tail}" if tail else ""))
        if not names <= {"cog.streaming"}:
            raise source.fail(decorator, f"@{text} changes the function in ways the schema cannot show")
    if names and "x-cog-array-type" not in output:
        raise source.fail(function, "@streaming needs an Iterator as return annotation")
    return bool(names)


def _parameter(source: Source, argument: ast.arg, default: ast.expr | None) -> Parameter:
    if argument.annotation is None:
        raise source.fail(argument, f"{argument.arg} has no type annotation")
    kind = input_type(source, argument.annotation)
    options: dict[str, Any] = {}
    if isinstance(default, ast.Call):
        if not isinstance(default.func, ast.Name) or source.names.get(default.func.id) != "cog.Input":
            raise source.fail(default, f"{argument.arg}: write Input(...), imported from cog by that name")
        options = _options(source, argument.arg, default)
    elif default is not None:
        options = {"default": literal(source, default)}
    _check(source, argument, kind, options)
    return Parameter(argument.arg, kind, options)


def _options(source: Source, name: str, call: ast.Call) -> dict[str, Any]:
    if call.args:
        raise source.fail(call.args[0], f"{name}: Cog reads only named arguments of Input, as in Input(default=...)")
    options = {}
    for keyword in call.keywords:
        if keyword.arg not in KEYWORDS:
            raise source.fail(keyword, f"{name}: Cog does not read {keyword.arg or '**'} in Input(...)")
        value = options[keyword.arg] = literal(source, keyword.value)
        kind = KINDS.get(keyword.arg, object)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind not in (bool, object)):
            raise source.fail(keyword, f"{name}: {keyword.arg}={source.segment(keyword.value)} is of the wrong type")
    return options


def _check(source: Source, argument: ast.arg, kind: InputType, options: dict[str, Any]) -> None:
    """Refuse options that contradict each other or the type."""
    problem = _misplaced(kind, options) or _bad_choices(kind, options) or _bad_default(kind, options)
    if problem:
        raise source.fail(argument, f"{argument.arg}: {problem}")


def _misplaced(kind: InputType, options: dict[str, Any]) -> str | None:
    limits = options.keys() & {*CONSTRAINTS, "choices"}
    json_type, format_ = kind.scalar.get("type"), kind.scalar.get("format")
    if limits and (kind.union or kind.many):
        return f"{min(limits)} has no effect on a list or a union"
    if limits & {"ge", "le"} and json_type not in ("integer", "number"):
        return "ge and le need a number"
    if limits & {"min_length", "max_length", "regex"} and (json_type != "string" or format_):
        return "min_length, max_length and regex need a str"
    if "accept" in options and format_ != "uri":
        return "accept needs a Path"
    if min(options.get("min_length", 0), options.get("max_length", 0)) < 0:
        return "lengths cannot be negative"
    if "regex" in options:
        return _bad_regex(options["regex"])
    return None


def _bad_regex(pattern: str) -> str | None:
    try:
        re.compile(pattern)
    except re.error as error:
        return f"regex does not compile: {error}"
    if re.search(r"\(\?(?:[=!]|<[=!])|\\[1-9]", pattern):
        return "regex uses look-around or back-references, which Cog's validators do not know"
    return None


def _bad_choices(kind: InputType, options: dict[str, Any]) -> str | None:
    choices = options.get("choices")
    if choices is None:
        return None
    if options.keys() & CONSTRAINTS.keys():
        return "choices leave no room for other limits"
    if len(choices) < 2 or any(choices.count(choice) > 1 for choice in choices):
        return "choices need at least two different values"
    bad = [choice for choice in choices if not _fits(choice, kind.scalar)]
    return f"choice {bad[0]!r} is of another type" if bad else None


def _bad_default(kind: InputType, options: dict[str, Any]) -> str | None:
    default = options.get("default")
    if default is None or kind.union:
        return None
    values = default if kind.many else [default]
    if not isinstance(values, list) or not all(_fits(value, kind.scalar) for value in values):
        return f"default {default!r} is of another type"
    if "choices" in options and default not in options["choices"]:
        return f"default {default!r} is not among the choices"
    if default < options["ge"] if "ge" in options else False:
        return f"default {default!r} is below ge={options['ge']}"
    if default > options["le"] if "le" in options else False:
        return f"default {default!r} is above le={options['le']}"
    if isinstance(default, str):
        length = len(default)
        if not options.get("min_length", 0) <= length <= options.get("max_length", length):
            return f"default {default!r} is too short or too long"
        if not re.search(options.get("regex", ""), default):
            return f"default {default!r} does not match {options['regex']}"
    return None


def _fits(value: Any, schema: Json) -> bool:
    kind = JSON_KINDS[schema["type"]]
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _model(source: Source, name: str, seen: tuple[str, ...]) -> Json | None:
    """The schema of the output class called name, if this file defines one."""
    if name in seen:
        return {"type": "object"}
    for node in source.tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            bases = [source.names.get(source.segment(base), source.segment(base)) for base in node.bases]
            if bases not in (["cog.BaseModel"], ["pydantic.BaseModel"]):
                raise source.fail(node, f"{name} must derive from cog's BaseModel and from nothing else")
            return _fields(source, node, (*seen, name))
    return None


def _fields(source: Source, model: ast.ClassDef, seen: tuple[str, ...]) -> Json:
    properties, required = Ordered(), []
    for node in model.body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                continue
            raise source.fail(node, f"{model.name}: Cog reads only fields with an annotation here")
        name = node.target.id
        schema = field_type(source, node.annotation, lambda name: _model(source, name, seen))
        properties[name] = {**schema, "title": title_case(name)}
        if node.value is not None:
            literal(source, node.value)
        elif not schema.get("nullable"):
            required.append(name)
    return {"type": "object", "properties": properties, **({"required": required} if required else {})}


def title_case(name: str) -> str:
    """num_outputs -> Num Outputs; unlike str.title() it leaves the other letters alone."""
    return " ".join(part[:1].upper() + part[1:] for part in name.split("_"))
