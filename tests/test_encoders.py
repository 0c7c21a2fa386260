"""The text encoders as a training reads them, against transformers' own."""

from typing import Any

import pytest
import torch
from torch import Tensor

from sdxl.finetune.tokens import LearnedEmbedding
from sdxl.models import Models
from trainer.encoders import Encoder
from trainer.texts import Captions, first_rows, triggers_of

TEXTS = ["a photo of TOK", "a red TOK on a blue background, a TOK", ""]


def known(module: Any, ids: Tensor, rows: Tensor) -> tuple[Tensor, Tensor | None]:
    """States before the last layer, and the pooled vector at the highest id, by transformers."""
    LearnedEmbedding.of(module).rows = rows[:]
    try:
        output = module(ids, output_hidden_states=True)
    finally:
        LearnedEmbedding.of(module).rows = None
    if not hasattr(module, "text_projection"):
        return output.hidden_states[-2], None
    last = output.last_hidden_state[torch.arange(len(ids)), ids.argmax(-1)]
    return output.hidden_states[-2], module.text_projection(last)


@pytest.mark.parametrize("number", [0, 1])
def test_what_is_read_is_what_transformers_computes(number: int, models: Models) -> None:
    """To the bit; and the gradients of the rows nearly, whose sums are taken in another order."""
    module: Any = (models.text.text_encoder, models.text.text_encoder_2)[number]
    captions = Captions(models.text, TEXTS[:2], triggers_of(("TOK",), 2))
    rows, ids = first_rows(models.text, 2, torch.Generator().manual_seed(0))[number], captions._ids[number]
    found, expected = Encoder(module)(ids, rows), known(module, ids, rows)
    gradients = []
    for states, pooled in (found, expected):
        weights = torch.randn(states.shape, generator=torch.Generator().manual_seed(1))
        total = (states * weights).sum() + (0 if pooled is None else pooled.square().sum())
        (gradient,) = torch.autograd.grad(total, rows)
        gradients.append(gradient)
    assert torch.equal(found[0], expected[0])
    assert (found[1] is None) == (number == 0)
    if found[1] is not None and expected[1] is not None:
        assert torch.equal(found[1], expected[1])
    assert (gradients[0] - gradients[1]).abs().max() <= 1e-5 * gradients[1].abs().max()
    assert gradients[0].abs().min() > 0


def test_equal_captions_are_encoded_once(models: Models) -> None:
    """Those of class pictures are, by the hundred; the empty one may be among them."""
    captions = Captions(models.text, ["a star"] * 50 + ["a TOK", "", "a star"], triggers_of(("TOK",), 2))
    captions.learn(first_rows(models.text, 2, torch.Generator().manual_seed(0)))
    numbers = torch.tensor([0, 49, 52, 50, 51, captions.empty])
    with torch.no_grad():
        before = captions.encode(numbers)
    captions.remember()
    after = captions.encode(numbers)
    assert captions._ids[0].shape[0] == 3
    for embeds in (before, after):
        for each in (embeds.prompt_embeds, embeds.text_embeds):
            assert torch.equal(each[0], each[1])
            assert torch.equal(each[0], each[2])
            assert torch.equal(each[4], each[5])
            assert not torch.equal(each[0], each[3])
    assert torch.allclose(before.prompt_embeds, after.prompt_embeds, atol=1e-5)
