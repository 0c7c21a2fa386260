"""What a training gives out, read by everything that shall read it: this package, diffusers, PEFT, the old runtime."""

import json
import re
import shutil
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

import weights
from errors import WeightsError
from fetch.answers import Stop
from fetch.sources import Tokens
from sdxl.engine import Engines
from sdxl.finetune.contents import choose
from sdxl.finetune.formats import Reader
from sdxl.finetune.tokens import LONGEST, LearnedTokens
from sdxl.models import Models
from tests import tunes
from tests.conftest import ROOT
from tests.lycoris_tunes import unfused
from tests.painting import difference, picture
from tests.test_tunes import Pipe
from tests.tuned import CPU, changed, read, slot_for, state, weight_of
from trainer.archive import pack
from trainer.files import save_tensors
from trainer.trained import Trained
from trainer.weight_files import file_names, special_params, write_replicate, write_weights

SCALE = 0.8
ASKED: dict[str, Any] = {"num_inference_steps": 4, "prompt": "a photo of TOK on a blue background"}
SAID = {"steps": 7, "seed": 0, "resolution": 128, "batch_size": 4}
LORAS = ("lora.safetensors", "lora_kohya.safetensors", "lora_peft.safetensors")
LEGACY = {"lora.safetensors", "embeddings.pti", "special_params.json"}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """diffusers says of every part that the file does not hold that it is not in the file."""
    before = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()
    yield
    diffusers_logging.set_verbosity(before)


def make(
    models: Models,
    *,
    alpha: float = 4.0,
    feed_forward: bool = False,
    triggers: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
) -> Trained:
    """A LoRA of rank 4 and rows, of random numbers; each layer's change is 0.3 times as large as its weight."""
    where = "all linear" if feed_forward else "attention"
    lora = tunes.make_lora(models, where=where, rank=4, alpha=alpha, seed=seed)
    factors = {path: (each.down, each.up) for (_, path), each in lora.items() if ".proj_" not in path}
    triggers = triggers or {"TOK": [0, 1]}
    count = 1 + max(map(max, triggers.values()))
    generator = torch.Generator().manual_seed(seed)
    encoders: list[Any] = [models.text.text_encoder, models.text.text_encoder_2]
    tables = [encoder.get_input_embeddings().weight.detach() for encoder in encoders]
    first, second = (torch.randn(count, each.shape[1], generator=generator) * each.std() for each in tables)
    return Trained(factors, alpha, {}, (first, second), triggers)


def as_lora(trained: Trained, *, feed_forward: bool = True) -> tunes.Lora:
    """For the judges in tests/tunes.py."""
    return {
        ("unet", path): tunes.Factors(down, up, trained.alpha)
        for path, (down, up) in trained.lora.items()
        if feed_forward or ".ff." not in path
    }


def learned(trained: Trained) -> LearnedTokens:
    """The tokens, past all files."""
    return LearnedTokens("key", trained.rows, trained.triggers, "token")


def judged(models: Models, trained: Trained, *, feed_forward: bool = True) -> Any:
    """The picture that PEFT gives, with nothing merged."""
    attached: Any = unfused(models.base, as_lora(trained, feed_forward=feed_forward), SCALE)
    return drawn_by_diffusers(models, attached, trained)


def drawn_by_diffusers(models: Models, unet: Any, trained: Trained) -> Any:
    """The picture by a UNet's own forward, with what is attached to it."""
    theirs = replace(models, base=unet, engines=Engines(models.placement, "diffusers"))
    return picture(theirs, learned=learned(trained), **ASKED)


def drawn(models: Models, folder: Path, tokens: LearnedTokens | None = None) -> Any:
    """The picture that this package gives with the files in a folder, and their tokens if they have some."""
    tune = read(models, folder)
    with slot_for(models) as slot:
        slot.set([(tune, SCALE)])
        return picture(models, learned=tune.learned or tokens, **ASKED)


def alone(path: Path) -> Path:
    """The file in a folder of its own, under a name that says nothing."""
    folder = path.parent.parent / f"{path.stem}-alone"
    folder.mkdir()
    shutil.copyfile(path, folder / "weights.safetensors")
    return folder


