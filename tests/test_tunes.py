"""The exporters of `tunes.py`, judged by loaders that are not ours: diffusers', PEFT's and the checkpoint converter."""

import copy
import json
import logging
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.loaders.lora_pipeline import StableDiffusionXLLoraLoaderMixin
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from diffusers.utils import logging as diffusers_logging
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from sdxl.models import Models
from tests import tunes
from tests.conftest import ROOT
from tests.tunes import EXPORTERS, TEXTS, UNET, WHERE, Factors

BASE = ROOT / "miniature" / "weights" / "base"
NEAR = 1e-5
READ_BY_DIFFUSERS = (
    "replicate",
    "kohya_diffusers",
    "kohya_sgm",
    "peft_diffusers",
    "old_diffusers_a",
    "old_diffusers_b",
)


class Pipe(StableDiffusionXLLoraLoaderMixin):
    """As much of a pipeline as diffusers' loader asks for, around a copy of the UNet and transformers' encoders."""

    def __init__(self, models: Models) -> None:
        self.unet: Any = copy.deepcopy(models.base)
        self.text_encoder: Any = CLIPTextModel.from_pretrained(BASE / "text_encoder", dtype=torch.float32)
        self.text_encoder_2: Any = CLIPTextModelWithProjection.from_pretrained(
            BASE / "text_encoder_2", dtype=torch.float32
        )
        self.components: dict[str, Any] = {}
        self.hf_device_map = None


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """diffusers says of every part that the file does not hold that it is not in the file."""
    before = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity(logging.CRITICAL)
    yield
    diffusers_logging.set_verbosity(before)


def seen(module: nn.Module) -> Tensor:
    """What a UNet makes of fixed noise, or a text encoder of fixed tokens."""
    generator = torch.Generator().manual_seed(1)
    config: Any = module.config
    with torch.no_grad():
        if not isinstance(module, UNet2DConditionModel):
            ids = torch.tensor([[config.bos_token_id, 5, 6, 7, config.bos_token_id + 1]])
            states: Tensor = module(ids, output_hidden_states=True).hidden_states[-1]
            return states
        latents, text, pooled = (
            torch.randn(*shape, generator=generator) for shape in ((1, 4, 16, 16), (1, 7, 160), (1, 96))
        )
        ids = torch.tensor([[128.0, 128, 0, 0, 128, 128]])
        out: Tensor = module(latents, 500, text, added_cond_kwargs={"text_embeds": pooled, "time_ids": ids}).sample
        return out


def distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


def widest(where: str) -> str:
    """The widest that diffusers reads in full: of `lora_unet_add_embedding_…` it drops what it cannot name."""
    return min(where, "conv too", key=WHERE.index)


@pytest.mark.parametrize("alpha", [None, 1.5])
@pytest.mark.parametrize("name", READ_BY_DIFFUSERS)
def test_diffusers_reads_every_dialect_the_same(name: str, alpha: float | None, models: Models, tmp_path: Path) -> None:
    dialect = EXPORTERS[name]
    where = widest(dialect.where) if name == "kohya_diffusers" else dialect.where
    lora = tunes.make_lora(models, where=where, alpha=alpha)
    tensors = dialect.write(lora)
    if name == "replicate":
        tensors = {f"unet.{key}": value for key, value in tensors.items()}
    path = tunes.save(tmp_path, tensors, dialect.metadata(lora))
    pipe = Pipe(models)
    pipe.load_lora_weights(str(tmp_path), weight_name=path.name)
    wanted = seen(tunes.merged(models.base, lora, UNET))
    assert distance(seen(pipe.unet), wanted) < NEAR
    assert 0.05 < distance(seen(models.base), wanted) < 0.5


@pytest.mark.parametrize("alpha", [None, 1.5])
@pytest.mark.parametrize("name", [name for name in READ_BY_DIFFUSERS if EXPORTERS[name].texts])
def test_text_encoders_too(name: str, alpha: float | None, models: Models, tmp_path: Path) -> None:
    dialect = EXPORTERS[name]
    where = min(dialect.where, "all linear", key=WHERE.index)
    lora = tunes.make_lora(models, parts=(UNET, *TEXTS), where=where, alpha=alpha)
    path = tunes.save(tmp_path, dialect.write(lora), dialect.metadata(lora))
    pipe = Pipe(models)
    pipe.load_lora_weights(str(tmp_path), weight_name=path.name)
    for part in (UNET, *TEXTS):
        original = tunes.part_of(models, part)
        wanted = seen(tunes.merged(original, lora, part))
        assert distance(seen(getattr(pipe, part)), wanted) < NEAR, part
        assert distance(seen(original), wanted) > 0.05, part


