"""One fine-tune in every format gives one picture; what is no SDXL fine-tune is refused in one sentence."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoHaConfig, LoKrConfig, get_peft_model
from safetensors.torch import save_file
from torch import Tensor

from errors import WeightsError
from sdxl.files import TunedFiles
from sdxl.finetune.formats import FineTune, Reader
from sdxl.finetune.names import index
from sdxl.models import Models
from tests import tunes
from tests.conftest import ROOT
from tests.foreign_tunes import FOREIGN
from tests.lycoris_tunes import CASES, lycoris_files, peft_dora, unfused
from tests.painting import difference, picture
from tests.tuned import CPU, changed, read, read_tensors, slot_for, state, weight_of

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
    theirs, before = lycoris_files(unet, **CASES[case]), state(models)
    with slot_for(models) as slot:
        slot.set([(read_tensors(models, tmp_path, theirs.tensors), 1.0)])
        for name, weight in theirs.merged.items():
            torch.testing.assert_close(models.base.state_dict()[name], weight, rtol=1e-4, atol=1e-5, msg=name)
        untouched = {f"unet.{name}" for name in models.base.state_dict().keys() - theirs.merged.keys()}
        assert untouched.isdisjoint(changed(models, before))


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
    for inside in (flat, nested / "output" / "x"):
        inside.mkdir(parents=True)
        save_file(tunes.replicate(lora), inside / "lora.safetensors")
        save_file({"text_encoders_0": rows[0], "text_encoders_1": rows[1]}, inside / "embeddings.pti")
        (inside / "special_params.json").write_text(json.dumps({"TOK": "<s0><s1>"}))
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
    key = next(iter(lora))
    with slot_for(models) as slot:
        wanted = weight_of(models, *key) + lora[key].delta
        slot.set([(tune, 1.0)])
        torch.testing.assert_close(weight_of(models, *key), wanted, rtol=1e-2, atol=1e-3)


def test_lycoris_counts_alpha_once(models: Models, tmp_path: Path) -> None:
    """Its merge takes alpha / rank of LoHa and LoKr twice, what it trains and runs takes it once."""
    unet: Any = models.base
    latents, inputs = (
        torch.randn(1, 4, 16, 16),
        {
            "encoder_hidden_states": torch.randn(1, 77, 160),
            "added_cond_kwargs": {"text_embeds": torch.randn(1, 96), "time_ids": torch.ones(1, 6)},
        },
    )
    for algo in ("loha", "lokr", "locon"):
        theirs: Any = lycoris_files(unet, algo, rank=2, alpha=0.5)
        tune = read_tensors(models, tmp_path / algo, theirs.tensors)
        with torch.no_grad(), slot_for(models) as slot:
            slot.set([(tune, 1.0)])
            ours = unet(latents, 500, **inputs).sample
            torch.testing.assert_close(ours, theirs.attached(latents, 500, **inputs).sample, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["LoHa", "LoKr", "LoKr, whole"])
def test_peft_s_loha_and_lokr(models: Models, tmp_path: Path, kind: str) -> None:
    """They state alpha in adapter_config.json alone, and count it for whole halves too."""
    settings: dict[str, Any] = {"r": 100 if "whole" in kind else 4, "alpha": 16, "target_modules": ["to_q", "to_v"]}
    config: Any = LoHaConfig(**settings) if kind == "LoHa" else LoKrConfig(**settings)
    model: Any = get_peft_model(copy.deepcopy(models.base), config)
    generator = torch.Generator().manual_seed(2)
    for name, value in model.named_parameters():
        if "hada_" in name or "lokr_" in name:
            value.data = 0.2 * torch.randn(value.shape, generator=generator)
    model.save_pretrained(tmp_path)
    tune = read(models, tmp_path)
    merged = model.merge_and_unload().state_dict()
    with slot_for(models) as slot:
        slot.set([(tune, 1.0)])
        for name, weight in models.base.state_dict().items():
            torch.testing.assert_close(weight, merged[name], rtol=1e-4, atol=1e-5)


def test_side_files_count_for_the_file_beside_them(models: Models, tmp_path: Path) -> None:
    """A checkpoint in a deeper folder, with a config and a trigger of its own, changes nothing."""
    lora = tunes.folded(tunes.make_lora(models))
    rows = {"text_encoders_0": torch.randn(1, 64), "text_encoders_1": torch.randn(1, 96)}
    for folder, trigger in ((tmp_path, "TOK"), (tmp_path / "checkpoint-500", "OLD")):
        tunes.save(folder, tunes.replicate(lora))
        save_file(rows, folder / "embeddings.pti")
        (folder / "special_params.json").write_text(json.dumps({trigger: "<s0>"}))
    (tmp_path / "checkpoint-500" / "adapter_config.json").write_text(json.dumps({"lora_alpha": 400, "r": 4}))
    tune = read(models, tmp_path)
    assert tune.learned is not None
    assert "TOK" in tune.learned.triggers
    assert "OLD" not in tune.learned.triggers
    assert set(tune.left_out) == {"checkpoint-500/lora.safetensors", "checkpoint-500/embeddings.pti"}
    key = next(iter(lora))
    with slot_for(models) as slot:
        wanted = weight_of(models, *key) + lora[key].delta
        slot.set([(tune, 1.0)])
        torch.testing.assert_close(weight_of(models, *key), wanted, rtol=1e-4, atol=1e-5)


def test_endings_in_capitals(models: Models, tmp_path: Path) -> None:
    tunes.save(tmp_path, tunes.kohya_sgm(tunes.make_lora(models))).rename(tmp_path / "LORA.SAFETENSORS")
    assert read(models, tmp_path).changes


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.tensor(float("nan")), "alpha that is no number"),
        (torch.tensor(float("inf")), "alpha that is no number"),
        (torch.tensor([1.0, 2.0]), "does not fit"),
        (torch.zeros(0), "does not fit"),
    ],
)
def test_an_alpha_that_is_none(models: Models, tmp_path: Path, value: Tensor, words: str) -> None:
    tensors, key = first_key(models)
    with pytest.raises(WeightsError, match=words):
        read_tensors(models, tmp_path, tensors | {key.replace("lora_up.weight", "alpha"): value})


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"lora_alpha": "x"}, "lora_alpha is 'x' and no number"),
        ({"lora_alpha": float("nan")}, "alpha that is no number"),
        ({"lora_alpha": True}, "lora_alpha is True and no number"),
        ({"lora_alpha": 4, "alpha_pattern": ["x"]}, "alpha_pattern is no JSON object"),
        ({"lora_alpha": 4, "alpha_pattern": {"(\\w+\\.?)+!": 1}}, "is no path of a layer"),
        ({"lora_alpha": 4, "alpha_pattern": {"(": 1}}, "is no path of a layer"),
    ],
)
def test_a_config_that_is_none(models: Models, tmp_path: Path, config: dict[str, Any], words: str) -> None:
    folder = write(tmp_path, "peft_raw", tunes.make_lora(models))
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=words):
        read(models, folder)


HOSTILE: list[dict[str, Tensor]] = [
    {"lokr_w1": torch.ones(2, 2), "lokr_w2_a": torch.ones(200_000, 1), "lokr_w2_b": torch.ones(1, 200_000)},
    {"hada_w1_a": torch.ones(200_000, 1), "hada_w1_b": torch.ones(1, 200_000)}
    | {"hada_w2_a": torch.ones(200_000, 1), "hada_w2_b": torch.ones(1, 200_000)},
    {"lora_up.weight": torch.ones(200_000, 1), "lora_down.weight": torch.ones(1, 200_000)},
    {"lora_up.weight": torch.ones(64, 9000), "lora_down.weight": torch.ones(9000, 64)},
    {"lora_up.weight": torch.ones(64, 0), "lora_down.weight": torch.ones(0, 64)},
    {"lora_up.weight": torch.tensor(1.0), "lora_down.weight": torch.ones(64)},
    {"lora_up.weight": torch.ones(64, 1, dtype=torch.bool), "lora_down.weight": torch.ones(1, 64)},
    {"lora_up.weight": torch.ones(64, 1, dtype=torch.complex64), "lora_down.weight": torch.ones(1, 64)},
    {"oft_blocks": torch.ones(2, 2, 2, 2)},
    {"on_input": torch.ones(3), "weight": torch.ones(64)},
]


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_what_cannot_be_asks_for_no_memory(models: Models, tmp_path: Path, number: int) -> None:
    """Whatever a file's factors would make of themselves, 160 GB of it here, is found out without data."""
    name = "lora_unet_middle_block_1_proj_in"
    with pytest.raises(WeightsError, match="the file: "):
        read_tensors(models, tmp_path, {f"{name}.{role}": tensor for role, tensor in HOSTILE[number].items()})


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("home", [torch.float32, torch.float16])
def test_factors_of_every_type(models: Models, tmp_path: Path, dtype: torch.dtype, home: torch.dtype) -> None:
    tensors = {name: tensor.to(dtype) for name, tensor in tunes.kohya_sgm(tunes.make_lora(models)).items()}
    tunes.save(tmp_path, tensors)
    files = TunedFiles("key", tmp_path, "", "the file")
    for change in Reader.of(models.parts, CPU, home).read(files).changes.values():
        assert {tensor.dtype for tensor in change.tensors()} == {home}