def header(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        said: dict[str, str] = file.metadata()
    return said


@pytest.mark.parametrize("alpha", [4.0, 1.5])
@pytest.mark.parametrize("feed_forward", [False, True])
def test_every_file_gives_one_picture(models: Models, tmp_path: Path, feed_forward: bool, alpha: float) -> None:
    """Ours: the archive as it is, and each LoRA alone; the reference runtime's holds attention only."""
    trained = make(models, alpha=alpha, feed_forward=feed_forward)
    archive = tmp_path / "archive"
    write_weights(archive, trained, SAID)
    wanted, attention = judged(models, trained), judged(models, trained, feed_forward=False)
    assert difference(picture(models, **ASKED), wanted) > 20
    assert (difference(wanted, attention) > 20) == feed_forward
    assert difference(drawn(models, archive), wanted) <= 1
    for name in LORAS:
        goal = attention if name == "lora.safetensors" else wanted
        assert difference(drawn(models, alone(archive / name), learned(trained)), goal) <= 1, name


@pytest.mark.parametrize("alpha", [4.0, 1.5])
@pytest.mark.parametrize("feed_forward", [False, True])
def test_diffusers_reads_both_of_its_files(models: Models, tmp_path: Path, feed_forward: bool, alpha: float) -> None:
    """`load_lora_weights`, with nothing merged; and the old file once `unet.` stands before its names."""
    trained = make(models, alpha=alpha, feed_forward=feed_forward)
    write_weights(tmp_path, trained, SAID)
    wanted, attention = judged(models, trained), judged(models, trained, feed_forward=False)
    for name in LORAS:
        pipe = Pipe(models)
        if name == "lora.safetensors":
            tensors = load_file(tmp_path / name)
            pipe.load_lora_weights({f"unet.{key}": value for key, value in tensors.items()}, adapter_name="one")
        else:
            pipe.load_lora_weights(str(tmp_path), weight_name=name, adapter_name="one")
        pipe.unet.set_adapters(["one"], [SCALE])
        shown = drawn_by_diffusers(models, pipe.unet, trained)
        assert difference(shown, attention if name == "lora.safetensors" else wanted) <= 1, name


@pytest.mark.parametrize("feed_forward", [False, True])
def test_names_are_those_of_each_dialect(models: Models, tmp_path: Path, feed_forward: bool) -> None:
    """Key by key, against exporters that other loaders judge in test_tunes.py; kohya's come back as diffusers'."""
    trained = make(models, alpha=1.5, feed_forward=feed_forward)
    lora = as_lora(trained)
    write_weights(tmp_path, trained, SAID)
    kohya, peft = (load_file(tmp_path / name) for name in LORAS[1:])
    assert {key: value.shape for key, value in kohya.items()} == {
        key: value.shape for key, value in tunes.kohya_sgm(lora).items()
    }
    assert {float(value) for key, value in kohya.items() if key.endswith(".alpha")} == {1.5}
    assert set(peft) == set(tunes.peft_diffusers(lora))
    config: Any = models.base.config
    back, alphas = Pipe.lora_state_dict(dict(kohya), unet_config=config)
    names = {".lora.down.": ".lora_A.", ".lora.up.": ".lora_B.", ".processor": "", "_lora.down.": ".lora_A."}
    for key, value in back.items():
        for old, new in {**names, "_lora.up.": ".lora_B.", ".to_out.lora": ".to_out.0.lora"}.items():
            key = key.replace(old, new)
        assert torch.equal(peft.pop(key), value)
    assert not peft
    assert set(alphas.values()) == {1.5}


def test_names_of_the_genuine_unet(tmp_path: Path) -> None:
    """The published names of all layers, counted from the LoRA alone: SDXL has two layers in a block."""
    config = json.loads((ROOT / "sdxl" / "configs" / "base" / "unet" / "config.json").read_text())
    kind: Any = UNet2DConditionModel  # diffusers states no types here
    with torch.device("meta"):
        unet = kind.from_config(config)
    paths = [path for path in tunes.layers(unet, "all linear") if ".proj_" not in path]
    layer = torch.ones(1, 2), torch.ones(2, 1)
    rows = torch.ones(1, 768), torch.ones(1, 1280)
    write_weights(tmp_path, Trained(dict.fromkeys(paths, layer), 1.0, {}, rows, {"TOK": [0]}), {})
    names = {f"lora_unet_{tunes.sgm(path, per_block=2).replace('.', '_')}" for path in paths}
    assert {key.split(".")[0] for key in load_file(tmp_path / "lora_kohya.safetensors")} == names
    assert len(names) == 140 * 4 + 70 * 2
    assert len(load_file(tmp_path / "lora.safetensors")) == 1120  # as many as every file of the public trainer has


@dataclass
class OldLoader:
    """How replicate/cog-sdxl reads an archive, written anew: it asks for every attention processor by name, takes a
    rank for each from any `up` of it, and gives the factors half precision; what it does not know it drops in silence.
    """

    unet: Any

    def deltas(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Layer -> what is added to its weight."""
        ranks = {key.rsplit(".", 3)[0]: value.shape[1] for key, value in tensors.items() if key.endswith("up.weight")}
        wanted: dict[str, torch.Size] = {}
        for name in self.unet.attn_processors:
            attention = self.unet.get_submodule(name.removesuffix(".processor"))
            rank = ranks[name]
            layers = {"q": attention.to_q, "k": attention.to_k, "v": attention.to_v, "out": attention.to_out[0]}
            for letter, layer in layers.items():
                wanted[f"{name}.to_{letter}_lora.down.weight"] = torch.Size([rank, layer.in_features])
                wanted[f"{name}.to_{letter}_lora.up.weight"] = torch.Size([layer.out_features, rank])
        assert {key: value.shape for key, value in tensors.items()} == wanted
        return {
            key.removesuffix("_lora.up.weight"): value.half().float()
            @ tensors[key.replace(".up.", ".down.")].half().float()
            for key, value in tensors.items()
            if ".up." in key
        }


@pytest.mark.parametrize(("alpha", "feed_forward"), [(4.0, False), (1.5, True)])
def test_the_old_runtime_reads_its_three(models: Models, tmp_path: Path, alpha: float, feed_forward: bool) -> None:
    """In half precision, those of a short training too, whose `up` has hardly left zero."""
    whole = make(models, alpha=alpha, feed_forward=feed_forward)
    for size in (1.0, 1e-6):
        trained = replace(whole, lora={path: (down, up * size) for path, (down, up) in whole.lora.items()})
        folder = tmp_path / str(size)
        write_weights(folder, trained, SAID)
        deltas = OldLoader(models.base).deltas(load_file(folder / "lora.safetensors"))
        lora = as_lora(trained, feed_forward=False)
        assert len(deltas) == len(lora)
        for (_, path), layer in lora.items():
            owner, name = path.removesuffix(".0").rsplit(".", 1)
            delta = deltas[f"{owner}.processor.{name}"]
            assert float((delta - layer.delta).norm() / layer.delta.norm()) < 1e-3, path
        rows = load_file(folder / "embeddings.pti")
        for number, each in enumerate(trained.rows):
            assert torch.equal(rows[f"text_encoders_{number}"], each)  # to the last bit
        assert json.loads((folder / "special_params.json").read_text()) == {"TOK": "<s0><s1>"}


@pytest.mark.parametrize("feed_forward", [False, True])
def test_an_archive_is_one_training(models: Models, tmp_path: Path, feed_forward: bool) -> None:
    """All of it is used, and nothing is said of the same weights in other words; a checkpoint in it is older."""
    trained = make(models, feed_forward=feed_forward, triggers={"TOK": [0, 1], "DOG": [2]})
    write_weights(tmp_path, trained, SAID)
    tune = read(models, tmp_path)
    assert len(tune.changes) == len(trained.lora)
    assert tune.left_out == ()
    assert tune.learned is not None
    assert tune.learned.pooled_at == "token"
    assert tune.learned.triggers == {"TOK": [0, 1], "DOG": [2], "<s0>": [0], "<s1>": [1], "<s2>": [2]}
    assert all(map(torch.equal, tune.learned.rows, trained.rows))
    write_replicate(tmp_path / "checkpoints" / "step-000200", make(models, seed=1, feed_forward=feed_forward), SAID)
    last = read(models, tmp_path)
    assert set(last.left_out) == {f"checkpoints/step-000200/{name}" for name in ("lora.safetensors", "embeddings.pti")}
    assert len(last.changes) == len(trained.lora)
    key = next(iter(as_lora(trained)))
    with slot_for(models) as slot:
        wanted = weight_of(models, *key) + as_lora(trained)[key].delta
        slot.set([(last, 1.0)])
        torch.testing.assert_close(weight_of(models, *key), wanted, rtol=1e-2, atol=1e-3)
    assert last.learned is not None
    assert torch.equal(last.learned.rows[0], trained.rows[0])


def test_a_packed_archive_is_fetched_and_read(models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a user gives it: the very file, with report and pictures in it."""
    trained = make(models, feed_forward=True, triggers={"TOK": [0, 1], "日本": [2]})
    write_weights(tmp_path / "in", trained, SAID)
    (tmp_path / "in" / "training_report.json").write_text("{}")
    picture(models, num_inference_steps=1).save(tmp_path / "in" / "loss.png")
    pack(tmp_path / "in", tmp_path / "trained.tar")
    monkeypatch.setenv("SDXL_CACHE", str(tmp_path / "cache"))
    tokens = Tokens(huggingface=None, civitai=None, replicate=None)
    source = str(tmp_path / "trained.tar")
    with weights.fine_tune(source, tokens=tokens, first="replicate", stop=Stop(), local=True) as files:
        tune = Reader.of(models.parts, CPU, torch.float32).read(files)
    assert len(tune.changes) == len(trained.lora)
    assert tune.left_out == ()
    assert tune.learned is not None
    assert tune.learned.triggers["日本"] == [2]


def test_any_of_its_files_do(models: Models, tmp_path: Path) -> None:
    """Whatever somebody takes out of an archive; what is no more than a part is used where there is no more."""
    trained = make(models, feed_forward=True)
    write_weights(tmp_path, trained, SAID)
    (tmp_path / "lora.safetensors").rename(tmp_path / "part.safetensors")
    (tmp_path / "embeddings.pti").unlink()
    tune = read(models, tmp_path)
    assert len(tune.changes) == len(trained.lora)
    assert tune.left_out == ()
    assert tune.learned is not None
    for name in LORAS[1:]:
        (tmp_path / name).unlink()
    assert len(read(models, tmp_path).changes) == len(as_lora(trained, feed_forward=False))


def test_files_of_two_trainings_are_not_guessed(models: Models, tmp_path: Path) -> None:
    for seed in (1, 2):
        write_weights(tmp_path / str(seed), make(models, seed=seed), SAID)
        shutil.copyfile(tmp_path / str(seed) / "lora_peft.safetensors", tmp_path / f"of-{seed}.safetensors")
        shutil.rmtree(tmp_path / str(seed))
    with pytest.raises(WeightsError, match=r"2 files of the same kind \(of-1.safetensors, of-2.safetensors\)"):
        read(models, tmp_path)


def test_a_trigger_s_file_is_enough_for_it(models: Models, tmp_path: Path) -> None:
    """Its own rows under its own name; and the file of all of them knows all of their names."""
    trained = make(models, triggers={"TOK": [0, 1], "old/dog": [1, 2]})
    archive = tmp_path / "archive"
    write_weights(archive, trained, SAID)
    for trigger, name in (("TOK", "TOK"), ("old/dog", "old_dog")):
        found = read(models, alone(archive / f"{name}.safetensors")).learned
        assert found is not None
        assert found.pooled_at == "token"
        assert found.triggers == {trigger: [0, 1], "<s0>": [0], "<s1>": [1]}
        for ours, theirs in zip(found.rows, trained.rows, strict=True):
            assert torch.equal(ours, theirs[list(trained.triggers[trigger])])
    found = read(models, alone(archive / "embeddings.pti")).learned
    assert found is not None
    assert {name: found.triggers[name] for name in trained.triggers} == trained.triggers
    for name in ("embeddings.pti", *LORAS):
        (archive / name).unlink()
    with pytest.raises(WeightsError, match="2 files of the same kind"):
        read(models, archive)


def test_tokens_alone(models: Models, tmp_path: Path) -> None:
    trained = replace(make(models), lora={})
    names = {path.name for path in write_weights(tmp_path, trained, SAID)}
    assert names == {"embeddings.pti", "special_params.json", "TOK.safetensors"}
    tune = read(models, tmp_path)
    assert tune.changes == {}
    assert tune.learned is not None
    assert tune.left_out == ()


def test_a_whole_unet(models: Models, tmp_path: Path) -> None:
    """What was not changed by training is not changed by the file either; what was, to the precision of SDXL's own."""
    before = {name: value.detach().clone() for name, value in models.base.state_dict().items()}
    fine = {name: value + 1e-4 if "to_q" in name else value for name, value in before.items()}
    trained = replace(make(models), lora={}, unet=fine)
    names = {path.name for path in write_weights(tmp_path, trained, SAID)}
    assert names == {"unet.safetensors", "embeddings.pti", "special_params.json", "TOK.safetensors"}
    kind: Any = UNet2DConditionModel  # diffusers states no types here
    unet = kind.from_config(models.base.config)
    told = unet.load_state_dict(load_file(tmp_path / "unet.safetensors"), strict=False)
    assert not told.unexpected_keys
    assert not told.missing_keys
    tune = read(models, tmp_path)
    assert tune.whole
    assert tune.left_out == ()
    original = state(models)
    with slot_for(models) as slot:
        slot.set([(tune, 1.0)])
        assert {name.removeprefix("unet.") for name in changed(models, original)} == {
            name for name in before if "to_q" in name
        }
        for name, value in models.base.state_dict().items():
            torch.testing.assert_close(value, fine[name], rtol=2**-11, atol=2**-25)  # half a unit of float16


def test_the_same_training_gives_the_same_bytes(models: Models, tmp_path: Path) -> None:
    """In whatever order its layers came."""
    trained = make(models, feed_forward=True, triggers={"TOK": [0], "DOG": [1]})
    turned = replace(trained, lora=dict(reversed(list(trained.lora.items()))))
    for name, each in (("one", trained), ("two", turned)):
        write_weights(tmp_path / name, each, dict(reversed(SAID.items())) if name == "two" else SAID)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name
    first, second = trained.rows
    others = (replace(trained, alpha=2.0), replace(trained, rows=(first, second + 1)), make(models, feed_forward=True))
    assert trained.key == turned.key
    assert trained.key not in {each.key for each in others}


def test_headers_say_what_a_file_is(models: Models, tmp_path: Path) -> None:
    write_weights(tmp_path, make(models, alpha=2.0), SAID)
    for name in (*LORAS, "embeddings.pti", "TOK.safetensors"):
        said = header(tmp_path / name)
        assert {key: said[key] for key in ("trigger", "steps", "seed")} == {"trigger": "TOK", "steps": "7", "seed": "0"}
    said = header(tmp_path / "lora_kohya.safetensors")
    assert said["ss_network_dim"] == "4"
    assert said["ss_network_alpha"] == "2"
    assert said["ss_resolution"] == "(128, 128)"
    assert said["ss_base_model_version"] == "sdxl_base_v1-0"
    assert said["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert said["modelspec.trigger_phrase"] == "TOK"


def test_files_are_what_the_library_reads(models: Models, tmp_path: Path) -> None:
    """Names, types, alignment: the header is written by hand."""
    write_weights(tmp_path, make(models, alpha=1.5), SAID)
    kinds = {
        "lora.safetensors": {torch.float32},
        "lora_kohya.safetensors": {torch.float16, torch.float32},
        "lora_peft.safetensors": {torch.float16},
        "embeddings.pti": {torch.float32},
        "TOK.safetensors": {torch.float32},
    }
    for name, types in kinds.items():
        assert {value.dtype for value in load_file(tmp_path / name).values()} == types
        assert int.from_bytes((tmp_path / name).read_bytes()[:8], "little") % 8 == 0
    assert not list(tmp_path.glob("*.part"))
    save_tensors(tmp_path / "odd.safetensors", {"a": torch.ones(3), "b": torch.tensor(2.5)}, {}, torch.float16)
    assert float(load_file(tmp_path / "odd.safetensors")["b"]) == 2.5
    text = (tmp_path / "odd.safetensors").read_bytes()
    told = json.loads(text[8 : 8 + int.from_bytes(text[:8], "little")])
    assert told["b"]["data_offsets"] == [0, 4]  # a reader that maps it needs numbers at multiples of their size


def test_a_layer_without_its_neighbours_is_an_error(models: Models, tmp_path: Path) -> None:
    """The old runtime would leave random numbers in the place of what is not there."""
    trained = make(models)
    lora = {path: pair for path, pair in trained.lora.items() if not path.endswith("to_v")}
    with pytest.raises(ValueError, match="has no LoRA on some of its projections"):
        write_weights(tmp_path, replace(trained, lora=lora), SAID)


WORDS = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=LONGEST)
ODD = st.sampled_from(
    ["lora", "LORA", "unet", "embeddings", "con", "..", "a/b", "a\\b", "<s0>", "TOKEN", "tok", "TOK", "日", "ß"]
)


@given(st.lists(WORDS | ODD, min_size=1, max_size=12, unique=True))
def test_names_of_files_are_safe(triggers: list[str]) -> None:
    """On every system, beside all other files, and no two of them one; a plain word stays as it is."""
    names = file_names({trigger: [number] for number, trigger in enumerate(triggers)})
    assert list(names) == triggers
    assert len({name.casefold() for name in names.values()}) == len(triggers)
    for trigger, name in names.items():
        assert name.strip(" .")
        assert not set(name) & set('/\\:*?"<>|\0 ')
        assert len(f"{name}.safetensors".encode()) < 255
        assert not name.startswith((".", "_"))
        assert name.lower() not in {"lora", "lora_kohya", "lora_peft", "unet", "embeddings", "con"}
        assert trigger not in {"zeke", "old-dog"} or name == trigger
    assert file_names({"zeke": [0], "old-dog": [1]}) == {"zeke": "zeke", "old-dog": "old-dog"}


@given(st.lists(WORDS | ODD, min_size=1, max_size=12, unique=True), st.randoms(use_true_random=False))
def test_special_params_replace_what_they_should(triggers: list[str], rng: Any) -> None:
    """All are there, and none that is a part of another comes before it: that would spoil the longer one."""
    numbers = {trigger: rng.sample(range(40), rng.randint(1, 3)) for trigger in triggers}
    params = json.loads(json.dumps(special_params(numbers)))
    assert params == {trigger: "".join(f"<s{number}>" for number in own) for trigger, own in numbers.items()}
    order = list(params)
    for at, trigger in enumerate(order):
        assert not any(trigger in later and trigger != later for later in order[at + 1 :])


def test_odd_triggers_come_back(models: Models, tmp_path: Path) -> None:
    triggers = {"lora": [0], "a/b": [1], "A?B": [2], "TOK": [3], "tok": [4], "日本": [5], "..": [6]}
    trained = make(models, triggers=triggers)
    write_weights(tmp_path, trained, SAID)
    chosen = choose(tmp_path)
    assert chosen.weights is not None
    assert chosen.weights.path.name == "lora.safetensors"
    assert chosen.left_out == ()
    found = read(models, tmp_path).learned
    assert found is not None
    assert {name: found.triggers[name] for name in triggers} == triggers
    assert len(list(tmp_path.glob("*.safetensors"))) == len(LORAS) + len(triggers)


def test_the_golden_archive_again(models: Models, tmp_path: Path) -> None:
    """What the old runtime was proved with, written by this trainer: the very names, shapes, products and words."""
    old, new = tmp_path / "old", tmp_path / "new"
    with tarfile.open(ROOT / "tests" / "golden" / "replicate" / "trained_model.tar") as archive:
        archive.extractall(old, filter="data")
    theirs, rows = load_file(old / "lora.safetensors"), load_file(old / "embeddings.pti")
    factors = {
        re.sub(r"\.processor\.(to_\w+)_lora\.up\.weight", r".\1", key).replace("to_out", "to_out.0"): (
            theirs[key.replace(".up.", ".down.")],
            value,
        )
        for key, value in theirs.items()
        if ".up." in key
    }
    first, second = (rows[f"text_encoders_{number}"].float() for number in (0, 1))
    write_replicate(new, Trained(factors, 4.0, {}, (first, second), {"TOK": [0, 1]}), SAID)
    ours = load_file(new / "lora.safetensors")
    assert {key: (value.shape, value.dtype) for key, value in ours.items()} == {
        key: (value.shape, value.dtype) for key, value in theirs.items()
    }
    old_deltas, new_deltas = (OldLoader(models.base).deltas(each) for each in (theirs, ours))
    for name, delta in old_deltas.items():
        torch.testing.assert_close(new_deltas[name], delta, rtol=1e-3, atol=1e-5)
    assert (new / "special_params.json").read_bytes() == (old / "special_params.json").read_bytes()
    assert {path.name for path in new.iterdir()} == LEGACY
