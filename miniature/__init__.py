"""A complete SDXL small enough to train on a CPU: its drawn world, its training, its judge."""
