"""Which files make a model or a fine-tune; without torch, so that fetching them can begin before torch is imported."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ModelFiles:
    """Where a model lies on this machine; every path exists and is complete.

    base            a diffusers folder, or one .safetensors checkpoint (then `config` is set)
    refiner         a diffusers folder, or None: the model has no refiner. Its text_encoder_2, tokenizer_2 and vae
                    may be absent: they are those of base
    vae             a folder with the VAE to use in place of base's and the refiner's, or None: base's own
    safety_checker  a folder with config.json and model.safetensors, or None: this model has no checker
    config          for a single file: the folder with the configs and tokenizers of its parts
    """

    base: Path
    refiner: Path | None = None
    vae: Path | None = None
    safety_checker: Path | None = None
    config: Path | None = None


@dataclass(frozen=True)
class TunedFiles:
    """Where a fine-tune lies on this machine, whole.

    key     64 hexadecimal digits that stand for its content: the same content from two sources has the same key
    folder  .safetensors, .pti and .json files only. An archive's keep their names and folders; a file that came
            alone is weights.safetensors, and embeddings.safetensors is what lay beside it in its repository
    name    what a file that came alone was called where it came from, without its ending: TOK; or ""
    shown   how errors, logs and picture metadata may name the source: no query, no password, no token
    """

    key: str
    folder: Path
    name: str
    shown: str
