"""What comes from where: `resolve(os.environ.get("SDXL_MODEL"))` names a model's files and fetches them, and
`fine_tune(source, ...)` those of a fine-tune that a user names; `helper(...)` what prepares pictures for a training.

SDXL_MODEL    sdxl-1.0 (the default), miniature, a folder, one .safetensors checkpoint, or the URL of one
SDXL_CACHE    where downloads are kept; ~/.cache/sdxl if unset
SDXL_OFFLINE  1: no request is ever made; what is complete in the cache serves
HF_ENDPOINT   another hub; HF_TOKEN is the token for it, for SDXL_MODEL only

SDXL_FINETUNE_LIMIT_GB  the largest fine-tune that is fetched; 12 if unset
SDXL_FINETUNE_CACHE_GB  what all that are kept may take; 30 if unset, room for the largest archive and what is
                        in it. The least recently used goes first
SDXL_DISK_FLOOR_GB      what fetching them leaves free on the disk; 1 if unset

What is complete in the cache is used without any request, online too. No torch here: downloads begin before
torch is imported; only the one conversion of the safety checker imports it.
"""

import hashlib
import json
import os
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, urlsplit

from errors import WeightsError
from fetch import download, network
from fetch.answers import Item, Manner, Stop, shown
from fetch.disk import locked, read_ahead, safetensors_keys
from fetch.obtain import obtain
from fetch.sources import Tokens
from fetch.store import GB, Store
from sdxl.files import ModelFiles, TunedFiles

ROOT = Path(__file__).resolve().parent
MINIATURE = ROOT / "miniature" / "weights"
CONFIGS = ROOT / "sdxl" / "configs"
SOURCES = CONFIGS / "sources.json"
ACCEPTED = "use sdxl-1.0, miniature, a folder with base/ and refiner/, or a .safetensors file (path or URL)"
HUB = "https://huggingface.co"
LARGEST = 32 << 30  # bytes of a checkpoint given by URL; SDXL in fp32 has 14 GB
PARTS = ("base", "refiner", "vae", "safety_checker")  # of sdxl-1.0
PICKLE = "pytorch_model.bin"
# What marks an SDXL base checkpoint: its UNet, CLIP-L and bigG, as diffusers' single-file loader knows them
MARKS = (
    "model.diffusion_model.input_blocks.0.0.weight",
    "conditioner.embedders.0.transformer.text_model.embeddings.position_embedding.weight",
    "conditioner.embedders.1.model.positional_embedding",
)


def resolve(
    model: str | None, *, parts: tuple[str, ...] = PARTS, manner: Manner | None = None, stop: Stop | None = None
) -> ModelFiles:
    """The files of the model that SDXL_MODEL names; what is missing is downloaded, of sdxl-1.0 these parts alone."""
    name = (model or "sdxl-1.0").strip()
    manner = manner or Manner()
    if name == "sdxl-1.0":
        return ModelFiles(**_hub(parts, manner, stop))
    if name == "miniature":
        return _folder(MINIATURE)
    if urlsplit(name).scheme in ("http", "https"):
        return _single(_from_url(name, manner, stop), parts, manner, stop)
    path = Path(name).expanduser()
    if path.is_dir():
        return _folder(path)
    if path.suffix == ".safetensors" and path.is_file():
        return _single(path, parts, manner, stop)
    raise WeightsError(f"SDXL_MODEL={name!r} is neither a known model nor an existing path; {ACCEPTED}")


def fetched(model: str | None) -> ModelFiles:
    """`resolve`, and the disk told to read the weights into memory while others are busy."""
    files = resolve(model)
    refiner = files.refiner / "unet" if files.refiner and os.environ.get("SDXL_DEFER_REFINER") != "1" else None
    for path in (files.base, refiner, files.vae, files.safety_checker):
        if path is not None:
            read_ahead(path)
    return files


def local_folder(model: str | None) -> Path | None:
    """The folder of a model that is one, the miniature's among them: resolving it needs no network."""
    path = MINIATURE if model == "miniature" else Path(model or "sdxl-1.0").expanduser()
    return path if path.is_dir() else None


def helper(model: str | None, part: str, *, manner: Manner | None = None, stop: Stop | None = None) -> Path:
    """The folder of a model that prepares pictures for a training: "captioner" (BLIP), "segmenter" (CLIPSeg) or
    "upscaler" (Swin2SR). The miniature has its own, a folder may; all others use the public ones.
    """
    folder = local_folder(model)
    if folder is not None and (folder / part / "config.json").is_file():
        return folder / part
    return _hub((part,), manner or Manner(), stop)[part]


