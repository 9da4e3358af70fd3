"""SavedModel to ONNX through tf2onnx; inputs keep the layout of the user's signature, channels last as TensorFlow has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from toolkit import savedmodels, tensorflow_onnx
from toolkit.artifact import Signature
from toolkit.plugins import Route


class SavedModelOnnx:
    """Writes one self-contained ``.onnx`` file, the same bytes each time."""

    name = "savedmodel_onnx"
    version = 2
    source = "savedmodel"
    format = "onnx"
    modules: tuple[str, ...] = ("tensorflow", "tf2onnx", "onnx")
    distributions: tuple[str, ...] = ("tensorflow", "tf2onnx", "onnx")
    extra = "edgekit[tensorflow,onnx]"
    preload = savedmodels.PRELOAD
    trust = 0.9
    options: tuple[str, ...] = ("dynamic", "opset")

    def convert(self, program: Path, out: Path, signature: Signature, *, opset: int | None = None) -> None:
        """Converts a SavedModel.

        Args:
            program: The SavedModel folder.
            out: The ``.onnx`` file to write.
            signature: Inputs and outputs; sizes that are free in the model may stay so, and are called in the file as here.
            opset: ONNX operator set; the newest that tf2onnx writes by default.

        Raises:
            InputRejected: The folder is damaged, could run code, or does not fit the signature.
            StageFailed: An operator has no ONNX counterpart, or the result is not valid ONNX with the signature's names.
        """
        frozen = savedmodels.pinned(savedmodels.load(program), signature)
        tensorflow_onnx.frozen_to_onnx(frozen, out, opset=opset, sizes=signature)

    def contract_example(self, folder: Path) -> tuple[Path, Signature, dict[str, Any], dict[str, Any]]:
        """Writes a small model for ``tests/contract``."""
        return savedmodels.example(folder)


ROUTE: Route = SavedModelOnnx()
