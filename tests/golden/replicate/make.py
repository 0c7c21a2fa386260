"""Run Replicate's old runtime on the miniature and keep what it gives: trained_model.tar, expected.json, .safetensors.

It needs the libraries of that runtime, in an environment of their own, outside the repository:

    python3.11 -m venv /tmp/old
    /tmp/old/bin/pip install torch==2.13.0 diffusers==0.25.0 transformers==4.31.0 tokenizers==0.13.3 \
        huggingface_hub==0.20.3 accelerate==0.25.0 "numpy<2" safetensors pillow
    OMP_NUM_THREADS=1 /tmp/old/bin/python -m tests.golden.replicate.make

No peft there: with it diffusers 0.25 runs LoRAs by other code. What replicate/cog-sdxl does with these libraries is
written anew here: a LoRA processor in every attention layer, whose scale comes with each call; tokens added to both
tokenizers, and their rows to both tables; the trigger replaced in the prompt as a plain string.
"""

import datetime
import fnmatch
import io
import json
import platform
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import LoRAAttnProcessor2_0
from diffusers.utils.constants import USE_PEFT_BACKEND
from safetensors.torch import load, load_file, save, save_file
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

Tensors = dict[str, Tensor]
# A type checker sees the package's own, newer libraries, where these are called otherwise.
Vae: Any = AutoencoderKL
Scheduler: Any = EulerDiscreteScheduler
Pipeline: Any = StableDiffusionXLPipeline
Processor: Any = LoRAAttnProcessor2_0

HERE = Path(__file__).resolve().parent
BASE = HERE.parents[2] / "miniature" / "weights" / "base"
ENCODERS = ("text_encoder", "text_encoder_2")
TOKENS = ["<s0>", "<s1>"]
TRIGGER = "TOK"
PROMPTS = (
    "a photo of TOK on a blue background",
    "TOK, a red circle",
    "a red circle on a blue background",
    'two of TOK\'s "TOK", TOK-like! <s1> not <s0>.',  # read only
)
ASKED: dict[str, Any] = {"negative_prompt": "", "num_inference_steps": 8, "guidance_scale": 7.5}
SIZE = 128
SEED = 3
RANK = 4
CHANGE = 0.3  # how large a change is, measured by the weight that it is made to
PT = {"format": "pt"}
INSTALLED = ("torch", "diffusers", "transformers", "tokenizers", "huggingface_hub", "accelerate", "numpy")


@dataclass(frozen=True)
class Case:
    """A picture: of the base, with the LoRA at a scale, or with the whole UNet, which has none."""

    weights: str  # base, lora, unet
    prompt: int
    lora_scale: float | None = None


CASES = (
    *(Case("lora", prompt, scale) for prompt in range(3) for scale in (0.6, 1.0, 0.0)),
    Case("unet", 0),
    Case("base", 2),
)


