"""TFLite to ONNX through tf2onnx, for models that exist as TFLite alone, and for frameworks whose own way to ONNX is worse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from toolkit import intake, savedmodels, tensorflow_onnx
from toolkit.artifact import Signature
from toolkit.plugins import Route


class TFLiteOnnx:
    """Writes one self-contained ``.onnx`` file with the names of the file's signature."""

    name = "tflite_onnx"
    version = 2
    source = "tflite"
    format = "onnx"
    modules: tuple[str, ...] = ("tensorflow", "tf2onnx", "onnx")
    distributions: tuple[str, ...] = ("tensorflow", "tf2onnx", "onnx")
    extra = "edgekit[tensorflow,onnx]"
    preload = savedmodels.PRELOAD
    trust = 0.8
    options: tuple[str, ...] = ("opset",)

    def convert(self, program: Path, out: Path, signature: Signature, *, opset: int | None = None) -> None:
        """Converts a ``.tflite`` file.

        Args:
            program: The file, with one signature or none.
            out: The ``.onnx`` file to write.
            signature: Inputs and outputs of the file.
            opset: ONNX operator set; the newest that tf2onnx writes by default.

        Raises:
            InputRejected: The file is damaged.
            StageFailed: An operator has no ONNX counterpart, or the result is not valid ONNX with the signature's names.
        """
        intake.check_model(program, "tflite")
        tensorflow_onnx.tflite_to_onnx(program, out, signature, opset=opset)

    def contract_example(self, folder: Path) -> tuple[Path, Signature, dict[str, Any], dict[str, Any]]:
        """Writes a small model for ``tests/contract``."""
        program, signature, inputs, expected = savedmodels.example(folder)
        import tensorflow as tf

        file = folder / "example.tflite"
        file.write_bytes(tf.lite.TFLiteConverter.from_saved_model(str(program)).convert())
        return file, signature, inputs, expected


ROUTE: Route = TFLiteOnnx()
