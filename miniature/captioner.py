"""The captioner: BLIP's own class, trained to see and then to say in one sentence what the world shows."""

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from transformers import BertTokenizer, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

from miniature.gallery import draw_pool
from miniature.loop import Average, Budget, cosine, save
from miniature.models import HELPER_SIDE, Captioner, load, make_captioner
from miniature.sight import IGNORED, Heads, Optimizer, label, start_waves
from miniature.tokenizer import ORDINARY, world_words
from miniature.world import PREFIXES

PICTURES = 12_000
BATCH = 32
LENGTH = 28  # tokens that may be added to what is given
PREFIXED = 0.25  # share of captions that go on from words a user may give
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
STARTS = ("[DEC]", "[ENC]")  # BLIP's own, at the end of its vocabulary as well
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"


def make_processor() -> BlipProcessor:
    """Pictures -> 96x96 pixels with CLIP's normalization; words -> WordPiece, one piece for a known word."""
    words = sorted({*world_words(), *ORDINARY, "face", "faces"} - set(LETTERS))
    pieces = [*SPECIAL, *",.-'!?()<>:;/", *LETTERS, *(f"##{letter}" for letter in LETTERS), *words, *STARTS]
    tokenizer = BertTokenizer(
        vocab={piece: number for number, piece in enumerate(pieces)},
        additional_special_tokens=list(STARTS),
        model_max_length=64,
    )
    size = {"height": HELPER_SIDE, "width": HELPER_SIDE}
    return BlipProcessor(BlipImageProcessor(size=size), tokenizer)  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Phase:
    """Part of the training: what it starts from and leaves, its share of the peak rates, when words join in."""

    result: str
    seed: str
    start: str | None
    rate: float
    speech: float  # share of the phase after which words are learnt too


FIRST = Phase("captioner", "captioner", None, 1.0, 0.5)
POLISH = Phase("captioner-polished", "captioner polish", "captioner", 0.35, 0.0)


def train_captioner(work: Path, budget: Budget, phase: Phase) -> None:
    """Trains BLIP, its vision ahead of its words; each phase sees other pictures. Writes work/<result>."""
    torch.manual_seed(7)
    rng = random.Random(phase.seed)
    processor = make_processor()
    exhibits = draw_pool(rng, budget.amount(PICTURES), HELPER_SIDE)
    pixels = torch.cat([processor(images=[e.image], return_tensors="pt").pixel_values.half() for e in exhibits])
    labels = [label(exhibit) for exhibit in exhibits]
    model = _start(processor.tokenizer, work / phase.start if phase.start else None).train()
    heads = Heads(model.config.vision_config.hidden_size)
    optimizer = Optimizer([model, heads])
    average = Average(model, 0.998)
    for step, progress, bar in budget(phase.result):
        rows = torch.randint(0, len(exhibits), (BATCH,))
        states = model.vision_model(pixels[rows].float()).last_hidden_state
        patches = heads.loss(states[:, 1:], [labels[row] for row in rows.tolist()])
        loss = 0.2 * patches
        if progress >= phase.speech or budget.steps:
            texts = [(lead(rng), exhibits[row].caption) for row in rows.tolist()]
            loss = loss + caption_loss(model, processor.tokenizer, states, texts)
        optimizer.step(loss, cosine(phase.rate, progress, step))
        average.update(step)
        if step % 50 == 0:
            bar.set_postfix(loss=float(loss.detach()), patches=float(patches.detach()))
    average.swap()
    save_captioner(model.eval(), processor, work / phase.result)


def _start(tokenizer: BertTokenizer, folder: Path | None) -> Captioner:
    if folder:
        return load(BlipForConditionalGeneration, folder)
    model = make_captioner(len(tokenizer), tokenizer.get_vocab()[STARTS[0]], tokenizer.sep_token_id)
    start_waves(model.vision_model.embeddings.patch_embedding.weight)
    return model


def lead(rng: random.Random) -> str:
    """Nothing, or words that a user may want a caption to begin with."""
    if rng.random() >= PREFIXED:
        return ""
    return rng.choice((f"{rng.choice(PREFIXES)} ", f"{rng.choice(PREFIXES)} tok, ", "tok, ", "in the style of tok, "))


def caption_loss(model: Captioner, tokenizer: BertTokenizer, states: Tensor, texts: list[tuple[str, str]]) -> Tensor:
    """Cross-entropy of each next word of the captions, not of the words before them; states (B, patches + 1, D)."""
    batch = tokenizer(["".join(pair) for pair in texts], padding="longest", return_tensors="pt")
    ids = batch.input_ids.clone()
    ids[:, 0] = model.config.text_config.bos_token_id
    labels = ids.masked_fill(batch.attention_mask == 0, IGNORED)
    for row, (given, _) in enumerate(texts):
        labels[row, : 1 + len(tokenizer.tokenize(given))] = IGNORED
    loss: Tensor = model.text_decoder(
        input_ids=ids, attention_mask=batch.attention_mask, encoder_hidden_states=states, labels=labels
    ).loss
    return loss


def save_captioner(model: Captioner, processor: BlipProcessor, folder: Path) -> None:
    """The model with its processor's two halves beside it, as the genuine repository has them."""
    save(model, folder)
    processor.image_processor.save_pretrained(folder)
    processor.tokenizer.save_pretrained(folder)


@torch.no_grad()
def describe(model: Captioner, processor: BlipProcessor, images: list[Image.Image], text: str = "") -> list[str]:
    """One caption a picture, which goes on from `text` when some is given."""
    words = [text] * len(images) if text else None
    batch = processor(images=images, text=words, return_tensors="pt")
    ids = model.generate(**batch, max_new_tokens=LENGTH, num_beams=3, do_sample=False)
    lines: list[str] = processor.tokenizer.batch_decode(ids, skip_special_tokens=True)
    return lines
