"""The arithmetic of SDXL's UNets, written out over the weights of diffusers' module.

`UNet2DConditionModel` holds the weights; what it computes is, for base and refiner, what stands here, in the same order
and to the same bit, without what cannot change within a request (keys and values of the text, the embedding of sizes
and pooled text) or at all (159 divisions by 1.0). Weights are read where they lie, so a fold in place is all that a
fine-tune takes.

Shapes: B pictures (twice as many with guidance), T text tokens, C channels, h x w latents, S = h w places.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, gelu, group_norm, interpolate, layer_norm, scaled_dot_product_attention, silu

from sdxl.linear import Layer, Linear
from sdxl.narrow import UNet2DConditionModel

KeyValue = tuple[Tensor, Tensor]  # (B, T, C) each
Attend = Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]


class Norm(NamedTuple):
    """weight (C,), bias (C,); `groups` is 0 for a layer norm."""

    weight: Tensor
    bias: Tensor
    eps: float
    groups: int = 0

    def __call__(self, x: Tensor) -> Tensor:
        if self.groups:
            return group_norm(x, self.groups, self.weight, self.bias, self.eps)
        return layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class Conv(NamedTuple):
    """weight (O, C, k, k), bias (O,); 3 x 3 with a border, or 1 x 1."""

    weight: Tensor
    bias: Tensor
    stride: int
    padding: int

    def __call__(self, x: Tensor) -> Tensor:
        return conv2d(x, self.weight, self.bias, self.stride, self.padding)


class Attention(NamedTuple):
    """Queries, keys, values and the way out; `qkv` is the first three in one, where they lie so in memory."""

    q: Linear
    k: Linear
    v: Linear
    out: Linear
    heads: int
    qkv: Linear | None = None


class Block(NamedTuple):
    """A BasicTransformerBlock."""

    norm1: Norm
    attn1: Attention
    norm2: Norm
    attn2: Attention
    norm3: Norm
    ff_in: Linear
    ff_out: Linear


class Resnet(NamedTuple):
    """A ResnetBlock2D."""

    norm1: Norm
    conv1: Conv
    time: Layer
    norm2: Norm
    conv2: Conv
    shortcut: Conv | None


class Transformer(NamedTuple):
    """A Transformer2DModel, without its blocks."""

    norm: Norm
    proj_in: Layer
    depth: int  # how many blocks work in it
    proj_out: Layer


class Level(NamedTuple):
    """A down or an up block; `sample` brings its result to the next resolution."""

    layers: tuple[tuple[Resnet, Transformer | None], ...]
    sample: Conv | None


class Told(NamedTuple):
    """What a UNet is told beside latents and timestep, as far as it is the same at every step."""

    key_values: tuple[KeyValue, ...]  # of each block, in the order in which they work
    added: Tensor  # (B, E) embedding of the pooled text and the sizes

    def tensors(self) -> list[Tensor]:
        """All of them."""
        return [*(tensor for pair in self.key_values for tensor in pair), self.added]

    def map(self, change: Callable[[Tensor], Tensor]) -> Told:
        """The same with every tensor changed."""
        return Told(tuple((change(k), change(v)) for k, v in self.key_values), change(self.added))


def attend(q: Tensor, k: Tensor, v: Tensor, text: Tensor, heads: int) -> Tensor:
    """Attention of each head: q (B S, C), k and v (B T, C) or (B, T, C) -> (B S, C). B is that of `text` (B, ...)."""
    q, k, v = (x.view(len(text), -1, heads, x.shape[-1] // heads).transpose(1, 2) for x in (q, k, v))
    return scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, heads * q.shape[-1])


def block(x: Tensor, key: Tensor, value: Tensor, w: Block, attend: Attend = attend) -> Tensor:
    """A transformer block: x (B S, C), key and value of the text (B, T, C) -> (B S, C).

    In rows, and with B known to `attend` alone: so one compiled version serves every size and number of pictures.
    """
    heads, h = w.attn1.heads, w.norm1(x)
    q, k, v = w.attn1.qkv(h).chunk(3, -1) if w.attn1.qkv else (w.attn1.q(h), w.attn1.k(h), w.attn1.v(h))
    x = w.attn1.out(attend(q, k, v, key, heads)) + x
    x = w.attn2.out(attend(w.attn2.q(w.norm2(x)), key, value, key, heads)) + x
    h, gate = w.ff_in(w.norm3(x)).chunk(2, -1)
    return w.ff_out(h * gelu(gate)) + x


def resnet(x: Tensor, emb: Tensor, w: Resnet) -> Tensor:
    """x (B, C, h, w), emb (B, E) after its SiLU -> (B, O, h, w)"""
    h = w.conv1(silu(w.norm1(x)))
    h = h + w.time(emb)[:, :, None, None]
    h = w.conv2(silu(w.norm2(h)))
    return (x if w.shortcut is None else w.shortcut(x)) + h


BlockFunction = Callable[[Tensor, Tensor, Tensor, Block], Tensor]
Work = Iterator[tuple[Block, KeyValue]]
NO_WORK: Work = iter(())


@dataclass(frozen=True)
class UNet:
    """A UNet's weights in the order in which they work, and the embeddings as diffusers' own modules."""

    module: UNet2DConditionModel
    conv_in: Conv
    down: tuple[Level, ...]
    mid: tuple[Resnet, Transformer, Resnet]
    up: tuple[Level, ...]
    norm_out: Norm
    conv_out: Conv
    blocks: tuple[Block, ...]
    block: BlockFunction = block

    @classmethod
    def of(cls, module: UNet2DConditionModel) -> UNet:
        """Over the weights of a module of SDXL's kind: one whose config `is_known`."""
        m: Any = module
        (first, last), (between,) = m.mid_block.resnets, m.mid_block.attentions
        mid = (_resnet(first), _transformer(between), _resnet(last))
        down, up = (tuple(map(_level, blocks)) for blocks in (m.down_blocks, m.up_blocks))
        blocks = [
            _block(each)
            for part in (*m.down_blocks, m.mid_block, *m.up_blocks)
            for transformer in getattr(part, "attentions", ())
            for each in transformer.transformer_blocks
        ]
        return cls(
            module, _conv(m.conv_in), down, mid, up, _norm(m.conv_norm_out), _conv(m.conv_out), blocks=tuple(blocks)
        )

    def tell(self, prompt_embeds: Tensor, text_embeds: Tensor, time_ids: Tensor) -> Told:
        """prompt_embeds (B, T, D), text_embeds (B, P), time_ids (B, N)"""
        m: Any = self.module
        texts = [w.attn2 for w in self.blocks]
        pairs = [(w.k(prompt_embeds), w.v(prompt_embeds)) for w in texts]
        sizes = m.add_time_proj(time_ids.flatten()).reshape(len(time_ids), -1)
        added = m.add_embedding(torch.cat([text_embeds, sizes], -1).to(prompt_embeds.dtype))
        return Told(tuple(pairs), added)

    def full(self, latents: Tensor, timestep: Tensor, told: Told) -> tuple[Tensor, Tensor]:
        """latents (B, 4, h, w), timestep () or (B,) -> what the UNet takes for noise, (B, 4, h, w), and what its deep
        layers gave: what comes into the last up block, for `shallow`."""
        emb, work = self._embedding(latents, timestep, told), zip(self.blocks, told.key_values, strict=True)
        skips = [self.conv_in(latents)]
        x = skips[0]
        for level in self.down:
            x = self._down(x, emb, level, work, skips)
        first, transformer, last = self.mid
        x = resnet(self._transform(resnet(x, emb, first), transformer, work), emb, last)
        for level in self.up[:-1]:
            x = self._up(x, emb, level, work, skips)
        return self._out(x, emb, skips), x

    def shallow(self, latents: Tensor, timestep: Tensor, told: Told, deep: Tensor) -> Tensor:
        """As `full`, but with the deep layers' result of an earlier step (DeepCache, arXiv 2312.00858): only the first
        down block and the last up block work."""
        emb = self._embedding(latents, timestep, told)
        skips = [self.conv_in(latents)]
        self._down(skips[0], emb, Level(self.down[0].layers, None), NO_WORK, skips)
        return self._out(deep, emb, skips)

    def _embedding(self, latents: Tensor, timestep: Tensor, told: Told) -> Tensor:
        """(B, E), after the SiLU that every ResNet begins with."""
        m: Any = self.module
        found = m.time_embedding(m.time_proj(timestep.expand(len(latents))).to(latents.dtype))
        return silu(found + told.added)

    def _down(self, x: Tensor, emb: Tensor, level: Level, work: Work, skips: list[Tensor]) -> Tensor:
        for w, transformer in level.layers:
            x = self._transform(resnet(x, emb, w), transformer, work)
            skips.append(x)
        if level.sample is not None:
            x = level.sample(x)
            skips.append(x)
        return x

    def _up(self, x: Tensor, emb: Tensor, level: Level, work: Work, skips: list[Tensor]) -> Tensor:
        for w, transformer in level.layers:
            x = self._transform(resnet(torch.cat([x, skips.pop()], 1), emb, w), transformer, work)
        if level.sample is not None:
            x = level.sample(interpolate(x, size=skips[-1].shape[2:], mode="nearest"))
        return x

    def _out(self, x: Tensor, emb: Tensor, skips: list[Tensor]) -> Tensor:
        x = self._up(x, emb, self.up[-1], NO_WORK, skips)
        return self.conv_out(silu(self.norm_out(x)))

    def _transform(self, x: Tensor, w: Transformer | None, work: Work) -> Tensor:
        """x (B, C, h, w) -> the same shape"""
        if w is None:
            return x
        batch, channels, height, width = x.shape
        h = w.proj_in(w.norm(x).permute(0, 2, 3, 1).reshape(batch, -1, channels)).view(-1, channels)
        for each, (key, value) in islice(work, w.depth):
            h = self.block(h, key, value, each)
        h = w.proj_out(h).reshape(batch, height, width, channels)
        return h.permute(0, 3, 1, 2).contiguous() + x


