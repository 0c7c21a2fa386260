"""One fine-tune in every format gives one picture; what is no SDXL fine-tune is refused in one sentence."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from errors import WeightsError
from sdxl.finetune.formats import FineTune
from sdxl.finetune.names import index
from sdxl.models import Models
from tests import tunes
from tests.conftest import ROOT
from tests.foreign_tunes import FOREIGN
from tests.lycoris_tunes import CASES, lycoris_files, peft_dora, unfused
from tests.painting import difference, picture
from tests.tuned import read, read_tensors, slot_for, weight_of

STEPS: dict[str, Any] = {"num_inference_steps": 4}
SCALE = 0.7


def write(folder: Path, name: str, lora: tunes.Lora) -> Path:
    """The LoRA in a dialect, with the file that PEFT puts beside its own."""
    dialect = tunes.EXPORTERS[name]
    exported = tunes.folded(lora) if name == "replicate" else lora
    tunes.save(folder, dialect.write(exported), dialect.metadata(exported))
    if name.startswith("peft_raw"):
        (folder / "adapter_config.json").write_text(json.dumps(tunes.peft_config(lora)))
    return folder


def drawn(models: Models, *used: tuple[FineTune, float]) -> Any:
    with slot_for(models) as slot:
        slot.set(used)
        return picture(models, **STEPS)


@pytest.mark.parametrize("alpha", [None, 2.0])
def test_one_lora_in_every_format_gives_one_picture(models: Models, tmp_path: Path, alpha: float | None) -> None:
    """Attention of the UNet: what every dialect can hold. And that picture is PEFT's, unfused."""
    lora = tunes.make_lora(models, alpha=alpha)
    plain = picture(models, **STEPS)
    unfused = peft_picture(models, lora)
    assert difference(plain, unfused) > 20
    for name in tunes.EXPORTERS:
        tune = read(models, write(tmp_path / name, name, lora))
        assert difference(drawn(models, (tune, SCALE)), unfused) <= 1, name
    assert difference(picture(models, **STEPS), plain) == 0


def peft_picture(models: Models, lora: tunes.Lora) -> Any:
    """With PEFT's layers in the UNet, their weights not merged."""
    attached: Any = unfused(models.base, lora, SCALE)
    return picture(replace(models, base=attached), **STEPS)


@pytest.mark.parametrize("name", [name for name, dialect in tunes.EXPORTERS.items() if dialect.texts])
def test_text_encoders_and_every_layer(models: Models, tmp_path: Path, name: str) -> None:
    where = tunes.EXPORTERS[name].where
    lora = tunes.make_lora(models, parts=models.parts, where=where, alpha=3.0, rank=6)
    tune = read(models, write(tmp_path, name, lora))
    wanted = {key: weight_of(models, *key) + SCALE * factors.delta for key, factors in lora.items()}
    with slot_for(models) as slot:
        slot.set([(tune, SCALE)])
        for key, weight in wanted.items():
            torch.testing.assert_close(weight_of(models, *key), weight, rtol=1e-5, atol=1e-6)


def test_names_of_the_genuine_unet() -> None:
    """Every linear layer that sd-scripts trains in SDXL 1.0 is found under its SGM name, and all names are its own."""
    from diffusers import UNet2DConditionModel

    config = json.loads((ROOT / "sdxl" / "configs" / "base" / "unet" / "config.json").read_text())
    kind: Any = UNet2DConditionModel  # diffusers states no types here
    with torch.device("meta"):
        unet = kind.from_config(config)
    names = index({"unet": unet})
    paths = list(tunes.layers(unet, "all linear"))
    assert len(paths) == 722
    for path in tunes.layers(unet, "everything"):
        for written in (path, tunes.sgm(path, per_block=2)):
            assert names["lora_unet_" + written.replace(".", "_")].path == path
    assert str(names["lora_unet_input_blocks_4_1_proj_in"]) == "unet.down_blocks.1.attentions.0.proj_in"


@pytest.mark.parametrize("case", list(CASES))
def test_lycoris_is_what_lycoris_makes_of_it(models: Models, tmp_path: Path, case: str) -> None:
    """Every weight as the library itself would merge it, or, where its merge differs from what it trains, runs it."""
    unet: Any = models.base
    theirs = lycoris_files(unet, **CASES[case])
    with slot_for(models) as slot:
        slot.set([(read_tensors(models, tmp_path, theirs.tensors), 1.0)])
        for name, weight in theirs.merged.items():
            torch.testing.assert_close(models.base.state_dict()[name], weight, rtol=1e-4, atol=1e-5, msg=name)
        unchanged = models.base.state_dict().keys() - theirs.merged.keys()
        assert unchanged


