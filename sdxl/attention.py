"""Which attention kernel of torch a card should use; benchmarks/gpu.py times them all, to check this table."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

# By compute capability; the rest of each list is for shapes that the first cannot take
HOPPER = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
OTHERS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def preferred(device: torch.device) -> AbstractContextManager[object]:
    """Inside, attention on this device takes the best kernel that can. On a CPU there is one."""
    if device.type != "cuda":
        return nullcontext()
    hopper = torch.cuda.get_device_capability(device) == (9, 0)
    return sdpa_kernel(HOPPER if hopper else OTHERS, set_priority=True)