def test_tokens_of_every_layout(models: Models, tmp_path: Path) -> None:
    """A lone embedding answers to its file's name, or to what its header says; OneTrainer bundles them with a LoRA."""
    rows = {"clip_l": torch.randn(2, 64), "clip_g": torch.randn(2, 96)}
    alone = read_tensors(models, tmp_path / "alone", rows)
    assert alone.learned is not None
    assert alone.changes == {}
    assert set(alone.learned.triggers) == {"<s0>", "<s1>"}
    tunes.save(tmp_path / "named", rows)
    named = read(models, tmp_path / "named", name="zeke")
    assert named.learned is not None
    assert named.learned.triggers["zeke"] == [0, 1]
    assert named.learned.pooled_at == "end"
    header = read_tensors(models, tmp_path / "header", rows, trigger="ohwx", pooled_at="token")
    assert header.learned is not None
    assert header.learned.triggers["ohwx"] == [0, 1]
    assert header.learned.pooled_at == "token"
    bundle = {f"bundle_emb.cat.{name}": tensor.clone() for name, tensor in rows.items()}
    lora = tunes.kohya_sgm(tunes.make_lora(models))
    bundled = read_tensors(models, tmp_path / "bundled", lora | bundle)
    assert bundled.learned is not None
    assert bundled.learned.triggers == {"cat": [0, 1]}
    assert len(bundled.changes) * 2 == len(lora)
    torch.testing.assert_close(bundled.learned.rows[1], rows["clip_g"])
    both = read_tensors(models, tmp_path / "both", lora | bundle | rows)
    assert both.learned is not None
    assert both.learned.triggers == {"<s0>": [0], "<s1>": [1], "cat": [2, 3]}


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"clip_g": torch.ones(1, 96)}, "for one text encoder only"),
        ({"clip_l": torch.ones(1, 768), "clip_g": torch.ones(1, 1280)}, "reads rows of 64"),
        ({"clip_l": torch.ones(2, 64), "clip_g": torch.ones(1, 96)}, "token rows are 2x64 and 1x96"),
        ({"clip_l": torch.full((1, 64), float("nan")), "clip_g": torch.ones(1, 96)}, "no numbers"),
        ({"clip_l": torch.ones(1, 64), "clip_g": torch.ones(1, 96), "extra": torch.ones(1)}, "first 'extra'"),
        ({"clip_l": torch.ones(1001, 64), "clip_g": torch.ones(1001, 96)}, "1000 are the most"),
    ],
)
def test_tokens_that_cannot_be(models: Models, tmp_path: Path, tensors: dict[str, Tensor], words: str) -> None:
    with pytest.raises(WeightsError, match=words):
        read_tensors(models, tmp_path, tensors)


