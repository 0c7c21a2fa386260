"""script/predict, script/setup and their siblings, as a user runs them; the model is tests/fixtures/echo."""

import base64
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given as any_of
from hypothesis import settings
from hypothesis import strategies as st
from PIL import Image

from local import answers
from local.files import READABLE, ValueProblemError
from local.inputs_doc import page
from local.logs import Entry
from local.outputs import OutputError, receiving, save
from local.package import ROOT, Package
from local.schema import generate
from local.screen import Screen
from local.values import Inputs
from miniature.oracle import read
from tests.file_server import file_server, status
from tests.test_serve import ECHO, Serving, until

PNG = b"\x89PNG\r\n\x1a\nnot really"


def command(*options: str) -> list[str]:
    """script/predict, without the set-up that has been done before the tests."""
    return [sys.executable, "-P", "-m", "local.client", "predict", "--package", str(ECHO), *options]


@pytest.fixture(scope="module")
def echo() -> Iterator[Serving]:
    """A running server, which makes a prediction quick."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="serve-") as folder:
        server = Serving(Path(folder), **{READABLE: "/operators/own.tar"}).ready()
        yield server
        assert server.end() == 0


Predict = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def predict(tmp_path: Path) -> Predict:
    """Runs one prediction in an empty folder."""

    def run(*options: str, **keywords: Any) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(
            command(*options), cwd=tmp_path, env=environment, text=True, capture_output=True, timeout=60, **keywords
        )

    return run


def test_script_predict_does_everything_by_itself(tmp_path: Path) -> None:
    (tmp_path / "in.png").write_bytes(PNG)
    script = [str(ROOT / "script" / "predict"), "--package", str(ECHO)]
    options = ["-i", "image=@in.png", "-i", "count=2", "-i", "seconds=0.4", "-i", "seed=9007199254740993"]
    options += ["-i", "numbers=3", "-i", "numbers=4", "-i", "exact=true", "-i", "text=ü = 1"]
    result = subprocess.run([*script, *options], cwd=tmp_path, text=True, capture_output=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "output.0.png\noutput.1.png\n"
    assert (tmp_path / "output.1.png").read_bytes() == PNG
    assert "text='ü = 1' seed=9007199254740993 exact=True numbers=[3, 4]" in result.stderr
    assert len(re.findall(r"100% █+ 20/20", result.stderr)) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.png", "output.0.png", "output.1.png"]


def test_the_newcomers_command_draws_what_it_says(tmp_path: Path) -> None:
    script = [str(ROOT / "script" / "predict"), "-i", "prompt=a red circle on a blue background", "-i", "seed=5"]
    result = subprocess.run(
        [*script, "-i", "num_inference_steps=20", "-o", str(tmp_path / "out.png")],
        env={**os.environ, "SDXL_MODEL": "miniature", "CUDA_VISIBLE_DEVICES": ""},
        text=True,
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert (result.returncode, result.stdout) == (0, f"{tmp_path}/out.png\n"), result.stderr
    seen = read(Image.open(tmp_path / "out.png"))
    assert seen.background == "blue"
    assert [(thing.color, thing.shape) for thing in seen.things] == [("red", "circle")]


def test_an_unknown_model_is_one_sentence(tmp_path: Path) -> None:
    result = subprocess.run(
        [str(ROOT / "script" / "predict"), "-i", "prompt=x", "-o", str(tmp_path / "out.png")],
        env={**os.environ, "SDXL_MODEL": "nothing"},
        text=True,
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert (result.returncode, result.stdout) == (1, "")
    said = result.stderr.splitlines()
    assert said[-1].startswith("error: ")
    assert "SDXL_MODEL='nothing' is neither a known model nor an existing path; use sdxl-1.0, miniature" in said[-1]
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_output_names(predict: Predict, echo: Serving, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    cases = {
        ("-o", "pic.png"): ["pic.png"],
        ("-o", "pic"): ["pic.jpg"],
        ("-o", "v1.5.png", "-i", "count=2"): ["v1.5.0.png", "v1.5.1.png"],
        ("-o", "folder"): ["folder/output.0.jpg"],
        (): ["output.0.jpg"],
        ("-i", "count=0"): [],
    }
    with ThreadPoolExecutor(2) as pool:
        run = lambda options: predict("--url", echo.url, "-i", "extension=jpg", *options)  # noqa: E731
        for (options, names), result in zip(cases.items(), pool.map(run, cases), strict=True):
            assert (result.returncode, result.stdout.split()) == (0, names), (options, result.stderr)
            assert all((tmp_path / name).read_bytes() == b"hello" for name in names)


def test_failure_is_one_sentence(predict: Predict, echo: Serving, tmp_path: Path) -> None:
    result = predict("--url", echo.url, "-i", "action=fail", "-i", 'text="x"', "-o", "x.png")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.splitlines()[-1] == "error: text is 'x'; choose another one"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-i", "txet=1"], "there is no input txet; did you mean text"),
        (["-i", "qqq=1"], "there is no input qqq; known are text, action, seconds"),
        (["-i", "text"], "-i text: write name=value, or name=@file"),
        (["-i", "count=many"], "count=many: it must be a whole number"),
        (["-i", "count=5"], "count=5: the largest allowed is 4"),
        (["-i", "seconds=-1"], "the smallest allowed is 0"),
        (["-i", "exact=yes"], "exact=yes: it must be true or false"),
        (["-i", "action=fly"], "action=fly: it must be one of return, sleep, fail, crash"),
        (["-i", "image=@nowhere.png"], "image=@nowhere.png: No such file or directory"),
        (["-i", "count=1", "-i", "count=2"], "count takes one value, but 2 are given"),
        (["-i", "seconds=nan"], "seconds=NaN: it must be a finite number"),
        (["-i", "lora_scales=1", "-i", "lora_scales=inf"], "it must be a finite number"),
        (["-i", "lora_scales=x"], "lora_scales=x: it must be a number"),
        (["-i", "replicate_weights=@missing.tar"], "replicate_weights=@missing.tar: No such file or directory"),
        (["-i", "lora_weights=loras/a.safetensors"], "lora_weights=loras/a.safetensors: No such file or directory"),
        (["--json", '{"lora_weights": ["./x"]}'], "lora_weights=./x: No such file or directory"),
        (["--json", '{"lora_weights": "owner/model"}'], "lora_weights=owner/model: it must be a list"),
        (["-i", "text=1", "-o", "no/where.png"], "the folder no does not exist"),
        (["--json", "[1]"], "--json: write an object"),
        (["--json", '{"count": "1"}'], "count=1: it must be a whole number"),
        (["--json", "@nowhere.json"], "--json: "),
        (["--url", "http://127.0.0.1:9", "-i", "text=1"], "gives no schema"),
        (["--package", "/"], "cog.yaml does not exist"),
    ],
)
def test_bad_input_is_said_before_anything_starts(options: list[str], message: str, predict: Predict) -> None:
    result = predict(*options)
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert result.returncode == 1


def test_json_from_argument_file_and_stdin(predict: Predict, echo: Serving, tmp_path: Path) -> None:
    (tmp_path / "in.png").write_bytes(PNG)
    (tmp_path / "in.json").write_text(json.dumps({"image": "@in.png", "files": ["@in.png"], "seed": None}))
    assert predict("--url", echo.url, "--json", "@in.json", "-o", "a.png").returncode == 0
    assert (tmp_path / "a.png").read_bytes() == PNG * 2
    assert predict("--url", echo.url, "--json", "-", "-o", "b.png", input='{"text": "from stdin"}').returncode == 0
    assert (tmp_path / "b.png").read_text() == "from stdin"


def test_busy_server_is_waited_for(predict: Predict, echo: Serving) -> None:
    with ThreadPoolExecutor(3) as pool:
        run = lambda name: predict("--url", echo.url, "-i", "seconds=0.5", "-o", name)  # noqa: E731
        assert [result.returncode for result in pool.map(run, ("a.png", "b.png", "c.png"))] == [0, 0, 0]


def test_crash_and_failing_setup_are_said(predict: Predict, monkeypatch: pytest.MonkeyPatch) -> None:
    result = predict("-i", "action=crash")
    assert result.stderr.splitlines()[-1] == "error: the process that runs the predictor died (out of memory?)"
    monkeypatch.setenv("ECHO_SETUP_FAILS", "1")
    failed = subprocess.run(
        command(), env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True, capture_output=True, timeout=60, check=False
    )
    reason = "setup failed: RuntimeError: the echo predictor was told to fail in setup"
    assert failed.stderr.splitlines()[-1] == f"error: {reason}"
    assert (result.returncode, failed.returncode) == (1, 1)


def in_a_terminal() -> None:
    """Ctrl-C counts, also where the tests themselves run in the background, which ignores it for all they start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGKILL, -9)])
