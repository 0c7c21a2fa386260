"""script/train, as a user runs it; the training is tests/fixtures/learn."""

import base64
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from local import answers
from local.files import READABLE, ValueProblemError
from local.inputs_doc import page
from local.modes import TRAIN
from local.package import ROOT, Package
from local.schema import generate
from local.values import Inputs
from tests.test_cli import given, in_a_terminal
from tests.test_serve import ECHO, Serving
from tests.test_train_serve import LEARN, Learning

ZIP = b"PK\x03\x04not really"
BAR = r"100% █+ 4/4 \S+,\s+[\d.]+step/s, loss=0\.2500"


def command(*options: str) -> list[str]:
    """script/train, without the set-up that has been done before the tests."""
    return [sys.executable, "-P", "-m", "local.client", "train", "--package", str(LEARN), *options]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), **more}


Train = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def train(tmp_path: Path) -> Train:
    """Runs one training in a folder with an archive."""
    (tmp_path / "in.zip").write_bytes(ZIP)

    def run(*options: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(*options),
            cwd=tmp_path,
            env=environment(**variables),
            text=True,
            capture_output=True,
            timeout=120,
            check=False,
        )

    return run


@pytest.fixture(scope="module")
def learn() -> Iterator[Learning]:
    """A running server, as another machine would be."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="serve-") as folder:
        server = Learning(Path(folder))
        server.ready()
        yield server
        assert server.end() == 0


def digests(path: Path) -> list[str]:
    """What a training was given, by its result."""
    with tarfile.open(path) as tar:
        found: list[str] = json.load(tar.extractfile("digests.json"))["digests"]  # type: ignore[arg-type]
    return found


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_script_train_does_everything_by_itself(tmp_path: Path) -> None:
    (tmp_path / "in.zip").write_bytes(ZIP)
    script = [str(ROOT / "script" / "train"), "--package", str(LEARN), "-i", "input_images=@in.zip"]
    result = subprocess.run(script, cwd=tmp_path, text=True, capture_output=True, timeout=200, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "trained_model.tar\n"
    assert digests(tmp_path / "trained_model.tar") == [hashlib.sha256(ZIP).hexdigest()]
    assert "training ...\n" in result.stderr
    assert len(re.findall(BAR, result.stderr)) == 1
    assert names(tmp_path) == ["in.zip", "trained_model.tar"]


def test_output_names(train: Train, learn: Learning, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    cases = {("-o", "my.tar"): "my.tar", ("-o", "mine"): "mine.tar", ("-o", "folder"): "folder/trained_model.tar"}
    for options, name in cases.items():
        result = train("--url", learn.url, "-i", "input_images=in.zip", *options)
        assert (result.returncode, result.stdout.split()) == (0, [name]), result.stderr
        assert digests(tmp_path / name) == [hashlib.sha256(ZIP).hexdigest()]


def test_files_larger_than_any_request_go_by_their_path(train: Train, tmp_path: Path) -> None:
    with (tmp_path / "large.zip").open("wb") as file:
        file.truncate(200 * 2**20)
    (tmp_path / "state.tar").write_bytes(b"tar")
    files = ["-i", "input_images=@large.zip", "-i", "class_images=in.zip", "-i", "resume_from=state.tar"]
    result = train(*files, **{READABLE: "/operators/own.tar"})
    assert result.returncode == 0, result.stderr
    large, small, state = (f"{tmp_path}/{name}" for name in ("large.zip", "in.zip", "state.tar"))
    assert given(result) == {"files": [large, small], "resume_from": state}
    assert f"readable=/operators/own.tar:{large}:{small}:{state} " in result.stderr
    zeros = hashlib.sha256(bytes(200 * 2**20)).hexdigest()
    assert digests(tmp_path / "trained_model.tar") == [zeros, hashlib.sha256(ZIP).hexdigest()]
    assert names(tmp_path) == ["in.zip", "large.zip", "state.tar", "trained_model.tar"], "what was given stays"


def test_a_running_server_is_sent_the_files(train: Train, learn: Learning, tmp_path: Path) -> None:
    (tmp_path / "state.tar").write_bytes(b"tar")
    result = train("--url", learn.url, "-i", "input_images=@in.zip", "-i", "resume_from=state.tar")
    assert result.returncode == 0, result.stderr
    seen = given(result)
    assert seen["resume_from"] == f"data:application/x-tar;base64,{base64.b64encode(b'tar').decode()}"
    assert seen["files"][0].endswith(".zip")
    assert not seen["files"][0].startswith(str(tmp_path))
    with (tmp_path / "large.zip").open("wb") as file:
        file.truncate(90 * 2**20)
    refused = train("--url", learn.url, "-i", "input_images=@large.zip")
    assert refused.returncode == 1
    assert refused.stderr == (
        "error: input_images=@large.zip: 120 MiB to send, but a server takes 100 MiB; "
        "put large files where it can fetch them, and give their http(s) URLs\n"
    )


def test_the_bar_of_a_running_server_is_live(learn: Learning, tmp_path: Path) -> None:
    (tmp_path / "in.zip").write_bytes(ZIP)
    options = ["--url", learn.url, "-i", "input_images=in.zip", "-i", "steps=9", "-i", "seconds=6"]
    master, slave = os.openpty()
    process = subprocess.Popen(
        command(*options), cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL, stderr=slave
    )
    os.close(slave)
    said, live = b"", False
    while part := read(master):
        said += part
        if b" 3/9 " in said and not live:
            live = bool(learn.working())  # it is shown while the training goes on
    os.close(master)
    assert process.wait(30) == 0
    assert live, said.decode(errors="replace")
    assert re.search(rb"\r\x1b\[K +\d\d% [^\r]* \d/9 [^\r]*loss=0\.\d{4}\r", said), "a line that changes"


def read(terminal: int) -> bytes:
    """What is written next; nothing when nobody will write any more."""
    try:
        return os.read(terminal, 4096)
    except OSError:
        return b""


@pytest.mark.parametrize("remote", [False, True])
def test_failure_is_one_sentence(train: Train, learn: Learning, tmp_path: Path, remote: bool) -> None:
    where = ["--url", learn.url] if remote else []
    result = train(*where, "-i", "input_images=in.zip", "-i", "action=fail", "-o", "x.tar")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.splitlines()[-1] == "error: these pictures are no good; send others."
    assert names(tmp_path) == ["in.zip"]


def test_a_crash_is_said(train: Train) -> None:
    result = train("-i", "input_images=in.zip", "-i", "action=crash")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == "error: the process that runs the predictor died (out of memory?)"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "needed is also -i input_images=..."),
        (["-i", "input_images=@nowhere.zip"], "input_images=@nowhere.zip: No such file or directory"),
        (["-i", "input_images=nowhere"], "input_images=nowhere: No such file or directory"),
        (["-i", "input_images="], "input_images=: No such file or directory"),
        (["-i", "input_images=."], "input_images=.: this is a folder; pack it as a .zip or .tar"),
        (["--json", '{"input_images": "nowhere"}'], "input_images=nowhere: No such file or directory"),
        (["-i", "input_image=in.zip"], "there is no input input_image; did you mean input_images"),
        (["-i", "input_images=in.zip", "-i", "steps=many"], "steps=many: it must be a whole number"),
        (["-i", "input_images=in.zip", "-i", "steps=-1"], "steps=-1: the smallest allowed is 0"),
        (["-i", "input_images=in.zip", "-i", "resume_from=@no.tar"], "resume_from=@no.tar: No such file or directory"),
        (["-i", "input_images=in.zip", "-o", "no/where.tar"], "the folder no does not exist"),
        (["--package", str(ECHO), "-i", "text=x"], 'names no trainer; add a line such as train: "train.py:train"'),
    ],
)
def test_bad_input_is_said_before_anything_starts(options: list[str], message: str, train: Train) -> None:
    result = train(*options)
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert result.returncode == 1


def test_the_wrong_server_is_named(train: Train, learn: Learning, tmp_path: Path) -> None:
    options = ["--package", str(LEARN)]
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="serve-") as folder:
        server = Serving(Path(folder), *options, PYTHONPATH=str(ROOT)).ready()
        result = train("--url", server.url, "-i", "input_images=in.zip")
        assert server.end() == 0
    remedy = "this server does no trainings; script/serve --train starts one that does"
    assert result.stderr.splitlines()[-1] == f"error: {remedy}"
    predict = [sys.executable, "-P", "-m", "local.client", "predict", "--url", learn.url, "-i", "text=x"]
    other = subprocess.run(predict, cwd=tmp_path, env=environment(), text=True, capture_output=True, check=False)
    remedy = "this server does no predictions; script/serve starts one that does"
    assert other.stderr.splitlines()[-1] == f"error: {remedy}"
    assert (result.returncode, other.returncode) == (1, 1)


@pytest.mark.parametrize(("number", "remote"), [(signal.SIGINT, False), (signal.SIGTERM, False), (signal.SIGINT, True)])
def test_ctrl_c_cancels(number: int, remote: bool, learn: Learning, tmp_path: Path) -> None:
    (tmp_path / "in.zip").write_bytes(ZIP)
    where = ["--url", learn.url] if remote else []
    process = subprocess.Popen(
        command(*where, "-i", "input_images=in.zip", "-i", "seconds=60", "-i", "steps=100"),
        cwd=tmp_path,
        env=environment(TMPDIR=str(tmp_path)),
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=in_a_terminal,
    )
    assert process.stderr
    with process.stderr as said:
        while "said beside" not in said.readline():
            pass
        family = psutil.Process(process.pid).children(recursive=True)
        assert list(tmp_path.rglob("running")) or learn.working()
        process.send_signal(number)
        assert process.wait(20) == 130
        assert not psutil.wait_procs(family, timeout=5)[1]
        assert said.read().splitlines()[-1] == "canceled"
    assert len(family) == (0 if remote else 3)
    assert not learn.working()
    assert names(tmp_path) == ["in.zip"]
    assert learn.post(input_images=str(learn.own)).json()["status"] == "succeeded"


@pytest.fixture
def inputs() -> Inputs:
    """Those of a training, for a server of our own."""
    return Inputs(json.loads(generate(Package.load(LEARN))), TRAIN, ours=True)


def test_which_values_are_local_files(inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.zip").touch()
    path = f"{tmp_path}/in.zip"
    for text in ("in.zip", "@in.zip", "./in.zip", path):
        assert inputs.from_flags([f"input_images={text}"]) == {"input_images": path}
        assert inputs.from_json(json.dumps({"input_images": text})) == {"input_images": path}
    for text in ("https://x.test/a.zip", "HTTP://x.test/a.zip", "data:application/zip;base64,AAAA"):
        assert inputs.from_flags([f"input_images={text}"]) == {"input_images": text}
    assert inputs.paths == [path]
    (tmp_path / "a:b.zip").touch()
    with pytest.raises(ValueProblemError, match=r"a:b\.zip: a path with ':' cannot be passed on; rename it"):
        inputs.from_flags(["input_images=a:b.zip"])
    assert inputs.from_flags(["input_images=in.zip", "resume_from=last"])["resume_from"] == "last"


def test_a_large_answer_takes_little_memory(tmp_path: Path) -> None:
    """48 MB in base64, as coglet sends them, in pieces."""

    def parts() -> Iterator[bytes]:
        yield b'{"output": {"weights": "data:application/x-tar;base64,'
        yield from (b"QUJD" * 2**18 for _ in range(64))
        yield b'"}, "status": "succeeded"}'

    tracemalloc.start()
    answer: dict[str, Any] = answers.read(parts(), tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    file = answer["output"]["weights"]
    assert (file.kind, file.path.stat().st_size) == ("application/x-tar", 48 * 2**20)
    assert file.path.read_bytes() == b"ABC" * 2**24
    assert peak < 8 * 2**20


def test_the_page_of_inputs_has_a_section_for_each() -> None:
    text = page(Package.load(LEARN))
    assert "Written by `script/docs` from `predict.py` and `train.py`" in text
    predictions, trainings = text.split("## Predictions")[1].split("## Trainings")
    assert re.findall(r"^\| `(\w+)`", predictions, re.MULTILINE) == ["text"]
    assert "| `input_images` | file (URL or data: URL) | required |" in trainings
    assert page(Package.load(ECHO)).count("\n## ") == 1
