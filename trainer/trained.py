"""What a training has learned, before it is written anywhere."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor


@dataclass(frozen=True)
class Trained:
    """Everything that was learned, float32 on the CPU: a LoRA or a whole UNet or neither, and the rows of the tokens.

    lora      diffusers' path of a layer of the UNet, "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
              "….attn1.to_out.0", "….ff.net.0.proj" -> (down (r, I), up (O, r)); {} where none was trained. All layers
              have one rank
    alpha     a layer's weight changes by alpha / r * up @ down
    unet      full fine-tuning: diffusers' name of each weight that was trained -> its value; {} otherwise
    rows      of both text encoders, (n, D1) and (n, D2)
    triggers  what a prompt says -> the numbers of its rows: "TOK" -> [0, 1]

    Pooled vectors were read at the learned token, as the reference runtime reads them.
    """

    lora: Mapping[str, tuple[Tensor, Tensor]]
    alpha: float
    unet: Mapping[str, Tensor]
    rows: tuple[Tensor, Tensor]
    triggers: Mapping[str, Sequence[int]]

    def __post_init__(self) -> None:
        if len({len(down) for down, _ in self.lora.values()}) > 1:
            raise ValueError("layers of different rank")
        if self.lora and self.unet:
            raise ValueError("a LoRA and a whole UNet")
        if not len(self.rows[0]) == len(self.rows[1]) > max(map(max, self.triggers.values())):
            raise ValueError("triggers for rows that are not there")

    @property
    def rank(self) -> int:
        """Of the LoRA, of which there is one."""
        return len(next(iter(self.lora.values()))[0])

    @cached_property
    def key(self) -> str:
        """Stands for what was learned: files that say the same key hold the same, in one dialect or another."""
        digest = hashlib.blake2b(repr((self.alpha, sorted(self.triggers.items()))).encode(), digest_size=16)
        for name, tensor in self._tensors():
            digest.update(f"{name} {tuple(tensor.shape)} ".encode())
            digest.update(tensor.detach().reshape(-1).numpy().data)
        return digest.hexdigest()

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for name, pair in sorted(self.lora.items()):
            yield from zip((f"{name}.down", f"{name}.up"), pair, strict=True)
        yield from sorted(self.unet.items())
        yield from zip(("first", "second"), self.rows, strict=True)
