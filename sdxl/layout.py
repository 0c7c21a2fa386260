"""Where and how weights lie in memory. They move; each stays the parameter that it was, and whoever holds it sees no
difference."""

from dataclasses import replace

import torch

from sdxl.linear import Layer
from sdxl.unet import Block, UNet


@torch.inference_mode(False)  # weights are no tensors of a request
def settled(unet: UNet) -> UNet:
    """As compiled blocks and a GPU's convolutions want it: channels last, and queries, keys and values of each
    self-attention as one product."""
    for parameter in unet.module.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return replace(unet, blocks=tuple(map(joined, unet.blocks)))


@torch.inference_mode(False)
def joined(w: Block) -> Block:
    """A block whose `attn1.qkv` is set."""
    parts = (w.attn1.q.weight, w.attn1.k.weight, w.attn1.v.weight)
    whole = torch.cat([part.detach() for part in parts])
    for part, place in zip(parts, whole.chunk(3), strict=True):
        part.data = place
    return w._replace(attn1=w.attn1._replace(qkv=Layer(whole, None)))
