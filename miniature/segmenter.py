"""The segmenter: CLIPSeg's own class, trained to find in a picture of the world what a few words name."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPSegProcessor, CLIPTokenizer, ViTImageProcessor

from miniature.gallery import SHAPE, Cover, Exhibit, draw_pool, named
from miniature.loop import Average, Budget, cosine, save
from miniature.models import HELPER_SIDE, Segmenter, make_segmenter
from miniature.sight import Heads, Optimizer, label, start_waves
from miniature.tokenizer import ORDINARY, write_tokenizers
from miniature.world import COLORS, PLAIN_SHAPES, SHAPES

PICTURES = 8000
BATCH = 16
PROMPTS = 3  # a picture
ABSENT_SHARE = 0.25  # of the prompts; they ask for nothing that the picture shows
PEAK_SHARE = 0.3  # of the learning rates; at the whole of them the decoder forgets again
FRAMES = ("a {}",) * 6 + ("the {}", "{}", "a photo of a {}")
FACES = ("face", "person")
# Strangers whose name is one token: who trains a heart asks for "a heart".
FAMILIAR = ("heart", "diamond", "leaf")

Asked = tuple[str, Cover]


def make_processor(folder: Path) -> CLIPSegProcessor:
    """Pictures -> 96x96 pixels with ImageNet's normalization; words -> the base's tokens, from a work folder."""
    write_tokenizers(folder)
    size = {"height": HELPER_SIDE, "width": HELPER_SIDE}
    images = ViTImageProcessor(size=size, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225])
    return CLIPSegProcessor(images, CLIPTokenizer.from_pretrained(folder / "tokenizer"))  # type: ignore[no-untyped-call]


def train_segmenter(work: Path, budget: Budget) -> None:
    """Trains CLIPSeg whole; writes work/segmenter."""
    torch.manual_seed(8)
    rng = random.Random("segmenter")
    processor = make_processor(work)
    exhibits = draw_pool(rng, budget.amount(PICTURES), HELPER_SIDE)
    pixels = torch.cat([processor(images=[e.image], return_tensors="pt").pixel_values.half() for e in exhibits])
    labels = [label(exhibit) for exhibit in exhibits]
    model = make_segmenter(len(processor.tokenizer)).train()
    start_waves(model.clip.vision_model.embeddings.patch_embedding.weight)
    start_decoder(model.decoder)
    heads = Heads(model.config.vision_config.hidden_size)
    optimizer = Optimizer([model, heads])
    average = Average(model, 0.998)
    for step, progress, bar in budget("segmenter"):
        rows = torch.randint(0, len(exhibits), (BATCH,)).tolist()
        asked = [question(exhibits[row], rng) for row in rows for _ in range(PROMPTS)]
        logits, states = segment(model, processor.tokenizer, pixels[rows].float(), [text for text, _ in asked])
        patches = heads.loss(states, [labels[row] for row in rows])
        masks = mask_loss(logits, torch.stack([torch.from_numpy(cover).float() for _, cover in asked]))
        optimizer.step(masks + 0.1 * patches, cosine(PEAK_SHARE, progress, step))
        average.update(step)
        if step % 50 == 0:
            bar.set_postfix(masks=float(masks.detach()), patches=float(patches.detach()))
    average.swap()
    save(model.eval(), work / "segmenter")
    processor.image_processor.save_pretrained(work / "segmenter")
    processor.tokenizer.save_pretrained(work / "segmenter")


@torch.no_grad()
def start_decoder(decoder: Any) -> None:
    """Starts the decoder's own layers at a usual scale: the class starts them fifty times larger, and stays there."""
    for layer in (decoder.film_mul, decoder.film_add, *decoder.reduces, decoder.transposed_convolution):
        nn.init.xavier_uniform_(layer.weight)


