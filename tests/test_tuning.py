"""Fine-tunes through the predictor: what a request names is in its pictures, and nowhere else."""

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from cog import CancelationException, Secret
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from errors import InputError, SDXLError, WeightsError
from predict import Predictor
from sdxl.finetune import changes
from sdxl.finetune.contents import Contents
from sdxl.output import read_parameters
from tests import tunes
from tests.file_server import FileServer, file_server, stall
from tests.painting import difference
from tests.predicting import predict, show
from tests.test_state import cancelled, digests, started

FREE: dict[str, Any] = {"seed": 5, "disable_safety_checker": True, "output_format": "png", "embed_parameters": False}


@pytest.fixture(scope="module")
def served() -> Iterator[FileServer]:
    with file_server() as server:
        yield server


@pytest.fixture(scope="module", autouse=True)
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of this module's own, files that a request may name, and the test server as if it were public."""
    folder = tmp_path_factory.mktemp("tuning")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SDXL_CACHE", str(folder / "cache"))
        patch.setenv("SDXL_PRIVATE_INPUTS", "1")
        named = [str(folder / name) for name in ("a.tar", "b.safetensors", "te.safetensors", "c.safetensors")]
        patch.setenv("SDXL_LOCAL_FILES", ":".join(named))
        yield folder


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return started()  # after `environment`, which every test of this module is in


@pytest.fixture(scope="module", autouse=True)
def files(environment: Path, predictor: Predictor, served: FileServer) -> dict[str, str]:
    """One source of each kind, as a request names it."""
    models = predictor.painter.models
    generator = torch.Generator().manual_seed(4)
    rows = (torch.randn(2, 64, generator=generator) * 0.1, torch.randn(2, 96, generator=generator) * 0.1)
    tunes.replicate_tar(environment / "a.tar", tunes.make_lora(models, seed=1), rows)
    other = tunes.kohya_sgm(tunes.make_lora(models, seed=2, where="conv too", alpha=1.0))
    texts = tunes.kohya_sgm(tunes.make_lora(models, seed=3, parts=models.parts))
    tunes.save(environment, other, name="b")
    tunes.save(environment, texts, name="te")
    served.files["/a.tar"] = (environment / "a.tar").read_bytes()
    served.files["/b.safetensors"] = (environment / "b.safetensors").read_bytes()
    served.files["/bad.safetensors"] = served.files["/b.safetensors"][:-100]
    return {
        "tar": str(environment / "a.tar"),
        "lora": str(environment / "b.safetensors"),
        "texts": str(environment / "te.safetensors"),
        "tar url": f"{served.url}/a.tar",
        "lora url": f"{served.url}/b.safetensors?signature=hush",
        "bad url": f"{served.url}/bad.safetensors",
        "none": f"{served.url}/none.safetensors",
    }


def drawn(predictor: Predictor, **asked: Any) -> Image.Image:
    return show(predict(predictor, **FREE | asked)[0])


def far(one: Image.Image, other: Image.Image) -> bool:
    return difference(one, other) > 20


def test_a_request_s_weights_are_in_its_picture_alone(predictor: Predictor, files: dict[str, str]) -> None:
    plain = drawn(predictor)
    tuned = drawn(predictor, replicate_weights=files["tar"])
    assert far(tuned, plain)
    assert difference(drawn(predictor), plain) == 0
    added = drawn(predictor, lora_weights=[files["lora"], files["texts"]], lora_scales=[0.5, -0.5])
    assert far(added, plain)
    assert far(added, tuned)
    assert difference(drawn(predictor), plain) == 0
    assert difference(drawn(predictor, replicate_weights=files["tar"]), tuned) == 0


def test_the_source_does_not_matter_but_the_content(predictor: Predictor, files: dict[str, str]) -> None:
    here = drawn(predictor, replicate_weights=files["tar"], lora_weights=[files["lora"]])
    there = drawn(predictor, replicate_weights=files["tar url"], lora_weights=[files["lora url"]])
    assert difference(here, there) == 0


