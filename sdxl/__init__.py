"""The model: text, latents, schedulers, pictures. Takes paths and values; knows no URL and no Cog."""
