"""What is said of an input before anything is queued."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.checks import Checker
from local import schema
from local.package import Package
from tests.conftest import ROOT

OWN = "https://gateway.example/v1/files/"
PROPERTIES: dict[str, Any] = {
    "text": {"type": "string"},
    "count": {"type": "integer", "minimum": 1, "maximum": 4, "nullable": True},
    "kind": {"allOf": [{"$ref": "#/components/schemas/kind"}], "default": "a"},
    "image": {"type": "string", "format": "uri"},
    "images": {"type": "array", "items": {"type": "string", "format": "uri"}, "nullable": True},
    "replicate_weights": {"type": "string", "nullable": True},
    "lora_weights": {"type": "array", "items": {"type": "string"}, "nullable": True},
    "format": {"type": "string", "minLength": 2},
}
DOCUMENT = {
    "components": {
        "schemas": {
            "Input": {"type": "object", "properties": PROPERTIES, "required": ["text"]},
            "kind": {"enum": ["a", "b"], "type": "string"},
        }
    }
}
NEEDED = {"text": "x"}


def checker(*, private: bool = False) -> Checker:
    found = Checker.of(DOCUMENT, "prediction", own=OWN, private=private)
    assert found is not None
    return found


def wrong(**given: Any) -> list[str]:
    return checker().checked({**NEEDED, **given})[1]


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"text": 1}, "- input.text: Invalid type. Expected: string, given: integer"),
        ({"text": None}, "- input.text: Invalid type. Expected: string, given: null"),
        ({"count": "2"}, "- input.count: Invalid type. Expected: integer, given: string"),
        ({"count": True}, "- input.count: Invalid type. Expected: integer, given: boolean"),
        ({"count": 1.5}, "- input.count: Invalid type. Expected: integer, given: number"),
        ({"count": 5}, "- input.count: Must be less than or equal to 4"),
        ({"count": 0}, "- input.count: Must be greater than or equal to 1"),
        ({"kind": "c"}, "- input.kind: Must be one of the following: 'a', 'b'"),
        ({"images": ["data:,x", 3]}, "- input.images[1]: Invalid type. Expected: string, given: integer"),
        ({"format": "x"}, "- input.format: String length must be greater than or equal to 2"),
    ],
)
def test_each_fault_is_named_with_its_place(given: dict[str, Any], line: str) -> None:
    assert wrong(**given) == [line]


def test_all_faults_come_at_once() -> None:
    assert wrong(count=9, kind="c", text=2) == [
        "- input.count: Must be less than or equal to 4",
        "- input.kind: Must be one of the following: 'a', 'b'",
        "- input.text: Invalid type. Expected: string, given: integer",
    ]


def test_what_is_required_has_to_be_there_and_what_is_unknown_is_dropped() -> None:
    assert checker().checked({"nothing": 1})[1] == ["- input: text is required"]
    assert checker().checked({**NEEDED, "count": None, "nothing": 1}) == ({**NEEDED, "count": None}, [])


@pytest.mark.parametrize(
    "url",
    [
        "http://93.184.215.14/x.png",
        "https://example.com/a%20b?x=1#y",
        "HTTPS://Example.com:8443/x",
        "data:image/png;base64,AAAA",
        f"{OWN}aaaaaaaaaaaaaaaaaaaaaaaaaa",
    ],
)
def test_urls_that_are_taken(url: str) -> None:
    assert wrong(image=url, images=[url], replicate_weights=url, lora_weights=[url]) == []


@pytest.mark.parametrize(
    "url",
    [
        "/etc/passwd",
        "file:///etc/passwd",
        "-x",
        "../x",
        "~/x",
        "ftp://example.com/x",
        "http://user:password@example.com/x",
        "http://example.com\\@127.0.0.1/",
        "http://127.0.0.1/x",
        "http://127.1/x",
        "http://2130706433/x",
        "http://0x7f.0.0.1/x",
        "http://0177.0.0.1/x",
        "http://[::1]/x",
        "http://[::ffff:10.0.0.1]/x",
        "http://169.254.169.254/latest/meta-data",
        "http://metadata.google.internal/x",
        "http://localhost:8000/x",
        "http://gateway.localhost/x",
        "http://",
        "http://[::1/x",
        "http://example.com:0/x",
        "http://exämple.com/x",
        "https://evil.example\n/x",
        "data:nothing",
    ],
)
def test_urls_that_are_refused_wherever_a_model_would_fetch_them(url: str) -> None:
    assert [line.partition(":")[0] for line in wrong(image=url)] == ["- input.image"]
    assert [line.partition(":")[0] for line in wrong(images=["data:,x", url])] == ["- input.images[1]"]
    if url != "data:nothing":  # the model decodes it, and says so
        assert [line.partition(":")[0] for line in wrong(replicate_weights=url)] == ["- input.replicate_weights"]
        assert [line.partition(":")[0] for line in wrong(lora_weights=[url])] == ["- input.lora_weights[0]"]


@pytest.mark.parametrize("name", ["", "owner/model", "owner/model/version", "huggingface.co/owner/repo/a.safetensors"])
def test_names_on_a_hub_are_weights_too(name: str) -> None:
    assert wrong(replicate_weights=name, lora_weights=[name]) == []


def test_an_operator_can_allow_the_private_network() -> None:
    given = {**NEEDED, "image": "http://10.0.0.7/x.png"}
    assert checker(private=True).checked(given) == (given, [])
    assert checker(private=True).checked({**NEEDED, "image": "/etc/passwd"})[1]


def test_a_version_without_trainings_has_no_checker_for_them() -> None:
    assert Checker.of(DOCUMENT, "training", own=OWN, private=False) is None
    assert Checker.of({}, "prediction", own=OWN, private=False) is None


def test_the_schema_of_this_package() -> None:
    document = json.loads(schema.generate(Package.load(ROOT)))
    found = Checker.of(document, "prediction", own=OWN, private=False)
    assert found is not None
    given = {"prompt": "a cat", "width": 512, "seed": None, "image": None, "scheduler": "DDIM", "hf_api_token": "hf_x"}
    assert found.checked(given) == (given, [])
    assert found.secrets == {"hf_api_token", "civitai_api_token", "replicate_api_token"}
    assert found.checked({"width": 4096})[1] == ["- input.width: Must be less than or equal to 2048"]
    trains = Checker.of(document, "training", own=OWN, private=False)
    assert trains is not None
    assert trains.checked({})[1] == ["- input: input_images is required"]
