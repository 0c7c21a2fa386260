"""Fine-tunes through the real coglet and the real command line."""

import base64
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import torch

from sdxl.models import Models
from tests import tunes
from tests.conftest import ROOT
from tests.file_server import FileServer, file_server, stall
from tests.painting import difference
from tests.predicting import show
from tests.serving import QUICK, Server, decoded, sentence, serving


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, models: Models) -> Path:
    """trained_model.tar and lora.safetensors, as people bring them."""
    folder = tmp_path_factory.mktemp("tunes")
    generator = torch.Generator().manual_seed(4)
    rows = (torch.randn(2, 64, generator=generator) * 0.1, torch.randn(2, 96, generator=generator) * 0.1)
    tunes.replicate_tar(folder / "trained_model.tar", tunes.make_lora(models, seed=1), rows)
    tunes.save(folder, tunes.kohya_sgm(tunes.make_lora(models, seed=2)), name="lora")
    return folder


@pytest.fixture(scope="module")
def web(folder: Path) -> Iterator[FileServer]:
    with file_server() as web:
        for path in folder.iterdir():
            web.files[f"/{path.name}"] = path.read_bytes()
        yield web


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    cache = tmp_path_factory.mktemp("cache")
    with serving(SDXL_CACHE=str(cache), SDXL_PRIVATE_INPUTS="1") as server:
        yield server


def picture(server: Server, **asked: Any) -> Any:
    answer = server.predict(seed=3, prompt="TOK on a blue background", apply_watermark=False, **asked)
    assert answer["status"] == "succeeded", answer
    return decoded(answer["output"][0])


def test_a_url_a_data_url_and_a_list(server: Server, web: FileServer, folder: Path) -> None:
    plain = picture(server)
    tuned = picture(server, replicate_weights=f"{web.url}/trained_model.tar")
    assert difference(tuned, plain) > 20
    content = base64.b64encode((folder / "trained_model.tar").read_bytes()).decode()
    assert difference(picture(server, replicate_weights=f"data:application/x-tar;base64,{content}"), tuned) == 0
    added = picture(server, lora_weights=[f"{web.url}/lora.safetensors"] * 2, lora_scales=[0.5, 0.25])
    assert difference(added, plain) > 20
    assert difference(picture(server), plain) == 0


def test_secrets_stay_secret(server: Server, web: FileServer) -> None:
    asked = {"lora_weights": [f"{web.url}/lora.safetensors?token=hush"], "hf_api_token": "hf_hush"}
    answer = server.post({"seed": 1, **asked})
    assert answer.json()["status"] == "succeeded"
    assert "hush" not in answer.text
    failed = server.post({"lora_weights": [f"{web.url}/none.safetensors?token=hush"], "civitai_api_token": "hush"})
    assert failed.json()["status"] == "failed"
    assert "hush" not in failed.text
    assert "hush" not in server.log.read_text()


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"replicate_weights": "/etc/passwd"}, "'/etc/passwd' is a path, and paths are read on the command line only"),
        ({"replicate_weights": "file:///etc/passwd"}, "paths are read on the command line only"),
        ({"lora_weights": ["data:;base64,AAAA"]}, "data:"),
        ({"lora_weights": ["nonsense"]}, "names no fine-tune; send an http"),
        ({"lora_weights": ["ftp://x/y.safetensors"]}, "ftp"),
    ],
)
def test_what_cannot_be_is_one_sentence(server: Server, asked: dict[str, Any], words: str) -> None:
    answer = server.predict(**asked)
    assert answer["status"] == "failed"
    assert words in sentence(answer["error"])
    assert server.predict()["status"] == "succeeded"


def test_without_leave_a_private_address_is_not_asked(
    tmp_path_factory: pytest.TempPathFactory, web: FileServer
) -> None:
    web.log.clear()
    with serving(SDXL_CACHE=str(tmp_path_factory.mktemp("other"))) as guarded:
        answer = guarded.predict(replicate_weights=f"{web.url}/trained_model.tar")
        assert "is not on the public internet" in answer["error"]
    assert web.log == []


def test_a_server_started_with_weights(
    tmp_path_factory: pytest.TempPathFactory, server: Server, web: FileServer, folder: Path
) -> None:
    """COG_WEIGHTS as Cog hands it to setup: what names no weights has these, and has them again after others."""
    tuned = picture(server, replicate_weights=f"{web.url}/trained_model.tar")
    plain = picture(server)
    source, cache = str(folder / "trained_model.tar"), str(tmp_path_factory.mktemp("boot"))
    with serving(SDXL_CACHE=cache, SDXL_PRIVATE_INPUTS="1", COG_WEIGHTS=source) as started:
        assert difference(picture(started), tuned) == 0
        assert difference(picture(started, replicate_weights=f"{web.url}/lora.safetensors"), tuned) > 20
        assert difference(picture(started), tuned) == 0
        assert difference(picture(started, lora_scale=0), plain) > 0  # its words are still learned


def until_taken(server: Server, body: dict[str, Any]) -> requests.Response:
    """The answer to an asynchronous prediction; a busy one is tried again."""
    headers = {"Prefer": "respond-async"}
    while (answer := requests.post(f"{server.url}/predictions", json=body, headers=headers)).status_code == 409:
        time.sleep(0.05)
    return answer


def test_a_cancel_while_weights_come_frees_the_worker(server: Server, web: FileServer) -> None:
    web.files["/stalled.safetensors"] = web.files["/lora.safetensors"]
    web.always["/stalled.safetensors"] = stall
    plain = picture(server)
    for number in range(3):
        body = {"id": f"c{number}", "input": QUICK | {"lora_weights": [f"{web.url}/stalled.safetensors"]}}
        asynchronous = {"Prefer": "respond-async"}
        while (
            answer := requests.post(f"{server.url}/predictions", json=body, headers=asynchronous)
        ).status_code == 409:
            time.sleep(0.05)
        assert answer.status_code == 202
        time.sleep(0.3)
        assert requests.post(f"{server.url}/predictions/c{number}/cancel").status_code == 200
        begun = time.monotonic()
        assert difference(picture(server), plain) == 0
        assert time.monotonic() - begun < 15  # the download itself would go on for half a minute


@pytest.mark.parametrize("name", ["@trained_model.tar", "trained_model.tar"])
def test_the_command_line_reads_a_file(folder: Path, tmp_path: Path, name: str) -> None:
    """The picture is not the base's: the weights of the file are in it."""
    environment = {**os.environ, "SDXL_MODEL": "miniature", "SDXL_CACHE": str(tmp_path / "cache")}
    asked = ["-i", "seed=3", "-i", "num_inference_steps=2", "-i", "prompt=TOK", "-i", "disable_safety_checker=true"]

    def run(*more: str) -> str:
        command = [str(ROOT / "script" / "predict"), *asked, *more]
        result = subprocess.run(
            command, cwd=folder, env=environment, text=True, capture_output=True, timeout=200, check=False
        )
        assert result.returncode == 0, result.stderr
        return result.stderr

    said = run("-i", f"replicate_weights={name}", "-o", str(tmp_path / "tuned.png"))
    assert f"Using weights: {folder}/trained_model.tar at 0.6" in said
    run("-o", str(tmp_path / "plain.png"))
    assert difference(show(tmp_path / "tuned.png"), show(tmp_path / "plain.png")) > 20
