"""Where the modules are while they work, by how much memory the card has.

| tier     | card          | what is on it                                                              |
|----------|---------------|----------------------------------------------------------------------------|
| resident | 24 GB or more | everything, always                                                         |
| swap     | 12 to 24 GB   | the part that works (text encoders, a UNet, the VAE); the rest in main memory |
| stream   | under 12 GB   | one layer of the part that works                                            |

In swap and stream the safety checker stays in main memory and works there, beside the GPU; and the VAE works in tiles
on pictures above the model's own size, which changes their last bits.

Bytes of SDXL 1.0 in 16 bit: base UNet 5.1 GB, refiner UNet 4.5, text encoders 1.6, VAE 0.2, safety checker 0.6.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module

import torch
from accelerate import cpu_offload
from torch.nn import Module

from errors import InputError

GIB = 2**30
MOST_AT_ONCE = 8
TIERS = ("resident", "swap", "stream")


def tier_for(device: torch.device) -> str:
    """The tier that fits the device's memory; a CPU keeps everything where it is."""
    if device.type != "cuda":
        return "resident"
    memory = torch.cuda.get_device_properties(device).total_memory
    # Cards sold as 24 and 12 GB report a little less.
    return "resident" if memory >= 22 * GIB else "swap" if memory >= 11 * GIB else "stream"


def placement_from(environ: Mapping[str, str]) -> tuple["Placement", torch.dtype]:
    """This machine's device, the tier that fits it unless SDXL_OFFLOAD names one, and the type to compute in:
    float16 on a GPU, float32 on a CPU, where half precision is ten times slower."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tier = environ.get("SDXL_OFFLOAD") or tier_for(device)
    if tier not in TIERS:
        raise InputError(f"SDXL_OFFLOAD={tier!r} is not known; choose one of {', '.join(TIERS)}.")
    at_once = _at_once(environ.get("SDXL_BATCH"), device, tier)
    return Placement(device, tier, at_once), torch.float16 if device.type == "cuda" else torch.float32


def _at_once(asked: str | None, device: torch.device, tier: str) -> int:
    """SDXL_BATCH, else what fills a GPU (4 pictures of 1024 x 1024) where there is room for it."""
    if asked:
        if not asked.isdigit() or not 1 <= int(asked) <= MOST_AT_ONCE:
            raise InputError(
                f"SDXL_BATCH={asked!r} is no number from 1 to {MOST_AT_ONCE}; leave it out for the default."
            )
        return int(asked)
    roomy = tier == "resident" and device.type == "cuda"
    return 4 if roomy and torch.cuda.get_device_properties(device).total_memory >= 36 * GIB else 1


def working_device(module: Module) -> torch.device:
    """Where a module wants what it reads: in the stream tier its weights are elsewhere until it works."""
    hooks = (getattr(part, "_hf_hook", None) for part in module.modules())
    devices = (getattr(hook, "execution_device", None) for hook in hooks)
    found = next((device for device in devices if device is not None), None)
    return next(module.parameters()).device if found is None else torch.device(found)


@dataclass
class Placement:
    """Brings modules to `device` before they work, according to `tier`."""

    device: torch.device
    tier: str
    at_once: int = 1  # pictures of one request that are computed together
    _here: list[Module] = field(default_factory=list)

    def home(self) -> torch.device:
        """Where weights are loaded to."""
        return self.device if self.tier == "resident" else torch.device("cpu")

    def adopt(self, module: Module) -> None:
        """Called once for every loaded module, before it works."""
        if self.tier != "resident":
            import_module("diffusers.hooks")  # else moves and offloaded calls would, in the middle of a prediction
        if self.tier == "stream":
            cpu_offload(module, execution_device=self.device)

    def use(self, *modules: Module) -> None:
        """Make these modules ready to work on `device`; in the swap tier the others leave it first."""
        if self.tier != "swap":
            return
        # A module counts as here from before it comes until after it has left, so a cancel in between loses none.
        for module in [each for each in self._here if each not in modules]:
            module.to("cpu")
            self._here.remove(module)
        for module in [each for each in modules if each not in self._here]:
            self._here.append(module)
            module.to(self.device)
