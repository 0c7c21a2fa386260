"""Type annotations to JSON Schema, as Cog 0.23.1 writes them; what it could not read is refused."""

import ast
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Json = dict[str, Any]

SCALARS: dict[str, Json] = {
    "str": {"type": "string"},
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "bool": {"type": "boolean"},
    "Path": {"type": "string", "format": "uri"},
    "Secret": {"type": "string", "format": "password", "writeOnly": True, "x-cog-secret": True},
    "dict": {"type": "object"},
    "Dict": {"type": "object"},
    "Any": {"type": "object"},
}
TYPING = ("typing", "typing_extensions", "collections.abc")
HOMES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("Path", "Secret", "ConcatenateIterator", "AsyncConcatenateIterator"), ("cog",)),
    **dict.fromkeys(("Iterator", "AsyncIterator"), ("cog", *TYPING)),
    **dict.fromkeys(("Optional", "Union", "List", "Dict", "Any"), TYPING),
}
ITERATORS = {
    "Iterator": {"x-cog-array-type": "iterator"},
    "AsyncIterator": {"x-cog-array-type": "iterator"},
    "ConcatenateIterator": {"x-cog-array-type": "iterator", "x-cog-array-display": "concatenate"},
    "AsyncConcatenateIterator": {"x-cog-array-type": "iterator", "x-cog-array-display": "concatenate"},
}


class SchemaError(Exception):
    """Cog's generator would refuse this signature, or silently write something else than it says."""


class Ordered(dict[str, Any]):
    """A JSON object whose keys keep their order; all others are sorted, as Go does."""


@dataclass(frozen=True)
class Source:
    """One Python file, parsed and not run."""

    path: Path
    text: str
    tree: ast.Module
    names: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "Source":
        """Parse path; imports inside `if` and `try` are not seen, as in Cog."""
        try:
            text = path.read_text(encoding="utf-8")
            tree = ast.parse(text)
        except (OSError, SyntaxError, ValueError) as error:
            raise SchemaError(f"{path}: {error}") from error
        names: dict[str, str] = {}
        for node in tree.body:
            if isinstance(node, ast.ImportFrom) and not node.level:
                names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            elif isinstance(node, ast.Import):
                names |= {alias.asname or alias.name: alias.name for alias in node.names}
        return cls(path, text, tree, names)

    def fail(self, node: ast.AST, message: str) -> SchemaError:
        """An error that names the place."""
        return SchemaError(f"{self.path}:{getattr(node, 'lineno', 1)}: {message}")

    def segment(self, node: ast.AST) -> str:
        """The source text of node."""
        return ast.get_source_segment(self.text, node) or ""


@dataclass(frozen=True)
class InputType:
    """The type of one parameter."""

    schema: Json
    nullable: bool = False
    many: bool = False
    union: bool = False

    @property
    def scalar(self) -> Json:
        """The schema of one value."""
        return self.schema["items"] if self.many else self.schema


def type_name(source: Source, node: ast.expr) -> str:
    """The bare name of a type, after checking that it is the one which that name stands for."""
    if isinstance(node, ast.Constant) and node.value is None:
        return "None"
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        name, full = node.attr, f"{source.names.get(node.value.id, node.value.id)}.{node.attr}"
    elif isinstance(node, ast.Name):
        name, full = node.id, source.names.get(node.id, node.id)
    else:
        raise source.fail(node, f"{source.segment(node)} is not a type that Cog reads")
    homes = HOMES.get(name)
    if homes and full not in {f"{home}.{name}" for home in homes}:
        raise source.fail(node, f"{name} must be imported from {homes[0]}; here it is {full}")
    if not homes and full != name:
        raise source.fail(node, f"{full} is not a type that Cog reads; import types by their own name")
    return name