@pytest.mark.parametrize("names", ["sgm", "diffusers", "simpletuner"])
def test_lycoris_under_the_names_of_its_trainers(models: Models, tmp_path: Path, names: str) -> None:
    unet: Any = models.base
    tune = read_tensors(models, tmp_path, lycoris_files(unet, "lokr", names=names).tensors)
    assert len(tune.changes) > 100


def test_dora_of_peft(models: Models, tmp_path: Path) -> None:
    unet: Any = models.base
    theirs = peft_dora(unet)
    with slot_for(models) as slot:
        config = {"unet.lora_alpha": 3.0, "unet.r": 4}
        tune = read_tensors(models, tmp_path, theirs.tensors, lora_adapter_metadata=json.dumps(config))
        slot.set([(tune, 1.0)])
        for name, weight in theirs.merged.items():
            torch.testing.assert_close(models.base.state_dict()[name], weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", list(FOREIGN))
def test_what_is_for_another_model_is_said(models: Models, tmp_path: Path, name: str) -> None:
    foreign = FOREIGN[name]
    tensors = {key: tensor.contiguous() for key, tensor in foreign.tensors.items()}
    with pytest.raises(WeightsError) as caught:
        read_tensors(models, tmp_path, tensors)
    assert (foreign.called or ("fit" if tensors else "no tensors")) in str(caught.value)
    assert not tensors or any(key in str(caught.value) for key in tensors)


def test_replicate_tar_layouts_are_one(models: Models, tmp_path: Path) -> None:
    lora = tunes.folded(tunes.make_lora(models))
    rows = (torch.randn(2, 64).bfloat16(), torch.randn(2, 96).bfloat16())
    flat, nested = tmp_path / "flat", tmp_path / "nested"
    for folder, inside in ((flat, flat), (nested, nested / "output" / "x")):
        inside.mkdir(parents=True)
        save_file(tunes.replicate(lora), inside / "lora.safetensors")
        save_file({"text_encoders_0": rows[0], "text_encoders_1": rows[1]}, inside / "embeddings.pti")
        (inside / "special_params.json").write_text(json.dumps({"TOK": "<s0><s1>"}))
        assert folder.exists()
    for folder in (flat, nested):
        tune = read(models, folder)
        assert tune.learned is not None
        assert tune.learned.triggers == {"TOK": [0, 1], "<s0>": [0], "<s1>": [1]}
        assert tune.learned.pooled_at == "token"
        assert len(tune.changes) == len(lora)
        assert torch.equal(tune.learned.rows[1], rows[1].float())


def test_a_full_unet_replaces_what_it_holds(models: Models, tmp_path: Path) -> None:
    """As the public trainer leaves it: without norms and time layers. At scale 1 the weights are exactly its own."""
    full = {
        name: (tensor + 0.01 * torch.randn_like(tensor)).bfloat16()
        for name, tensor in models.base.state_dict().items()
        if "norm" not in name and "time" not in name
    }
    save_file(full, tmp_path / "unet.safetensors")
    tune = read(models, tmp_path)
    assert tune.whole
    with slot_for(models) as slot:
        slot.set([(tune, 1.0)])
        now = models.base.state_dict()
        assert all(torch.equal(now[name], tensor.float()) for name, tensor in full.items())
        slot.set([(tune, 0.5)])
        half = models.base.state_dict()["conv_in.weight"].clone()
    torch.testing.assert_close(half, (models.base.conv_in.weight + full["conv_in.weight"].float()) / 2)


def test_several_add_up_with_their_scales(models: Models, tmp_path: Path) -> None:
    loras = [tunes.make_lora(models, rank=rank, seed=rank, alpha=1.0) for rank in (2, 3, 5)]
    scales = (0.5, -1.5, 2.0)
    used = [
        (read(models, write(tmp_path / str(number), "kohya_sgm", lora)), scale)
        for number, (lora, scale) in enumerate(zip(loras, scales, strict=True))
    ]
    wanted = {
        key: weight_of(models, *key) + sum(s * lora[key].delta for lora, s in zip(loras, scales, strict=True))
        for key in loras[0]
    }
    with slot_for(models) as slot:
        slot.set(used)
        for key, weight in wanted.items():
            torch.testing.assert_close(weight_of(models, *key), weight, rtol=1e-4, atol=1e-5)


def test_scale_0_is_the_base(models: Models, tmp_path: Path) -> None:
    tune = read(models, write(tmp_path, "kohya_sgm", tunes.make_lora(models)))
    with slot_for(models) as slot:
        assert slot.set([(tune, 0.0)]) is False


def test_alpha_out_of_the_header_and_out_of_the_config(models: Models, tmp_path: Path) -> None:
    """diffusers states alpha in the header, PEFT in a file beside; rsLoRA divides by the root of the rank."""
    lora = tunes.make_lora(models, rank=4, alpha=8.0)
    config = tunes.peft_config(lora) | {"use_rslora": True}
    folder = write(tmp_path, "peft_raw", lora)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    tune = read(models, folder)
    key = next(iter(lora))
    with slot_for(models) as slot:
        pristine = weight_of(models, *key).clone()
        slot.set([(tune, 1.0)])
        delta = weight_of(models, *key) - pristine
    torch.testing.assert_close(delta, lora[key].delta * 2, rtol=1e-4, atol=1e-5)  # 8 / sqrt(4) = 2 x 8 / 4


def first_key(models: Models) -> tuple[dict[str, Tensor], str]:
    tensors = tunes.kohya_sgm(tunes.make_lora(models, alpha=1.0))
    return tensors, next(name for name in tensors if name.endswith("lora_up.weight"))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda t, k: t.pop(k), "has alpha, down but no up; the file is incomplete"),
        (lambda t, k: t.update({k: t[k].T.contiguous()}), "does not fit SDXL's"),
        (lambda t, k: t.update({k: t[k][:-1].contiguous()}), "does not fit SDXL's"),
        (lambda t, k: t.update({k: torch.full_like(t[k], float("nan"))}), "no numbers"),
        (lambda t, k: t.update({"lora_unet_nonsense.lora_up.weight": t[k]}), "1 of its 241 tensors fit no layer"),
        (lambda t, k: t.update({k.replace("lora_up", "lora_other"): t[k]}), "fit no layer"),
        (lambda t, k: t.update({k.replace("lora_up.weight", "a1.weight"): t[k]}), "GLoRA, which cannot be folded"),
        (lambda t, k: t.update({k.replace("lora_up.weight", "bias_values"): t[k]}), "sparse bias"),
        (lambda t, k: t.update({k.replace("lora_up.weight", "lora.up.weight"): t[k]}), "has up of"),
        (lambda t, k: t.update({k.replace("lora_up.weight", "diff_b"): t[k][:, 0]}), "this layer has none"),
    ],
)
def test_what_is_damaged_is_refused_whole(models: Models, tmp_path: Path, damage: Any, words: str) -> None:
    tensors, key = first_key(models)
    damage(tensors, key)
    with pytest.raises(WeightsError, match=words) as caught:
        read_tensors(models, tmp_path, {name: tensor.clone() for name, tensor in tensors.items()})
    assert str(caught.value).startswith("the file: ")
    assert str(caught.value).count(". ") == 0


def test_several_files_of_one_kind_are_not_guessed(models: Models, tmp_path: Path) -> None:
    lora = tunes.make_lora(models)
    for name in ("one", "two"):
        tunes.save(tmp_path, tunes.kohya_sgm(lora), name=name)
    with pytest.raises(WeightsError, match=r"2 files of the same kind \(one.safetensors, two.safetensors\)"):
        read(models, tmp_path)
    tunes.save(tmp_path, tunes.replicate(lora), name="lora")
    assert len(read(models, tmp_path).changes) == len(lora)


def test_the_miniature_s_files_are_read_in_half_precision_too(models: Models, tmp_path: Path) -> None:
    lora = tunes.make_lora(models)
    tensors = {name: tensor.half() for name, tensor in tunes.kohya_sgm(lora).items()}
    tune = read_tensors(models, tmp_path, tensors)
    assert load_file(tmp_path / "lora.safetensors").keys() == tensors.keys()
    key = next(iter(lora))
    with slot_for(models) as slot:
        wanted = weight_of(models, *key) + lora[key].delta
        slot.set([(tune, 1.0)])
        torch.testing.assert_close(weight_of(models, *key), wanted, rtol=1e-2, atol=1e-3)