@pytest.mark.parametrize(
    ("special", "words"),
    [
        ({f"w{number}": "<s0>" for number in range(200)}, "100 and 1000 are the most"),
        ({"x" * 200: "<s0>"}, "is no word to call a token by"),
        ({"a\nb": "<s0>"}, "is no word to call a token by"),
        ({"TOK": "<s7>"}, "there are 1 tokens; write <s0> to <s0>"),
        ({"TOK": 5}, "the meaning '5'"),
        ({"TOK": "<s" + "9" * 5000 + ">"}, "the meaning"),
    ],
)
def test_words_that_cannot_be(models: Models, tmp_path: Path, special: dict[str, Any], words: str) -> None:
    save_file({"text_encoders_0": torch.ones(1, 64), "text_encoders_1": torch.ones(1, 96)}, tmp_path / "embeddings.pti")
    (tmp_path / "special_params.json").write_text(json.dumps(special))
    with pytest.raises(WeightsError, match=words):
        read(models, tmp_path)


def test_a_full_unet_under_a_lora_whatever_their_order(models: Models, tmp_path: Path) -> None:
    full = {name: tensor + 0.01 for name, tensor in models.base.state_dict().items() if "to_q" in name}
    save_file(full, tmp_path / "unet.safetensors")
    whole, lora = read(models, tmp_path), tunes.make_lora(models)
    added = read_tensors(models, tmp_path / "lora", tunes.kohya_sgm(lora))
    key = next(key for key in lora if key[1].endswith("to_q"))
    wanted = full[f"{key[1]}.weight"] + lora[key].delta
    with slot_for(models) as slot:
        for used in ([(whole, 1.0), (added, 1.0)], [(added, 1.0), (whole, 1.0)]):
            slot.set(used)
            torch.testing.assert_close(weight_of(models, *key), wanted, rtol=1e-4, atol=1e-5)
