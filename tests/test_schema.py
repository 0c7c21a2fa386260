"""local/schema.py writes what Cog 0.23.1's own generator writes, and refuses what that would get wrong in silence."""

import importlib.metadata
import json
import sys
import textwrap
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openapi_spec_validator
import pytest
from cog import _adt, _inspector
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from local.annotations import SchemaError
from local.package import Package, PackageError
from local.schema import COG_VERSION, generate, write

FIXTURES = Path(__file__).parent / "fixtures"
IMPORTS = """\
import cog
import typing
from typing import Any, Optional, Union, List, Dict
from collections.abc import Iterator
from cog import BaseModel, BaseRunner, ConcatenateIterator, Input, Path, Secret, streaming
"""


def package(folder: Path, parameters: str, output: str = "str", above: str = "", train: str | None = None) -> Package:
    """A package whose run() has these parameters."""
    lines = "".join(f"        {line}\n" for line in textwrap.dedent(parameters).strip().splitlines())
    method = f"    def run(\n        self,\n{lines}    ) -> {output}:\n        ...\n"
    (folder / "predict.py").write_text(f"{IMPORTS}{above}\n\nclass Predictor(BaseRunner):\n{method}")
    if train:
        (folder / "train.py").write_text(f"{IMPORTS}\n\ndef train({train}) -> Path:\n    ...\n")
    return Package(folder, "predict.py:Predictor", "train.py:train" if train else None)


def schemas(folder: Path, parameters: str, output: str = "str", above: str = "") -> dict[str, Any]:
    """The components of that package's document."""
    document = json.loads(generate(package(folder, parameters, output, above)))
    openapi_spec_validator.validate(document)
    components: dict[str, Any] = document["components"]["schemas"]
    return components


def inputs(folder: Path, parameters: str) -> dict[str, Any]:
    """The input properties of that package."""
    properties: dict[str, Any] = schemas(folder, parameters)["Input"]["properties"]
    return properties


def test_equals_cogs_own_document_byte_for_byte() -> None:
    folder = FIXTURES / "cog_schema"
    both = Package(folder, "predict.py:Predictor", "train.py:train")
    expected = (folder / "openapi_schema.json").read_text().rstrip("\n")
    assert generate(both, version="dev", none_is_required=True) == expected


def test_version_is_that_of_the_installed_cog() -> None:
    assert importlib.metadata.version("cog") == COG_VERSION
    assert importlib.metadata.version("coglet") == COG_VERSION


def test_predictor_alone_is_compact_and_has_no_trainings(tmp_path: Path) -> None:
    text = generate(package(tmp_path, "b: str,\na: int = 3"))
    assert list(json.loads(text)["paths"]) == [
        "/",
        "/health-check",
        "/predictions",
        "/predictions/{prediction_id}/cancel",
    ]
    assert '"properties":{"b":{"title":"B","type":"string","x-order":0},"a":{"default":3,' in text
    assert "\n" not in text
    assert "rainings" not in text


