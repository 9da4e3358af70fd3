"""Keras to ONNX through TensorFlow and tf2onnx: convolutions keep few transposes, and recurrent layers stay single operators or loops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from toolkit import keras_models, tensorflow_onnx
from toolkit.artifact import Signature
from toolkit.convert import onnx_settled
from toolkit.plugins import Route


class KerasOnnx:
    """Writes one self-contained ``.onnx`` file; the same bytes each time, but for recurrent layers, whose loops tf2onnx writes in any order.

    Args:
        name: The route's name.
        source: ``keras`` or ``h5``.
    """

    version = 1
    format = "onnx"
    modules: tuple[str, ...] = ("keras", "tensorflow", "tf2onnx", "onnx")
    distributions: tuple[str, ...] = ("keras", "tensorflow", "tf2onnx", "onnx")
    extra = "edgekit[tensorflow,onnx]"
    options: tuple[str, ...] = ("opset",)
    trust = 0.9

    def __init__(self, name: str, source: str) -> None:
        self.name, self.source = name, source

    def convert(self, program: Path, out: Path, signature: Signature, *, opset: int | None = None) -> None:
        """Converts a Keras file.

        Args:
            program: The ``.keras`` or ``.h5`` file.
            out: The ``.onnx`` file to write.
            signature: Inputs and outputs, with static shapes.
            opset: ONNX operator set; the newest that tf2onnx writes by default.

        Raises:
            InputRejected: The file is damaged, or its inputs and outputs are others.
            SetupError: Keras already runs on another backend in this process.
            StageFailed: An operator has no ONNX counterpart.
        """
        import onnx

        frozen = keras_models.frozen(program, signature)
        with onnx_settled.steady_merging():
            tensorflow_onnx.frozen_to_onnx(frozen, out, opset=opset)
        model = onnx.load(str(out))
        onnx_settled.settle(model)
        out.write_bytes(model.SerializeToString(deterministic=True))

    def contract_example(self, folder: Path) -> Any:
        """Writes a small model; see :func:`toolkit.keras_models.write_example`."""
        return keras_models.write_example(folder, self.source, recurrent=False)


ROUTE: Route = KerasOnnx("keras_onnx", "keras")
ROUTE_H5: Route = KerasOnnx("h5_onnx", "h5")
