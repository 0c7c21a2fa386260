"""What a file is that is no SDXL fine-tune, so that the refusal can say it."""

import re
from collections.abc import Mapping, Sequence

Shape = Sequence[int]

SD1, SD2 = "Stable Diffusion 1.5", "Stable Diffusion 2"

# The first row whose pattern is found in a key says what the file is, and what to do.
CHOOSE = "choose weights made for SDXL 1.0"
BY_NAME = (
    (r"(^|[._])(single_transformer_blocks|single_blocks|double_blocks)[._]", f"a LoRA for Flux; {CHOOSE}"),
    (r"joint_blocks|^transformer\.transformer_blocks", f"a LoRA for Stable Diffusion 3 or the like; {CHOOSE}"),
    (r"^(image_proj|ip_adapter)\.", "an IP-Adapter, which this model does not take; leave it out"),
    (
        r"^(controlnet_|control_model|lora_controlnet|input_hint_block|zero_convs)",
        "a ControlNet, which this model does not take; leave it out",
    ),
    (
        r"^(model\.diffusion_model|conditioner\.embedders|cond_stage_model)\.",
        "a whole checkpoint; start the server with SDXL_MODEL set to it",
    ),
    (
        r"^(first_stage_model\.|encoder\.(down|mid|conv_in)|decoder\.(up|mid|conv_in))",
        "a VAE; put it into a model folder as vae/, and start the server with SDXL_MODEL set to that",
    ),
)
# Where a file holds what reads the text, and what it is whose text is so wide.
TEXT_WIDTH = re.compile(
    r".*attn2([._]|\.processor\.)to_[kv](_lora)?\.(lora_)?(down|A|lora_A|lora\.down)(\.\w+)?\.weight"
    r"|lora_te_text_model.*(q|k|v)_proj\.lora_down\.weight|emb_params|string_to_param.*|[^.]+"
)
BY_WIDTH = {768: SD1, 1024: SD2, 1280: "the SDXL refiner"}


def named(shapes: Mapping[str, Shape], cross_attention_dim: int) -> str | None:
    """What the file with these tensors is, and a remedy, if it can be told. `cross_attention_dim`: this model's own."""
    for pattern, what in BY_NAME:
        if any(re.search(pattern, key) for key in shapes):
            return what
    for key, shape in shapes.items():
        width = shape[-1] if shape and TEXT_WIDTH.fullmatch(key) else cross_attention_dim
        if width != cross_attention_dim and width in BY_WIDTH:
            return f"{'a LoRA' if 'lora' in key else 'a textual inversion'} for {BY_WIDTH[width]}; {CHOOSE}"
    return None
