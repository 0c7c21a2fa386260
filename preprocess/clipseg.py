"""Masks of what a prompt names, by CLIPSeg (arXiv 2112.10003)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from transformers import CLIPSegForImageSegmentation, CLIPSegProcessor

from preprocess.images import Source
from preprocess.job import Job

SEEN = -3.0  # logit: below it, 5 % sure, a prompt is in no place of a picture


def found(sources: Sequence[Source], job: Job) -> Iterator[tuple[Source, NDArray[np.float32]]]:
    """How much each place of these pictures counts, (h, w) of their shape, from 0 to 1; none where nothing is seen."""
    folder, prompts = job.helper("segmenter"), list(job.wishes.prompts)
    processor = CLIPSegProcessor.from_pretrained(folder, local_files_only=True)
    model: Any = CLIPSegForImageSegmentation.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    model = model.to(job.device).eval()
    job.say(f"masks of {', '.join(map(repr, prompts))} for {len(sources)} images")
    for source in sources:
        job.check()
        with Image.open(source.image) as image:
            logits = _logits(model, processor, image, prompts)
        unseen = [prompt for prompt, most in zip(prompts, logits.amax((1, 2)).tolist(), strict=True) if most < SEEN]
        if unseen:
            counts = "; all of it counts" if len(unseen) == len(prompts) else ""
            job.note(f"{source.name!r} shows no {' and no '.join(map(repr, unseen))}{counts}")
        if len(unseen) < len(prompts):
            yield source, weights(logits, source.shape, job.wishes.clipseg_temperature)


def weights(logits: Tensor, shape: tuple[int, int], temperature: float) -> NDArray[np.float32]:
    """logits (n, h, w) of n prompts -> (H, W), 1 where the surest of them is surest. Hotter is softer."""
    wide = interpolate(logits[None], shape, mode="bilinear", align_corners=False)[0]
    sure = torch.sigmoid(wide.amax(0) / temperature)
    result: NDArray[np.float32] = (sure / sure.max()).numpy()
    return result


@torch.inference_mode()
def _logits(model: Any, processor: Any, image: Image.Image, prompts: list[str]) -> Tensor:
    """(n, h, w), on the CPU, as large as CLIPSeg sees the picture."""
    inputs = processor(text=prompts, images=[image], padding=True, truncation=True, return_tensors="pt")
    pixels = inputs["pixel_values"].to(model.device).expand(len(prompts), -1, -1, -1)
    words = {name: inputs[name].to(model.device) for name in ("input_ids", "attention_mask")}
    logits: Tensor = model(pixel_values=pixels, **words).logits
    return logits.reshape(len(prompts), *logits.shape[-2:]).cpu()
