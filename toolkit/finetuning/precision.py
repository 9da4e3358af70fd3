"""Mixed precision: Micikevicius et al., "Mixed Precision Training" (2018)."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from toolkit.errors import ConfigError

if TYPE_CHECKING:
    import torch

_CLIP_NORM = 1.0


@dataclass(frozen=True)
class Precision:
    """What the forward pass computes in; weights, gradients and the optimizer's state are float32 throughout.

    Attributes:
        name: ``float32``, ``bfloat16`` or ``float16``.
        device: Name of the device.
        scaler: Keeps gradients within the range of float16; ``None`` for the others.
    """

    name: str
    device: str
    scaler: torch.amp.GradScaler | None = None

    def computing(self) -> AbstractContextManager[Any]:
        """A context in which operators compute in this precision, those that need float32 excepted."""
        import torch

        return nullcontext() if self.name == "float32" else torch.autocast(self.device, getattr(torch, self.name))

    def backward(self, loss: torch.Tensor) -> None:
        """Adds the gradients of a loss."""
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def step(self, optimizer: torch.optim.Optimizer, parameters: Iterable[torch.nn.Parameter]) -> torch.Tensor:
        """Cuts the gradients' norm to 1, changes the weights, and returns the norm before it was cut.

        With float16 a step whose gradients were too large for it is left out, and its norm is given as 0: that is how the scale is found.
        """
        import torch

        if self.scaler is not None:
            self.scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(parameters, _CLIP_NORM)
        if self.scaler is None:
            optimizer.step()
            return norm
        self.scaler.step(optimizer)
        self.scaler.update()
        return torch.where(torch.isfinite(norm), norm, torch.zeros_like(norm))


def choose(asked: str, device: str) -> Precision:
    """Returns the precision to train in.

    Args:
        asked: ``auto`` or one by its name.
        device: Name of the device.

    Raises:
        ConfigError: float16 is asked for where there is no GPU.
    """
    import torch

    if asked == "auto":
        asked = "float32" if device != "cuda" else "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    if asked == "float16" and device != "cuda":
        raise ConfigError(f"float16 is for GPUs, and this trains on {device}", where="finetune.precision", hint='set it to "auto"')
    return Precision(asked, device, torch.amp.GradScaler(device) if asked == "float16" else None)