def is_known(module: UNet2DConditionModel) -> bool:
    """Whether a UNet is of the kind that `UNet` computes: SDXL's own and whatever was distilled from it unchanged."""
    config: Any = module.config
    return bool(
        (config.down_block_types[0], config.up_block_types[-1]) == ("DownBlock2D", "UpBlock2D")
        and config.use_linear_projection
        and config.addition_embed_type == "text_time"
        and config.act_fn == "silu"
        and config.time_cond_proj_dim is None
        and config.mid_block_type == "UNetMidBlock2DCrossAttn"
        and not any(hasattr(each, "base_layer") for each in module.modules())  # PEFT's, beside the weights
    )


def _level(module: Any) -> Level:
    resnets, found = [_resnet(each) for each in module.resnets], getattr(module, "attentions", None)
    transformers = [None] * len(resnets) if found is None else [_transformer(each) for each in found]
    samplers = getattr(module, "downsamplers", None) or getattr(module, "upsamplers", None)
    layers = zip(resnets, transformers, strict=True)
    return Level(tuple(layers), _conv(samplers[0].conv) if samplers else None)


def _resnet(m: Any) -> Resnet:
    shortcut = None if m.conv_shortcut is None else _conv(m.conv_shortcut)
    return Resnet(_norm(m.norm1), _conv(m.conv1), _layer(m.time_emb_proj), _norm(m.norm2), _conv(m.conv2), shortcut)


def _transformer(m: Any) -> Transformer:
    return Transformer(_norm(m.norm), _layer(m.proj_in), len(m.transformer_blocks), _layer(m.proj_out))


def _block(m: Any) -> Block:
    norms, feed = [_norm(m.norm1), _norm(m.norm2), _norm(m.norm3)], m.ff.net
    attn1, attn2 = _attention(m.attn1), _attention(m.attn2)
    return Block(norms[0], attn1, norms[1], attn2, norms[2], _layer(feed[0].proj), _layer(feed[2]))


def _attention(m: Any) -> Attention:
    return Attention(_layer(m.to_q), _layer(m.to_k), _layer(m.to_v), _layer(m.to_out[0]), m.heads)


def _layer(m: nn.Linear) -> Layer:
    return Layer(m.weight, m.bias)


def _conv(m: Any) -> Conv:
    return Conv(m.weight, m.bias, m.stride[0], m.padding[0])


def _norm(m: Any) -> Norm:
    return Norm(m.weight, m.bias, m.eps, getattr(m, "num_groups", 0))
