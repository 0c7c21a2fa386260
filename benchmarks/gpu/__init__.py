"""This package (B) against plain diffusers as Replicate's cog-sdxl has it (A), on a GPU: `script/gpu` runs it all."""