@pytest.mark.parametrize(
    ("declaration", "expected"),
    [
        ("x: str", {"title": "X", "type": "string"}),
        ("num_outputs: int = 1", {"title": "Num Outputs", "type": "integer", "default": 1}),
        ("loRA_iD: float = 1.0", {"title": "LoRA ID", "type": "number", "default": 1}),
        ("x: float = 1e-4", {"title": "X", "type": "number", "default": 0.0001}),
        ("x: float = Input(default=-0.5, ge=-1.0)", {"title": "X", "type": "number", "default": -0.5, "minimum": -1}),
        ("x: bool = False", {"title": "X", "type": "boolean", "default": False}),
        ("x: int = 9223372036854775807", {"title": "X", "type": "integer", "default": 2**63 - 1}),
        ("x: Path", {"title": "X", "type": "string", "format": "uri"}),
        ("x: cog.Path", {"title": "X", "type": "string", "format": "uri"}),
        ("x: 'Path'", {"title": "X", "type": "string", "format": "uri"}),
        ("x: list[str] = []", {"title": "X", "type": "array", "items": {"type": "string"}, "default": []}),
        ("x: dict", {"title": "X", "type": "object"}),
        ("x: str | float = 1.5", {"title": "X", "anyOf": [{"type": "string"}, {"type": "number"}], "default": 1.5}),
        ("x: Optional[int] = None", {"title": "X", "type": "integer", "nullable": True, "default": None}),
        ("x: typing.Optional[int]", {"title": "X", "type": "integer", "nullable": True}),
        ("x: int | None = Input(default=None)", {"title": "X", "type": "integer", "nullable": True, "default": None}),
        ("x: Union[None, str] = ''", {"title": "X", "type": "string", "nullable": True, "default": ""}),
        ("x: str = Input(deprecated=True)", {"title": "X", "type": "string", "deprecated": True}),
        ("x: str = Input(deprecated=False)", {"title": "X", "type": "string"}),
        (r"x: str = Input(regex=r'^\d+$', min_length=1, max_length=9)",
         {"title": "X", "type": "string", "pattern": r"^\d+$", "minLength": 1, "maxLength": 9}),
        ("x: list[Path] = Input(accept='image/*')",
         {"title": "X", "type": "array", "items": {"type": "string", "format": "uri"}, "x-cog-accept": "image/*"}),
        ("x: Optional[List[Path]] = Input(description='<a> & \"ü\"', default=None)",
         {"title": "X", "type": "array", "items": {"type": "string", "format": "uri"}, "nullable": True,
          "default": None, "description": '<a> & "ü"'}),
        ("x: Optional[list[str]] = Input(default=None)",
         {"title": "X", "type": "array", "items": {"type": "string"}, "nullable": True, "default": None}),
        ("x: Optional[list[float]] = Input(description='D', default=None)",
         {"title": "X", "type": "array", "items": {"type": "number"}, "nullable": True, "default": None,
          "description": "D"}),
        ("x: Optional[Secret] = Input(default=None)",
         {"title": "X", "type": "string", "format": "password", "writeOnly": True, "x-cog-secret": True,
          "nullable": True, "default": None}),
        ("x: Secret = Input(default=None)",
         {"title": "X", "type": "string", "format": "password", "writeOnly": True, "x-cog-secret": True,
          "nullable": True, "default": None}),
        ("x: str = Input(choices=['a', 'b'], default='a', description='D')",
         {"allOf": [{"$ref": "#/components/schemas/x"}], "default": "a", "description": "D"}),
        ("x: str | int | None",
         {"title": "X", "anyOf": [{"type": "string", "nullable": True}, {"type": "integer", "nullable": True}],
          "nullable": True}),
    ],
)  # fmt: skip
def test_one_input(declaration: str, expected: dict[str, Any], tmp_path: Path) -> None:
    (found,) = inputs(tmp_path, declaration).values()
    assert found == {**expected, "x-order": 0}
    assert {type(found[key]) for key in ("default", "minimum") if key in found} == {
        type(expected[key]) for key in ("default", "minimum") if key in expected
    }


def test_required_keeps_the_order_of_the_signature(tmp_path: Path) -> None:
    first = "z: str,\no: Optional[int],\nu: str | int,\n"
    rest = "y: Path = Input(),\ns: Secret = Input(),\na: int = 1,\nl: list[int] = Input()"
    assert schemas(tmp_path, first + rest)["Input"]["required"] == ["z", "u", "y", "s", "l"]


