"""Every module of SDXL, loaded once, each byte of it read once, shared by base and refiner."""

import gc
import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import Module

from errors import WeightsError
from sdxl.clip import ProjectedTextModel, TextModel
from sdxl.engine import Engines
from sdxl.files import ModelFiles
from sdxl.modules import M, blank, config, fill
from sdxl.narrow import AutoencoderKL, UNet2DConditionModel
from sdxl.placement import Placement
from sdxl.reading import read_tensors
from sdxl.safety import Safety, load_safety
from sdxl.text import TextEncoders
from sdxl.tokenizer import Tokenizer
from sdxl.workers import Stop, beside

SDXL_WIDTH = 1280  # channels of its UNet where that is widest


def config_of(module: Module) -> Any:
    """A module's config as the namespace that it is; diffusers states its type as a dict."""
    return module.config


@dataclass
class Models:
    """What a prediction works with. Nothing in it is changed by a prediction, but for the weights in `parts`, by the
    one slot for fine-tunes."""

    text: TextEncoders
    vae: AutoencoderKL
    base: UNet2DConditionModel
    scheduler_config: Mapping[str, Any]
    safety: Safety | None
    placement: Placement
    engines: Engines  # what calls the UNets
    _refiner: Callable[[], UNet2DConditionModel] | UNet2DConditionModel | None

    @property
    def refiner(self) -> UNet2DConditionModel | None:
        """The refiner's UNet, loaded now if that was put off; None if the model has none."""
        if self._refiner is not None and not isinstance(self._refiner, UNet2DConditionModel):
            self._refiner = self._refiner()
        return self._refiner

    @property
    def has_refiner(self) -> bool:
        """Whether there is a refiner, loaded or not."""
        return self._refiner is not None

    @property
    def parts(self) -> dict[str, Module]:
        """What a fine-tune can change. The refiner is not among them: none is trained for it."""
        return {
            "unet": self.base,
            "text_encoder": self.text.text_encoder,
            "text_encoder_2": self.text.text_encoder_2,
        }

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per latent: 8."""
        return int(2 ** (len(config_of(self.vae).block_out_channels) - 1))

    @property
    def native(self) -> int:
        """The side, in pixels, of the square picture this model was made for: 1024 for SDXL, 128 for the miniature."""
        return int(config_of(self.base).sample_size) * self.vae_scale_factor


def native_side(files: ModelFiles) -> int:
    """`Models.native` of a model that is not loaded."""
    configs = files.base if files.config is None else files.config
    factor = 2 ** (len(config(configs / "vae")["block_out_channels"]) - 1)
    return int(config(configs / "unet")["sample_size"] * factor)


def narrower(files: ModelFiles) -> float:
    """How many times the UNet of a model that is not loaded is narrower than SDXL's: 1 for SDXL."""
    configs = files.base if files.config is None else files.config
    return float(SDXL_WIDTH / config(configs / "unet")["block_out_channels"][-1])


def _unet(made_of: dict[str, Any]) -> UNet2DConditionModel:
    if made_of.get("time_cond_proj_dim") is not None:
        raise WeightsError(
            "The UNet is a whole LCM that reads the guidance scale; start the model that it was distilled from, and "
            "send its .safetensors file as replicate_weights."
        )
    unet: UNet2DConditionModel = UNet2DConditionModel.from_config(made_of)
    return unet


def _vae(made_of: dict[str, Any]) -> AutoencoderKL:
    vae: AutoencoderKL = AutoencoderKL.from_config(made_of)
    return vae


def _vae_dtype(folder: Path, dtype: torch.dtype) -> torch.dtype:
    """The original SDXL VAE overflows in fp16 and says so (`force_upcast`): it is kept in float32, never converted."""
    overflows = dtype == torch.float16 and config(folder).get("force_upcast", True)
    return torch.float32 if overflows else dtype


