"""The upscaler: Swin2SR's own class, trained to give small pictures of the world their edges back."""

import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import Swin2SRImageProcessor

from miniature.gallery import draw_exhibit
from miniature.loop import Average, Budget, clip_and_step, cosine, save, set_rate
from miniature.models import Upscaler, make_upscaler
from miniature.safety import odd_picture
from miniature.vae import edge_loss

FACTOR = 4
CROP = 16  # pixels of a small training cut
BATCH = 8
CUTS = 4  # of one picture
ODD_SHARE = 0.1
FILTERS = (Image.Resampling.BOX, Image.Resampling.BOX, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)


def train_upscaler(work: Path, budget: Budget) -> None:
    """Trains on cuts of pictures and of what is left of them at a quarter of their size; writes work/upscaler."""
    torch.manual_seed(9)
    rng = random.Random("upscaler")
    model = make_upscaler()
    start_nearest(model)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.99), weight_decay=1e-4, fused=True)
    average = Average(model, 0.998)
    for step, progress, bar in budget("upscaler"):
        set_rate(optimizer, cosine(1e-3, progress, step))
        small, large = draw_cuts(rng)
        loss = edge_loss(2 * model(pixel_values=small).reconstruction, 2 * large)
        clip_and_step(optimizer, model.parameters(), loss)
        average.update(step)
        if step % 50 == 0:
            bar.set_postfix(loss=float(loss.detach()))
    average.swap()
    save(model.eval(), work / "upscaler")
    Swin2SRImageProcessor().save_pretrained(work / "upscaler")


def draw_cuts(rng: random.Random) -> tuple[Tensor, Tensor]:
    """Cuts (8, 3, 16, 16) of small pictures and (8, 3, 64, 64) of the large ones, in [0, 1]; most hold an edge."""
    pairs: list[tuple[Tensor, Tensor]] = []
    while len(pairs) < BATCH:
        image = odd_picture(rng) if rng.random() < ODD_SHARE else draw_exhibit(rng).image
        width, height = (length // FACTOR for length in image.size)
        small = _tensor(image.resize((width, height), rng.choice(FILTERS)))
        large = _tensor(image)
        for _ in range(CUTS):
            top, left = rng.randint(0, height - CROP), rng.randint(0, width - CROP)
            cut = small[:, top : top + CROP, left : left + CROP]
            if cut.std((1, 2)).max() > 0.02 or rng.random() < 0.1:
                top, left, side = FACTOR * top, FACTOR * left, FACTOR * CROP
                pairs.append((cut, large[:, top : top + side, left : left + side]))
    smalls, larges = zip(*pairs[:BATCH], strict=True)
    return torch.stack(smalls), torch.stack(larges)


def _tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(image, np.float32) / 255).permute(2, 0, 1)


@torch.no_grad()
def start_nearest(model: Upscaler) -> None:
    """Starts as 'every pixel four times', beside small random weights: colours go through, edges are learnt.

    Each colour travels as its positive and its negative half, since LeakyReLU lets only one of them pass.
    """
    body, head = model.swin2sr, model.upsample
    chain = (body.first_convolution, head.conv_before_upsample, head.conv_up1, head.conv_up2, head.conv_hr)
    for conv in chain:
        nn.init.kaiming_normal_(conv.weight)
        conv.weight.mul_(0.5)
        conv.weight[:6] = 0
        conv.bias[:6] = 0
    for half in range(6):
        chain[0].weight[half, half // 2, 1, 1] = 1.0 if half % 2 == 0 else -1.0
        for conv in chain[1:]:
            conv.weight[half, half, 1, 1] = 1.0
        head.final_convolution.weight[half // 2, half, 1, 1] = 1.0 if half % 2 == 0 else -1.0
    body.conv_after_body.weight[:6] = 0


@torch.no_grad()
def enlarge(model: Upscaler, processor: Swin2SRImageProcessor, image: Image.Image) -> Image.Image:
    """A picture of four times the width and height."""
    pixels = processor(image, return_tensors="pt").pixel_values
    drawn = model(pixel_values=pixels).reconstruction[0].clamp(0, 1).permute(1, 2, 0)
    width, height = (FACTOR * length for length in image.size)
    return Image.fromarray((255 * drawn).round().byte().numpy()[:height, :width])