def test_scales(predictor: Predictor, files: dict[str, str]) -> None:
    plain = drawn(predictor)
    assert difference(drawn(predictor, lora_weights=[files["lora"]], lora_scales=[0]), plain) == 0
    one = drawn(predictor, lora_weights=[files["lora"]])
    assert difference(drawn(predictor, lora_weights=[files["lora"]], lora_scales=[1]), one) == 0
    assert far(drawn(predictor, lora_weights=[files["lora"]], lora_scales=[-1]), one)
    twice = drawn(predictor, lora_weights=[files["lora"], files["lora"]], lora_scales=[0.75, 0.25])
    assert difference(twice, one) <= 1


@pytest.mark.parametrize("refine", ["no_refiner", "expert_ensemble_refiner", "base_image_refiner"])
def test_tokens_are_read_by_base_and_refiner(predictor: Predictor, files: dict[str, str], refine: str) -> None:
    asked: dict[str, Any] = {"replicate_weights": files["tar"], "refine": refine, "high_noise_frac": 0.0}

    def said(prompt: str, **more: Any) -> Image.Image:
        return drawn(predictor, prompt=prompt, **asked, **more)

    token = said("TOK on a blue background")
    assert far(token, said("star on a blue background"))
    assert difference(said("<s0><s1> on a blue background"), token) == 0
    assert difference(said("tok on a blue background"), token) == 0
    assert far(said("TOKYO on a blue background"), token)
    assert far(said("a star", negative_prompt="TOK"), said("a star"))


def test_the_words_of_others_are_untouched(predictor: Predictor, files: dict[str, str]) -> None:
    """With the LoRA off, a prompt that names no token gives the base's picture: the tokens change nothing else."""
    asked = {"prompt": "a photo of TOKYO, stoked, on a blue background"}
    plain = drawn(predictor, **asked)
    tuned = drawn(predictor, replicate_weights=files["tar"], lora_scale=0, **asked)
    assert difference(tuned, plain) <= 1


def test_pooling_is_as_trained_unless_asked(predictor: Predictor, files: dict[str, str]) -> None:
    """Replicate's weights are pooled at the token: what follows it does not reach the pooled vector."""
    asked: dict[str, Any] = {"replicate_weights": files["tar"], "prompt": "TOK on a blue background"}
    auto = drawn(predictor, **asked)
    assert difference(drawn(predictor, **asked, token_pooling="token"), auto) == 0
    assert difference(drawn(predictor, **asked, token_pooling="end"), auto) > 0


