"""OpenAI's CLIP: SDXL's two text encoders, and the eye of the safety checker.

What transformers 5 computes, from the same products and so to the same bit, under its names for modules and weights;
diffusers' pipelines can call the text encoders as they call those. Ours because importing transformers' takes longer
than loading every weight of SDXL.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

# What transformers takes where a config.json does not say it
COMMON = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "projection_dim": 512, "num_hidden_layers": 12}
TEXT = {
    **COMMON,
    "vocab_size": 49408, "hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8,
    "max_position_embeddings": 77, "eos_token_id": 49407,
}  # fmt: skip
VISION = {
    **COMMON,
    "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12,
    "num_channels": 3, "image_size": 224, "patch_size": 32,
}  # fmt: skip
HIGHEST = 2  # as eos_token_id, which SDXL's config.json has wrong: the end is the highest number of a row


def quick_gelu(x: Tensor) -> Tensor:
    """OpenAI's own approximation."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": gelu, "quick_gelu": quick_gelu}


class States(NamedTuple):
    """What a text encoder without a projection makes of ids (B, T)."""

    last_hidden_state: Tensor  # (B, T, D), normed
    pooler_output: Tensor  # (B, D), at the end of the text
    hidden_states: tuple[Tensor, ...]  # (B, T, D) each, before the first layer and after every one

    @property
    def pooled(self) -> Tensor:
        return self.pooler_output


class ProjectedStates(NamedTuple):
    """What one with a projection makes of them."""

    text_embeds: Tensor  # (B, P), at the end of the text
    last_hidden_state: Tensor
    hidden_states: tuple[Tensor, ...]

    @property
    def pooled(self) -> Tensor:
        return self.text_embeds


class _Attention(nn.Module):
    def __init__(self, config: SimpleNamespace) -> None:
        super().__init__()
        self.num_heads = int(config.num_attention_heads)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        shape = (*x.shape[:-1], self.num_heads, -1)
        projections = (self.q_proj, self.k_proj, self.v_proj)
        query, key, value = (project(x).view(shape).transpose(1, 2) for project in projections)
        mixed = scaled_dot_product_attention(query, key, value, mask, is_causal=causal)
        y: Tensor = self.out_proj(mixed.transpose(1, 2).reshape(x.shape))
        return y


class _Mlp(nn.Module):
    def __init__(self, config: SimpleNamespace) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc2(self.activation(self.fc1(x)))
        return y


class _Layer(nn.Module):
    def __init__(self, config: SimpleNamespace) -> None:
        super().__init__()
        self.self_attn = _Attention(config)
        self.layer_norm1 = _norm(config)
        self.mlp = _Mlp(config)
        self.layer_norm2 = _norm(config)

    def forward(self, x: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x), mask, causal)
        y: Tensor = x + self.mlp(self.layer_norm2(x))
        return y


class _Layers(nn.Module):
    def __init__(self, config: SimpleNamespace) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.num_hidden_layers))

    def forward(self, x: Tensor, mask: Tensor | None = None, *, causal: bool) -> tuple[Tensor, ...]:
        """(B, T, D), before the first layer and after every one."""
        states = [x]
        for layer in self.layers:
            states.append(layer(states[-1], mask, causal))
        return tuple(states)


def _norm(config: SimpleNamespace) -> nn.LayerNorm:
    return nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)


class _TextEmbeddings(nn.Module):
    def __init__(self, config: SimpleNamespace) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)

    def forward(self, ids: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1], device=ids.device)
        x: Tensor = self.token_embedding(ids) + self.position_embedding(places)
        return x


class _Part(nn.Module):
    """What callers ask of either text encoder."""

    config: SimpleNamespace
    embeddings: _TextEmbeddings

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype


class TextModel(_Part):
    """SDXL's first text encoder, transformers' CLIPTextModel."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = SimpleNamespace(**{**TEXT, **config})
        self.embeddings = _TextEmbeddings(self.config)
        self.encoder = _Layers(self.config)
        self.final_layer_norm = _norm(self.config)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, output_hidden_states: bool = False
    ) -> States:
        """ids (B, T); mask (B, T), 0 where nothing looks at."""
        mask = None if attention_mask is None else _causal(attention_mask)
        states = self.encoder(self.embeddings(input_ids), mask, causal=mask is None)
        last = self.final_layer_norm(states[-1])
        end = self.config.eos_token_id
        marked = input_ids if end == HIGHEST else input_ids == end
        pooled = last[torch.arange(len(last), device=last.device), marked.int().argmax(-1)]
        return States(last, pooled, states if output_hidden_states else ())

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embeddings.token_embedding

    def set_input_embeddings(self, table: nn.Embedding) -> None:
        self.embeddings.token_embedding = table


class ProjectedTextModel(_Part):
    """SDXL's second text encoder, transformers' CLIPTextModelWithProjection."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.text_model = TextModel(config)
        self.config = self.text_model.config
        self.text_projection = nn.Linear(self.config.hidden_size, self.config.projection_dim, bias=False)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, output_hidden_states: bool = False
    ) -> ProjectedStates:
        """As TextModel."""
        states: States = self.text_model(input_ids, attention_mask, output_hidden_states)
        pooled = self.text_projection(states.pooler_output)
        return ProjectedStates(pooled, states.last_hidden_state, states.hidden_states)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, table: nn.Embedding) -> None:
        self.text_model.set_input_embeddings(table)


def _causal(attention_mask: Tensor) -> Tensor:
    """(B, T) -> (B, 1, T, T): whether a place looks at another, which is no later one and none with a 0."""
    length = attention_mask.shape[1]
    earlier = torch.ones(length, length, dtype=torch.bool, device=attention_mask.device).tril()
    return earlier & attention_mask[:, None, None].bool()


class _VisionEmbeddings(nn.Module):
    def __init__(self, config: SimpleNamespace) -> None:
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.patch_embedding = nn.Conv2d(config.num_channels, width, patch, stride=patch, bias=False)
        self.position_embedding = nn.Embedding((config.image_size // patch) ** 2 + 1, width)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(patches), 1, -1), patches], dim=1)
        y: Tensor = x + self.position_embedding(torch.arange(x.shape[1], device=x.device))
        return y


class VisionModel(nn.Module):
    """transformers' CLIPVisionModel: pixels (B, 3, side, side), normed -> (B, D)."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = SimpleNamespace(**{**VISION, **config})
        self.embeddings = _VisionEmbeddings(self.config)
        self.pre_layrnorm = _norm(self.config)  # so it is spelt
        self.encoder = _Layers(self.config)
        self.post_layernorm = _norm(self.config)

    def forward(self, pixels: Tensor) -> Tensor:
        states = self.encoder(self.pre_layrnorm(self.embeddings(pixels)), causal=False)
        seen: Tensor = self.post_layernorm(states[-1][:, 0])
        return seen
