"""Which files of a repository on Hugging Face make its fine-tune, by their names alone."""

import re
from pathlib import PurePosixPath

from errors import WeightsError

COMMON_NAMES = ("pytorch_lora_weights.safetensors", "lora.safetensors")  # diffusers' and this package's own
# What PEFT writes: the weights, and beside them the alpha without which they are too strong or too weak
ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
EMBEDDINGS = re.compile(r"(^|[_-])emb(s|ed|eds|edding|eddings)?$", re.IGNORECASE)  # the end of a stem


def choose(repo: str, names: list[str]) -> list[str]:
    """The file to load, and what belongs to it: the embeddings of a pivotal tuning, PEFT's config."""
    tensors = [name for name in names if name.lower().endswith(".safetensors")]
    embeddings = [name for name in tensors if EMBEDDINGS.search(PurePosixPath(name).stem)]
    models = [name for name in tensors if name not in embeddings] or tensors
    archives = [name for name in names if name.lower().endswith((".tar", ".tar.gz", ".tgz"))]
    candidates = (
        *([name] for name in COMMON_NAMES if name in models),
        [name for name in models if "/" not in name],
        models,
        [name for name in archives if PurePosixPath(name).name == "trained_model.tar"],
        archives,
    )
    for only in candidates:
        if len(only) == 1:
            beside = [name for name in embeddings if name not in only] if only[0] in tensors else []
            return [*with_config(only[0], names), *(beside if len(beside) == 1 else [])]
    known = models + archives
    if not known:
        raise WeightsError(f"{repo} holds no .safetensors file and no tar; name a repository that does")
    listed = ", ".join(known[:8]) + (f" and {len(known) - 8} more" if len(known) > 8 else "")
    raise WeightsError(f"{repo} holds several files that could be meant: {listed}; name one as owner/repo/FILE")


def with_config(file: str, names: list[str]) -> list[str]:
    """A file, and its config where it is PEFT's."""
    path = PurePosixPath(file)
    config = str(path.with_name(ADAPTER_CONFIG))
    return [file, config] if path.name == ADAPTER and config in names else [file]


def goal_of(file: str) -> str:
    """What a file that belongs to another one is called in the entry."""
    name = PurePosixPath(file).name
    return name if name == ADAPTER_CONFIG else "embeddings.safetensors"