def test_logs_and_files_say_what_was_used_and_no_secret(
    predictor: Predictor, files: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    secrets: dict[str, Any] = {
        "hf_api_token": Secret("hf_hush"),
        "civitai_api_token": Secret("civ_hush"),
        "replicate_api_token": Secret("r8_hush"),
    }
    asked = {"replicate_weights": files["tar"], "lora_weights": [files["lora url"]], "lora_scales": [0.25], **secrets}
    (path,) = predict(predictor, **FREE | asked | {"embed_parameters": True, "prompt": "a star"})
    said = capfd.readouterr()
    assert f"Using weights: {files['tar']} at 0.6" in said.out
    assert "Learned words: " in said.out
    assert "no prompt says one of them" in said.out
    assert "hush" not in said.out + said.err
    assert b"hush" not in path.read_bytes()
    assert read_parameters(path)["weights"] == [
        {"source": files["tar"], "scale": 0.6},
        {"source": files["lora url"].partition("?")[0], "scale": 0.25},
    ]


BAD: list[tuple[dict[str, Any], type[SDXLError], str]] = [
    ({"lora_weights": ["lora"], "lora_scales": [1, 2]}, InputError, "2 numbers for 1 lora_weights"),
    ({"lora_weights": ["lora"], "lora_scales": [11]}, InputError, r"lora_scales\[0\]=11"),
    ({"lora_weights": ["lora"] * 11}, InputError, "11 entries, 10 are the most"),
    ({"lora_weights": [" "]}, InputError, "empty entry"),
    ({"lora_weights": "lora"}, InputError, "is no list"),
    ({"lora_scales": [1]}, InputError, "1 numbers for 0"),
    ({"lora_scale": 11}, InputError, "lora_scale=11"),
    ({"token_pooling": "middle"}, InputError, "token_pooling='middle'"),
    ({"replicate_weights": "/etc/passwd"}, WeightsError, "paths are read on the command line only"),
    ({"replicate_weights": "nonsense"}, WeightsError, "names no fine-tune"),
    ({"lora_weights": ["bad url"]}, WeightsError, "bad.safetensors"),
    ({"lora_weights": ["lora", "none"]}, WeightsError, "404"),
    ({"replicate_weights": "tar", "lora_weights": ["none"]}, WeightsError, "404"),
    ({"replicate_weights": "tar", "width": 63}, InputError, "width"),
]


@pytest.mark.parametrize(("asked", "kind", "words"), BAD)
def test_what_is_wrong_is_said_and_leaves_the_model_as_it_was(
    predictor: Predictor, files: dict[str, str], asked: dict[str, Any], kind: type[SDXLError], words: str
) -> None:
    plain = drawn(predictor)
    named: dict[str, Any] = {
        name: [files.get(each, each) for each in value]
        if name == "lora_weights" and isinstance(value, list)
        else files.get(value, value)
        if isinstance(value, str)
        else value
        for name, value in asked.items()
    }
    with pytest.raises(kind, match=words):
        predict(predictor, **FREE | named)
    assert difference(drawn(predictor), plain) == 0


def test_weights_of_the_start_come_back(files: dict[str, str]) -> None:
    """COG_WEIGHTS: blank means these, another name replaces them, and afterwards they are there again."""
    with_boot = Predictor()
    with_boot.setup(files["tar"])  # a string, whatever the annotation says, as Cog does
    boot = drawn(with_boot, prompt="TOK")
    without = Predictor()
    without.setup()
    assert difference(drawn(without, prompt="TOK", replicate_weights=files["tar"]), boot) == 0
    assert difference(drawn(with_boot, prompt="TOK", lora_scale=0.3), boot) > 0
    other = drawn(with_boot, prompt="TOK", replicate_weights=files["lora"], lora_scale=1)
    assert difference(other, drawn(without, prompt="TOK", lora_weights=[files["lora"]])) <= 1
    with pytest.raises(WeightsError):
        drawn(with_boot, replicate_weights=files["none"])
    assert difference(drawn(with_boot, prompt="TOK"), boot) == 0
    added = drawn(with_boot, prompt="TOK", lora_weights=[files["lora"]])
    assert far(added, boot)
    assert difference(drawn(with_boot, prompt="TOK"), boot) == 0


def test_a_full_unet_counts_whole(predictor: Predictor, environment: Path) -> None:
    """As `replicate_weights` whatever `lora_scale` says, as the reference's runtime does; in the list as asked."""
    full = {name: tensor * 1.1 for name, tensor in predictor.painter.models.base.state_dict().items() if "attn" in name}
    tunes.save(environment, full, name="c")
    source = str(environment / "c.safetensors")
    whole = drawn(predictor, replicate_weights=source, lora_scale=0.1)
    assert difference(drawn(predictor, replicate_weights=source, lora_scale=1), whole) == 0
    assert difference(drawn(predictor, lora_weights=[source]), whole) == 0
    assert difference(drawn(predictor, lora_weights=[source], lora_scales=[0.1]), whole) > 0


def test_what_was_read_is_remembered_up_to_a_limit(
    predictor: Predictor, files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Contents.read
    seen: list[str] = []

    def noted(path: Path) -> Contents:
        seen.append(path.name)
        return read(path)

    monkeypatch.setattr(Contents, "read", noted)

    def count(*names: str) -> int:
        seen.clear()
        for name in names:
            drawn(predictor, num_inference_steps=1, lora_weights=[files[name]])
        return len(seen)

    count("lora", "texts")
    assert count("lora", "texts", "lora") == 0
    monkeypatch.setattr("tuning.RECENT", 1)
    assert count("texts", "lora", "lora", "texts") == 2


def test_running_out_of_memory_for_weights_is_said(
    predictor: Predictor, files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fold(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    with monkeypatch.context() as patch:
        patch.setattr("sdxl.finetune.slot.fold", fold)
        with pytest.raises(InputError, match="these weights need more memory than this GPU has free; ask for fewer"):
            drawn(predictor, lora_weights=[files["lora"]])
    assert drawn(predictor, lora_weights=[files["lora"]])


def test_setup_says_what_is_wrong_with_the_weights_of_the_start() -> None:
    with pytest.raises(WeightsError, match=r"missing\.tar"):
        Predictor().setup("/missing.tar")


def test_prompts_are_encoded_anew_only_when_a_text_encoder_changed(predictor: Predictor, files: dict[str, str]) -> None:
    encoder, calls = predictor.painter.models.text.text_encoder_2, 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    handle = encoder.register_forward_pre_hook(count)
    for weights in (None, [files["lora"]], None, [files["lora"]]):
        drawn(predictor, prompt="a prompt of this test's own", lora_weights=weights)
    assert calls == 1
    drawn(predictor, prompt="a prompt of this test's own", lora_weights=[files["texts"]])
    assert calls == 2
    handle.remove()


def stored(environment: Path) -> set[Path]:
    return {path for path in (environment / "cache").rglob("*") if path.is_file() and path.name not in ("lock",)}


def test_a_cancelled_download_ends_at_once_and_leaves_nothing(
    predictor: Predictor, environment: Path, served: FileServer
) -> None:
    served.files["/slow.safetensors"] = (environment / "b.safetensors").read_bytes()
    served.always["/slow.safetensors"] = stall
    before = stored(environment)
    begun = time.monotonic()
    assert cancelled(predictor, 0.5, FREE | {"lora_weights": [f"{served.url}/slow.safetensors"]})[0]
    assert time.monotonic() - begun < 15  # the server itself would stall for 20 s
    end = time.monotonic() + 10
    while stored(environment) != before and time.monotonic() < end:
        time.sleep(0.05)
    assert stored(environment) == before
    del served.always["/slow.safetensors"]
    assert drawn(predictor, lora_weights=[f"{served.url}/slow.safetensors"])


def test_cancels_at_any_moment_leave_no_trace(predictor: Predictor, files: dict[str, str], fresh: list[str]) -> None:
    """The exception arrives while weights are asked for, read, or folded in, and while they are taken out again."""
    order = random.Random(7)
    kinds: list[dict[str, Any]] = [
        {"replicate_weights": files["tar"]},
        {"lora_weights": [files["lora"], files["texts"]]},
        {"num_inference_steps": 1},
    ]
    caught = sum(cancelled(predictor, order.uniform(0.0, 0.15), FREE | kinds[turn % 3])[0] for turn in range(45))
    assert caught > 10
    assert digests(predictor) == fresh


class Injected(Exception):
    """A failure that no code of ours expects."""


STEPS = st.sampled_from(["tar", "lora", "texts", "both", "bad url", "none", "tar url", "plain"])
MISHAPS = st.one_of(st.none(), st.tuples(st.sampled_from([Injected, CancelationException]), st.integers(0, 300)))


@given(st.lists(st.tuples(STEPS, st.sampled_from([-1.0, 0.0, 0.6, 2.5]), MISHAPS), min_size=1, max_size=5))
@settings(
    deadline=None,
    max_examples=15,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_any_loads_failures_and_cancels_leave_no_trace(
    predictor: Predictor, files: dict[str, str], fresh: list[str], history: list[tuple[str, float, Any]]
) -> None:
    """A failure at the n-th weight that is written, in folding and in the restoring after it."""
    for source, scale, mishap in history:
        asked: dict[str, Any] = {"num_inference_steps": 1, "lora_scale": scale}
        if source == "both":
            asked |= {"replicate_weights": files["tar"], "lora_weights": [files["lora"]], "lora_scales": [scale]}
        elif source != "plain":
            asked |= {"replicate_weights": files[source]}
        with suppress(SDXLError, Injected, CancelationException), breaking(mishap):
            predict(predictor, **FREE | asked)
    assert digests(predictor) == fresh


@contextmanager
def breaking(mishap: tuple[type[BaseException], int] | None) -> Iterator[None]:
    """Fail at the n-th write of a weight; until then the real fold does its work."""
    with pytest.MonkeyPatch.context() as patch:
        if mishap is not None:
            kind, left = mishap

            def fold(*args: Any) -> None:
                nonlocal left
                left -= 1
                if left < 0:
                    raise kind
                changes.fold(*args)

            patch.setattr("sdxl.finetune.slot.fold", fold)
        yield
