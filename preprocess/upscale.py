"""Pictures smaller than they are trained at, four times larger, by Swin2SR (arXiv 2209.11345)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad
from transformers import Swin2SRForImageSuperResolution

from errors import WeightsError
from preprocess.job import Job

TIMES = 4
TILE = 128  # pixels a side that are worked on at once: memory does not grow with the picture
OVERLAP = 16  # pixels around them that are seen too, so that no seam shows


class Upscaler:
    """Swin2SR, read once it is needed."""

    def __init__(self, job: Job) -> None:
        self.job = job
        job.say("small images are enlarged by Swin2SR")
        model: Any = Swin2SRForImageSuperResolution.from_pretrained(
            job.helper("upscaler"), dtype=torch.float32, local_files_only=True
        )
        if model.config.upscale != TIMES:
            raise WeightsError(
                f"the upscaler enlarges {model.config.upscale} times; choose one that does {TIMES} times"
            )
        self.model = model.to(job.device).eval()

    @torch.inference_mode()
    def __call__(self, image: Image.Image) -> Image.Image:
        """A picture (RGB), exactly four times as large both ways."""
        height, width = image.height, image.width
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        large = np.empty((TIMES * height, TIMES * width, 3), np.uint8)
        for top in range(0, height, TILE):
            for left in range(0, width, TILE):
                self.job.check()
                tile = self._tile(pixels, top, left)
                high, wide = tile.shape[:2]
                large[TIMES * top : TIMES * top + high, TIMES * left : TIMES * left + wide] = tile
        return Image.fromarray(large)

    def _tile(self, pixels: Tensor, top: int, left: int) -> Any:
        """One tile of pixels (3, h, w), enlarged: (4 th, 4 tw, 3) bytes."""
        _, height, width = pixels.shape
        bottom, right = min(top + TILE, height), min(left + TILE, width)
        above, before = max(0, top - OVERLAP), max(0, left - OVERLAP)
        seen = pixels[:, above : min(bottom + OVERLAP, height), before : min(right + OVERLAP, width)]
        large = self._enlarged(seen)
        y, x = TIMES * (top - above), TIMES * (left - before)
        return large[y : y + TIMES * (bottom - top), x : x + TIMES * (right - left)]

    def _enlarged(self, pixels: Tensor) -> Any:
        """(3, h, w) bytes -> (4 h, 4 w, 3) bytes. The model works on whole windows: what is added to fill the last
        ones is cut off again."""
        _, height, width = pixels.shape
        window = self.model.config.window_size
        inputs = (pixels[None].float() / 255).to(self.job.device)
        inputs = pad(inputs, (0, -width % window, 0, -height % window), "replicate")
        result = self.model(inputs).reconstruction[0, :, : TIMES * height, : TIMES * width]
        return (result.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
