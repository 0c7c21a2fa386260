"""What people send by mistake: files for other models, under the names and with the shapes that they really have.

A few layers of each are enough to tell it; no tensor holds more than one number in memory.
Names and widths: the published files, and the detection code of ComfyUI (comfy/model_detection.py, comfy/lora.py),
InvokeAI and diffusers (loaders/single_file_utils.py, loaders/lora_conversion_utils.py).
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

Tensors = dict[str, Tensor]
RANK = 4
ATTENTIONS = ("attn1_to_q", "attn1_to_out_0", "attn2_to_k", "attn2_to_v")


@dataclass(frozen=True)
class Foreign:
    """A file, and what a message about it should call it; nothing for what need not be known by name."""

    tensors: Tensors
    called: str


def _zeros(*shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
    return torch.zeros(1, dtype=dtype).expand(*shape) if shape else torch.zeros((), dtype=dtype)


def _pair(stem: str, into: int, out: int, down: str = "lora_down", up: str = "lora_up") -> Tensors:
    return {f"{stem}.{down}.weight": _zeros(RANK, into), f"{stem}.{up}.weight": _zeros(out, RANK)}


def _peft(stem: str, into: int, out: int, adapter: str = "") -> Tensors:
    dot = f".{adapter}" if adapter else ""
    return _pair(stem, into, out, f"lora_A{dot}", f"lora_B{dot}")


def _all(parts: Iterable[Tensors]) -> Tensors:
    return {key: value for part in parts for key, value in part.items()}


def _kohya(stem: str, into: int, out: int) -> Tensors:
    return {**_pair(stem, into, out), f"{stem}.alpha": _zeros()}


def _kohya_unet(blocks: dict[str, int], text: int) -> Tensors:
    """Block -> its width; the cross-attention reads `text` channels."""
    return _all(
        _kohya(f"lora_unet_{block}_transformer_blocks_0_{layer}", text if "attn2_to_" in layer else width, width)
        for block, width in blocks.items()
        for layer in ATTENTIONS
    )


def _kohya_text(prefix: str, width: int, layers: Iterable[int]) -> Tensors:
    return _all(
        _kohya(f"{prefix}_text_model_encoder_layers_{i}_self_attn_{name}", width, width)
        for i in layers
        for name in ("q_proj", "out_proj")
    )


SD1_BLOCKS = {
    "down_blocks_0_attentions_0": 320,
    "down_blocks_2_attentions_1": 1280,
    "mid_block_attentions_0": 1280,
    "up_blocks_1_attentions_2": 1280,
    "up_blocks_3_attentions_2": 320,
}
REFINER_BLOCKS = {
    "input_blocks_4_1": 768,
    "input_blocks_8_1": 1536,
    "middle_block_1": 1536,
    "output_blocks_3_1": 1536,
    "output_blocks_8_1": 768,
}


def sd1_lora_diffusers() -> Tensors:
    attention = "unet.down_blocks.0.attentions.0.transformer_blocks.0"
    return {
        **_pair(f"{attention}.attn1.processor.to_q_lora", 320, 320, "down", "up"),
        **_pair(f"{attention}.attn2.processor.to_k_lora", 768, 320, "down", "up"),
        **_pair("text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer", 768, 768, "down", "up"),
    }


def flux_kohya() -> Tensors:
    return {
        **_kohya("lora_unet_double_blocks_0_img_attn_qkv", 3072, 9216),
        **_kohya("lora_unet_double_blocks_0_txt_mlp_0", 3072, 12288),
        **_kohya("lora_unet_single_blocks_0_linear1", 3072, 21504),
        **_kohya_text("lora_te1", 768, [0]),
    }


def flux_diffusers() -> Tensors:
    return {
        **_peft("transformer.transformer_blocks.0.attn.add_q_proj", 3072, 3072),
        **_peft("transformer.transformer_blocks.0.ff.net.0.proj", 3072, 12288),
        **_peft("transformer.single_transformer_blocks.0.attn.to_q", 3072, 3072),
        **_peft("transformer.single_transformer_blocks.0.proj_mlp", 3072, 12288),
    }


def flux_comfy() -> Tensors:
    return {
        **_peft("diffusion_model.double_blocks.0.img_attn.qkv", 3072, 9216),
        **_peft("diffusion_model.single_blocks.0.linear2", 15360, 3072),
    }


def sd3_diffusers() -> Tensors:
    return {
        **_peft("transformer.transformer_blocks.0.attn.add_q_proj", 1536, 1536),
        **_peft("transformer.transformer_blocks.0.attn.to_q", 1536, 1536),
        **_peft("transformer.transformer_blocks.0.attn.to_add_out", 1536, 1536),
    }


def sd3_kohya() -> Tensors:
    return {
        **_kohya("lora_unet_joint_blocks_0_context_block_attn_qkv", 1536, 4608),
        **_kohya("lora_unet_joint_blocks_0_x_block_attn_proj", 1536, 1536),
    }


def controlnet_diffusers() -> Tensors:
    return {
        "conv_in.weight": _zeros(320, 4, 3, 3),
        "controlnet_cond_embedding.conv_in.weight": _zeros(16, 3, 3, 3),
        "controlnet_down_blocks.0.weight": _zeros(320, 320, 1, 1),
        "controlnet_mid_block.bias": _zeros(1280),
        "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight": _zeros(640, 2048),
    }


def controlnet_original() -> Tensors:
    return {
        "control_model.input_hint_block.0.weight": _zeros(16, 3, 3, 3),
        "control_model.zero_convs.0.0.weight": _zeros(320, 320, 1, 1),
        "control_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": _zeros(640, 2048),
    }


def control_lora() -> Tensors:
    """stabilityai/control-lora: low rank, but of a ControlNet."""
    return {
        "lora_controlnet": torch.zeros(0),
        "input_hint_block.0.weight": _zeros(16, 3, 3, 3),
        "zero_convs.0.0.weight": _zeros(320, 320, 1, 1),
        "input_blocks.4.1.transformer_blocks.0.attn1.to_q.down": _zeros(RANK, 640),
        "input_blocks.4.1.transformer_blocks.0.attn1.to_q.up": _zeros(640, RANK),
    }


def ip_adapter() -> Tensors:
    return {
        "image_proj.proj.bias": _zeros(8192),
        "image_proj.norm.weight": _zeros(2048),
        "ip_adapter.1.to_k_ip.weight": _zeros(640, 2048),
        "ip_adapter.1.to_v_ip.weight": _zeros(640, 2048),
    }


def ip_adapter_faceid() -> Tensors:
    """Has LoRA layers in it, of its own kind."""
    return {
        "image_proj.proj.0.weight": _zeros(1024, 512),
        **_pair("ip_adapter.0.to_q_lora", 640, 640, "down", "up"),
        "ip_adapter.1.to_k_ip.weight": _zeros(640, 2048),
    }


def checkpoint() -> Tensors:
    return {
        "model.diffusion_model.input_blocks.0.0.weight": _zeros(320, 4, 3, 3),
        "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": _zeros(640, 2048),
        "first_stage_model.encoder.conv_in.weight": _zeros(128, 3, 3, 3),
        "conditioner.embedders.0.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight": _zeros(768, 768),
        "conditioner.embedders.1.model.transformer.resblocks.0.ln_1.weight": _zeros(1280),
    }


def sd1_checkpoint() -> Tensors:
    return {
        "model.diffusion_model.input_blocks.0.0.weight": _zeros(320, 4, 3, 3),
        "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": _zeros(320, 768),
        "first_stage_model.encoder.conv_in.weight": _zeros(128, 3, 3, 3),
        "cond_stage_model.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight": _zeros(768, 768),
    }


def vae() -> Tensors:
    return {
        "encoder.conv_in.weight": _zeros(128, 3, 3, 3),
        "decoder.conv_in.weight": _zeros(512, 4, 3, 3),
        "quant_conv.weight": _zeros(8, 8, 1, 1),
        "post_quant_conv.weight": _zeros(4, 4, 1, 1),
    }


def wan() -> Tensors:
    return {
        **_peft("diffusion_model.blocks.0.cross_attn.k", 5120, 5120),
        **_peft("diffusion_model.blocks.0.ffn.0", 5120, 13824),
    }


def qwen_image() -> Tensors:
    return {
        **_peft("transformer_blocks.0.attn.add_k_proj", 3072, 3072, "default"),
        **_peft("transformer_blocks.0.img_mlp.net.0.proj", 3072, 12288, "default"),
    }


def cascade() -> Tensors:
    return {
        **_kohya("lora_prior_unet_down_blocks_0_2_attention_attn_in_proj", 2048, 2048),
        **_kohya_text("lora_prior_te", 1280, [0]),
    }


def animatediff() -> Tensors:
    stem = "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.0"
    return _pair(f"{stem}.processor.to_q_lora", 320, 320, "down", "up")


FOREIGN = {
    "sd1_lora": Foreign({**_kohya_text("lora_te", 768, [0, 11]), **_kohya_unet(SD1_BLOCKS, 768)}, "Stable Diffusion 1"),
    "sd1_lora_diffusers": Foreign(sd1_lora_diffusers(), "Stable Diffusion 1"),
    "sd1_lcm_lora": Foreign(_kohya_unet(SD1_BLOCKS, 768), "Stable Diffusion 1"),
    "sd2_lora": Foreign(
        {**_kohya_text("lora_te", 1024, [0, 22]), **_kohya_unet(SD1_BLOCKS, 1024)}, "Stable Diffusion 2"
    ),
    "refiner_lora": Foreign(_kohya_unet(REFINER_BLOCKS, 1280), "refiner"),
    "flux_kohya": Foreign(flux_kohya(), "Flux"),
    "flux_diffusers": Foreign(flux_diffusers(), "Flux"),
    "flux_comfy": Foreign(flux_comfy(), "Flux"),
    "sd3_diffusers": Foreign(sd3_diffusers(), "Stable Diffusion 3"),
    "sd3_kohya": Foreign(sd3_kohya(), "Stable Diffusion 3"),
    "controlnet_diffusers": Foreign(controlnet_diffusers(), "ControlNet"),
    "controlnet_original": Foreign(controlnet_original(), "ControlNet"),
    "control_lora": Foreign(control_lora(), "ControlNet"),
    "ip_adapter": Foreign(ip_adapter(), "IP-Adapter"),
    "ip_adapter_faceid": Foreign(ip_adapter_faceid(), "IP-Adapter"),
    "checkpoint": Foreign(checkpoint(), "checkpoint"),
    "sd1_checkpoint": Foreign(sd1_checkpoint(), "checkpoint"),
    "vae": Foreign(vae(), "VAE"),
    "sd1_embedding": Foreign({"emb_params": _zeros(3, 768, dtype=torch.float32)}, "Stable Diffusion 1"),
    "sd1_embedding_star": Foreign({"*": _zeros(2, 768, dtype=torch.float32)}, "Stable Diffusion 1"),
    "sd1_embedding_token": Foreign({"<cat-toy>": _zeros(768, dtype=torch.float32)}, "Stable Diffusion 1"),
    "sd2_embedding": Foreign({"emb_params": _zeros(3, 1024, dtype=torch.float32)}, "Stable Diffusion 2"),
    "wan": Foreign(wan(), ""),
    "qwen_image": Foreign(qwen_image(), ""),
    "cascade": Foreign(cascade(), ""),
    "animatediff": Foreign(animatediff(), ""),
    "empty": Foreign({}, ""),
}
UNKNOWN = sorted(name for name, foreign in FOREIGN.items() if not foreign.called)