@contextmanager
def fine_tune(
    source: str,
    *,
    tokens: Tokens,
    first: Literal["replicate", "huggingface"],
    stop: Stop,
    manner: Manner | None = None,
    local: bool | Collection[Path] = (),
) -> Iterator[TunedFiles]:
    """The files of a fine-tune, whole on this machine, kept there while the context lasts.

    first  which service is asked first for a plain owner/name
    stop   another thread sets it to end the download; Stopped is raised at once, and nothing is left of it
    local  whether any path is read, or which; a request must not read the machine's files

    WeightsError says what is wrong. No token is taken from the environment.
    """
    with ExitStack() as held:
        entry, found = obtain(
            source,
            store=fine_tune_store(),
            limit=_bytes("SDXL_FINETUNE_LIMIT_GB", 12),
            tokens=tokens,
            first=first,
            stop=stop,
            manner=manner or Manner(),
            local=local,
            offline=offline(),
            held=held,
        )
        yield TunedFiles(entry.key, entry.folder, found.name, found.shown)


def fine_tune_store() -> Store:
    """Where fine-tunes are kept between requests and restarts."""
    return Store(
        cache_root() / "finetunes",
        limit=_bytes("SDXL_FINETUNE_CACHE_GB", 30),
        floor=_bytes("SDXL_DISK_FLOOR_GB", 1),
    )


def _bytes(variable: str, default: float) -> int:
    """What an environment variable says in gigabytes."""
    value = os.environ.get(variable) or default
    try:
        return int(float(value) * GB)
    except (ValueError, OverflowError) as error:
        raise WeightsError(f"{variable}={value!r} is no number of gigabytes; set it to one, or unset it") from error


def cache_root() -> Path:
    return Path(os.environ.get("SDXL_CACHE") or "~/.cache/sdxl").expanduser()


def local_files() -> list[Path]:
    """What a request may name by its path: SDXL_LOCAL_FILES, separated as in PATH; scripts set it for their server."""
    return [Path(path) for path in os.environ.get("SDXL_LOCAL_FILES", "").split(os.pathsep) if path]


def offline() -> bool:
    return os.environ.get("SDXL_OFFLINE", "") not in ("", "0")


def _folder(folder: Path) -> ModelFiles:
    """A folder with base/ and, if there, refiner/, vae/ and safety_checker/; or a base folder itself."""
    if (folder / "model_index.json").is_file():
        return ModelFiles(base=_with_weights(folder, own_vae=True))
    if not (folder / "base" / "model_index.json").is_file():
        raise WeightsError(f"SDXL_MODEL={str(folder)!r} holds no base/model_index.json; {ACCEPTED}")
    vae, checker, refiner = folder / "vae", folder / "safety_checker", folder / "refiner"
    own_vae = not (vae / "config.json").is_file()
    if (refiner / "model_index.json").is_file():
        _with_weights(refiner, parts=("unet",))
    return ModelFiles(
        base=_with_weights(folder / "base", own_vae=own_vae),
        refiner=refiner if (refiner / "model_index.json").is_file() else None,
        vae=None if own_vae else vae,
        safety_checker=checker if (checker / "model.safetensors").is_file() else None,
    )


def _with_weights(
    folder: Path,
    *,
    parts: tuple[str, ...] = ("unet", "text_encoder", "text_encoder_2"),
    own_vae: bool = False,
) -> Path:
    """The folder itself, once each part of it was seen to hold weights."""
    for part in (*parts, "vae") if own_vae else parts:
        if not any((folder / part).glob("*.safetensors")):
            raise WeightsError(
                f"{folder / part} holds no .safetensors file; copy it again, or save the model with "
                "save_pretrained(safe_serialization=True)"
            )
    return folder


def _single(path: Path, parts: tuple[str, ...], manner: Manner, stop: Stop | None) -> ModelFiles:
    """One checkpoint file, with the fp16-safe VAE and the safety checker of sdxl-1.0.

    The refiner is sdxl-1.0's where that is complete in the cache: such checkpoints rarely want it, and 4.5 GB
    are not fetched unasked. Offline, the same goes for the VAE and the checker.
    """
    require_base_checkpoint(path)
    if not offline():
        _hub(tuple(part for part in ("vae", "safety_checker") if part in parts), manner, stop)
    extras = {part: _cached(part) for part in ("refiner", "vae", "safety_checker") if part in parts}
    return ModelFiles(base=path, config=CONFIGS / "base", **extras)


