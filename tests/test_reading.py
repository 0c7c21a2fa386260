"""Weights from files: what safetensors' own reader gives, by either way, and damage in one sentence."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from errors import WeightsError
from sdxl.reading import mapped, read_tensors, streamed

CPU = torch.device("cpu")
Way = Callable[..., Iterator[tuple[str, Tensor]]]
WAYS: list[Way] = [mapped, streamed]
TYPES = [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8]


@st.composite
def tensors(draw: st.DrawFn) -> dict[str, Tensor]:
    found = {}
    for number in range(draw(st.integers(1, 8))):
        shape, dtype = draw(st.lists(st.integers(0, 7), max_size=3)), draw(st.sampled_from(TYPES))
        found[f"layer.{number}"] = torch.randint(0, 100, shape).to(dtype)
    return found


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(written=tensors(), piece=st.sampled_from([1, 7, 64, 4096]))
def test_either_way_reads_what_was_written(written: dict[str, Tensor], piece: int, tmp_path: Path) -> None:
    file = tmp_path / "any.safetensors"
    save_file(written, file)
    expected = load_file(file)
    for found in (dict(mapped(file, CPU, torch.float32)), dict(streamed(file, CPU, torch.float32, piece=piece))):
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(found[name], tensor.float())


@pytest.mark.parametrize("way", WAYS)
def test_writing_to_a_weight_changes_no_file_and_no_other(way: Way, tmp_path: Path) -> None:
    file = tmp_path / "two.safetensors"
    save_file({"one": torch.ones(5), "other": torch.ones(5)}, file)
    before, found = file.read_bytes(), dict(way(file, CPU, torch.float32))
    versions = found["other"]._version
    found["one"].zero_()
    assert file.read_bytes() == before
    assert found["other"].tolist() == [1] * 5
    assert found["other"]._version == versions, "what counts changes would see one"


def test_a_tensor_at_an_odd_address(tmp_path: Path) -> None:
    """safetensors sorts by type, others may not."""
    header = {
        "byte": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "number": {"dtype": "F32", "shape": [1], "data_offsets": [1, 5]},
    }
    text = json.dumps(header).encode().ljust(160)
    number = torch.tensor([2.5]).numpy().tobytes()
    file = tmp_path / "odd.safetensors"
    file.write_bytes(len(text).to_bytes(8, "little") + text + b"\x07" + number)
    for way in WAYS:
        assert {name: tensor.tolist() for name, tensor in way(file, CPU, torch.float32)} == {
            "byte": [7],
            "number": [2.5],
        }


def change(file: Path, what: str) -> None:
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header: dict[str, Any] = json.loads(data[8 : 8 + length])
    if what == "cut short":
        file.write_bytes(data[:-3])
    elif what == "too long":
        file.write_bytes(data + b"more")
    elif what == "empty":
        file.write_bytes(b"")
    elif what == "no header":
        file.write_bytes(b"\xff" * 64)
    else:
        header["one"] |= {"wrong shape": {"shape": [6]}, "unknown type": {"dtype": "F3"}, "gap": {}}[what]
        if what == "gap":
            header["other"]["data_offsets"] = [24, 44]
        text = json.dumps(header).encode().ljust(length)
        file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


@pytest.mark.parametrize("what", ["cut short", "too long", "empty", "no header", "wrong shape", "unknown type", "gap"])
def test_damage_is_one_sentence(what: str, tmp_path: Path) -> None:
    folder = tmp_path / "model" / "unet"
    folder.mkdir(parents=True)
    file = folder / "weights.safetensors"
    save_file({"one": torch.ones(5), "other": torch.ones(5)}, file)
    assert len(dict(read_tensors(folder, CPU, torch.float32))) == 2
    change(file, what)
    with pytest.raises(
        WeightsError, match=r"^weights.safetensors in model/unet is damaged \(.*\); fetch the model again"
    ):
        dict(read_tensors(folder, CPU, torch.float32))


def test_the_half_precision_variant_and_shards(tmp_path: Path) -> None:
    folder = tmp_path / "model" / "unet"
    folder.mkdir(parents=True)
    with pytest.raises(WeightsError, match=r"model/unet holds no .safetensors file"):
        dict(read_tensors(folder, CPU, torch.float32))
    save_file({"one": torch.ones(5)}, folder / "weights-00001-of-00002.safetensors")
    save_file({"other": torch.ones(5)}, folder / "weights-00002-of-00002.safetensors")
    assert dict(read_tensors(folder, CPU, torch.float32)).keys() == {"one", "other"}
    save_file({"half": torch.ones(5)}, folder / "weights.fp16.safetensors")
    assert dict(read_tensors(folder, CPU, torch.float32)).keys() == {"half"}
