"""The OpenAPI document that Cog 0.23.1 generates for a package, made from source without running it."""

import argparse
import contextlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from local.annotations import Json, Ordered, SchemaError, Source
from local.document import document, is_empty
from local.modes import PREDICT, TRAIN, Mode
from local.package import ROOT, Package, PackageError
from local.signature import Signature, find_function, read_signature

COG_VERSION = "0.23.1"
SCHEMA = Path(".cog") / "openapi_schema.json"


def generate(package: Package, *, version: str = COG_VERSION, none_is_required: bool = False) -> str:
    """The document as Cog writes it: compact for a predictor alone, indented and sorted with a trainer.

    none_is_required accepts `x: int = Input(default=None)`, which Cog turns into a required input.
    """
    predict = document(_read(package, PREDICT, none_is_required), PREDICT, version)
    if package.train is None:
        return _dump(_sorted(predict), indent=None)
    training = document(_read(package, TRAIN, none_is_required), TRAIN, version)
    return _dump(_merge(predict, training), indent=2)


def write(package: Package) -> Path:
    """Write the document where coglet's worker looks for it; a reader never sees half of it."""
    text, path = generate(package), package.folder / SCHEMA
    path.parent.mkdir(exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            Path(name).unlink()
        raise
    return path


def _read(package: Package, mode: Mode, none_is_required: bool) -> Signature:
    file, _, name = package.entry(mode).partition(":")
    source = Source.read(package.folder / file)
    function = find_function(source, name, methods=("run", "predict") if mode is PREDICT else ())
    signature = read_signature(source, function, method=function not in source.tree.body)
    for parameter in signature.parameters:
        if is_empty(parameter) and not none_is_required:
            raise source.fail(function, f"{parameter.name}: default=None makes it required; write Optional[...]")
    return signature


def _merge(predict: Json, train: Json) -> Json:
    mine, theirs = predict["components"]["schemas"], train["components"]["schemas"]
    for name in mine.keys() & theirs.keys():
        if mine[name] != theirs[name]:
            raise SchemaError(f"run() and train() must offer the same choices for {name}: Cog keeps only the first")
    paths = {**train["paths"], **predict["paths"]}
    return {**predict, "paths": paths, "components": {"schemas": {**theirs, **mine}}}


def _sorted(value: Any) -> Any:
    """Sort the keys of every object but those that Cog keeps in order."""
    if isinstance(value, dict):
        keys = list(value) if isinstance(value, Ordered) else sorted(value)
        return {key: _sorted(value[key]) for key in keys}
    return [_sorted(item) for item in value] if isinstance(value, list) else value


def _dump(document: Json, indent: int | None) -> str:
    separators = (",", ":") if indent is None else None
    text = json.dumps(
        _numbers(document, through_float=indent is not None),
        ensure_ascii=False,
        indent=indent,
        separators=separators,
        sort_keys=indent is not None,
    )
    for character in "<>&\u2028\u2029":  # as Go's encoding/json
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _numbers(value: Any, *, through_float: bool) -> Any:
    """1.0 is written 1; the merged document has been through float64 as a whole."""
    if isinstance(value, dict):
        return {key: _numbers(item, through_float=through_float) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item, through_float=through_float) for item in value]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    if through_float:
        value = float(value)
    return int(value) if value == int(value) and abs(value) < 1e21 else value


def main() -> int:
    """Write the schema of a package and say where."""
    parser = argparse.ArgumentParser(prog="script/schema", description=__doc__)
    parser.add_argument("--package", type=Path, default=ROOT, help="folder with cog.yaml")
    try:
        path = write(Package.load(parser.parse_args().package))
    except (SchemaError, PackageError) as error:
        print(error, file=sys.stderr)  # noqa: T201 - this is the command's answer
        return 1
    print(path)  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
