"""What LyCORIS and PEFT themselves make of a UNet: the file they save, the weights they merge, the UNet they run.

Prefixes: sd-scripts with LyCORIS saves `lora_unet_` and the published checkpoint's block names for SDXL,
OneTrainer `lora_unet_` and diffusers' names, SimpleTuner (LyCORIS' own wrapper) `lycoris_` and diffusers' names.
"""

import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from lycoris import LycorisNetwork, create_lycoris
from lycoris.logging import logger
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn

from tests import tunes
from tests.tunes import UNET, Lora, Tensors

NAMES: dict[str, Callable[[str], str]] = {
    "sgm": lambda path: "lora_unet_" + tunes.sgm(path).replace(".", "_"),
    "diffusers": lambda path: "lora_unet_" + path.replace(".", "_"),
    "simpletuner": lambda path: "lycoris_" + path.replace(".", "_"),
}
BLOCKS = ["Transformer2DModel", "ResnetBlock2D", "Downsample2D", "Upsample2D"]  # what sd-scripts and LyCORIS train
# Set on a class and never taken back, so every preset says everything.
PRESET: dict[str, Any] = {
    "enable_conv": True,
    "target_module": BLOCKS,
    "target_name": [],
    "module_algo_map": {},
    "name_algo_map": {},
    "lora_prefix": "lycoris",
}
# LyCORIS' own preset of that name; its patterns, `to_k` and so on, match no whole path of a UNet.
IA3 = {
    "enable_conv": False,
    "target_module": [],
    "target_name": [r".*\.to_k$", r".*\.to_v$", r".*\.ff\.net\.2$"],
    "name_algo_map": {r".*\.ff\.net\.2$": {"train_on_input": True}},
}
CASES: dict[str, dict[str, Any]] = {
    "locon": {"algo": "locon"},
    "locon, alpha": {"algo": "locon", "alpha": 0.7},
    "locon, tucker": {"algo": "locon", "use_tucker": True},
    "locon, norms": {"algo": "locon", "train_norm": True},
    "loha": {"algo": "loha"},
    "loha, tucker": {"algo": "loha", "use_tucker": True},
    "lokr": {"algo": "lokr"},
    "lokr, factor": {"algo": "lokr", "factor": 4},
    "lokr, both": {"algo": "lokr", "decompose_both": True},
    "lokr, tucker": {"algo": "lokr", "use_tucker": True},
    "lokr, full": {"algo": "lokr", "full_matrix": True},
    "lokr, unbalanced": {"algo": "lokr", "unbalanced_factorization": True},
    "ia3": {"algo": "ia3", "preset": IA3},
    "ia3, conv": {"algo": "ia3"},
    "full": {"algo": "full"},
    "oft": {"algo": "diag-oft", "rank": 4},
    "oft, constraint": {"algo": "diag-oft", "rank": 4, "constraint": 0.01},
    "oft, rescaled": {"algo": "diag-oft", "rank": 4, "rescaled": True},
    "dora": {"algo": "locon", "dora_wd": True},
    "dora, alpha": {"algo": "locon", "dora_wd": True, "alpha": 0.7},
    "dora, on input": {"algo": "locon", "dora_wd": True, "wd_on_output": False},
    "dora of loha": {"algo": "loha", "dora_wd": True},
    "dora of lokr": {"algo": "lokr", "dora_wd": True},
}


@dataclass(frozen=True)
class Tune:
    """One adapter three times: the file, the UNet's changed parameters by name, and the UNet it is attached to."""

    tensors: Tensors
    merged: Tensors
    attached: nn.Module