def test_interrupted_while_predicting(number: int, code: int, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command("-i", "seconds=40"),
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=in_a_terminal,
    )
    assert process.stderr
    with process.stderr as said:
        while "model=" not in said.readline():
            pass
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(number)
        assert process.wait(20) == code
        assert not psutil.wait_procs(family, timeout=5)[1]
        rest = said.read()
    assert number == signal.SIGKILL or rest.splitlines()[-1] == "canceled"
    assert "20/20" not in rest  # the end of its 40 seconds
    assert len(family) == 3


def test_interrupted_during_setup(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ECHO_SETUP_SECONDS": "40"}
    process = subprocess.Popen(
        command(), cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL, preexec_fn=in_a_terminal
    )
    until(lambda: len(psutil.Process(process.pid).children(recursive=True)) == 3)
    time.sleep(0.5)
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130
    assert not psutil.wait_procs(family, timeout=5)[1]


def test_values() -> None:
    inputs = Inputs(json.loads(generate(Package.load(ECHO))))
    given = inputs.from_flags(["seed=9007199254740993", "seconds=1e-1", "exact=False", "numbers=[5]", "text=@nobody"])
    assert given == {"seed": 9007199254740993, "seconds": 0.1, "exact": False, "numbers": [5], "text": "@nobody"}
    assert inputs.from_flags(["numbers=7", "image=https://x.test/a.png", "text=a=b"]) == {
        "numbers": [7],
        "image": "https://x.test/a.png",
        "text": "a=b",
    }
    own = Inputs(json.loads(generate(Package.load(ROOT))))
    assert own.from_flags(["prompt=a red circle on a blue background", "num_outputs=2", "seed=4294967296"])
    with pytest.raises(ValueProblemError, match="did you mean num_outputs"):
        own.from_flags(["num_output=2"])


def test_path_input_without_at_sign_is_read_too(tmp_path: Path) -> None:
    (tmp_path / "a.webp").write_bytes(b"RIFF")
    document = {"components": {"schemas": {"Input": {"properties": {"i": {"type": "string", "format": "uri"}}}}}}
    for sign in ("", "@"):
        (url,) = Inputs(document).from_flags([f"i={sign}{tmp_path}/a.webp"]).values()
        assert url == f"data:image/webp;base64,{base64.b64encode(b'RIFF').decode()}"


def given(result: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """What the echo predictor says it was given."""
    found = re.search(r"^given=(.*)$", result.stderr, re.MULTILINE)
    assert found, result.stderr
    values: dict[str, Any] = json.loads(found[1])
    return values


def test_our_own_server_reads_a_local_fine_tune_by_itself(
    predict: Predict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(READABLE, "/operators/own.tar")
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.safetensors").touch()
    with (tmp_path / "trained_model.tar").open("wb") as file:
        file.truncate(186 * 2**20)
    (tmp_path / "token").write_text("hf_sesame\n")
    options = ["-i", "replicate_weights=trained_model.tar", "-i", "lora_weights=@a.safetensors"]
    options += ["-i", "lora_weights=owner/model", "-i", "lora_weights=folder", "-i", "lora_weights=trained_model.tar"]
    options += ["-i", "lora_scales=0.5", "-i", "lora_scales=1", "-i", "hf_api_token=@token"]
    result = predict(*options)
    trained, one, folder = (f"{tmp_path}/{name}" for name in ("trained_model.tar", "a.safetensors", "folder"))
    assert given(result) == {
        "replicate_weights": trained,
        "lora_weights": [one, "owner/model", folder, trained],
        "lora_scales": [0.5, 1],
        "readable": os.pathsep.join(["/operators/own.tar", trained, one, folder]),
    }
    assert "token=Secret(**********) of 9 characters" in result.stderr
    assert "sesame" not in result.stderr


def test_without_a_local_fine_tune_no_path_may_be_named(predict: Predict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(READABLE, raising=False)
    url = "https://x.test/a.tar?token=1"
    assert given(predict("-i", f"replicate_weights={url}")) == {
        "replicate_weights": url,
        "lora_weights": None,
        "lora_scales": None,
        "readable": None,
    }


def test_a_running_server_is_sent_the_fine_tune(predict: Predict, echo: Serving, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"tar")
    (tmp_path / "b.safetensors").write_bytes(b"tensors")
    options = ["-i", "replicate_weights=a.tar", "-i", 'lora_weights=["b.safetensors", "@a.tar", "owner/model"]']
    tar = f"data:application/x-tar;base64,{base64.b64encode(b'tar').decode()}"
    seen = given(predict("--url", echo.url, *options))
    assert seen["replicate_weights"] == tar
    tensors = f"data:application/octet-stream;base64,{base64.b64encode(b'tensors').decode()}"
    assert seen["lora_weights"] == [tensors, tar, "owner/model"]
    assert seen["readable"] == "/operators/own.tar", "the operator's choice, and nothing more"
    (line,) = predict("--url", echo.url, "-i", "replicate_weights=.").stderr.splitlines()
    assert line == "error: replicate_weights=.: a folder cannot be sent to a running server; send it as a .tar"


def test_more_than_a_server_takes_is_not_sent(predict: Predict, echo: Serving, tmp_path: Path) -> None:
    for name, size in (("large.tar", 186), ("half.tar", 40)):
        with (tmp_path / name).open("wb") as file:
            file.truncate(size * 2**20)
    remedy = "but a server takes 100 MiB; put large files where it can fetch them, and give their http(s) URLs"
    large = predict("--url", echo.url, "-i", "replicate_weights=large.tar")
    assert large.stderr == f"error: replicate_weights=@large.tar: 248 MiB to send, {remedy}\n"
    both = predict("--url", echo.url, "-i", "replicate_weights=half.tar", "-i", "files=@half.tar")
    assert both.stderr == f"error: the whole request: 107 MiB to send, {remedy}\n"
    assert (large.returncode, both.returncode) == (1, 1)


@pytest.fixture
def inputs() -> Inputs:
    """Those of the echo package, for a server of our own."""
    return Inputs(json.loads(generate(Package.load(ECHO))), ours=True)


def test_which_values_are_local_files(inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "blob").touch()
    (tmp_path / "link.safetensors").symlink_to("blob")
    link = f"{tmp_path}/link.safetensors"
    for text in ("link.safetensors", "@link.safetensors", "./link.safetensors", "~/link.safetensors", link):
        assert inputs.from_flags([f"lora_weights={text}"]) == {"lora_weights": [link]}
        assert inputs.from_flags([f"lora_weights={json.dumps([text])}"]) == {"lora_weights": [link]}
        assert inputs.from_json(json.dumps({"replicate_weights": text})) == {"replicate_weights": link}
    assert inputs.paths == [link]
    elsewhere = ["", "owner/model", "owner/repo/sub/a.safetensors", "https://x.test/a.tar", "data:,x.tar", "x" * 999]
    assert inputs.from_flags([f"lora_weights={text}" for text in elsewhere]) == {"lora_weights": elsewhere}
    assert inputs.paths == [link]


@pytest.mark.parametrize(
    "text", ["a.tar", "a.TGZ", "a.tar.gz", "b/a.safetensors", "a.zip", "./a", "../a/b/c.tar", "/a", "~/a", "~nobody/a"]
)
def test_a_value_that_looks_like_a_file_must_be_one(text: str, inputs: Inputs) -> None:
    for sign in ("", "@"):
        with pytest.raises(ValueProblemError) as refusal:
            inputs.from_flags([f"replicate_weights={sign}{text}"])
        assert str(refusal.value) == f"replicate_weights={sign}{text}: No such file or directory"


def test_a_path_that_cannot_be_passed_on(inputs: Inputs, tmp_path: Path) -> None:
    (tmp_path / "a:b.tar").touch()
    with pytest.raises(ValueProblemError, match=r"a:b\.tar: a path with ':' cannot be passed on; rename it"):
        inputs.from_flags([f"replicate_weights={tmp_path}/a:b.tar"])


def test_other_texts_are_read_as_ever(inputs: Inputs, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"tar")
    assert inputs.from_flags([f"text={tmp_path}/a.tar"]) == {"text": f"{tmp_path}/a.tar"}
    assert inputs.from_flags([f"text=@{tmp_path}/a.tar"]) == {"text": "data:application/x-tar;base64,dGFy"}
    assert inputs.from_flags([f"text=@{'x' * 999}"]) == {"text": f"@{'x' * 999}"}
    assert inputs.paths == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-i", "hf_api_token:sesame"], "error: -i hf_api_token: write name=value, or name=@file"),
        (["-i", "hf_token=sesame"], "error: there is no input hf_token; did you mean hf_api_token?"),
        (["-i", "hf_api_token=sesame", "-i", "hf_api_token=sesame"], "error: hf_api_token takes one value, but 2"),
        (["-i", "hf_api_token=@sesame"], "error: hf_api_token=@FILE: No such file or directory"),
        (["-i", "hf_api_token=@blank"], "error: hf_api_token=@FILE: the file is empty"),
        (["-i", "hf_api_token=@bytes"], "error: hf_api_token=@FILE: it is no text file"),
        (["--json", '{"hf_api_token": ["sesame"]}'], "error: hf_api_token: it must be a text"),
        (["--json", '{"hf_api_token": {"sesame": 1}}'], "error: hf_api_token: it must be a text"),
    ],
)
def test_no_error_shows_a_secret(options: list[str], message: str, predict: Predict, tmp_path: Path) -> None:
    (tmp_path / "blank").write_text("\n")
    (tmp_path / "bytes").write_bytes(b"sesame\xff")
    (line,) = predict(*options).stderr.splitlines()
    assert line.startswith(message)
    assert "sesame" not in line


def test_a_secret_reaches_the_predictor_and_no_log(predict: Predict, echo: Serving) -> None:
    result = predict("--url", echo.url, "-i", "hf_api_token=sesame")
    assert "token=Secret(**********) of 6 characters" in result.stderr
    failed = predict("--url", echo.url, "-i", "hf_api_token=sesame", "-i", "action=fail")
    assert failed.returncode == 1
    assert "sesame" not in result.stderr + failed.stderr + echo.log.read_text()


def test_lists_and_secrets_on_the_page_of_inputs() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \| ", page(Package.load(ECHO)), re.MULTILINE))
    assert (rows["lora_weights"], rows["lora_scales"]) == ("list of strings", "list of numbers")
    assert (rows["files"], rows["hf_api_token"]) == ("list of files (URLs or data: URLs)", "secret")


def saved(output: Any, given: str | None = None) -> tuple[list[Path], str | None]:
    """What becomes of an output that comes as JSON."""
    with receiving(given) as folder:
        return save(answers.read([json.dumps(output).encode()], folder), given, "output", folder)


def test_outputs_that_are_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert saved("text") == ([], "text")
    assert saved({"a": 1}) == ([], '{\n  "a": 1\n}')
    assert saved("text", "out.txt") == ([Path("out.txt")], None)
    assert (saved(None), saved([])) == (([], None), ([], None))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.txt"]


def test_files_inside_an_output_are_named_by_their_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    png, tar, text = "data:image/png;base64,AAAA", "data:application/x-tar;base64,AAAA", "data:text/plain,a%20b"
    cases: list[tuple[Any, str | None, list[str], str | None]] = [
        (tar, "trained_model.tar", ["trained_model.tar"], None),
        ({"weights": tar}, None, ["output.tar"], None),
        ({"weights": tar, "note": None}, "x.bin", ["x.bin"], None),
        ({"weights": tar, "preview": png}, None, ["output.weights.tar", "output.preview.png"], None),
        ({"a": [png, {"b": text}]}, "v1.5", ["v1.5.a.0.png", "v1.5.a.1.b.txt"], None),
        ({"a": png, "n": 1}, None, ["output.png"], '{\n  "a": "output.png",\n  "n": 1\n}'),
        (["text", png], "x.png", ["x.png"], '[\n  "text",\n  "x.png"\n]'),
    ]
    for output, given, names, shown in cases:
        assert saved(output, given) == ([Path(name) for name in names], shown)
    assert Path("v1.5.a.1.b.txt").read_text() == "a b"
    assert Path("v1.5.a.0.png").read_bytes() == bytes(3)
    assert not list(tmp_path.glob(".*"))


def test_a_damaged_file_leaves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for damaged in ("A", "AA!A", "AA=AAAAA", "AAA"):
        with pytest.raises(answers.AnswerError, match="damaged"):
            saved(f"data:image/png;base64,{damaged}")
    with pytest.raises(answers.AnswerError, match="in the middle of a file"), receiving(None) as folder:
        answers.read([b'{"output": "data:image/png;base64,AAAA'], folder)
    for text in (b"", b"<html>", b'{"a": '):
        with pytest.raises(answers.AnswerError, match="no JSON object"), receiving(None) as folder:
            answers.read([text], folder)
    assert list(tmp_path.iterdir()) == []


TEXTS = st.text(alphabet='ab\\"\n:,;é=/+' + "\u2028", max_size=12) | st.sampled_from(['"data:a;base64,', "data:", "\\"])
KEYS = TEXTS.filter(lambda key: key != "content")
FILES = st.binary(max_size=400).map(lambda content: {"content": content})  # stands for a file
VALUES: st.SearchStrategy[Any] = st.recursive(
    TEXTS | st.none() | st.integers() | FILES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


def sent(value: Any) -> Any:
    """A value with its files as coglet sends them."""
    if isinstance(value, dict):
        if isinstance(content := value.get("content"), bytes):
            return f"data:image/png;base64,{base64.b64encode(content).decode()}"
        return {key: sent(item) for key, item in value.items()}
    return [sent(item) for item in value] if isinstance(value, list) else value


def got(value: Any) -> Any:
    """A value with its files as they were."""
    if isinstance(value, answers.Received):
        assert value.kind == "image/png"
        return {"content": value.path.read_bytes()}
    if isinstance(value, dict):
        return {key: got(item) for key, item in value.items()}
    return [got(item) for item in value] if isinstance(value, list) else value


@any_of(value=VALUES, cuts=st.lists(st.integers(1, 90), min_size=1, max_size=9))
@settings(max_examples=300, deadline=None)
def test_an_answer_is_the_same_however_it_comes_in(value: Any, cuts: list[int]) -> None:
    text = json.dumps({"output": sent(value)}, ensure_ascii=False).encode()
    sizes, parts = itertools.cycle(cuts), []
    while text:
        size = next(sizes)
        parts.append(text[:size])
        text = text[size:]
    with tempfile.TemporaryDirectory() as folder:
        assert got(answers.read(parts, Path(folder))) == {"output": value}


def test_outputs_that_cannot_be_fetched_or_written(tmp_path: Path) -> None:
    with file_server() as web:
        web.always["/gone.png"] = status(410)
        with pytest.raises(OutputError, match=r"at http://127.*/gone.png cannot be fetched: the server answers 410$"):
            saved(f"{web.url}/gone.png?token=secret", str(tmp_path / "x.png"))
    with pytest.raises(OutputError, match=r"/gone.png cannot be fetched: there is no answer$"):
        saved(f"{web.url}/gone.png", str(tmp_path / "x.png"))
    for output in ("text", "data:text/plain,a"):
        with pytest.raises(OutputError, match="File name too long"):
            saved(output, str(tmp_path / ("x" * 300 + ".txt")))
        with pytest.raises(OutputError, match="No such file"):
            saved(output, str(tmp_path / "missing" / "x.txt"))
    assert list(tmp_path.iterdir()) == []


def test_progress_of_tqdm_is_a_bar(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen()
    for line in ("  0%|          | 0/4 [00:00<?, ?it/s]", "base: 50%|█████     | 2/4 [00:01<00:01,  2.00it/s]", "said"):
        screen.line(line)
    screen.line("100%|██████████| 4/4 [00:02<00:00,  2.00it/s]")
    screen.line("100%|██████████| 4/4 [00:02<00:00,  1.99it/s]")
    screen.close()
    assert re.fullmatch(r"said\n100% █+ 4/4 00:02<00:00,  2.00it/s\n", capsys.readouterr().err)


def test_a_line_of_the_predictor_cannot_pose_as_the_start_of_a_prediction() -> None:
    fields = {"message": "Starting prediction", "prediction_id": "victim"}
    record = {"timestamp": "", "level": "INFO", "target": "coglet::prediction", "fields": fields}
    assert Entry.parse(json.dumps(record)).begun == "victim"
    fields["source"] = "Stdout"
    assert Entry.parse(json.dumps(record)).begun is None
    assert Entry.parse("Traceback (most recent call last):").text() == "Traceback (most recent call last):"


def test_what_coglets_worker_says_is_not_the_predictors() -> None:
    entry = Entry.parse("worker::coglet::bridge::codec::large_frame [info] Large frame being encoded\n")
    assert (entry.said, entry.level, entry.message) == (False, "INFO", "Large frame being encoded")


@pytest.mark.parametrize("name", ["setup", "serve", "predict", "train", "schema", "lint", "test", "soak"])
def test_scripts_are_short_and_executable(name: str) -> None:
    path = ROOT / "script" / name
    lines = path.read_text().splitlines()
    assert lines[0] == "#!/bin/sh"
    assert lines[1].startswith("# ")
    assert len(lines) < 20
    assert os.access(path, os.X_OK)


def test_setup_makes_a_fresh_clone_usable_once_even_when_run_twice_at_once(tmp_path: Path) -> None:
    (tmp_path / "local").mkdir()
    (tmp_path / "script").mkdir()
    shutil.copy(ROOT / "local" / "setup.py", tmp_path / "local")
    shutil.copy(ROOT / "script" / "setup", tmp_path / "script")
    for name in ("requirements.txt", "requirements-local.txt", "requirements-side.txt"):
        (tmp_path / name).write_text("# nothing\n")
    run = [str(tmp_path / "script" / "setup")]
    both = [subprocess.Popen(run, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = sorted(process.communicate(timeout=100)[1] for process in both)
    assert [process.returncode for process in both] == [0, 0], said
    assert said == ["", "Setting up .venv; the first time takes some minutes ...\n"]
    assert (tmp_path / ".venv" / "bin" / "pip").exists()
    again = subprocess.run(run, capture_output=True, text=True, check=True)
    assert again.stderr == ""
    (tmp_path / "requirements.txt").write_text("./missing-package\n")
    failed = subprocess.run(run, capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert "missing-package" in failed.stderr
    assert "run it again when that is mended" in failed.stderr