def test_choices_become_a_component(tmp_path: Path) -> None:
    found = schemas(tmp_path, "steps: int = Input(choices=[1, 2], default=2),\nname: str = 'a'")
    assert found["steps"] == {"title": "steps", "description": "An enumeration.", "enum": [1, 2], "type": "integer"}


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        ("list[Path]", {"type": "array", "items": {"type": "string", "format": "uri"}}),
        ("Iterator[str]", {"type": "array", "items": {"type": "string"}, "x-cog-array-type": "iterator"}),
        ("ConcatenateIterator[str]",
         {"type": "array", "items": {"type": "string"}, "x-cog-array-type": "iterator",
          "x-cog-array-display": "concatenate"}),
        ("dict[str, list[int]]",
         {"type": "object", "additionalProperties": {"type": "array", "items": {"type": "integer"}}}),
        ("list", {"type": "array", "items": {"type": "object"}}),
        ("Any", {"type": "object"}),
        ("list[Out]",
         {"type": "array", "items": {"type": "object", "required": ["weights"], "properties": {
             "weights": {"type": "string", "format": "uri", "title": "Weights"},
             "loss_curve": {"type": "array", "items": {"type": "number"}, "nullable": True, "title": "Loss Curve"},
             "note": {"type": "string", "title": "Note"},
         }}}),
    ],
)  # fmt: skip
def test_output(annotation: str, expected: dict[str, Any], tmp_path: Path) -> None:
    fields = ('"Doc."', "weights: Path", "loss_curve: Optional[list[float]]", 'note: str = ""')
    above = "class Out(BaseModel):\n" + "".join(f"    {field}\n" for field in fields)
    assert schemas(tmp_path, "x: str", annotation, above)["Output"] == {"title": "Output", **expected}


def test_choices_cannot_take_the_name_of_a_component(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match="cannot be called Status"):
        generate(package(tmp_path, "Status: str = Input(choices=['a', 'b'])"))


def test_streaming_decorator_and_function(tmp_path: Path) -> None:
    (tmp_path / "p.py").write_text(f"{IMPORTS}\n@streaming\ndef run(x: str) -> Iterator[str]:\n    yield x\n")
    document = json.loads(generate(Package(tmp_path, "p.py:run")))
    assert document["paths"]["/predictions"]["post"]["x-cog-streaming"] is True


def test_merged_document_shares_equal_choices_and_rounds_as_float64(tmp_path: Path) -> None:
    both = package(
        tmp_path,
        "s: str = Input(choices=['a', 'b'])",
        train="s: str = Input(choices=['a', 'b']), n: int = 9007199254740993",
    )
    found = json.loads(generate(both))["components"]["schemas"]
    assert found["TrainingInput"]["properties"]["n"]["default"] == 9007199254740992
    different = package(tmp_path, "s: str = Input(choices=['a', 'b'])", train="s: str = Input(choices=['a', 'c'])")
    with pytest.raises(SchemaError, match="same choices for s"):
        generate(different)


