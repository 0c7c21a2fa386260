"""What SDXL_MODEL may be: sdxl-1.0 from a hub on loopback, folders, single files, URLs."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from transformers import CLIPConfig

import weights
from errors import WeightsError
from fetch.answers import Manner, Patience
from sdxl.files import ModelFiles
from tests.file_server import FileServer, file_server, redirect, status
from tests.single_file import models, narrow_config, write_checkpoint

ROOT = Path(__file__).resolve().parent.parent
QUICK = Manner(piece=1 << 20, patience=Patience(attempts=2, backoff=0.01, window=2.0))
REVISION = "0" * 40


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("SDXL_OFFLINE", "HF_TOKEN", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SDXL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def pickle(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A tiny safety checker as its authors publish it: a pickle of fp32 tensors."""
    torch.manual_seed(1)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    checker = StableDiffusionSafetyChecker(
        CLIPConfig(vision_config={**small, "image_size": 28, "patch_size": 14}, projection_dim=16)
    )
    folder = tmp_path_factory.mktemp("checker")
    checker.config.save_pretrained(folder)
    state = checker.state_dict()
    position_ids = {"vision_model.vision_model.embeddings.position_ids": torch.arange(5)[None]}
    torch.save({**state, **position_ids}, folder / "pytorch_model.bin")
    (folder / "preprocessor_config.json").write_text("{}")
    return (folder / "pytorch_model.bin").read_bytes() + b"//" + (folder / "config.json").read_bytes()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pickle: bytes) -> Iterator[FileServer]:
    """A hub with four tiny repositories; large files redirect and state a sha256, small ones git's."""
    checker, config = pickle.rsplit(b"//", 1)
    data = {
        "base": {
            "model_index.json": b"{}",
            "unet/diffusion_pytorch_model.fp16.safetensors": os.urandom(3 << 20),
        },
        "refiner": {"model_index.json": b"{ }", "unet/diffusion_pytorch_model.fp16.safetensors": b"r" * 5000},
        "vae": {"config.json": b"{  }", "diffusion_pytorch_model.safetensors": b"v" * 5000},
        "safety_checker": {
            "config.json": config,
            "preprocessor_config.json": b"{}",
            "pytorch_model.bin": checker,
        },
    }
    sources = {
        part: {"repo": f"us/{part}", "revision": REVISION, "files": {name: [None, None] for name in files}}
        for part, files in data.items()
    }
    (tmp_path / "sources.json").write_text(json.dumps(sources))
    monkeypatch.setattr(weights, "SOURCES", tmp_path / "sources.json")
    with file_server() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        for part, files in data.items():
            for name, body in files.items():
                publish(server, f"/us/{part}/resolve/{REVISION}/{name}", body)
        yield server


def publish(server: FileServer, path: str, body: bytes) -> None:
    if len(body) < 1000:
        server.files[path] = body
        server.etags[path] = f'"{hashlib.sha1(b"blob %d" % len(body) + bytes(1) + body).hexdigest()}"'
        server.headers[path] = {"X-Repo-Commit": REVISION}
    else:
        linked = {"X-Repo-Commit": REVISION, "X-Linked-ETag": f'"{hashlib.sha256(body).hexdigest()}"'}
        server.always[path] = redirect(f"/cdn{path}", linked)
        server.files[f"/cdn{path}"] = body