def require_base_checkpoint(path: Path) -> None:
    """Refuse what is cut short or is something else than an SDXL base checkpoint, by its header alone."""
    keys = safetensors_keys(path)
    if missing := [mark for mark in MARKS if mark not in keys]:
        raise WeightsError(
            f"{path} is no SDXL base checkpoint, it has no {missing[0]!r}; LoRAs, refiners and other models "
            "do not go in SDXL_MODEL"
        )


def _from_url(url: str, manner: Manner, stop: Stop | None) -> Path:
    """The checkpoint at a URL, kept under the URL's digest: another URL is another file."""
    folder = cache_root() / "url" / hashlib.sha256(url.encode()).hexdigest()[:32]
    path = folder / "model.safetensors"
    if path.is_file():
        return path
    _require_online(path)
    with locked(folder / ".lock"):
        get = network.getter(allow_private=False, timeout=(10, manner.patience.window), stop=stop)
        download.fetch([Item(url, path)], get, label="checkpoint", manner=replace(manner, limit=LARGEST), stop=stop)
        try:
            require_base_checkpoint(path)
        except WeightsError as error:
            path.unlink()
            raise WeightsError(f"{shown(url)} is not what SDXL_MODEL takes: {error}") from error
    return path


def _hub(parts: tuple[str, ...], manner: Manner, stop: Stop | None) -> dict[str, Path]:
    """Parts of sdxl-1.0, whole in the cache."""
    missing = sorted(_cache_folder(part) for part in parts if not _cached(part))
    if missing:
        _require_online(missing[0])
        token = os.environ.get("HF_TOKEN")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        # The operator chose this endpoint: it may be a mirror inside, and the environment's proxies apply
        get = network.getter(allow_private=True, headers=headers, timeout=(10, manner.patience.window), stop=stop)
        with ExitStack() as locks:
            for folder in missing:  # in one order for all processes, so that none waits for another in a ring
                locks.enter_context(locked(folder / ".lock"))
            items = [item for part in parts for item in _items(part)]
            download.fetch(items, get, label=" ".join(parts), manner=manner, stop=stop)
            for folder in missing:
                if (folder / PICKLE).is_file():
                    _convert(folder)
    return {part: _cache_folder(part) for part in parts}


def _items(part: str) -> list[Item]:
    source, folder = _source(part), _cache_folder(part)
    endpoint = (os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")
    base = f"{endpoint}/{source['repo']}/resolve/{source['revision']}"
    return [
        Item(f"{base}/{quote(name)}", folder / name, size, sha256)
        for name, (size, sha256) in source["files"].items()
        if name != PICKLE or not (folder / "model.safetensors").is_file()
    ]


def _convert(folder: Path) -> None:
    """The safety checker's pickle, its digest verified, as safetensors in fp16; the pickle goes."""
    import torch
    from safetensors.torch import save_file

    state = torch.load(folder / PICKLE, map_location="cpu", weights_only=True)
    # position_ids is a plain 0..n-1 that current transformers makes itself
    kept = {
        name: value.half().contiguous() if value.is_floating_point() else value.contiguous()
        for name, value in state.items()
        if not name.endswith(".position_ids")
    }
    fresh = folder / "model.safetensors.new"
    save_file(kept, fresh, metadata={"format": "pt"})
    fresh.replace(folder / "model.safetensors")
    (folder / PICKLE).unlink(missing_ok=True)


def _source(part: str) -> Any:
    return json.loads(SOURCES.read_text())[part]


def _cache_folder(part: str) -> Path:
    source = _source(part)
    return cache_root() / str(source["repo"]).replace("/", "--") / str(source["revision"])


def _cached(part: str) -> Path | None:
    """The part's folder if every file of it is there; files come there only whole."""
    folder = _cache_folder(part)
    names = ["model.safetensors" if name == PICKLE else name for name in _source(part)["files"]]
    if not all((folder / name).is_file() for name in names):
        return None
    if (folder / PICKLE).is_file():  # a kill just before the end of _convert left it, 1.2 GB that nothing reads
        with suppress(OSError):  # the cache may be read-only
            (folder / PICKLE).unlink(missing_ok=True)
    return folder


def _require_online(path: Path) -> None:
    if offline():
        raise WeightsError(f"{path} is not complete and SDXL_OFFLINE is set; unset it once to download")