@pytest.mark.parametrize(
    ("declaration", "message"),
    [
        ("x: int = Input(default=LIMIT)", "not a literal"),
        ("x: int = Input(default=2**31-1)", "not a literal"),
        ("x: str = Input(default=f'a')", "not a literal"),
        ("x: str = Input(default=('a'))", "parentheses"),
        ("x: int = (3)", "parentheses"),
        ("x: int = LIMIT", "not a literal"),
        ("x: int = Input(default=1_000)", "plain decimal"),
        ("x: int = Input(ge=0x10)", "plain decimal"),
        ("x: int = Input(ge=LIMIT)", "not a literal"),
        ("x: int = Input(default=99999999999999999999)", "64 bits"),
        ("x: str = Input(description='a' 'b')", "several strings"),
        (r"x: str = Input(description='a\n')", "escape sequence"),
        ("x: str = Input(description=3)", "wrong type"),
        ("x: str = Input(default=u'a')", "prefix"),
        ("x: str = Input(choices=('a', 'b'))", "parentheses"),
        ("x: str = Input(choices=list(NAMES.keys()))", "parentheses"),
        ("x: str = Input(choices=NAMES)", "not a literal"),
        ("x: str = Input(choices=['a'])", "two different"),
        ("x: str = Input(choices=['a', 1])", "another type"),
        ("x: list[str] = Input(choices=['a', 'b'])", "no effect on a list"),
        ("x: str = Input(choices=['a', 'b'], default='c')", "not among the choices"),
        ("x: int = Input(default=0, ge=1)", "below ge"),
        ("x: int = Input(default=3, le=2)", "above le"),
        ("x: str = Input(default='b', regex='^a')", "does not match"),
        ("x: str = Input(regex='(?=a)')", "look-around"),
        ("x: str = Input(ge=1)", "need a number"),
        ("x: Path = Input(regex='a')", "need a str"),
        ("x: str = Input(accept='image/*')", "needs a Path"),
        ("x: str = Input(default_factory=str)", "parentheses|does not read default_factory"),
        ("x: str = Input('a')", "only named arguments"),
        ("x: str = cog.Input(default='a')", "imported from cog"),
        ("x: int = Input(default=None)", "makes it required"),
        ("x: int = 'a'", "another type"),
        ("x: int = True", "another type"),
        ("x = 3", "no type annotation"),
        ("x", "no type annotation"),
        ("*x: int", "plain parameters only"),
        ("*,\nx: int", "plain parameters only"),
        ("x: list[list[int]]", "lists of plain types"),
        ("x: list[Optional[int]]", "lists of plain types"),
        ("x: Path | str", "plain JSON types"),
        ("x: typing.Literal['a']", "not a type that Cog reads"),
        ("x: P", "not an? (input )?type that Cog reads"),
    ],
)
def test_refused(declaration: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match=message) as error:
        generate(package(tmp_path, declaration, above="from cog import Path as P\nLIMIT = 3\nNAMES = {'a': 1}\n"))
    assert "predict.py" in str(error.value)


def test_error_names_file_and_line(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match=rf"{tmp_path}/predict\.py:\d+: LIMIT is not a literal"):
        generate(package(tmp_path, "a: int = 1,\nx: int = LIMIT"))


def test_paths_of_the_standard_library_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match=r"Path must be imported from cog; here it is pathlib\.Path"):
        generate(package(tmp_path, "x: Path", above="from pathlib import Path\n"))


@pytest.mark.parametrize("output", ["Optional[Path]", "Path | None", "None", "torch.Tensor", "Undefined"])
def test_refused_output(output: str, tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match=r"not an? (output )?type that Cog reads"):
        generate(package(tmp_path, "x: str", output))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("class Predictor:\n    def run(self, x: str): ...\n", "return annotation"),
        ("class Predictor:\n    pass\n", "exactly one of run"),
        ("class Predictor:\n    def run(self) -> str: ...\n    def predict(self) -> str: ...\n", "exactly one of run"),
        ("class Predictor:\n    @cache\n    def run(self) -> str: ...\n", "@cache"),
        ("class Predictor:\n    def run(x: str) -> str: ...\n", "must be self"),
        ("class Other: ...\n", "there is no Predictor"),
        ("class Predictor(\n", "predict.py"),
    ],
)
def test_refused_file(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "predict.py").write_text(text)
    with pytest.raises(SchemaError, match=message):
        generate(Package(tmp_path, "predict.py:Predictor"))


def test_write_is_atomic_and_where_coglet_looks(tmp_path: Path) -> None:
    path = write(package(tmp_path, "x: str"))
    assert path == tmp_path / ".cog" / "openapi_schema.json"
    assert json.loads(path.read_text())["openapi"] == "3.0.2"
    (tmp_path / "predict.py").write_text("broken(")
    with pytest.raises(SchemaError):
        write(Package(tmp_path, "predict.py:Predictor"))
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_package_without_cog_yaml_or_predictor(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="does not exist"):
        Package.load(tmp_path)
    (tmp_path / "cog.yaml").write_text("build:\n  gpu: true\n")
    with pytest.raises(PackageError, match="names no predictor"):
        Package.load(tmp_path)


TEXT = st.text(alphabet="abcXYZ äß_-.,:;!?<>&%$#@*/|~", max_size=12)
NUMBERS = {"int": st.integers(-(2**53), 2**53), "float": st.floats(-1e9, 1e9).map(lambda x: round(x, 6) + 0.0)}
VALUES: dict[str, st.SearchStrategy[Any]] = {**NUMBERS, "str": TEXT, "bool": st.booleans()}


