"""A training's model on its way from a hub: what of it comes, when, and what a cancel does to it."""

import fcntl
import json
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import train
import weights
from errors import DatasetError
from preprocess import prepare
from tests.file_server import FileServer, file_server, stall
from tests.test_train import picture, trained, zipped
from tests.test_weights import REVISION, publish
from tests.test_workers import CancelError, cancel, until

MINIATURE = weights.MINIATURE
UNET = f"/us/base/resolve/{REVISION}/unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """The miniature as sdxl-1.0; of refiner and checker nothing but what they would be called."""
    for name in ("SDXL_OFFLINE", "HF_TOKEN", "SDXL_MODEL"):
        monkeypatch.delenv(name, raising=False)
    parts = {"base": MINIATURE / "base", "vae": MINIATURE / "base" / "vae"}
    files = {part: sorted(path for path in folder.rglob("*") if path.is_file()) for part, folder in parts.items()}
    named = {part: [path.relative_to(parts[part]).as_posix() for path in paths] for part, paths in files.items()}
    named |= {part: ["model.safetensors"] for part in ("refiner", "safety_checker")}
    sources = {
        part: {"repo": f"us/{part}", "revision": REVISION, "files": {name: [None, None] for name in names}}
        for part, names in named.items()
    }
    (tmp_path / "sources.json").write_text(json.dumps(sources))
    monkeypatch.setattr(weights, "SOURCES", tmp_path / "sources.json")
    monkeypatch.setenv("SDXL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    with file_server() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        for part, paths in files.items():
            for name, path in zip(named[part], paths, strict=True):
                publish(server, f"/us/{part}/resolve/{REVISION}/{name}", path.read_bytes())
        yield server


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """One that needs no helper at 64 pixels."""
    return zipped(tmp_path / "pictures.zip", {"a.png": picture(), "a.txt": b"a red TOK"})


def asked_for(hub: FileServer, path: str) -> bool:
    return any(path in line for line, *_ in list(hub.log))


def test_the_model_comes_while_pictures_are_prepared_and_no_more_of_it_than_is_trained(
    hub: FileServer, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepared(*given: Any, **named: Any) -> Any:
        until(lambda: asked_for(hub, UNET))
        return prepare(*given, **named)

    monkeypatch.setattr(train, "prepare", prepared)
    assert trained(pictures, resolution=64).is_file()
    assert not asked_for(hub, "/us/refiner")
    assert not asked_for(hub, "/us/safety_checker")


def test_a_cancel_ends_the_download_of_the_model(hub: FileServer, pictures: Path, tmp_path: Path) -> None:
    """At once, though the server says nothing more; no thread and no folder is left."""
    hub.always[f"/cdn{UNET}"] = stall
    raised = list[BaseException]()

    def work() -> None:
        try:
            trained(pictures, resolution=64)
        except BaseException as error:  # noqa: BLE001 - looked at below
            raised.append(error)

    before = set(threading.enumerate())
    thread = threading.Thread(target=work)
    thread.start()
    until(lambda: asked_for(hub, f"/cdn{UNET}"))
    cancel(thread)
    thread.join(15)
    assert [type(error) for error in raised] == [CancelError]
    assert not hub.gate.is_set()
    assert list((tmp_path / "temporary").iterdir()) == []
    assert {each.name for each in set(threading.enumerate()) - before} & {"cut", "fetch_0", "beside"} == set()


def test_the_model_is_given_up_where_pictures_are_refused(hub: FileServer, tmp_path: Path) -> None:
    """What is wrong with them is said, and nobody waits for the model."""
    hub.always[f"/cdn{UNET}"] = stall
    archive = zipped(tmp_path / "bad.zip", {"a.png": b"no picture"})
    with pytest.raises(DatasetError, match=r"a\.png"):
        trained(archive, resolution=64)
    assert not hub.gate.is_set()


@pytest.mark.usefixtures("hub")
def test_folders_of_killed_trainings_go_and_those_of_others_stay(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SDXL_MODEL", "miniature")
    killed, living, strange = (tmp_path / "temporary" / f"{train.SCRATCH}{name}" for name in ("x", "y", "z"))
    for folder in (killed, living, strange):
        (folder / "images").mkdir(parents=True)
    (killed / train.LOCK).touch()
    with (living / train.LOCK).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        trained(pictures)
    assert not killed.exists()
    assert living.exists()
    assert strange.exists()
