"""Full fine-tuning: every weight of the UNet learns, in float32, since 16 bits would round small steps away."""

from torch import Tensor, nn


class WholeUnet:
    """What `Adapters` is for a LoRA."""

    def __init__(self, unet: nn.Module, *, learns: bool) -> None:
        self._unet = unet
        self._dtype = next(unet.parameters()).dtype
        unet.float().requires_grad_(learns)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What learns."""
        return list(self._unet.parameters())

    def refresh(self, strength: float) -> None:
        """Nothing is held twice, and there is no strength but 1."""

    def clear(self) -> None:
        """Before the first backward pass of a step. The next one brings gradients of its own: 10 GB less to add."""
        for parameter in self._unet.parameters():
            parameter.grad = None

    def collect(self) -> None:
        """Gradients are where they belong."""

    def lora(self) -> dict[str, tuple[Tensor, Tensor]]:
        """There is none."""
        return {}

    def weights(self) -> dict[str, Tensor]:
        """Every weight by diffusers' name, float32, on the CPU."""
        return {name: tensor.detach().cpu().float().clone() for name, tensor in self._unet.named_parameters()}

    def remove(self) -> None:
        """Leave the weights as they are now, in the UNet's own type."""
        for parameter in self._unet.requires_grad_(False).parameters():
            parameter.grad = None
        self._unet.to(self._dtype)
