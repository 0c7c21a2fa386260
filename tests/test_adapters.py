"""The LoRA beside a UNet: what it computes, what its gradients are, what it leaves behind."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import Tensor

from sdxl.models import Models
from trainer.adapters import Adapters

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]


def inputs(batch: int = 2, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(3)
    return {
        "sample": torch.randn(batch, 4, 16, 12, generator=generator).to(dtype),
        "timestep": torch.tensor([7, 600])[:batch],
        "encoder_hidden_states": torch.randn(batch, 77, 160, generator=generator).to(dtype).requires_grad_(),
        "added_cond_kwargs": {
            "text_embeds": torch.randn(batch, 96, generator=generator).to(dtype),
            "time_ids": torch.tensor([[128.0, 96, 0, 0, 128, 96]] * batch),
        },
    }


def adapted(unet: Any, *, feed_forward: bool = False, alpha: float = 6.0) -> Adapters:
    made = Adapters(unet, rank=3, alpha=alpha, feed_forward=feed_forward, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        made.flat.add_(0.1 * torch.randn(made.flat.shape, generator=torch.Generator().manual_seed(2)))
    made.refresh(1.0)
    made.clear()
    return made


def with_peft(unet: Any, lora: dict[str, tuple[Tensor, Tensor]], *, feed_forward: bool, alpha: int = 6) -> Any:
    """The same UNet with the same LoRA, by PEFT."""
    targets = ATTENTION + (["net.0.proj", "net.2"] if feed_forward else [])
    unet.add_adapter(LoraConfig(r=3, lora_alpha=alpha, target_modules=targets))
    for path, (down, up) in lora.items():
        layer: Any = unet.get_submodule(path)
        layer.lora_A["default"].weight.data.copy_(down)
        layer.lora_B["default"].weight.data.copy_(up)
    return unet


@pytest.mark.parametrize("feed_forward", [False, True])
def test_gradients_are_those_of_peft(models: Models, feed_forward: bool) -> None:
    """Those of each factor, and what flows on to the text encoders, to 1e-6 of the largest. In float64: in float32 two
    orders of the same sums differ by 1e-5 themselves."""
    ours: Any = deepcopy(models.base).double()
    theirs: Any = deepcopy(models.base).double()
    lora = adapted(ours, feed_forward=feed_forward)
    with_peft(theirs, lora.lora(), feed_forward=feed_forward)
    given, same = inputs(dtype=torch.float64), inputs(dtype=torch.float64)
    mine, its = ours(**given).sample, theirs(**same).sample
    assert torch.allclose(mine, its, atol=1e-10)
    mine.square().mean().backward()
    its.square().mean().backward()
    lora.collect()
    found = gradients(lora)
    assert len(found) == sum(hasattr(each, "lora_A") for each in theirs.modules())
    for path, pair in found.items():
        layer: Any = theirs.get_submodule(path)
        for gradient, factor in zip(pair, (layer.lora_A["default"], layer.lora_B["default"]), strict=True):
            assert (gradient - factor.weight.grad).abs().max() <= 1e-6 * factor.weight.grad.abs().max(), path
    mine, its = (each["encoder_hidden_states"].grad for each in (given, same))
    assert (mine - its).abs().max() <= 1e-6 * its.abs().max()


def gradients(lora: Adapters) -> dict[str, tuple[Tensor, Tensor]]:
    """By layer: the factors and their gradients are laid out alike."""
    assert lora.flat.grad is not None
    kept = lora.flat.detach().clone()
    with torch.no_grad():
        lora.flat.copy_(lora.flat.grad)
        found = lora.lora()
        lora.flat.copy_(kept)
    return found


def test_gradients_add_up_until_they_are_taken(models: Models) -> None:
    unet: Any = deepcopy(models.base)
    lora = adapted(unet)
    found = list[Tensor]()
    for count in (1, 2):
        lora.clear()
        for _ in range(count):
            unet(**inputs()).sample.square().mean().backward()
            lora.collect()
        assert lora.flat.grad is not None
        found.append(lora.flat.grad.clone())
    assert torch.allclose(found[1], 2 * found[0], rtol=1e-6)


def test_checkpointing_changes_no_gradient(models: Models) -> None:
    found = list[Tensor]()
    for checkpointing in (False, True):
        unet: Any = deepcopy(models.base)
        lora = adapted(unet)
        if checkpointing:
            unet.enable_gradient_checkpointing()
        unet(**inputs()).sample.square().mean().backward()
        lora.collect()
        assert lora.flat.grad is not None
        found.append(lora.flat.grad)
    assert torch.equal(*found)


def test_a_new_lora_changes_nothing_and_a_removed_one_too(models: Models) -> None:
    unet: Any = deepcopy(models.base)
    before, state = unet(**inputs()).sample, {name: each.clone() for name, each in unet.state_dict().items()}
    lora = Adapters(unet, rank=4, alpha=4.0, feed_forward=True, generator=torch.Generator().manual_seed(0))
    assert all(float(up.abs().max()) == 0 for _, up in lora.lora().values())
    assert torch.allclose(unet(**inputs()).sample, before, atol=1e-5)
    lora.remove()
    assert torch.equal(unet(**inputs()).sample, before)
    assert all(torch.equal(each, state[name]) for name, each in unet.state_dict().items())


def test_a_lora_that_does_not_learn_is_not_there(models: Models) -> None:
    """The same bits as without it, and no gradient is computed for it."""
    unet: Any = deepcopy(models.base)
    before = unet(**inputs()).sample
    generator = torch.Generator().manual_seed(0)
    lora = Adapters(unet, rank=4, alpha=4.0, feed_forward=True, generator=generator, learns=False)
    lora.clear()
    given = inputs()
    found = unet(**given).sample
    assert torch.equal(found, before)
    found.sum().backward()
    lora.collect()
    assert given["encoder_hidden_states"].grad is not None
    assert lora.flat.grad is None


def test_in_16_bits_the_factors_stay_in_32(models: Models) -> None:
    """What learns is float32, whatever the UNet computes in: a step of 1e-6 on a weight of 1 must not be lost."""
    unet: Any = deepcopy(models.base).bfloat16()
    lora = adapted(unet)
    unet(**inputs(dtype=torch.bfloat16)).sample.float().square().mean().backward()
    lora.collect()
    assert lora.flat.dtype == torch.float32
    assert lora.flat.grad is not None
    assert lora.flat.grad.dtype == torch.float32
    whole: Any = deepcopy(models.base)
    exact = adapted(whole)
    whole(**inputs()).sample.square().mean().backward()
    exact.collect()
    assert exact.flat.grad is not None
    assert torch.nn.functional.cosine_similarity(lora.flat.grad, exact.flat.grad, 0) > 0.99


def test_strength_scales_what_is_added_and_leaves_what_learns(models: Models) -> None:
    """Half the strength is half of alpha."""
    unet: Any = deepcopy(models.base)
    lora = adapted(unet, alpha=6.0)
    kept = lora.flat.detach().clone()
    lora.refresh(0.5)
    half = unet(**inputs()).sample
    assert torch.equal(lora.flat, kept)
    other: Any = deepcopy(models.base)
    adapted(other, alpha=3.0)
    assert torch.allclose(half, other(**inputs()).sample, atol=1e-5)
    lora.refresh(1.0)
    assert not torch.allclose(unet(**inputs()).sample, half, atol=1e-3)


def test_no_weight_is_held_twice(models: Models) -> None:
    """The joined weights of to_q, to_k and to_v are where the UNet's own are."""
    unet: Any = deepcopy(models.base)
    adapted(unet)
    block = unet.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn1")
    storages = {block.get_submodule(name).weight.untyped_storage().data_ptr() for name in ("to_q", "to_k", "to_v")}
    assert len(storages) == 1
