"""SDXL's frozen text encoders as a training needs them: gradients reach the rows of new tokens, and nothing else.

What sdxl/clip.py computes, over its weights, as far as the UNet reads of it. Queries, keys and values are one
product, and the last layer of the first encoder, which nobody reads, is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, linear, scaled_dot_product_attention

from sdxl.clip import ACTIVATIONS
from trainer.layers import Function, joined, norm, plain


@dataclass(frozen=True)
class _Layer:
    """A CLIPEncoderLayer: (B, T, D) -> (B, T, D)."""

    norms: tuple[Function, Function]
    qkv: Function
    out: Function
    widen: Function
    activation: Function
    narrow: Function
    heads: int

    @classmethod
    def of(cls, layer: Any, activation: Function) -> _Layer:
        attention, mlp = layer.self_attn, layer.mlp
        parts: list[nn.Linear] = [attention.q_proj, attention.k_proj, attention.v_proj]
        bias = torch.cat([each.bias.detach() for each in parts])
        return cls(
            (norm(layer.layer_norm1), norm(layer.layer_norm2)),
            partial(linear, weight=joined(parts), bias=bias),
            plain(attention.out_proj),
            plain(mlp.fc1),
            activation,
            plain(mlp.fc2),
            int(attention.num_heads),
        )

    def __call__(self, x: Tensor) -> Tensor:
        batch, length, _width = x.shape
        first, second = self.norms
        qkv = self.qkv(first(x)).view(batch, length, 3, self.heads, -1)
        query, key, value = (each.transpose(1, 2) for each in qkv.unbind(2))
        mixed = scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, -1))
        return x + self.narrow(self.activation(self.widen(second(x))))


class Encoder:
    """One of the two; it reads the weights where they lie, so the module has to stay as it is meanwhile."""

    def __init__(self, module: Any) -> None:
        model = getattr(module, "text_model", module)  # transformers 5 has this level around a projection only
        activation = ACTIVATIONS[module.config.hidden_act]
        self._table = model.embeddings.token_embedding.weight.detach()
        self._positions = model.embeddings.position_embedding.weight.detach()
        *self._layers, self._last = [_Layer.of(layer, activation) for layer in model.encoder.layers]
        self._projection = getattr(module, "text_projection", None)
        self._norm = norm(model.final_layer_norm)

    def __call__(self, ids: Tensor, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """ids (B, T), those after the vocabulary are numbers of `rows` (n, D) -> states of the layer before the last
        (B, T, D), and where there is a projection the pooled vector (B, P): at the first of the highest ids, which is
        the learned token, else the first end (see `LearnedTokens.pooled_at`)."""
        size = self._table.shape[0]
        known = embedding(ids.clamp(max=size - 1), self._table)
        learned = embedding((ids - size).clamp(min=0), rows.to(known))
        x = torch.where((ids >= size)[..., None], learned, known) + self._positions[: ids.shape[1]]
        for layer in self._layers:
            x = layer(x)
        if self._projection is None:
            return x, None
        last = self._norm(self._last(x))
        pooled = last[torch.arange(ids.shape[0], device=ids.device), ids.argmax(-1)]
        return x, linear(pooled, self._projection.weight, self._projection.bias)
