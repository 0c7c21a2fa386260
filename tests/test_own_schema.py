"""The schema of this package itself: Cog's rules for it, and what Cog reads from the living signatures."""

import inspect
import json
from typing import Any

import openapi_spec_validator
import pytest
from cog import _adt, _inspector

import train
from local.modes import PREDICT, TRAIN, Mode
from local.package import ROOT, Package
from local.schema import COG_VERSION, generate
from predict import Predictor
from tests.test_schema import PRIMITIVES

Json = dict[str, Any]
SIGNATURES = {PREDICT: inspect.signature(Predictor.run).parameters, TRAIN: inspect.signature(train.train).parameters}
LIVE = {
    PREDICT: _inspector.create_predictor("predict", "Predictor").inputs,
    TRAIN: _inspector.create_predictor("train", "train").inputs,
}
NEEDED = {PREDICT: [], TRAIN: ["input_images"]}
MODES = pytest.mark.parametrize("mode", [PREDICT, TRAIN], ids=["predict", "train"])
INPUTS = [(mode, name) for mode in LIVE for name in LIVE[mode]]


@pytest.fixture(scope="module")
def document() -> Json:
    found: Json = json.loads(generate(Package.load(ROOT)))
    return found


@pytest.fixture(scope="module")
def components(document: Json) -> Json:
    found: Json = document["components"]["schemas"]
    return found


def optional(mode: Mode) -> set[str]:
    return {name for name, one in SIGNATURES[mode].items() if "Optional" in str(one)}


def expected(mode: Mode, name: str) -> Json:
    """A property, key for key, as Cog's rules make it from what its inspector says of the parameter."""
    field = LIVE[mode][name]
    found: Json = {"x-order": field.order, "description": field.description}
    if name not in NEEDED[mode]:
        found["default"] = field.default
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


@MODES
def test_both_modes_have_their_paths(mode: Mode, document: Json) -> None:
    assert {mode.route, f"{mode.route}/{{{mode.noun}_id}}/cancel"} <= document["paths"].keys()


@MODES
def test_names_and_order_are_those_of_the_signature(mode: Mode, components: Json) -> None:
    properties = components[mode.component]["properties"]
    assert sorted(properties, key=lambda name: properties[name]["x-order"]) == list(LIVE[mode])
    assert sorted(one["x-order"] for one in properties.values()) == list(range(len(properties)))
    assert list(LIVE[mode]) == [name for name in SIGNATURES[mode] if name != "self"]


@pytest.mark.parametrize(("mode", "name"), INPUTS, ids=[f"{mode.verb}-{name}" for mode, name in INPUTS])
def test_an_input_is_what_cog_reads_from_the_signature(mode: Mode, name: str, components: Json) -> None:
    assert components[mode.component]["properties"][name] == expected(mode, name)
    field = LIVE[mode][name]
    if field.choices:
        enumeration = {"title": name, "description": "An enumeration.", "enum": field.choices}
        assert components[name] == enumeration | PRIMITIVES[field.type.primitive]


@MODES
def test_every_input_but_the_pictures_may_be_left_out(mode: Mode, components: Json) -> None:
    """Cog makes an input with default=None required unless it is Optional; none of ours is."""
    properties = components[mode.component]["properties"]
    assert components[mode.component].get("required", []) == NEEDED[mode]
    assert {name for name, one in properties.items() if one.get("nullable")} == optional(mode)
    for name, one in properties.items():
        assert name in NEEDED[mode] or (one["default"] is None) == (name in optional(mode)), name


def test_choices_are_the_only_further_components(components: Json) -> None:
    fixed = {"PredictionRequest", "PredictionResponse", "TrainingRequest", "TrainingResponse", "Status"}
    fixed |= {"Input", "Output", "TrainingInput", "TrainingOutput", "HTTPValidationError", "ValidationError"}
    choices = {"aspect_ratio", "scheduler", "refine", "output_format", "token_pooling", "quantization", "few_step"}
    choices |= {"lr_scheduler", "input_images_filetype", "optimizer"}
    properties = components["Input"]["properties"] | components["TrainingInput"]["properties"]
    chosen = {name for name, one in properties.items() if "allOf" in one}
    assert set(components) - fixed == chosen == choices
    assert not any({"title", "type", "enum"} & properties[name].keys() for name in chosen)


def test_a_size_and_a_corner_have_a_pattern(components: Json) -> None:
    patterns = {name for name, one in components["Input"]["properties"].items() if "pattern" in one}
    micro = ("original_size", "target_size", "crop_top_left")
    assert patterns == {f"{sign}{name}" for sign in ("", "negative_") for name in micro}


def test_the_output_is_a_list_of_files_or_weights(components: Json) -> None:
    uri = {"type": "string", "format": "uri"}
    assert components["Output"] == {"title": "Output", "type": "array", "items": uri}
    assert components["TrainingOutput"] == {
        "title": "Output",
        "type": "object",
        "properties": {"weights": {"title": "Weights", **uri}},
        "required": ["weights"],
    }
