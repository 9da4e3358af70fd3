"""PyTorch to TFLite through litert-torch, without TensorFlow."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from toolkit import pt2
from toolkit.artifact import Signature
from toolkit.errors import StageFailed
from toolkit.factory import CODE_ERRORS, first_line
from toolkit.plugins import Route

if TYPE_CHECKING:
    import torch


class TorchLiteRT:
    """Writes a ``.tflite`` file with one signature; 64-bit integer inputs become 32-bit ones."""

    name = "torch_litert"
    version = 1
    source = "pt2"
    format = "tflite"
    modules: tuple[str, ...] = ("torch", "litert_torch")
    distributions: tuple[str, ...] = ("torch", "litert-torch", "litert-converter")
    extra = "edgekit[torch,litert]"
    preload = pt2.PRELOAD

    def convert(self, program: Path, out: Path, signature: Signature) -> None:
        """Converts a ``.pt2`` program.

        Args:
            program: The exported program; it takes the signature's inputs by keyword.
            out: The ``.tflite`` file to write.
            signature: Inputs and outputs, with static shapes.

        Raises:
            InputRejected: The program is damaged.
            StageFailed: An operator has no TFLite counterpart.
        """
        import litert_torch

        module = pt2.load(program).module()
        inputs = pt2.blank_inputs(signature)
        try:
            litert_torch.convert(_frozen(module), sample_kwargs=inputs).export(str(out))
        except CODE_ERRORS as error:
            raise StageFailed(
                f"litert-torch cannot convert the program: {first_line(error)}", where="torch_litert", hint="replace that operator in the model"
            ) from error


ROUTE: Route = TorchLiteRT()


def _frozen(module: torch.nn.Module) -> torch.nn.Module:
    """Marks an exported module as inference-only; its own ``eval()`` raises, and its mode was fixed when it was captured."""
    import torch

    class Program(torch.nn.Module):  # type: ignore[misc]  # torch is not followed by the type checker
        def __init__(self) -> None:
            super().__init__()
            self.program = module
            for part in self.modules():
                part.training = False

        def forward(self, **named: torch.Tensor) -> dict[str, torch.Tensor]:
            return self.program(**named)

    return Program()