def test_ranks_and_alphas_may_differ_from_layer_to_layer(models: Models, tmp_path: Path) -> None:
    """Not so of kohya's files: diffusers 0.42 drops an attention layer's alpha that is not the usual one."""
    lora = tunes.make_lora(models, where="attention", alpha=2.0)
    lora |= {key: layer for key, layer in tunes.make_lora(models, rank=3, alpha=5.0).items() if "attn2" in key[1]}
    path = tunes.save(tmp_path, tunes.peft_diffusers(lora), tunes.peft_metadata(lora))
    pipe = Pipe(models)
    pipe.load_lora_weights(str(tmp_path), weight_name=path.name)
    assert distance(seen(pipe.unet), seen(tunes.merged(models.base, lora, UNET))) < NEAR
    with pytest.raises(RuntimeWarning, match="alpha_pattern keys did not match"):
        Pipe(models).load_lora_weights(tunes.kohya_sgm(lora))


def test_peft_itself_reads_its_own(models: Models, tmp_path: Path) -> None:
    lora = tunes.make_lora(models, where="everything", alpha=1.5)
    tunes.save(tmp_path, tunes.peft_raw(lora), {"format": "pt"}, "adapter_model")
    (tmp_path / "adapter_config.json").write_text(json.dumps(tunes.peft_config(lora)))
    model: Any = PeftModel.from_pretrained(copy.deepcopy(models.base), str(tmp_path))
    assert distance(seen(model.base_model.model), seen(tunes.merged(models.base, lora, UNET))) < NEAR
    live = {key for key in model.state_dict() if ".lora_" in key}
    assert set(tunes.peft_raw(lora, "default")) == live
    model.save_pretrained(str(tmp_path / "again"))
    assert set(load_file(tmp_path / "again" / "adapter_model.safetensors")) == set(tunes.peft_raw(lora))


def test_a_header_is_what_diffusers_writes(models: Models, tmp_path: Path) -> None:
    """Key for key, and with the same meaning: what `save_lora_weights` writes of the adapter that it loaded."""
    from diffusers.training_utils import _collate_lora_metadata
    from peft.utils import get_peft_model_state_dict
    from safetensors import safe_open

    lora = tunes.make_lora(models, alpha=1.5)
    path = tunes.save(tmp_path, tunes.peft_diffusers(lora), tunes.peft_metadata(lora))
    pipe = Pipe(models)
    pipe.load_lora_weights(str(tmp_path), weight_name=path.name)
    StableDiffusionXLPipeline.save_lora_weights(
        tmp_path / "again", get_peft_model_state_dict(pipe.unet, adapter_name="default_0")
    )
    written = load_file(tmp_path / "again" / "pytorch_lora_weights.safetensors")
    assert set(written) == set(load_file(path))
    pipe.unet.peft_config["default"] = pipe.unet.peft_config["default_0"]
    with safe_open(path, "pt") as file:
        ours = json.loads(file.metadata()["lora_adapter_metadata"])
    theirs = _collate_lora_metadata({UNET: pipe.unet})
    assert {f"{UNET}.{key}" for key in theirs[f"{UNET}_lora_adapter_metadata"]} == set(ours)


def _as_checkpoint(names: Iterable[str]) -> dict[str, Tensor]:
    """A checkpoint's UNet that holds, under each published name, that name's number."""
    kinds = ("weight", "bias")
    return {f"model.diffusion_model.{name}.{kind}": torch.tensor(i) for i, name in enumerate(names) for kind in kinds}


