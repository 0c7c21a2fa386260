"""What this package costs beside plain diffusers, on a CPU: exact counts first, then ratios of time."""
