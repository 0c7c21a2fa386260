"""Cog's entry point for pictures. Cog reads the signature without running it: everything in it is a literal."""

import os
from typing import Optional

from cog import BaseRunner, Input, Path, Secret

from errors import reported
from fetch.inputs import guard_downloads
from limits import checked, stated
from sdxl.stages import Stages
from sdxl.workers import Workers, beside
from weights import fetched


class Predictor(BaseRunner):
    """SDXL 1.0, base and refiner, loaded once; a prediction leaves nothing behind that a later one could notice."""

    def setup(self, weights: Optional[Path] = None) -> None:
        """Load the model that SDXL_MODEL names; ready means that base and refiner are where they work. Cog hands over
        COG_WEIGHTS as `weights`, a plain string: a fine-tune for every request that names none."""
        stages = Stages()
        with reported():
            guard_downloads(beside, allow_private=os.environ.get("SDXL_PRIVATE_INPUTS") == "1")
            coming = Workers(1, "download").submit(lambda: fetched(os.environ.get("SDXL_MODEL")))
            with stages.timed("imports"):  # they take as long as the weights at 25 Gbit/s
                from painter import Painter
            with stages.timed("download"):
                files = coming.result()
            self.painter = Painter(files, str(weights or ""), stages)
        print(f"Ready: {stages}")

    def run(
        self,
        prompt: str = Input(
            description="What the picture should show. Weights as in compel: word++, (some words)1.3, word--. Any length.",
            default="An astronaut riding a rainbow unicorn",
        ),
        negative_prompt: str = Input(description="What the picture should not show.", default=""),
        image: Optional[Path] = Input(
            description="Picture to start from (image to image), or to repaint where mask is white (inpainting).",
            default=None,
        ),
        mask: Optional[Path] = Input(
            description="Mask for inpainting: white is repainted, black is kept exactly. Needs image.",
            default=None,
        ),
        width: Optional[int] = Input(
            description="Width of the picture in pixels. Blank: the model's own size (1024 for SDXL), or that of image.",
            ge=64,
            le=2048,
            default=None,
        ),
        height: Optional[int] = Input(
            description="Height of the picture in pixels. Blank: the model's own size (1024 for SDXL), or that of image.",
            ge=64,
            le=2048,
            default=None,
        ),
        aspect_ratio: str = Input(
            description="Shape of the picture at the size the model was trained on; custom uses width and height; match_input_image that of image.",
            choices=[
                "custom",
                "match_input_image",
                "1:1",
                "5:4",
                "4:5",
                "4:3",
                "3:4",
                "3:2",
                "2:3",
                "5:3",
                "3:5",
                "16:9",
                "9:16",
                "2:1",
                "1:2",
                "21:9",
                "9:21",
                "3:1",
                "1:3",
                "4:1",
                "1:4",
            ],
            default="custom",
        ),
        num_outputs: int = Input(
            description="Number of pictures; each has its own seed, counted up from seed.",
            ge=1,
            le=4,
            default=1,
        ),
        scheduler: str = Input(
            description="Sampler.",
            choices=[
                "DDIM",
                "DPMSolverMultistep",
                "HeunDiscrete",
                "KarrasDPM",
                "K_EULER_ANCESTRAL",
                "K_EULER",
                "PNDM",
                "LCM",
                "TCD",
            ],
            default="K_EULER",
        ),
        num_inference_steps: int = Input(description="Number of denoising steps.", ge=1, le=500, default=50),
        guidance_scale: float = Input(
            description="How strongly the prompt is followed (classifier-free guidance); up to 1 turns guidance off.",
            ge=0,
            le=50,
            default=7.5,
        ),
        prompt_strength: float = Input(
            description="With image: how much of it is destroyed first. 0 keeps it, 1 ignores it.",
            ge=0,
            le=1,
            default=0.8,
        ),
        seed: Optional[int] = Input(
            description="Random seed. Blank: a random one, printed in the logs.", ge=0, default=None
        ),
        refine: str = Input(
            description="Use of the refiner: none, for the last part of the denoising (expert ensemble), or as a second pass over the finished picture.",
            choices=["no_refiner", "expert_ensemble_refiner", "base_image_refiner"],
            default="no_refiner",
        ),
        high_noise_frac: float = Input(
            description="For expert_ensemble_refiner: the share of the noise that the base takes away. 1: base alone, 0: refiner alone.",
            ge=0,
            le=1,
            default=0.8,
        ),
        refine_steps: Optional[int] = Input(
            description="For base_image_refiner: number of steps the refiner does. Blank: num_inference_steps times refine_strength.",
            ge=1,
            le=500,
            default=None,
        ),
        refine_strength: float = Input(
            description="For base_image_refiner: how much of the picture the refiner redraws. 0: nothing.",
            ge=0,
            le=1,
            default=0.3,
        ),
        apply_watermark: bool = Input(
            description="Put an invisible watermark into the picture that marks it as generated.",
            default=True,
        ),
        replicate_weights: Optional[str] = Input(
            description="Fine-tuned weights: the URL of a trained_model.tar, owner/model[/version] on Replicate, or any source that lora_weights takes. Blank: those that this model was started with, if any.",
            default=None,
        ),
        lora_scale: float = Input(
            description="How strongly replicate_weights (or those that this model was started with) count. 0: not at all, below 0: the opposite. Weights of a full fine-tuning always count whole.",
            ge=-10,
            le=10,
            default=0.6,
        ),
        lora_weights: Optional[list[str]] = Input(
            description="LoRAs to add, up to 10: the URL of a .safetensors file or tar, owner/repo[/FILE] or huggingface.co/..., civitai.com/models/..., or a data: URL.",
            default=None,
        ),
        lora_scales: Optional[list[float]] = Input(
            description="How strongly each of lora_weights counts, from -10 to 10. Blank: 1 each.", default=None
        ),
        disable_safety_checker: bool = Input(
            description="Return pictures without checking them for unsafe content.", default=False
        ),
        output_format: str = Input(
            description="File format of the pictures.", choices=["png", "jpg", "webp"], default="png"
        ),
        output_quality: int = Input(
            description="Quality of jpg and webp, 100 is best; png is always lossless.",
            ge=1,
            le=100,
            default=95,
        ),
        embed_parameters: bool = Input(
            description="Write prompt, seed and settings into the picture file.", default=True
        ),
        mask_blur: int = Input(
            description="For inpainting: soften the edge of the mask by this many pixels.",
            ge=0,
            le=64,
            default=0,
        ),
        mask_padding: Optional[int] = Input(
            description="For inpainting: work only on the masked part and this many pixels around it, at full size. Blank: on the whole picture.",
            ge=0,
            le=1024,
            default=None,
        ),
        prompt_2: Optional[str] = Input(description="Prompt for the second text encoder. Blank: prompt.", default=None),
        negative_prompt_2: Optional[str] = Input(
            description="Negative prompt for the second text encoder. Blank: negative_prompt.", default=None
        ),
        guidance_rescale: float = Input(
            description="Counteracts overexposure at high guidance_scale; 0 is off, 0.7 is usual.",
            ge=0,
            le=1,
            default=0,
        ),
        guidance_start: float = Input(
            description="For speed or variety: guidance works from this share of the steps on, 0 to 1. Steps without it cost half.",
            ge=0,
            le=1,
            default=0,
        ),
        guidance_end: float = Input(
            description="For speed: guidance works up to this share of the steps. At 0.5 a picture takes three quarters of the time and looks nearly the same.",
            ge=0,
            le=1,
            default=1,
        ),
        cache_interval: int = Input(
            description="For speed: the deep layers of the UNet work in every so-manyth step only (DeepCache) and are remembered in between. 1: in all. 2 or 3 take about a half or a third of the time and cost detail.",
            ge=1,
            le=10,
            default=1,
        ),
        quantization: str = Input(
            description="Most products of the UNet in 8 bits (int8: A100, A40 and later; fp8: L40S, H100 and later). Changes the picture a little; faster from the request on that finds its blocks compiled, which the first one sets going.",
            choices=["none", "int8", "fp8"],
            default="none",
        ),
        few_step: str = Input(
            description="For weights that draw in 1 to 12 steps (LCM, SDXL-Lightning, Hyper-SD, TCD, SDXL-Turbo): sets scheduler, num_inference_steps and guidance_scale where they are left at their defaults. auto: if the weights are called so; off: never; a kind: for weights whose name does not tell.",
            choices=["auto", "off", "lcm", "lightning", "hyper", "tcd", "turbo"],
            default="auto",
        ),
        clip_skip: Optional[int] = Input(
            description="Number of last text encoder layers to leave out, beyond the one that SDXL always leaves out.",
            ge=0,
            le=10,
            default=None,
        ),
        token_pooling: str = Input(
            description="Where a prompt with learned tokens is summed up: at its end, or, as Replicate's trainer did, at the last such token, so that what follows counts less. auto: as the weights were trained.",
            choices=["auto", "token", "end"],
            default="auto",
        ),
        original_size: Optional[str] = Input(
            description="Micro-conditioning: the size, as 1024x1024 (width x height), that the picture seems to have been made from. Blank: its own size.",
            regex="^[0-9]{1,4}x[0-9]{1,4}$",
            default=None,
        ),
        target_size: Optional[str] = Input(
            description="Micro-conditioning: the size, as 1024x1024, whose composition the picture should have. Blank: its own size.",
            regex="^[0-9]{1,4}x[0-9]{1,4}$",
            default=None,
        ),
        crop_top_left: Optional[str] = Input(
            description="Micro-conditioning: top,left corner of the crop that the picture seems to be, as 0,256. Blank: 0,0, centred subjects.",
            regex="^[0-9]{1,4},[0-9]{1,4}$",
            default=None,
        ),
        negative_original_size: Optional[str] = Input(
            description="As original_size, to steer away from. Blank: original_size.",
            regex="^[0-9]{1,4}x[0-9]{1,4}$",
            default=None,
        ),
        negative_target_size: Optional[str] = Input(
            description="As target_size, to steer away from. Blank: target_size.",
            regex="^[0-9]{1,4}x[0-9]{1,4}$",
            default=None,
        ),
        negative_crop_top_left: Optional[str] = Input(
            description="As crop_top_left, to steer away from. Blank: crop_top_left.",
            regex="^[0-9]{1,4},[0-9]{1,4}$",
            default=None,
        ),
        aesthetic_score: float = Input(
            description="For the refiner: how beautiful the picture should be, as people scored its training pictures.",
            ge=0,
            le=10,
            default=6.0,
        ),
        negative_aesthetic_score: float = Input(
            description="For the refiner: the score to steer away from.", ge=0, le=10, default=2.5
        ),
        hf_api_token: Optional[Secret] = Input(
            description="Hugging Face token, for weights that need one.", default=None
        ),
        civitai_api_token: Optional[Secret] = Input(
            description="CivitAI token, for weights that need one.", default=None
        ),
        replicate_api_token: Optional[Secret] = Input(
            description="Replicate token, for weights of a private model.", default=None
        ),
    ) -> list[Path]:
        """Pictures of the prompt, one per seed; unsafe ones are left out."""
        with reported():
            return [Path(path) for path in self.painter.draw(checked(LIMITS, locals()), self.record_metric)]


LIMITS = stated(Predictor.run)
