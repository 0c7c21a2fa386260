"""docs/inputs.md: tables of every input, made from the signatures that Cog reads."""

import json
import sys
from pathlib import Path
from typing import Any

from local.modes import PREDICT, TRAIN, Mode
from local.package import ROOT, Package
from local.schema import generate

PAGE = Path("docs") / "inputs.md"
KINDS = {"uri": "file (URL or data: URL)", "password": "secret"}
LISTS = {"file (URL or data: URL)": "files (URLs or data: URLs)"}  # the others take an s


def page(package: Package) -> str:
    """The page as Markdown."""
    schemas: dict[str, Any] = json.loads(generate(package))["components"]["schemas"]
    modes = [mode for mode in (PREDICT, TRAIN) if mode.component in schemas]
    files = " and ".join(f"`{package.entry(mode).partition(':')[0]}`" for mode in modes)
    head = [
        "# Inputs",
        "",
        f"Written by `script/docs` from {files}; a test keeps it true. To leave an input blank leave it out of",
        "the request: Cog refuses `null`.",
        "",
    ]
    return "\n".join([*head, *(line for mode in modes for line in _section(mode, schemas))])


def _section(mode: Mode, schemas: dict[str, Any]) -> list[str]:
    properties: dict[str, Any] = schemas[mode.component]["properties"]
    required = set(schemas[mode.component].get("required", ()))
    rows = [
        f"| `{name}` | {_type(name, each, schemas)} | {_default(each, name in required)} | {_cell(each)} |"
        for name, each in sorted(properties.items(), key=lambda item: item[1]["x-order"])
    ]
    title = f"## {mode.noun.capitalize()}s"
    return [title, "", "| input | type | default | |", "|---|---|---|---|", *rows, ""]


def _cell(each: dict[str, Any]) -> str:
    """The description; a | in it would end the cell."""
    return str(each["description"]).replace("|", "\\|")


def _type(name: str, each: dict[str, Any], schemas: dict[str, Any]) -> str:
    if "allOf" in each:
        return "one of " + ", ".join(f"`{choice}`" for choice in schemas[name]["enum"])
    if each["type"] == "array":
        kind = _type(name, each["items"], schemas)
        return f"list of {LISTS.get(kind, kind + 's')}"
    kind = KINDS.get(each.get("format", ""), each["type"])
    low, high = each.get("minimum"), each.get("maximum")
    if low is not None and high is not None:
        return f"{kind}, {low} to {high}"
    return kind if low is None else f"{kind}, {low} or more"


def _default(each: dict[str, Any], required: bool) -> str:
    if required:
        return "required"
    default = each.get("default")
    return "blank" if default is None else f"`{json.dumps(default)}`"


def main() -> int:
    """Write the page and say where."""
    path = ROOT / PAGE
    path.write_text(page(Package.load(ROOT)), encoding="utf-8")
    print(path.relative_to(ROOT))  # noqa: T201 - this is the command's answer
    return 0


if __name__ == "__main__":
    sys.exit(main())
