"""The course of a sampler as plain numbers, which `sdxl.schedulers` computes and `sdxl.denoise` follows."""

from dataclasses import dataclass

NUM_TRAIN_TIMESTEPS = 1000
LAST_TIMESTEP = NUM_TRAIN_TIMESTEPS - 1


@dataclass(frozen=True)
class Level:
    """A noise level: a state at this level is `signal * clean latents + noise * standard normal noise`."""

    signal: float
    noise: float


@dataclass(frozen=True)
class Step:
    """One UNet call and the update after it.

    next state = sum(latents[k] * k-th newest state) + sum(noise_preds[k] * k-th newest prediction)
               + fresh_noise * standard normal noise
    """

    timestep: float  # what the UNet is told, 0..999
    input_scale: float  # the UNet reads state * input_scale, which has unit variance
    latents: tuple[float, ...]
    noise_preds: tuple[float, ...]
    after: Level  # of the next state
    fresh_noise: float | None = None  # None: nothing is drawn


Steps = list[tuple[Step, ...]]


@dataclass(frozen=True)
class Schedule:
    """A sampler's whole course from `start` to clean latents.

    `steps[k]` are the UNet calls of the k-th denoising step (two for most of Heun's and for PNDM's first).
    `timesteps[k]` is where step k starts. Pure noise is scaled by `init_noise_sigma`; a picture is noised to `start`.
    """

    steps: tuple[tuple[Step, ...], ...]
    timesteps: tuple[float, ...]
    start: Level
    init_noise_sigma: float

    def handover(self, fraction: float) -> int:
        """How many of the steps lie in the first `fraction` (0..1) of the noise range: the base model's share."""
        cutoff = round(NUM_TRAIN_TIMESTEPS - fraction * NUM_TRAIN_TIMESTEPS)
        return sum(timestep >= cutoff for timestep in self.timesteps)
