"""BLIP, CLIPSeg and Swin2SR of the real classes, tiny and random, in folders as `save_pretrained` and the hub have."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
    CLIPSegConfig,
    CLIPSegForImageSegmentation,
    CLIPSegProcessor,
    CLIPTokenizer,
    Swin2SRConfig,
    Swin2SRForImageSuperResolution,
    ViTImageProcessor,
)

_WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] a red blue green circle square star on white background large small"
_LETTERS = "<|startoftext|> <|endoftext|> a b c d e i l r s u"
WORDS, LETTERS = _WORDS.split(), _LETTERS.split()
SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "projection_dim": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
# As Salesforce/blip-image-captioning-large and CIDAS/clipseg-rd64-refined have it
HUB: dict[str, Any] = {
    "do_normalize": True,
    "do_resize": True,
    "image_mean": [0.48, 0.46, 0.41],
    "image_std": [0.27, 0.26, 0.28],
    "rescale_factor": 1 / 255,
    "size": {"height": 32, "width": 32},
}


def captioner(folder: Path, *, hub: bool = False) -> Path:
    """BLIP that speaks WORDS; its first token, [DEC], is beyond the vocabulary on the hub, and a word in ours."""
    torch.manual_seed(0)
    ids = {"bos_token_id": len(WORDS), "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}
    text = {**SMALL, **ids, "vocab_size": len(WORDS) + 2, "encoder_hidden_size": 32, "max_position_embeddings": 64}
    vision = {**SMALL, "image_size": 32, "patch_size": 8}
    config = BlipConfig(text_config=text, vision_config=vision, projection_dim=32)
    with torch.no_grad():
        model = BlipForConditionalGeneration(config)
        for weight in model.parameters():
            weight.mul_(8)  # so that different pictures are called different things
    model.save_pretrained(folder)
    if hub:
        (folder / "vocab.txt").write_text("\n".join(WORDS))
        config_of_tokens = {
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": True,
            "processor_class": "BlipProcessor",
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(config_of_tokens))
        stated = {"image_processor_type": "BlipImageProcessor", "processor_class": "BlipProcessor"}
        (folder / "preprocessor_config.json").write_text(json.dumps(HUB | stated))
    else:
        tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate([*WORDS, "[DEC]"])})
        processor: Any = BlipProcessor
        processor(BlipImageProcessor(size=HUB["size"]), tokenizer).save_pretrained(folder)
    return folder


def segmenter(folder: Path, *, hub: bool = False) -> Path:
    """CLIPSeg that reads LETTERS."""
    torch.manual_seed(0)
    vocab = {letter: number for number, letter in enumerate([*LETTERS, *(f"{letter}</w>" for letter in LETTERS[2:])])}
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = CLIPSegConfig(
        text_config={**SMALL, **ids, "vocab_size": len(vocab), "max_position_embeddings": 24},
        vision_config={**SMALL, "num_hidden_layers": 3, "image_size": 32, "patch_size": 8},
        projection_dim=32,
        reduce_dim=16,
        extract_layers=[0, 1, 2],
        decoder_num_attention_heads=2,
        decoder_intermediate_size=32,
    )
    model = CLIPSegForImageSegmentation(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(4)
    model.save_pretrained(folder)
    if hub:
        (folder / "vocab.json").write_text(json.dumps(vocab))
        (folder / "merges.txt").write_text("#version: 0.2\n")
        ends = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
        stated = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 24, "unk_token": "<|endoftext|>"}
        (folder / "tokenizer_config.json").write_text(json.dumps(stated | ends))
        kind = {"feature_extractor_type": "ViTFeatureExtractor", "processor_class": "CLIPSegProcessor"}
        (folder / "preprocessor_config.json").write_text(json.dumps(HUB | kind))
    else:
        tokenizer = CLIPTokenizer(vocab=vocab, merges=[], model_max_length=24)
        processor: Any = CLIPSegProcessor
        processor(ViTImageProcessor(size=HUB["size"]), tokenizer).save_pretrained(folder)
    return folder


def upscaler(folder: Path, times: int = 4) -> Path:
    """Swin2SR, in windows of 8."""
    torch.manual_seed(0)
    upsampler = "nearest+conv" if times == 4 else "pixelshuffle"
    config = Swin2SRConfig(
        image_size=16, embed_dim=16, depths=[1], num_heads=[2], window_size=8, upscale=times, upsampler=upsampler
    )
    model = Swin2SRForImageSuperResolution(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(2)  # so that what is around a place shows in it
    model.save_pretrained(folder)
    return folder
