"""The schema of this package itself: Cog's rules for it, and what Cog reads from the living class."""

import inspect
import json
from typing import Any

import openapi_spec_validator
import pytest
from cog import _adt, _inspector

from local.package import ROOT, Package
from local.schema import COG_VERSION, generate
from predict import Predictor
from tests.test_schema import PRIMITIVES

Json = dict[str, Any]
OPTIONAL = {name for name, one in inspect.signature(Predictor.run).parameters.items() if "Optional" in str(one)}
LIVE = _inspector.create_predictor("predict", "Predictor")


@pytest.fixture(scope="module")
def document() -> Json:
    found: Json = json.loads(generate(Package.load(ROOT)))
    return found


@pytest.fixture(scope="module")
def components(document: Json) -> Json:
    found: Json = document["components"]["schemas"]
    return found


@pytest.fixture(scope="module")
def properties(components: Json) -> Json:
    found: Json = components["Input"]["properties"]
    return found


def expected(name: str) -> Json:
    """A property, key for key, as Cog's rules make it from what its inspector says of the parameter."""
    field = LIVE.inputs[name]
    found: Json = {"x-order": field.order, "description": field.description, "default": field.default}
    one = PRIMITIVES[field.type.primitive]
    if field.choices:
        found["allOf"] = [{"$ref": f"#/components/schemas/{name}"}]
    else:
        many = field.type.repetition is _adt.Repetition.OPTIONAL_REPEATED
        found |= {"title": name.replace("_", " ").title(), **({"type": "array", "items": one} if many else one)}
    if field.type.repetition in (_adt.Repetition.OPTIONAL, _adt.Repetition.OPTIONAL_REPEATED):
        found["nullable"] = True
    limits = {"minimum": field.ge, "maximum": field.le, "pattern": field.regex}
    return found | {key: value for key, value in limits.items() if value is not None}


def test_the_document_is_valid(document: Json) -> None:
    openapi_spec_validator.validate(document)
    assert (document["openapi"], document["info"]) == ("3.0.2", {"title": "Cog", "version": COG_VERSION})


def test_names_and_order_are_those_of_the_signature(properties: Json) -> None:
    assert sorted(properties, key=lambda name: properties[name]["x-order"]) == list(LIVE.inputs)
    assert sorted(one["x-order"] for one in properties.values()) == list(range(len(properties)))
    assert ["self", *LIVE.inputs] == list(inspect.signature(Predictor.run).parameters)


@pytest.mark.parametrize("name", LIVE.inputs)
def test_an_input_is_what_cog_reads_from_the_class(name: str, properties: Json, components: Json) -> None:
    assert properties[name] == expected(name)
    field = LIVE.inputs[name]
    if field.choices:
        enumeration = {"title": name, "description": "An enumeration.", "enum": field.choices}
        assert components[name] == enumeration | PRIMITIVES[field.type.primitive]


def test_every_input_may_be_left_out(properties: Json, components: Json) -> None:
    """Cog makes an input with default=None required unless it is Optional; none of ours is."""
    assert "required" not in components["Input"]
    assert {name for name, one in properties.items() if one.get("nullable")} == OPTIONAL
    for name, one in properties.items():
        assert (one["default"] is None) == (name in OPTIONAL), name


def test_choices_are_the_only_further_components(properties: Json, components: Json) -> None:
    fixed = {"Input", "Output", "PredictionRequest", "PredictionResponse", "Status"}
    fixed |= {"HTTPValidationError", "ValidationError"}
    chosen = {name for name, one in properties.items() if "allOf" in one}
    assert (
        set(components) - fixed == chosen == {"aspect_ratio", "scheduler", "refine", "output_format", "token_pooling"}
    )
    assert not any({"title", "type", "enum"} & properties[name].keys() for name in chosen)


def test_a_size_and_a_corner_have_a_pattern(properties: Json) -> None:
    patterns = {name for name, one in properties.items() if "pattern" in one}
    micro = ("original_size", "target_size", "crop_top_left")
    assert patterns == {f"{sign}{name}" for sign in ("", "negative_") for name in micro}


def test_the_output_is_a_list_of_files(components: Json) -> None:
    uri = {"type": "string", "format": "uri"}
    assert components["Output"] == {"title": "Output", "type": "array", "items": uri}
