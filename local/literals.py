"""Literals that Cog's generator and Python read alike; every other way of writing a value is refused."""

import ast
import io
import math
import re
import tokenize
from typing import Any

from local.annotations import Source

NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
STRING = re.compile(r"""(r?)("{3}|'{3}|"|')""")


def literal(source: Source, node: ast.expr) -> Any:
    """The value of a literal: None, bool, number, string, list or dict of those."""
    match node:
        case ast.Constant(value=None | bool()):
            return node.value
        case ast.Constant(value=str()):
            return _string(source, node)
        case ast.Constant() | ast.UnaryOp():
            return _number(source, node)
        case ast.List():
            return [literal(source, item) for item in node.elts]
        case ast.Dict() if all(node.keys):
            keys = [literal(source, key) for key in node.keys if key]
            if all(isinstance(key, str) for key in keys):
                return dict(zip(keys, (literal(source, value) for value in node.values), strict=True))
    raise source.fail(
        node, f"{source.segment(node)} is not a literal; Cog does not run the file, so write the value out"
    )


def _number(source: Source, node: ast.expr) -> int | float:
    text = source.segment(node)
    if not NUMBER.fullmatch(text):
        raise source.fail(node, f"{text} is not a literal; Cog reads plain decimal numbers such as 50, -1 or 1e-4")
    value: int | float = ast.literal_eval(text)
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise source.fail(node, f"{text} does not fit into 64 bits")
    if not math.isfinite(value):
        raise source.fail(node, f"{text} is too large")
    return value


def _string(source: Source, node: ast.Constant) -> str:
    text, value = source.segment(node), node.value
    match = STRING.match(text)
    if not match or (match[1] and len(match[2]) == 3):
        raise source.fail(node, f"{text} has a prefix that Cog does not read; write a plain string")
    quote = match[2]
    if text[len(match[0]) : -len(quote)] != value:
        why = "an escape sequence" if "\\" in text else "several strings"
        raise source.fail(node, f"{text} is {why}, which Cog keeps as raw source text; write one plain string")
    return str(value)


def unwrapped(source: Source, function: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
    """Refuse parentheses in a signature: ast does not see them, Cog's generator stumbles over them."""
    end = function.returns or function.body[0]
    lines = source.text.splitlines(keepends=True)[function.lineno - 1 : end.end_lineno]
    previous = ""
    try:
        for token in tokenize.generate_tokens(io.StringIO("".join(lines)).readline):
            if token.type == tokenize.OP and token.string == "(" and previous not in ("Input", function.name):
                place = ast.Pass(lineno=function.lineno + token.start[0] - 1)
                raise source.fail(place, "parentheses around a value hide it from Cog; write the value alone")
            previous = token.string
    except (tokenize.TokenError, IndentationError):
        return  # the signature ends inside an unfinished block, after everything that matters