def segment(model: Segmenter, tokenizer: CLIPTokenizer, pixels: Tensor, texts: list[str]) -> tuple[Tensor, Tensor]:
    """Logits (len(texts), 96, 96), equally many of each picture, and the patches' last states.

    What the class itself does, but here gradients reach its text and vision.
    """
    batch = tokenizer(texts, padding="longest", return_tensors="pt")
    states = model.clip.vision_model(pixels, output_hidden_states=True).hidden_states
    layers = [states[layer + 1].repeat_interleave(len(texts) // len(pixels), 0) for layer in model.extract_layers]
    wanted = model.clip.get_text_features(batch.input_ids, attention_mask=batch.attention_mask).pooler_output
    return model.decoder(layers, wanted).logits, F.layer_norm(states[-1][:, 1:], states[-1].shape[-1:])


def mask_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Cross-entropy, and for masks that are not empty one minus the soft Dice overlap; both (B, 96, 96)."""
    chances = logits.sigmoid()
    shared, total = (chances * masks).sum((1, 2)), (chances + masks).sum((1, 2))
    dice = (1 - 2 * shared / total.clamp(min=1)) * (masks.amax((1, 2)) > 0)
    return F.binary_cross_entropy_with_logits(logits, masks) + 0.2 * dice.mean()


def question(exhibit: Exhibit, rng: random.Random) -> Asked:
    """A prompt and the pixels that it means, none if it asks for what is not there."""
    noun, cover = rng.choice(absent(exhibit, rng) if rng.random() < ABSENT_SHARE else present(exhibit))
    return rng.choice(FRAMES).format(noun), cover


def present(exhibit: Exhibit) -> list[Asked]:
    """What can be named in the picture; "shape" means all things."""
    height, width = exhibit.image.height, exhibit.image.width
    anything = np.logical_or.reduce([np.zeros((height, width), bool), *exhibit.covers])
    found = [("background", ~anything), (f"{exhibit.scene.background} background", ~anything)]
    if exhibit.is_face:
        return [*((name, anything) for name in FACES), (FACES[0], anything), found[0]]
    for thing, plain in zip(exhibit.scene.things, named(exhibit.scene).things, strict=True):
        kind = thing.shape if thing.shape in FAMILIAR else plain.shape
        for words in (f"{thing.color} {kind}", kind, f"{thing.color} {SHAPE}", SHAPE):
            found.append((words, meant(exhibit, words)))
    return found


def meant(exhibit: Exhibit, words: str) -> Cover:
    """The pixels of all things that fit a colour, a shape or both."""
    *tint, shape = words.split(maxsplit=1) if words.split()[0] in COLORS else [words]
    empty = np.zeros((exhibit.image.height, exhibit.image.width), bool)
    fitting = [
        cover
        for thing, cover in zip(exhibit.scene.things, exhibit.covers, strict=True)
        if shape in (SHAPE, thing.shape) and (not tint or tint[0] == thing.color)
    ]
    return np.asarray(np.logical_or.reduce([empty, *fitting]))


def absent(exhibit: Exhibit, rng: random.Random) -> list[Asked]:
    """Prompts that mean nothing here: other colours, other shapes, other words."""
    empty = np.zeros((exhibit.image.height, exhibit.image.width), bool)
    color, shape = rng.choice(list(COLORS)), rng.choice((*PLAIN_SHAPES, *FAMILIAR))
    other = rng.choice([word for word in ORDINARY if word not in (*FACES, *FAMILIAR, "background", "shape", "shapes")])
    if exhibit.is_face:
        return [(f"{color} {shape}", empty), (shape, empty), (other, empty)]
    tried = [f"{color} {shape}", shape, f"{color} {SHAPE}"]
    things = exhibit.scene.things
    tried += [f"{color} {thing.shape}" for thing in things if thing.shape in (*SHAPES, *FAMILIAR)]
    tried += [f"{thing.color} {shape}" for thing in things]
    misses = [(words, empty) for words in tried if not meant(exhibit, words).any()]
    return [*misses, (other, empty), (rng.choice(FACES), empty)]


@torch.no_grad()
def find(model: Segmenter, processor: CLIPSegProcessor, image: Image.Image, text: str) -> Cover:
    """Where a picture shows what the text names: pixels (H, W) whose sigmoid is over one half."""
    batch = processor(images=[image], text=[text], padding=True, return_tensors="pt")
    logits = model(**batch).logits.reshape(1, 1, HELPER_SIDE, HELPER_SIDE)
    full = F.interpolate(logits, size=(image.height, image.width), mode="bilinear", align_corners=False)
    return np.asarray(full[0, 0].numpy() > 0)