@contextmanager
def uncollected() -> Iterator[None]:
    """No garbage collection inside: it would walk 400,000 objects, again and again, that are all there to stay."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def load_models(
    files: ModelFiles,
    placement: Placement,
    dtype: torch.dtype,
    *,
    defer_refiner: bool = False,
    engines: Engines | None = None,
) -> Models:
    """Read a model's files, each once. `defer_refiner` leaves the refiner for its first use.

    Modules are built here, one after the other (Python does that on one thread anyway), and filled on threads: one
    for a CPU, where a second would only hold a second file in memory, four for a GPU, to keep the bus busy.
    """
    device = placement.home()
    with uncollected(), ThreadPoolExecutor(max_workers=4 if device.type == "cuda" else 1) as pool:

        def load(folder: Path, make: Callable[[dict[str, Any]], M], dtype: torch.dtype = dtype) -> "Future[M]":
            module = blank(folder, make)
            return pool.submit(lambda: fill(module, read_tensors(folder, device, dtype)))

        def read_refiner(_stop: Stop) -> UNet2DConditionModel:
            assert files.refiner is not None
            folder = files.refiner / "unet"
            refiner = fill(blank(folder, _unet), read_tensors(folder, device, dtype))
            placement.adopt(refiner)
            return refiner

        def load_refiner() -> UNet2DConditionModel:
            return beside(read_refiner)  # a request asks for it, whose cancel may not meet the threads that read

        parts = _load_folder(files.base, load) if files.config is None else _load_file(files, device, dtype)
        refiner = load(files.refiner / "unet", _unet) if files.refiner and not defer_refiner else None
        vae_folder = files.vae or files.base / "vae"
        vae = (
            parts.vae if parts.vae and not files.vae else load(vae_folder, _vae, _vae_dtype(vae_folder, dtype)).result()
        )
        text, unet = parts.text(), parts.unet()  # from here on no module is built, and checkers may patch torch
        # What stays in main memory computes there, where half precision is ten times slower.
        safety_dtype = dtype if placement.tier == "resident" else torch.float32
        safety = load_safety(files.safety_checker, device, safety_dtype) if files.safety_checker else None
        models = Models(
            text=text,
            vae=vae,
            base=unet,
            scheduler_config=parts.scheduler_config,
            safety=safety,
            placement=placement,
            engines=engines or Engines(placement),
            _refiner=refiner.result() if refiner else load_refiner if files.refiner else None,
        )
    if models.scheduler_config.get("prediction_type", "epsilon") != "epsilon":
        kind = models.scheduler_config["prediction_type"]
        raise WeightsError(f"The checkpoint predicts {kind!r}; SDXL 1.0 and its fine-tunes predict 'epsilon'.")
    _settle(models, refined=refiner is not None)
    return models


def _settle(models: Models, *, refined: bool) -> None:
    """Hand the modules to the placement that moves them."""
    text, placement = models.text, models.placement
    text.ready = placement.use
    for module in (text.text_encoder, text.text_encoder_2, models.base, models.vae):
        placement.adopt(module)
    if refined and models.refiner is not None:
        placement.adopt(models.refiner)
    if placement.tier != "resident":
        models.vae.enable_tiling()  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class _Parts:
    text: Callable[[], TextEncoders]
    unet: Callable[[], UNet2DConditionModel]
    vae: AutoencoderKL | None
    scheduler_config: Mapping[str, Any]


def _load_folder(base: Path, load: Callable[..., Future[Any]]) -> _Parts:
    """Begin to read a diffusers folder."""
    unet = load(base / "unet", _unet)
    encoder, encoder_2 = load(base / "text_encoder", TextModel), load(base / "text_encoder_2", ProjectedTextModel)
    scheduler_config = json.loads((base / "scheduler" / "scheduler_config.json").read_text())

    def text() -> TextEncoders:
        return TextEncoders(
            tokenizer=Tokenizer(base / "tokenizer"),
            text_encoder=encoder.result(),
            tokenizer_2=Tokenizer(base / "tokenizer_2"),
            text_encoder_2=encoder_2.result(),
        )

    return _Parts(text, unet.result, None, scheduler_config)


def _load_file(files: ModelFiles, device: torch.device, dtype: torch.dtype) -> _Parts:
    """One .safetensors checkpoint with the original (SGM) names, read by diffusers with local configs.

    Its own VAE is left aside where `files` names another: the original one overflows in float16.
    """
    from diffusers import StableDiffusionXLPipeline  # two seconds that only this case needs

    assert files.config is not None
    without = {"vae": None} if files.vae else {}
    try:
        pipe = StableDiffusionXLPipeline.from_single_file(
            str(files.base), config=str(files.config), dtype=dtype, local_files_only=True, **without
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise WeightsError(f"{files.base.name} is no complete SDXL checkpoint: {error}") from error
    for module in (pipe.text_encoder, pipe.text_encoder_2, pipe.unet):
        module.requires_grad_(False).eval().to(device)
    encoder = blank(files.config / "text_encoder", TextModel)
    encoder_2 = blank(files.config / "text_encoder_2", ProjectedTextModel)
    encoders = TextEncoders(
        tokenizer=Tokenizer(files.config / "tokenizer"),
        text_encoder=fill(encoder, pipe.text_encoder.state_dict().items()),
        tokenizer_2=Tokenizer(files.config / "tokenizer_2"),
        text_encoder_2=fill(encoder_2, pipe.text_encoder_2.state_dict().items()),
    )
    vae = None
    if files.vae is None:
        vae = pipe.vae.requires_grad_(False).eval().to(device, _vae_dtype(files.config / "vae", dtype))
    return _Parts(lambda: encoders, lambda: pipe.unet, vae, dict(pipe.scheduler.config))