def lycoris_files(
    unet: nn.Module,
    algo: str,
    *,
    names: str = "sgm",
    rank: int = 2,
    alpha: float | None = None,
    multiplier: float = 1.0,
    seed: int = 0,
    preset: dict[str, Any] | None = None,
    **options: Any,
) -> Tune:
    """With random weights; `alpha` None is the rank. `options` are those of LyCORIS' `create_lycoris`.

    `merged` is its `merge_to(multiplier)`. That and `attached`, what it trains and runs, part ways where LyCORIS
    4.1.3 errs: merging loha and lokr takes alpha / rank twice.
    """

    def network(module: nn.Module) -> Any:
        scale = rank if alpha is None else alpha
        logger.setLevel(logging.ERROR)
        LycorisNetwork.apply_preset({**PRESET, **(preset or {})})
        made = create_lycoris(
            module,
            multiplier,
            rank,
            scale,
            warn_on_unmatched=False,
            algo=algo,
            conv_dim=rank,
            conv_alpha=scale,
            **options,
        )
        generator = torch.Generator().manual_seed(seed)
        for layer in made.loras:
            _randomise(layer, generator)
        return made.eval()

    paths = {f"lycoris_{path.replace('.', '_')}": path for path, _ in unet.named_modules()}
    with torch.no_grad():
        folded, attached = copy.deepcopy(unet), copy.deepcopy(unet)
        network(folded).merge_to(multiplier)
        adapter = network(attached)
        adapter.apply_to()  # before that, `full` would save its change less the weight
        tensors = {
            f"{NAMES[names](paths[layer.lora_name])}.{key}": value.detach().clone().contiguous()
            for layer in adapter.loras
            for key, value in layer.state_dict().items()
        }
    return Tune(tensors, _changed(unet, folded), attached)


FACTORS = ("lora_up.weight", "hada_w1_a", "lokr_w1", "lokr_w1_a", "weight")  # one of these sets a change's size
SPREAD = {
    "rescale": (1.0, 0.1),
    "w_norm": (0.0, 0.1),
    "b_norm": (0.0, 0.1),
    "oft_blocks": (0.0, 0.3),
    "bias": (0.0, 0.1),
}


def _randomise(layer: Any, generator: torch.Generator) -> None:
    """Each layer's change becomes 0.3 times as large as its weight; magnitudes vary by a fifth."""
    parameters: dict[str, Tensor] = dict(layer.named_parameters())
    for name, value in parameters.items():
        noise = torch.randn(value.shape, generator=generator)
        middle, width = SPREAD.get(name, (0.0, 1.0))
        value.data = value.data * (1 + 0.2 * noise) if name == "dora_scale" else middle + width * noise
    if hasattr(layer, "on_input"):
        layer.weight.data *= 0.3
    elif sizes := [parameters[name] for name in FACTORS if name in parameters]:
        change, _ = layer.get_diff_weight(1.0)
        sizes[0].data *= 0.3 * layer.org_weight.norm() / change.norm()


def _changed(before: nn.Module, after: nn.Module) -> Tensors:
    old = before.state_dict()
    return {name: value for name, value in after.state_dict().items() if not torch.equal(value, old[name])}


def peft_dora(unet: nn.Module, *, where: str = "conv too", rank: int = 4, alpha: float = 3.0, seed: int = 0) -> Tune:
    """PEFT's DoRA in the names that diffusers saves, merged by PEFT's `merge_and_unload`."""
    config: Any = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # PEFT reads a float too
        target_modules=list(tunes.layers(unet, where)),
        use_dora=True,
    )
    model: Any = get_peft_model(copy.deepcopy(unet), config)
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.named_parameters():
        noise = torch.randn(value.shape, generator=generator)
        if "lora_magnitude_vector" in name:
            value.data *= 1 + 0.2 * noise
        elif "lora_" in name:
            value.data = 0.1 * noise
    saved = get_peft_model_state_dict(model).items()
    tensors = {key.replace("base_model.model", UNET, 1): value.detach().clone().contiguous() for key, value in saved}
    attached: nn.Module = copy.deepcopy(model.base_model.model)
    return Tune(tensors, _changed(unet, model.merge_and_unload()), attached)


def unfused(unet: nn.Module, lora: Lora, scale: float = 1.0) -> nn.Module:
    """A copy of the UNet that PEFT runs with the LoRA attached and nothing merged."""
    attached: Any = copy.deepcopy(unet)
    attached.add_adapter(LoraConfig(**tunes.peft_config(lora)), "tune")
    state = {key.removeprefix(f"{UNET}."): value for key, value in tunes.peft_diffusers(lora).items()}
    set_peft_model_state_dict(attached, state, "tune")
    attached.set_adapters(["tune"], [scale])
    module: nn.Module = attached
    return module