@st.composite
def parameter(draw: st.DrawFn, name: str) -> str:
    """One parameter that both Cog's generator and its inspector accept."""
    kind = draw(st.sampled_from(["int", "float", "str", "bool", "Path"]))
    shape = draw(st.sampled_from(["{}", "Optional[{}]", "{} | None", "list[{}]"]))
    options = {"description": repr(draw(TEXT))} if draw(st.booleans()) else {}
    values = VALUES.get(kind)
    plain = shape == "{}"
    if values is not None and plain and kind in ("int", "str") and draw(st.booleans()):
        choices = draw(st.lists(values, min_size=2, max_size=4, unique=True))
        options |= {"choices": repr(choices), "default": repr(draw(st.sampled_from(choices)))}
    elif values is not None and plain and kind in NUMBERS and draw(st.booleans()):
        low, value, high = sorted(draw(st.tuples(values, values, values)))
        options |= {"ge": repr(low), "le": repr(high), "default": repr(value)}
    elif values is not None and draw(st.booleans()):
        options["default"] = repr(draw(st.lists(values, max_size=3) if shape == "list[{}]" else values))
    elif "None" in shape or "Optional" in shape:
        options["default"] = "None"
    arguments = ", ".join(f"{key}={value}" for key, value in options.items())
    return f"{name}: {shape.format(kind)} = Input({arguments})"


NAMES = st.lists(
    st.from_regex(r"[a-z][a-z0-9]{0,5}(_[a-z]{1,4})?", fullmatch=True), min_size=1, max_size=6, unique=True
)


@st.composite
def parameters(draw: st.DrawFn) -> str:
    """A whole signature."""
    names = [f"{name}_in" for name in draw(NAMES)]
    return ",\n".join(draw(parameter(name)) for name in names)


@pytest.fixture
def importable(tmp_path: Path) -> Iterator[Path]:
    """A folder that Python imports from."""
    sys.path.insert(0, str(tmp_path))
    yield tmp_path
    sys.path.remove(str(tmp_path))


PRIMITIVES: dict[Any, dict[str, Any]] = {
    _adt.PrimitiveType.STRING: {"type": "string"},
    _adt.PrimitiveType.INTEGER: {"type": "integer"},
    _adt.PrimitiveType.FLOAT: {"type": "number"},
    _adt.PrimitiveType.BOOL: {"type": "boolean"},
    _adt.PrimitiveType.PATH: {"type": "string", "format": "uri"},
    _adt.PrimitiveType.SECRET: {"type": "string", "format": "password", "writeOnly": True, "x-cog-secret": True},
}


@given(signature=parameters())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_agrees_with_cogs_inspector(signature: str, importable: Path) -> None:
    """What cog reads from the living class is what the schema says, for any signature."""
    properties = inputs(importable, signature)
    components = schemas(importable, signature)
    module = f"predict_{uuid.uuid4().hex}"
    (importable / f"{module}.py").write_text((importable / "predict.py").read_text())
    live = _inspector.create_predictor(module, "Predictor").inputs
    del sys.modules[module]
    assert list(live) == list(properties)
    for (name, field), found in zip(live.items(), properties.values(), strict=True):
        kind = components[name] if "allOf" in found else found
        kind = kind["items"] if kind["type"] == "array" else kind
        assert {key: kind[key] for key in ("type", "format") if key in kind} == PRIMITIVES[field.type.primitive]
        default = getattr(field.default, "default", field.default)
        assert found.get("default", "absent") in (default, "absent")
        assert (found.get("minimum"), found.get("maximum")) == (field.ge, field.le)
        assert components.get(name, {}).get("enum") == field.choices
        assert found["x-order"] == field.order
        assert found.get("description") == field.description
        assert found.get("nullable", False) == (field.type.repetition is _adt.Repetition.OPTIONAL)