def pipeline() -> Any:
    """The miniature in the old classes; every one of its weights is in its place."""
    loaded: dict[str, Any] = {"scheduler": Scheduler.from_pretrained(str(BASE), subfolder="scheduler")}
    with tempfile.TemporaryDirectory() as name:
        for part, kind in zip(ENCODERS, (CLIPTextModel, CLIPTextModelWithProjection), strict=True):
            folder = Path(name) / part
            folder.mkdir()
            (folder / "config.json").write_text((BASE / part / "config.json").read_text())
            save_file(_old_names(load_file(BASE / part / "model.safetensors")), folder / "model.safetensors", PT)
            loaded[part] = _whole(kind, str(folder))
    for part, tokenizer in zip(ENCODERS, ("tokenizer", "tokenizer_2"), strict=True):
        loaded[tokenizer] = CLIPTokenizer.from_pretrained(str(BASE / tokenizer))
        assert loaded[part].config.eos_token_id == 2, "the pooled vector is read at the highest number"
    loaded["unet"] = _whole(UNet2DConditionModel, str(BASE / "unet"))
    loaded["vae"] = _vae(BASE / "vae")
    pipe = Pipeline(**loaded, add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _old_names(tensors: Tensors) -> Tensors:
    """With the level `text_model`, which transformers 5 leaves out of the first encoder."""
    inner = ("embeddings.", "encoder.", "final_layer_norm.")
    return {f"text_model.{name}" if name.startswith(inner) else name: value for name, value in tensors.items()}


def _whole(kind: Any, folder: str) -> Any:
    model, told = kind.from_pretrained(folder, torch_dtype=torch.float32, output_loading_info=True)
    assert not any(told.values()), told
    return model.eval()


def _vae(folder: Path) -> Any:
    """The miniature's VAE has no attention in the middle: 0.25 can run that, but has no word for it in a config."""
    vae = Vae.from_config(Vae.load_config(str(folder)))
    for half in (vae.encoder, vae.decoder):
        half.mid_block.attentions[0] = None
    tensors = load_file(folder / "diffusion_pytorch_model.safetensors")
    vae.load_state_dict({name: value.float() for name, value in tensors.items()}, strict=True)
    return vae.eval()


def install(unet: Any, ranks: Mapping[str, int]) -> None:
    """Give every attention layer a LoRA processor, as the runtime does before it loads a file into them."""
    processors = {}
    for name in unet.attn_processors:
        attention = unet.get_submodule(name.removesuffix(".processor"))
        crossed = attention.to_k.in_features if name.endswith("attn2.processor") else None
        width = attention.to_q.in_features
        processors[name] = Processor(hidden_size=width, cross_attention_dim=crossed, rank=ranks[name])
    unet.set_attn_processor(processors)


def train(pipe: Any) -> dict[str, bytes]:
    """What the trainer would put in its archive, of random numbers."""
    generator = torch.Generator().manual_seed(SEED)
    unet = pipe.unet
    install(unet, dict.fromkeys(unet.attn_processors, RANK))
    tensors: Tensors = {}
    for name, processor in unet.attn_processors.items():
        attention = unet.get_submodule(name.removesuffix(".processor"))
        for layer, module in (("q", attention.to_q), ("k", attention.to_k), ("v", attention.to_v)):
            tensors |= _factors(f"{name}.to_{layer}_lora", module.weight, generator)
        tensors |= _factors(f"{name}.to_out_lora", attention.to_out[0].weight, generator)
        own = {f"{name}.{key}": value.shape for key, value in processor.state_dict().items()}
        assert own == {key: value.shape for key, value in tensors.items() if key in own}
    rows: Tensors = {}
    for number, part in enumerate(ENCODERS):
        table = getattr(pipe, part).get_input_embeddings().weight
        noise = torch.randn(len(TOKENS), table.shape[1], generator=generator)
        rows[f"text_encoders_{number}"] = (noise * table.std()).bfloat16()
    return {
        "lora.safetensors": save(tensors),
        "embeddings.pti": save(rows),
        "special_params.json": json.dumps({TRIGGER: "".join(TOKENS)}).encode(),
    }


def _factors(name: str, weight: Tensor, generator: torch.Generator) -> Tensors:
    up, down = (torch.randn(shape, generator=generator) for shape in ((len(weight), RANK), (RANK, weight.shape[1])))
    factor = float(CHANGE * weight.norm() / (up @ down).norm()) ** 0.5
    return {f"{name}.down.weight": down * factor, f"{name}.up.weight": up * factor}


def whole_unet(parameters: Mapping[str, Tensor]) -> Tensors:
    """unet.safetensors of a run without LoRA: of these parameters those that the trainer writes, each changed a bit.

    It has 6 MB and follows from the miniature's weights, so it is made where it is needed and not kept.
    """
    generator = torch.Generator().manual_seed(SEED)
    tensors: Tensors = {}
    for name in sorted(parameters):
        if not (fnmatch.fnmatch(name, "*.norm*.weight") or fnmatch.fnmatch(name, "*time*")):
            value = parameters[name].detach().float()
            noise = torch.randn(value.shape, generator=generator)
            tensors[name] = (value + noise * (CHANGE / 3 * value.norm() / value.numel() ** 0.5)).bfloat16()
    return tensors


def pack(path: Path, files: Mapping[str, bytes]) -> None:
    """An uncompressed archive, the members at its root."""
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def tune(pipe: Any, files: Mapping[str, bytes]) -> None:
    """As the runtime loads an archive."""
    if "unet.safetensors" in files:
        told = pipe.unet.load_state_dict(load(files["unet.safetensors"]), strict=False)
        assert not told.unexpected_keys
    else:
        tensors = load(files["lora.safetensors"])
        ups = {name: value for name, value in tensors.items() if name.endswith(".up.weight")}
        install(pipe.unet, {name.rsplit(".", 3)[0]: value.shape[1] for name, value in ups.items()})
        told = pipe.unet.load_state_dict(tensors, strict=False)
        assert not told.unexpected_keys
        assert not any("lora" in name for name in told.missing_keys)
    rows = load(files["embeddings.pti"])
    pairs = ((pipe.text_encoder, pipe.tokenizer), (pipe.text_encoder_2, pipe.tokenizer_2))
    for number, (part, tokenizer) in enumerate(pairs):
        assert tokenizer.add_tokens(TOKENS) == len(TOKENS)
        part.resize_token_embeddings(len(tokenizer))
        ids = tokenizer.convert_tokens_to_ids(TOKENS)
        part.get_input_embeddings().weight.data[ids] = rows[f"text_encoders_{number}"].to(part.dtype)


def replaced(prompt: str) -> str:
    """The prompt with the tokens in the place of their trigger."""
    return prompt.replace(TRIGGER, "".join(TOKENS))


@torch.no_grad()
def read(pipe: Any) -> Tensors:
    """What the UNet is told of each prompt and of the negative one."""
    found: Tensors = {}
    for number, prompt in enumerate(PROMPTS):
        states, negative, pooled, negative_pooled = pipe.encode_prompt(
            replaced(prompt), negative_prompt=ASKED["negative_prompt"], do_classifier_free_guidance=True
        )
        found |= {f"prompt {number}.prompt_embeds": states, f"prompt {number}.pooled": pooled}
        found |= {"negative.prompt_embeds": negative, "negative.pooled": negative_pooled}
    return found


def paint(pipe: Any, case: Case, noise: Tensor) -> Tensors:
    """The last latents (1, 4, h, w) and the picture (H, W, 3)."""
    latents: list[Tensor] = []

    def keep(_pipe: Any, _step: int, _timestep: Any, state: Tensors) -> Tensors:
        latents.append(state["latents"].clone())
        return state

    pipe.scheduler = Scheduler.from_config(pipe.scheduler.config)  # K_EULER
    scale = {} if case.lora_scale is None else {"cross_attention_kwargs": {"scale": case.lora_scale}}
    asked = {**ASKED, **scale, "width": SIZE, "height": SIZE, "latents": noise.clone()}
    picture = pipe(replaced(PROMPTS[case.prompt]), **asked, callback_on_step_end=keep).images[0]
    assert len(latents) == ASKED["num_inference_steps"]
    return {"latents": latents[-1], "picture": torch.from_numpy(np.array(picture))}


def main() -> None:
    """Write the three files."""
    assert (version("diffusers"), version("transformers")) == ("0.25.0", "4.31.0"), __doc__
    assert not USE_PEFT_BACKEND, __doc__
    torch.set_num_threads(1)
    pipes = {weights: pipeline() for weights in ("base", "lora", "unet")}
    files = train(pipeline())
    pack(HERE / "trained_model.tar", files)
    tune(pipes["lora"], files)
    whole = whole_unet(dict(pipes["unet"].unet.named_parameters()))
    tune(pipes["unet"], {**files, "unet.safetensors": save(whole)})
    noise = torch.randn(1, 4, SIZE // 8, SIZE // 8, generator=torch.Generator().manual_seed(SEED))
    found = {"noise": noise, **read(pipes["lora"])}
    for number, case in enumerate(CASES):
        found |= {f"case {number}.{name}": value for name, value in paint(pipes[case.weights], case, noise).items()}
    (HERE / "expected.safetensors").write_bytes(save({name: value.contiguous() for name, value in found.items()}))
    told = {
        "made": datetime.date.today().isoformat(),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in INSTALLED},
        "request": {**ASKED, "scheduler": "K_EULER", "seed": SEED, "width": SIZE, "height": SIZE},
        "prompts": PROMPTS,
        "cases": [asdict(case) for case in CASES],
    }
    (HERE / "expected.json").write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