def parts(source: Source, node: ast.expr) -> tuple[str, list[ast.expr]]:
    """(outer name, arguments): list[int] -> list, [int]; a union gives Union; a plain name has no arguments."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        inner = ast.parse(node.value, mode="eval").body
        return parts(source, ast.copy_location(inner, node))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        members = [member for side in (node.left, node.right) for member in _union_members(source, side)]
        return "Union", members
    if isinstance(node, ast.Subscript):
        inside = node.slice
        return type_name(source, node.value), list(inside.elts) if isinstance(inside, ast.Tuple) else [inside]
    return type_name(source, node), []


def _union_members(source: Source, node: ast.expr) -> list[ast.expr]:
    if isinstance(node, ast.BinOp):
        return parts(source, node)[1]
    return [node]


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def input_type(source: Source, node: ast.expr) -> InputType:
    """The type of a parameter."""
    outer, arguments = parts(source, node)
    if outer in ("dict", "Dict") or (not arguments and outer in SCALARS):
        return InputType(dict(SCALARS[outer]))
    if outer == "Optional" and len(arguments) == 1:
        return _nullable(input_type(source, arguments[0]))
    if outer == "Union" and arguments:
        return _union(source, node, arguments)
    if outer in ("list", "List") and len(arguments) == 1:
        inner = input_type(source, arguments[0])
        if inner.many or inner.nullable or inner.union:
            raise source.fail(node, f"{source.segment(node)}: Cog reads only lists of plain types")
        return InputType({"type": "array", "items": inner.schema}, many=True)
    raise source.fail(node, f"{source.segment(node)} is not an input type that Cog reads")


def _nullable(inner: InputType) -> InputType:
    schema = inner.schema
    if inner.union:
        schema = {"anyOf": [{**variant, "nullable": True} for variant in schema["anyOf"]]}
    return InputType({**schema, "nullable": True}, True, inner.many, inner.union)


def _union(source: Source, node: ast.expr, arguments: list[ast.expr]) -> InputType:
    members = [input_type(source, argument) for argument in arguments if not _is_none(argument)]
    if len(members) == 1:
        return _nullable(members[0]) if len(arguments) > 1 else members[0]
    if not members or any(m.nullable or m.union or m.scalar.get("format") for m in members):
        raise source.fail(node, f"{source.segment(node)}: Cog reads unions of plain JSON types only")
    union = InputType({"anyOf": [member.schema for member in members]}, union=True)
    return _nullable(union) if len(members) < len(arguments) else union


Models = Callable[[str], Json | None]


def output_type(source: Source, node: ast.expr, models: Models) -> Json:
    """The type of what comes back; models gives the schema of a class defined in the same file."""
    if isinstance(node, ast.Name) and (model := models(node.id)) is not None:
        return model
    outer, arguments = parts(source, node)
    if not arguments:
        if outer in ("list", "List"):
            return {"type": "array", "items": {"type": "object"}}
        if outer in SCALARS:
            return dict(SCALARS[outer])
    elif outer in ("list", "List") and len(arguments) == 1:
        return {"type": "array", "items": output_type(source, arguments[0], models)}
    elif outer in ("dict", "Dict") and len(arguments) == 2:
        return {"type": "object", "additionalProperties": output_type(source, arguments[1], models)}
    elif outer in ITERATORS and len(arguments) == 1:
        items = output_type(source, arguments[0], models)
        if "Concatenate" in outer and items != SCALARS["str"]:
            raise source.fail(node, f"{outer} yields str and nothing else")
        return {"type": "array", "items": items, **ITERATORS[outer]}
    raise source.fail(node, f"{source.segment(node)} is not an output type that Cog reads")


def field_type(source: Source, node: ast.expr, models: Models) -> Json:
    """The type of a field of an output class; it alone may be Optional."""
    named = isinstance(node, ast.Name) and models(node.id) is not None
    outer, arguments = ("", []) if named else parts(source, node)
    rest = [argument for argument in arguments if not _is_none(argument)]
    if outer == "Optional" or (outer == "Union" and len(rest) == 1 and len(arguments) == 2):
        return {**output_type(source, rest[0], models), "nullable": True}
    return output_type(source, node, models)
