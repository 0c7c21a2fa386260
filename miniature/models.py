"""The parts of the miniature: diffusers' and transformers' own SDXL classes in small sizes.

A 128x128 picture is a 16x16x4 latent. Genuine SDXL's class names, block kinds and conditioning are kept;
widths and depths are not.
"""

from pathlib import Path
from typing import Any, TypeAlias

from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipTextConfig,
    BlipVisionConfig,
    CLIPConfig,
    CLIPSegConfig,
    CLIPSegForImageSegmentation,
    CLIPSegTextConfig,
    CLIPSegVisionConfig,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    Swin2SRConfig,
    Swin2SRForImageSuperResolution,
)

SIDE = 128
HELPER_SIDE = 96  # what captioner and segmenter see a picture at
HELPER_PATCH = 12  # pixels
LATENT_SCALE = 0.13025  # the genuine scaling_factor
TEXT_WIDTHS = (64, 96)  # text encoder 1 and 2; their sum is the base's cross-attention width
TOKENS = 77
# diffusers' classes get their attributes at run time: to a type checker they are anything.
UNet: TypeAlias = Any
Vae: TypeAlias = Any
Checker: TypeAlias = Any
TextModel: TypeAlias = Any
Pipeline: TypeAlias = Any
Captioner: TypeAlias = Any
Segmenter: TypeAlias = Any
Upscaler: TypeAlias = Any
TIME_WIDTH = 32  # width of the embedding of one micro-conditioning number


def load(kind: Any, folder: Path) -> Any:
    """A diffusers or transformers model from its folder, in evaluation mode."""
    return kind.from_pretrained(folder).eval()


def best(work: Path, name: str) -> Path:
    """The longest-trained form of a part: its second phase where there is one."""
    polished = work / f"{name}-polished"
    return polished if polished.exists() else work / name


def make_vae() -> Vae:
    """0.67 M parameters, factor 8, four latent channels."""
    return AutoencoderKL(  # type: ignore[no-untyped-call]
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 16, 32, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=SIDE,
        scaling_factor=LATENT_SCALE,
        force_upcast=False,
        mid_block_add_attention=False,
    )


def _text_config(vocab: int, width: int, activation: str, pad: int) -> CLIPTextConfig:
    # eos_token_id 2 as in genuine SDXL: pooling then takes the highest id, which is <|endoftext|> here too.
    return CLIPTextConfig(
        vocab_size=vocab,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        hidden_act=activation,
        projection_dim=width,
        bos_token_id=vocab - 2,
        eos_token_id=2,
        pad_token_id=pad,
    )


def make_text_encoders(vocab: int) -> tuple[TextModel, TextModel]:
    """Encoder 1 (width 64) and encoder 2 (width 96, with projection)."""
    first, second = TEXT_WIDTHS
    return (
        CLIPTextModel(_text_config(vocab, first, "quick_gelu", vocab - 1)),
        CLIPTextModelWithProjection(_text_config(vocab, second, "gelu", 0)),
    )


def make_base() -> UNet:
    """Three blocks as in the genuine base: no attention at 16x16, cross-attention at 8x8 and 4x4."""
    return UNet2DConditionModel(  # type: ignore[no-untyped-call]
        sample_size=SIDE // 8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(48, 64, 96),
        layers_per_block=1,
        transformer_layers_per_block=[1, 2, 1],
        attention_head_dim=[3, 4, 6],
        cross_attention_dim=sum(TEXT_WIDTHS),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=TIME_WIDTH,
        projection_class_embeddings_input_dim=6 * TIME_WIDTH + TEXT_WIDTHS[1],
        norm_num_groups=16,
    )


def make_refiner() -> UNet:
    """Four blocks as in the genuine refiner, conditioned on encoder 2 and an aesthetic score."""
    return UNet2DConditionModel(  # type: ignore[no-untyped-call]
        sample_size=SIDE // 8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(32, 48, 64, 64),
        layers_per_block=1,
        transformer_layers_per_block=1,
        attention_head_dim=[2, 3, 4, 4],
        cross_attention_dim=TEXT_WIDTHS[1],
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=TIME_WIDTH,
        projection_class_embeddings_input_dim=5 * TIME_WIDTH + TEXT_WIDTHS[1],
        norm_num_groups=16,
    )


def make_safety_checker() -> Checker:
    """The genuine checker class over a three-layer vision transformer that sees 64x64 pixels."""
    vision = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=64,
        patch_size=8,
        projection_dim=32,
    )
    return StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision.to_dict(), projection_dim=32))


def make_captioner(vocab: int, bos: int, sep: int) -> Captioner:
    """BLIP over 96x96 pixels in 64 patches; pad is token 0, bos the decoder's start, sep its end."""
    text = BlipTextConfig(
        vocab_size=vocab,
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        bos_token_id=bos,
        sep_token_id=sep,
        eos_token_id=sep,
        pad_token_id=0,
    )
    vision = BlipVisionConfig(
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=HELPER_SIDE,
        patch_size=HELPER_PATCH,
        initializer_range=0.02,
    )
    config = BlipConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=64)
    return BlipForConditionalGeneration(config)


def make_segmenter(vocab: int) -> Segmenter:
    """CLIPSeg over 96x96 pixels in 64 patches, its decoder fed from three of four layers."""
    text = CLIPSegTextConfig(
        vocab_size=vocab,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        bos_token_id=vocab - 2,
        eos_token_id=2,
        pad_token_id=vocab - 1,
    )
    vision = CLIPSegVisionConfig(
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=HELPER_SIDE,
        patch_size=HELPER_PATCH,
    )
    config = CLIPSegConfig(
        text_config=text.to_dict(),
        vision_config=vision.to_dict(),
        projection_dim=64,
        extract_layers=[1, 2, 3],
        reduce_dim=64,
        decoder_intermediate_size=128,
    )
    return CLIPSegForImageSegmentation(config)


def make_upscaler() -> Upscaler:
    """Swin2SR, four times larger, with the upsampler of the genuine real-world model."""
    return Swin2SRForImageSuperResolution(
        Swin2SRConfig(
            embed_dim=32,
            depths=[2, 2],
            num_heads=[4, 4],
            window_size=8,
            mlp_ratio=2.0,
            image_size=32,
            upscale=4,
            drop_path_rate=0.0,
            upsampler="nearest+conv",
        )
    )
