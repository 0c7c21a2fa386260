"""Trainings over HTTP on the real coglet: tests/fixtures/learn in place of train.py, which has tests of its own."""

import base64
import hashlib
import io
import json
import random
import re
import tarfile
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from local import schema
from local.package import ROOT, Package
from tests.file_server import file_server
from tests.serving import sentence
from tests.test_serve import ECHO, Serving, until

LEARN = Path(__file__).parent / "fixtures" / "learn"
ZIP = random.Random(5).randbytes(200_000)  # so large that coglet takes a moment to read it
UPLOAD = f"data:application/zip;base64,{base64.b64encode(ZIP).decode()}"
# replicate.Training.progress(), in the clients for Python, JavaScript and Go alike
PROGRESS = re.compile(r"^\s*(?P<percentage>\d+)%\s*\|.+?\|\s*(?P<current>\d+)\/(?P<total>\d+)")


def progress(logs: str) -> tuple[int, int, int] | None:
    """What the official clients make of logs: (percent, step, steps)."""
    found = [match for line in logs.split("\n") if (match := PROGRESS.match(line.strip()))]
    return (int(found[-1][1]), int(found[-1][2]), int(found[-1][3])) if found else None


class Learning(Serving):
    """A server in train mode, whose operator lets requests read one file of the machine."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.own = folder, folder / "log-own.zip"
        self.own.write_bytes(ZIP)
        variables = {"PYTHONPATH": str(ROOT), "SDXL_LOCAL_FILES": str(self.own), "SDXL_PRIVATE_INPUTS": "1"}
        super().__init__(folder, "--train", "--package", str(LEARN), **variables)

    def create(self, name: str, **inputs: Any) -> None:
        """Start a training and do not wait for it."""
        asked = {"input": {"input_images": str(self.own), **inputs}}
        url, headers = f"{self.url}/trainings/{name}", {"Prefer": "respond-async"}
        while (answer := requests.put(url, json=asked, headers=headers, timeout=20)).status_code == 409:
            time.sleep(0.01)
        assert answer.status_code == 202, answer.text
        assert answer.json()["id"] == name

    def look(self, name: str) -> dict[str, Any]:
        """How a training goes on."""
        answer = requests.put(f"{self.url}/trainings/{name}", json={"input": []}, timeout=20)
        found: dict[str, Any] = answer.json()
        return found if answer.status_code == 202 else {}

    def cancel(self, name: str) -> int:
        return requests.post(f"{self.url}/trainings/{name}/cancel", timeout=20).status_code

    def working(self) -> list[Path]:
        """Something for each training that is at work."""
        return list(self.folder.rglob("running"))

    def left(self) -> list[Path]:
        """Files of the inputs that are still there."""
        return [path for path in self.folder.rglob("*.zip") if path != self.own]


@pytest.fixture(scope="module")
def learn() -> Iterator[Learning]:
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="serve-") as folder:
        server = Learning(Path(folder))
        server.ready()
        yield server
        assert server.end() == 0
        assert [path.name for path in Path(folder).iterdir() if not path.name.startswith("log-")] == []


def result(answer: dict[str, Any]) -> list[str]:
    """The digests of the files that a training was given."""
    assert answer["status"] == "succeeded", answer
    head, _, body = answer["output"]["weights"].partition(",")
    assert head == "data:application/x-tar;base64"
    with tarfile.open(fileobj=io.BytesIO(base64.b64decode(body))) as tar:
        found: list[str] = json.load(tar.extractfile("digests.json"))["digests"]  # type: ignore[arg-type]
    return found


def test_says_where_to_post_and_serves_the_schema_of_both(learn: Learning) -> None:
    until(lambda: f"ready: POST {learn.url}/trainings\n" in learn.log.read_text())
    served = requests.get(f"{learn.url}/openapi.json", timeout=5).json()
    assert served == json.loads(schema.generate(Package.load(LEARN)))
    assert {"Input", "TrainingInput", "TrainingOutput"} <= served["components"]["schemas"].keys()


def test_a_training_gives_a_tar_logs_and_metrics(learn: Learning) -> None:
    answer = learn.post(input_images=UPLOAD, steps=7).json()
    assert result(answer) == [hashlib.sha256(ZIP).hexdigest()]
    assert "said beside" in answer["logs"]
    assert "loss=0.1429" in answer["logs"]
    assert progress(answer["logs"]) == (100, 7, 7)
    assert answer["metrics"]["steps"] == 7
    until(lambda: not learn.left())


def test_a_training_can_be_watched_by_its_id(learn: Learning) -> None:
    learn.create("watched", steps=20, seconds=4)
    seen = set()
    while found := learn.look("watched"):
        assert found["status"] in ("starting", "processing", "succeeded")
        seen.add(progress(found["logs"]))
        time.sleep(0.1)
    steps = [each[1] for each in seen if each]
    assert len(steps) > 5
    assert {each[2] for each in seen if each} == {20}


def test_files_come_by_url_upload_and_by_the_operators_leave(learn: Learning) -> None:
    with file_server() as web:
        web.files["/b.zip"] = b"from the web"
        answer = learn.post(input_images=str(learn.own), class_images=f"{web.url}/b.zip").json()
    assert result(answer) == [hashlib.sha256(content).hexdigest() for content in (ZIP, b"from the web")]
    until(lambda: not learn.left())


@pytest.mark.parametrize("path", ["/etc/hostname", "file:///etc/hostname", "", "own.zip", "log-own.zip"])
def test_no_other_file_of_the_machine_is_read(learn: Learning, path: str) -> None:
    answer = learn.post(input_images=path).json()
    assert answer["status"] == "failed"
    assert sentence(answer["error"]) == f"{path!r} is no file; send an http(s) URL or a data: URL."


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "Field required"),
        ({"input_images": 3}, "is not of type"),
        ({"input_images": UPLOAD, "steps": "4"}, "is not of type"),
        ({"input_images": UPLOAD, "steps": 10001}, "greater than the maximum"),
        ({"input_images": UPLOAD, "action": "fly"}, "is not one of"),
        ({"input_images": UPLOAD, "resume_from": None}, "is not of type"),
    ],
)
def test_bad_input_is_422(learn: Learning, inputs: dict[str, Any], message: str) -> None:
    answer = learn.post(**inputs)
    assert answer.status_code == 422
    assert message in answer.json()["detail"][0]["msg"]


def test_failure_is_one_sentence_and_leaves_nothing(learn: Learning) -> None:
    for url in (UPLOAD, str(learn.own)):
        answer = learn.post(input_images=url, action="fail").json()
        assert answer["status"] == "failed"
        assert sentence(answer["error"]) == "these pictures are no good; send others."
    until(lambda: not learn.left())
    assert not learn.working()
    answer = learn.post(input_images="data:application/zip;base64,!").json()
    assert sentence(answer["error"]) == "the input is no valid data: URL; send data:TYPE;base64,..."


def test_unknown_ids_and_inputs(learn: Learning) -> None:
    assert learn.cancel("nobody") == 404
    assert learn.look("nobody") == {}
    assert learn.post(input_images=str(learn.own), unheard_of=1).json()["status"] == "succeeded"


def ended(learn: Learning, name: str) -> None:
    """Cancel until there is nothing left to cancel: coglet loses one that comes while it reads the request."""
    end = time.monotonic() + 10
    while learn.cancel(name) != 404:
        assert time.monotonic() < end
        time.sleep(0.05)


def canceled(learn: Learning, order: random.Random, number: int) -> None:
    """A training is cancelled at a random moment: it ends, and with it its work, and the files it was given go."""
    name, given = f"c{number}-{learn.port}", UPLOAD if number % 2 else str(learn.own)
    learn.create(name, input_images=given, seconds=60, steps=1000)
    time.sleep(order.choice((0.0, 0.01, 0.1)) * order.random())
    ended(learn, name)
    assert not learn.working(), "canceled, but at work"


def test_a_cancel_ends_the_work_whenever_it_comes(learn: Learning) -> None:
    order, workers = random.Random(11), learn.family()
    for number in range(24):
        canceled(learn, order, number)
    assert learn.post(input_images=UPLOAD).json()["status"] == "succeeded"
    until(lambda: not learn.left())
    assert learn.family() == workers


@pytest.mark.soak
def test_two_thousand_cancels(learn: Learning) -> None:
    order, workers = random.Random(12), learn.family()
    for number in range(100, 2100):
        canceled(learn, order, number)
    assert learn.post(input_images=UPLOAD).json()["status"] == "succeeded"
    until(lambda: not learn.left())
    assert learn.family() == workers


def test_a_canceled_training_says_so(learn: Learning) -> None:
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(learn.post, "to-cancel", input_images=UPLOAD, seconds=60, steps=1000)
        until(learn.working)
        assert learn.cancel("to-cancel") == 200
        assert learn.cancel("to-cancel") in (200, 404)
        answer = waiting.result().json()
    assert (answer["status"], answer.get("output")) == ("canceled", None)
    assert not learn.working()


def test_a_client_that_goes_away_cancels(learn: Learning) -> None:
    with pytest.raises(requests.ReadTimeout):
        requests.post(
            f"{learn.url}/trainings",
            json={"input": {"input_images": str(learn.own), "seconds": 60, "steps": 1000}},
            timeout=(5, 1),
        )
    until(lambda: not learn.working())
    assert learn.post(input_images=str(learn.own)).json()["status"] == "succeeded"


def test_a_worker_that_dies_is_replaced(learn: Learning) -> None:
    assert learn.post(input_images=str(learn.own), action="crash").json()["error"] == "Worker crashed"
    until(lambda: learn.status() == "READY")
    assert learn.post(input_images=str(learn.own)).json()["status"] == "succeeded"
    assert "the process that runs the predictor died (out of memory?); starting again in 1 s" in learn.log.read_text()


def test_a_package_without_a_trainer_is_said_in_one_line(tmp_path: Path) -> None:
    server = Serving(tmp_path, "--train")
    assert server.process.wait(20) == 1
    (line,) = server.log.read_text().splitlines()
    assert line.endswith(f'ERROR: {ECHO}/cog.yaml names no trainer; add a line such as train: "train.py:train"')
    assert list(tmp_path.iterdir()) == [server.log]