@pytest.mark.parametrize("model", ["SDXL 1.0", "miniature"])
def test_sgm_names_are_the_checkpoints(model: str, models: Models) -> None:
    """diffusers' converter of whole checkpoints, which knows nothing of LoRAs, gives every name back."""
    unet = models.base if model == "miniature" else genuine()
    config: Any = unet.config
    names = {path: tunes.sgm(path, config.layers_per_block) for path in tunes.layers(unet, "everything")}
    converted = convert_ldm_unet_checkpoint(  # type: ignore[no-untyped-call]
        _as_checkpoint(names.values()), dict(config)
    )
    back = {key.removesuffix(".weight"): int(value) for key, value in converted.items() if key.endswith(".weight")}
    assert back == {path: i for i, path in enumerate(names)}


def genuine() -> Any:
    """SDXL 1.0's UNet without numbers."""
    loader: Any = UNet2DConditionModel
    with torch.device("meta"):
        return loader.from_config(loader.load_config(ROOT / "sdxl" / "configs" / "base" / "unet"))


def test_sdxl_has_the_names_that_sd_scripts_writes() -> None:
    empty = Factors(torch.zeros(1, 1), torch.zeros(1, 1), None)
    unet = genuine()

    def kohya(where: str) -> set[str]:
        tensors = tunes.kohya_sgm({(UNET, path): empty for path in tunes.layers(unet, where)}, per_block=2)
        return {key.split(".")[0] for key in tensors}

    assert len(kohya("attention")) == 560
    assert len(kohya("all linear")) == 722
    assert {"lora_unet_input_blocks_4_1_proj_in", "lora_unet_output_blocks_5_1_transformer_blocks_1_ff_net_2"} <= kohya(
        "all linear"
    )
    # Of a LyCORIS file in the wild: github.com/comfyanonymous/ComfyUI/issues/3060
    assert {
        "lora_unet_output_blocks_2_1_transformer_blocks_9_attn2_to_out_0",
        "lora_unet_output_blocks_2_2_conv",
        "lora_unet_output_blocks_3_0_emb_layers_1",
        "lora_unet_output_blocks_3_0_in_layers_2",
        "lora_unet_output_blocks_3_0_out_layers_3",
        "lora_unet_output_blocks_3_0_skip_connection",
        "lora_unet_input_blocks_3_0_op",
    } <= kohya("conv too")
    assert len(tunes.replicate({(UNET, path): empty for path in tunes.layers(unet, "attention")})) == 1120


def test_comfy_is_the_same_names_with_dots(models: Models) -> None:
    lora = tunes.make_lora(models, parts=(UNET, *TEXTS), where="conv too")
    dotted = {key.split(".lora_")[0] for key in tunes.comfy(lora)}
    stems = {"diffusion_model.": "lora_unet_", "text_encoders.clip_l.transformer.": "lora_te1_"}
    stems["text_encoders.clip_g.transformer."] = "lora_te2_"
    flat = {
        key.replace(old, new, 1).replace(".", "_")
        for key in dotted
        for old, new in stems.items()
        if key.startswith(old)
    }
    assert flat == {key.split(".")[0] for key in tunes.kohya_sgm(lora)}


@pytest.mark.parametrize("gz", [False, True])
def test_the_archive(gz: bool, models: Models, tmp_path: Path) -> None:
    lora = tunes.make_lora(models, alpha=2.0)
    rows = (torch.randn(2, 64), torch.randn(2, 96))
    with tarfile.open(tunes.replicate_tar(tmp_path / "a.tar", lora, rows, nested="out/put", gz=gz)) as archive:
        archive.extractall(tmp_path, filter="data")
    folder = tmp_path / "out" / "put"
    assert {file.name for file in folder.iterdir()} == {"lora.safetensors", "embeddings.pti", "special_params.json"}
    assert json.loads((folder / "special_params.json").read_text()) == {"TOK": "<s0><s1>"}
    pti = load_file(folder / "embeddings.pti")
    assert [(pti[f"text_encoders_{i}"].dtype, pti[f"text_encoders_{i}"].shape) for i in (0, 1)] == [
        (torch.bfloat16, rows[0].shape),
        (torch.bfloat16, rows[1].shape),
    ]
    assert not any("alpha" in key or key.startswith("unet.") for key in load_file(folder / "lora.safetensors"))


def test_peft_writes_the_alpha_as_it_was_given() -> None:
    config: Any = LoraConfig(r=4, lora_alpha=1.5, target_modules=["to_q"])  # type: ignore[arg-type]
    assert config.to_dict()["lora_alpha"] == 1.5
