"""Captions by BLIP (arXiv 2201.12086) for pictures that came without."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import BlipForConditionalGeneration, BlipProcessor

from preprocess.captions import clean
from preprocess.job import Job

BATCH = 4  # pictures at a time
BEAMS = 5
MOST = 40  # tokens: a sentence; SDXL reads 75
# "arafed man", "araffes": no words, but what BLIP-large has learned to begin many captions with
ARTEFACT = re.compile(r"\b(an? )?ar+af+e[ds]?\b *", re.I)


def described(images: Sequence[Path], job: Job) -> list[str]:
    """One sentence per picture file, in the order given; the same ones every time."""
    folder = job.helper("captioner")
    processor = BlipProcessor.from_pretrained(folder, local_files_only=True)
    dtype = torch.float16 if job.device.type == "cuda" else torch.float32
    model: Any = BlipForConditionalGeneration.from_pretrained(folder, dtype=dtype, local_files_only=True)
    model = model.to(job.device).eval()
    job.say(f"captions for {len(images)} images")
    captions = list[str]()
    for start in range(0, len(images), BATCH):
        job.check()
        captions += _sentences(model, processor, images[start : start + BATCH])
    return captions


@torch.inference_mode()
def _sentences(model: Any, processor: Any, files: Sequence[Path]) -> list[str]:
    pictures = []
    for file in files:
        with Image.open(file) as image:
            pictures.append(image.convert("RGB"))
    pixels = processor(images=pictures, return_tensors="pt")["pixel_values"].to(model.device, model.dtype)
    tokens = model.generate(pixel_values=pixels, num_beams=BEAMS, do_sample=False, max_new_tokens=MOST)
    # The first one says "decode": the tokenizer of the real model does not know it
    texts = processor.batch_decode(tokens[:, 1:], skip_special_tokens=True)
    return [plain(text) for text in texts]


def plain(text: str) -> str:
    """A sentence without words that are none."""
    return clean(ARTEFACT.sub(lambda found: found[1] or "", text))
