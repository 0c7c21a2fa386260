"""The two sides: diffusers' pipelines as Replicate's cog-sdxl has them (A), and `Predictor.run` of this package (B)."""

import inspect
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionXLImg2ImgPipeline, StableDiffusionXLInpaintPipeline, StableDiffusionXLPipeline
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessorPil

from benchmarks.gpu.scale import Size
from benchmarks.pictures import quiet
from predict import Predictor
from sdxl.schedulers import SCHEDULERS
from tests.predicting import DEFAULTS

GUIDANCE = 7.5
SCALE = 0.6  # of a LoRA
ADAPTER = "tuned"
STAGES = ("encode_text", "denoise", "decode")

pipelines: tuple[Any, ...] = (
    StableDiffusionXLPipeline, StableDiffusionXLImg2ImgPipeline, StableDiffusionXLInpaintPipeline
)  # fmt: skip
TextToImage, ImageToImage, Inpaint = pipelines


class Marks:
    """Moments on the device's clock, in a run of calls: nothing waits for them until they are read."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._at: dict[str, Any] = {}

    def clear(self) -> None:
        """Before a call."""
        self._at.clear()

    def set(self, name: str, *, first: bool = False) -> None:
        """Now; `first` keeps the first moment of that name, else the last counts."""
        if first and name in self._at:
            return
        if self._cuda:
            make: Any = torch.cuda.Event
            self._at[name] = make(enable_timing=True)
            self._at[name].record()
        else:
            self._at[name] = time.perf_counter()

    def seconds(self, start: str, end: str) -> float:
        """Between two of them."""
        if not self._cuda:
            return float(self._at[end] - self._at[start])
        self._at[end].synchronize()
        return float(self._at[start].elapsed_time(self._at[end]) / 1000)


class Reference:
    """A: three pipelines around the same modules, the refiner with the shared encoder and VAE, the safety checker."""

    def __init__(self, model: Path, device: torch.device, out: Path) -> None:
        self.device, self.out = device, out
        self.dtype = torch.float16 if device.type == "cuda" else torch.float32
        options: dict[str, Any] = {"torch_dtype": self.dtype, "local_files_only": True}
        self.text = TextToImage.from_pretrained(model / "base", **options).to(device)
        parts = dict(self.text.components)
        self.others = [ImageToImage(**parts), Inpaint(**parts)]
        shared = {"text_encoder_2": self.text.text_encoder_2, "vae": self.text.vae}
        self.refiner = ImageToImage.from_pretrained(model / "refiner", **options, **shared).to(device)
        checker: Any = StableDiffusionSafetyChecker.from_pretrained(model / "safety_checker", **options)
        self.checker: Any = checker.to(device)
        self.processor = CLIPImageProcessorPil.from_pretrained(model / "safety_checker")
        for pipe in (self.text, *self.others, self.refiner):
            pipe.set_progress_bar_config(disable=True)
        self.marks, self.stages = Marks(device), dict[str, float]()
        self._watch()

    @property
    def marked(self) -> bool:
        """Whether invisible-watermark is there: without it diffusers leaves the watermark out."""
        return self.text.watermark is not None

    def _watch(self) -> None:
        """Note when the encoders are done, the UNets begin and end, and the VAE is done."""
        encode, decode = self.text.encode_prompt, self.text.vae.decode

        def encode_prompt(*args: Any, **kwargs: Any) -> Any:
            found = encode(*args, **kwargs)
            self.marks.set("encoded", first=True)
            return found

        def decoded(*args: Any, **kwargs: Any) -> Any:
            found = decode(*args, **kwargs)
            self.marks.set("decoded")
            return found

        self.text.encode_prompt, self.text.vae.decode = encode_prompt, decoded
        for unet in (self.text.unet, self.refiner.unet):
            unet.register_forward_pre_hook(lambda *_: self.marks.set("begun", first=True))
            unet.register_forward_hook(lambda *_: self.marks.set("ended"))

    def __call__(
        self,
        *,
        prompt: str,
        steps: int,
        seed: int,
        size: Size,
        outputs: int = 1,
        scheduler: str = "K_EULER",
        high_noise_frac: float | None = None,
    ) -> list[Path]:
        """Pictures in files, by the text-to-image pipeline or, with `high_noise_frac`, by the ensemble of experts."""
        self.marks.clear()
        self.marks.set("start")
        for pipe in (self.text, self.refiner):
            pipe.scheduler = SCHEDULERS[scheduler].scheduler(dict(pipe.scheduler.config))
        asked: dict[str, Any] = {
            "prompt": [prompt] * outputs,
            "negative_prompt": [""] * outputs,
            "guidance_scale": GUIDANCE,
            "generator": torch.Generator(self.device).manual_seed(seed),
            "num_inference_steps": steps,
        }
        whole = asked | {"width": size[0], "height": size[1]}
        if high_noise_frac is None:
            images = self.text(**whole).images
        else:
            latents = self.text(**whole, denoising_end=high_noise_frac, output_type="latent").images
            images = self.refiner(**asked, image=latents, denoising_start=high_noise_frac).images
        self._check(images)
        paths = [self.out / f"out-{number}.png" for number in range(outputs)]
        for image, path in zip(images, paths, strict=True):
            image.save(path)
        times = (("start", "encoded"), ("begun", "ended"), ("ended", "decoded"))
        self.stages = {name: self.marks.seconds(*ends) for name, ends in zip(STAGES, times, strict=True)}
        return paths

    def _check(self, images: list[Image.Image]) -> None:
        prepared: Any = self.processor(images=images, return_tensors="pt")
        pixels = prepared["pixel_values"].to(self.device, self.dtype)
        with torch.inference_mode():
            self.checker(clip_input=pixels, images=[np.array(image) for image in images])

    def latents(self, noise: Tensor, prompt: str, steps: int) -> Tensor:
        """What the base makes of noise (1, 4, h, w): clean latents, float32, on the CPU."""
        self.text.scheduler = SCHEDULERS["K_EULER"].scheduler(dict(self.text.scheduler.config))
        made: Tensor = self.text(
            prompt=prompt,
            negative_prompt="",
            guidance_scale=GUIDANCE,
            latents=noise.to(self.device, self.dtype),
            height=noise.shape[-2] * 8,
            width=noise.shape[-1] * 8,
            num_inference_steps=steps,
            output_type="latent",
        ).images
        return made.float().cpu()

    def attach(self, file: Path) -> None:
        """A LoRA into layers of its own beside the weights, not fused."""
        self.text.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=ADAPTER)
        self.text.set_adapters([ADAPTER], [SCALE])

    def detach(self) -> None:
        """And out again."""
        self.text.unload_lora_weights()

    @contextmanager
    def tuned(self, file: Path | None) -> Iterator[None]:
        """With a LoRA inside, if there is one."""
        if file is not None:
            self.attach(file)
        try:
            yield
        finally:
            if file is not None:
                self.detach()


class Package(Predictor):
    """B: the predictor, which tells here what it tells Cog."""

    def __init__(self) -> None:
        super().__init__()
        self.told: dict[str, Any] = {}
        self.setup_seconds = 0.0
        self.extra: dict[str, Any] = {}  # inputs of all requests

    @classmethod
    def ready(cls, **extra: Any) -> "Package":
        """After its setup, whose time it keeps."""
        package = cls()
        start = time.perf_counter()
        with quiet():
            package.setup()
        package.setup_seconds = time.perf_counter() - start
        package.extra = extra
        return package

    def record_metric(self, key: str, value: Any, mode: str = "replace") -> None:  # noqa: ARG002 - Cog's signature
        """Keep it."""
        self.told[key] = value

    def __call__(
        self,
        *,
        prompt: str,
        steps: int,
        seed: int,
        size: Size,
        outputs: int = 1,
        scheduler: str = "K_EULER",
        high_noise_frac: float | None = None,
        lora: Path | None = None,
        **inputs: Any,
    ) -> list[Path]:
        """Pictures in files; `inputs` are those of the signature."""
        refined = {"refine": "expert_ensemble_refiner", "high_noise_frac": high_noise_frac}
        tuned = {"lora_weights": [str(lora)], "lora_scales": [SCALE]}
        asked = {
            "prompt": prompt,
            "num_inference_steps": steps,
            "seed": seed,
            "width": size[0],
            "height": size[1],
            "num_outputs": outputs,
            "scheduler": scheduler,
            "guidance_scale": GUIDANCE,
            **(refined if high_noise_frac is not None else {}),
            **(tuned if lora else {}),
            **self.extra,
            **inputs,
        }
        self.told.clear()
        with quiet():
            return [Path(path) for path in self.run(**DEFAULTS | asked)]

    @property
    def stages(self) -> Mapping[str, float]:
        """Seconds of the last prediction's stages."""
        return {name: float(self.told[f"{name}_seconds"]) for name in STAGES}


def refuses(name: str, value: Any) -> bool:
    """Whether the signature has no input of that name, or not this choice of it."""
    if name not in DEFAULTS:
        return True
    choices = inspect.signature(Predictor.run).parameters[name].default.choices
    return choices is not None and value not in choices
