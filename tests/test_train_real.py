"""train.py and the miniature through the real coglet and the command line: what a client of the container meets."""

import base64
import io
import json
import os
import re
import signal
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.conftest import ROOT
from tests.serving import Server, sentence, serving
from tests.test_cli import in_a_terminal
from tests.test_serve import until
from tests.test_train_serve import progress

HEARTS = ROOT / "examples" / "hearts.zip"
UPLOAD = f"data:application/zip;base64,{base64.b64encode(HEARTS.read_bytes()).decode()}"
QUICK: dict[str, Any] = {"max_train_steps": 3, "train_batch_size": 1, "lora_rank": 2, "sample_prompts": "none"}
LONG: dict[str, Any] = {**QUICK, "max_train_steps": 100_000, "checkpointing_steps": 2}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving("--train", SDXL_CACHE=str(tmp_path_factory.mktemp("cache"))) as server:
        yield server


def members(tar: tarfile.TarFile) -> set[str]:
    return {each.name for each in tar}


def until_training(server: Server, name: str) -> None:
    """Its bar has moved."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        answer = requests.put(f"{server.url}/trainings/{name}", json={"input": []}, timeout=20)
        assert answer.status_code == 202, answer.text
        if (seen := progress(answer.json()["logs"])) and seen[1] > 2:
            return
        time.sleep(0.2)
    raise AssertionError("it does not train")


def start(server: Server, name: str, **asked: Any) -> None:
    url, body = f"{server.url}/trainings/{name}", {"input": asked}
    while (answer := requests.put(url, json=body, headers={"Prefer": "respond-async"}, timeout=20)).status_code == 409:
        time.sleep(0.1)
    assert answer.status_code == 202, answer.text


def cancel(server: Server, name: str) -> None:
    """Until there is nothing left to cancel."""
    end = time.monotonic() + 60
    while requests.post(f"{server.url}/trainings/{name}/cancel", timeout=20).status_code != 404:
        assert time.monotonic() < end
        time.sleep(0.2)


def test_an_upload_becomes_weights(server: Server) -> None:
    answer = server.train(input_images=UPLOAD, **QUICK)
    assert answer["status"] == "succeeded", answer
    assert progress(answer["logs"]) == (100, 3, 3)
    assert "loss=" in answer["logs"]
    weights = base64.b64decode(answer["output"]["weights"].removeprefix("data:application/x-tar;base64,"))
    with tarfile.open(fileobj=io.BytesIO(weights)) as tar:
        assert {"lora.safetensors", "embeddings.pti", "special_params.json"} <= members(tar)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"input_images": "/etc/hostname"}, "no file; send an http(s) URL or a data: URL"),
        ({"input_images": "data:application/zip;base64,AAAA"}, "archive"),
        ({"input_images": "http://127.0.0.1:9/x.zip"}, "is not on the public internet"),
        ({"input_images": UPLOAD, "resolution": 100}, "resolution is 100"),
        ({"input_images": UPLOAD, "resume_from": "/etc/hostname"}, "paths are read on the command line only"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(server: Server, asked: dict[str, Any], words: str) -> None:
    before = server.files()
    answer = server.train(**{**QUICK, **asked})
    assert answer["status"] == "failed"
    assert words in sentence(answer["error"])
    assert "\n" not in answer["error"]
    assert server.files() <= before


def test_a_cancel_frees_the_server_and_leaves_the_state(server: Server) -> None:
    start(server, "long", input_images=UPLOAD, **LONG)
    until_training(server, "long")
    cancel(server, "long")
    assert server.health() == "READY"
    start(server, "on", input_images=UPLOAD, **LONG, resume_from="last")
    until_training(server, "on")
    cancel(server, "on")
    assert server.train(input_images=UPLOAD, **QUICK)["status"] == "succeeded"


def test_the_command_line_leaves_a_state_on_ctrl_c_and_goes_on_from_it(tmp_path: Path) -> None:
    environment = {**os.environ, "SDXL_MODEL": "miniature", "SDXL_CACHE": str(tmp_path / "cache")}
    asked = ["-i", f"input_images=@{HEARTS}"]
    asked += [part for name, value in LONG.items() for part in ("-i", f"{name}={value}")]
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="train-") as folder:

        def run(*more: str) -> str:
            """Until some steps are done, then Ctrl-C; what it has said."""
            command = [str(ROOT / "script" / "train"), *asked, *more]
            process = subprocess.Popen(
                command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True, preexec_fn=in_a_terminal
            )
            assert process.stderr
            with process.stderr as stream:
                said = ""
                while "heart-13.png" not in said:  # the last picture
                    said = stream.readline()
                until(lambda: list((tmp_path / "cache").rglob("*.safetensors")), seconds=60)
                process.send_signal(signal.SIGINT)
                said = stream.read()
            assert process.wait(60) == 130, said
            assert said.splitlines()[-1] == "canceled"
            return said

        assert "error" not in run()
        assert "error" not in run("-i", "resume_from=last")
        assert list(Path(folder).iterdir()) == []


def test_script_train_then_script_predict(tmp_path: Path) -> None:
    """The newcomer's two commands, as short as they can be."""
    environment = {**os.environ, "SDXL_MODEL": "miniature", "SDXL_CACHE": str(tmp_path / "cache")}

    def run(script: str, *asked: str) -> subprocess.CompletedProcess[str]:
        command = [str(ROOT / "script" / script), *(part for each in asked for part in ("-i", each))]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, text=True, capture_output=True, timeout=300, check=True
        )

    trained = run("train", f"input_images=@{HEARTS}", *(f"{name}={value}" for name, value in QUICK.items()))
    assert trained.stdout == "trained_model.tar\n"
    assert re.search(r"100% █+ 3/3 .*loss=\d", trained.stderr)
    with tarfile.open(tmp_path / "trained_model.tar") as tar:
        words = json.load(tar.extractfile("special_params.json"))  # type: ignore[arg-type]
    assert words == {"TOK": "<s0><s1>"}
    drawn = run("predict", "replicate_weights=trained_model.tar", "prompt=a TOK", "num_inference_steps=2")
    assert drawn.stdout == "output.0.png\n"
    assert re.search(r"^Learned words: .*\bTOK\b", drawn.stderr, re.MULTILINE)