def test_sdxl_comes_whole_verified_and_once(hub: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    found = weights.resolve(None, manner=QUICK)
    folders = [found.base, found.refiner, found.vae, found.safety_checker]
    names = {path.name for folder in folders if folder for path in folder.rglob("*") if path.is_file()}
    assert not [name for name in names if "part" in name or name.endswith((".bin", ".new"))]
    assert {token for *_, token in hub.log} == {"Bearer secret"}
    hub.log.clear()
    assert weights.resolve("sdxl-1.0", manner=QUICK) == found
    monkeypatch.setenv("SDXL_OFFLINE", "1")
    assert weights.resolve("sdxl-1.0", manner=QUICK) == found
    assert hub.log == []


@pytest.mark.usefixtures("hub")
def test_the_checker_s_pickle_becomes_safetensors(pickle: bytes) -> None:
    folder = weights.resolve("sdxl-1.0", manner=QUICK).safety_checker
    assert folder
    assert not (folder / "pytorch_model.bin").exists()
    loaded = StableDiffusionSafetyChecker.from_pretrained(folder, torch_dtype=torch.float32)
    (folder / "again.bin").write_bytes(pickle.rsplit(b"//", 1)[0])
    state = torch.load(folder / "again.bin", weights_only=True)
    for name, value in loaded.state_dict().items():
        torch.testing.assert_close(value, state[name].half().float(), rtol=0, atol=0)


@pytest.mark.usefixtures("hub")
def test_a_pickle_left_by_a_kill_goes_with_the_next_start(pickle: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = weights.resolve("sdxl-1.0", manner=QUICK).safety_checker
    assert folder
    (folder / "pytorch_model.bin").write_bytes(pickle)
    monkeypatch.setenv("SDXL_OFFLINE", "1")
    assert weights.resolve("sdxl-1.0").safety_checker == folder
    assert not (folder / "pytorch_model.bin").exists()


@pytest.mark.parametrize(
    "path", ["vae/resolve/{}/config.json", "cdn:vae/resolve/{}/diffusion_pytorch_model.safetensors"]
)
def test_what_the_hub_states_is_verified(hub: FileServer, path: str) -> None:
    path = path.format(REVISION)
    path = f"/cdn/us/{path[4:]}" if path.startswith("cdn:") else f"/us/{path}"
    hub.files[path] = hub.files[path][:-1] + b"?"
    with pytest.raises(WeightsError, match="not the expected file"):
        weights.resolve("sdxl-1.0", manner=QUICK)


def test_an_unfinished_model_is_gone_on_with(hub: FileServer) -> None:
    path = f"/us/refiner/resolve/{REVISION}/model_index.json"
    hub.always[path] = status(404)
    with pytest.raises(WeightsError, match=r"model_index\.json does not exist"):
        weights.resolve("sdxl-1.0", manner=QUICK)
    del hub.always[path]
    assert weights.resolve("sdxl-1.0", manner=QUICK).refiner


def test_offline_without_the_files_is_said(hub: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDXL_OFFLINE", "1")
    for model in ("sdxl-1.0", "https://example.com/x.safetensors"):
        with pytest.raises(WeightsError, match="SDXL_OFFLINE is set"):
            weights.resolve(model)
    assert hub.log == []


def test_the_miniature_and_folders() -> None:
    found = weights.resolve("miniature")
    assert (found.base.name, found.config) == ("base", None)
    assert found.refiner
    assert weights.resolve(str(ROOT / "miniature" / "weights")) == found
    assert weights.resolve(str(found.base)) == ModelFiles(base=found.base)


@pytest.mark.parametrize("model", ["sdxl-2", "/nowhere", "model.ckpt", "{tmp}", "{tmp}/half", "{tmp}/cut.safetensors"])
def test_what_is_no_model_is_refused_with_the_remedy(tmp_path: Path, model: str) -> None:
    (tmp_path / "half" / "unet").mkdir(parents=True)
    (tmp_path / "half" / "model_index.json").write_text("{}")
    (tmp_path / "cut.safetensors").write_bytes((5).to_bytes(8, "little") + b"{}")
    with pytest.raises(WeightsError, match=r"use sdxl-1.0|copy it again|download it again"):
        weights.resolve(model.format(tmp=tmp_path))


def test_a_url_from_inside_is_refused(hub: FileServer) -> None:
    with pytest.raises(WeightsError, match="public internet"):
        weights.resolve(f"{hub.url}/model.safetensors", manner=QUICK)
    assert hub.log == []


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(checkpoint, config folder) of a tiny SDXL with the genuine blocks and depths."""
    folder = tmp_path_factory.mktemp("single")
    config = narrow_config(weights.CONFIGS / "base", folder / "config")
    write_checkpoint(models(config), folder / "tiny.safetensors")
    return folder / "tiny.safetensors", config


def test_a_single_file_loads_without_a_network(
    single: tuple[Path, Path], hub: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, config = single
    monkeypatch.setenv("SDXL_OFFLINE", "1")
    assert weights.resolve(str(path)) == ModelFiles(base=path, config=weights.CONFIGS / "base")
    pipeline = StableDiffusionXLPipeline.from_single_file(str(path), config=str(config), torch_dtype=torch.float16)
    for name, expected in models(config).items():
        loaded = getattr(pipeline, name).state_dict()
        assert loaded.keys() == expected.state_dict().keys()
        assert all(torch.equal(loaded[key], value) for key, value in expected.state_dict().items())
    assert pipeline.tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert hub.log == []


@pytest.mark.usefixtures("hub")
def test_a_single_file_gets_the_safe_vae_and_the_checker(single: tuple[Path, Path]) -> None:
    found = weights.resolve(str(single[0]), manner=QUICK)
    assert found.vae
    assert found.safety_checker
    assert found.refiner is None  # 4.5 GB are not fetched unasked
    refiner = weights.resolve("sdxl-1.0", manner=QUICK).refiner
    assert weights.resolve(str(single[0]), manner=QUICK).refiner == refiner


def test_a_checkpoint_by_url(
    single: tuple[Path, Path], hub: FileServer, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fetch.network.is_public", lambda _: True)
    hub.files["/tiny"], hub.files["/page"] = single[0].read_bytes(), b"<html>sign in</html>"
    found = weights.resolve(f"{hub.url}/tiny?token=1", manner=QUICK)
    assert found.base.read_bytes() == single[0].read_bytes()
    with pytest.raises(WeightsError, match="/page is not what SDXL_MODEL takes"):
        weights.resolve(f"{hub.url}/page", manner=QUICK)
    assert len(list(cache.glob("url/*/model.safetensors"))) == 1


def test_importing_brings_no_torch() -> None:
    code = "import sys, weights; sys.exit(bool({'torch', 'diffusers', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
