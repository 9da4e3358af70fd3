"""Keras to ONNX through TensorFlow and tf2onnx: convolutions keep few transposes, and recurrent layers stay single operators or loops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from toolkit import keras_models, onnx_files, onnx_settled, tensorflow_onnx
from toolkit.artifact import Signature
from toolkit.errors import StageFailed
from toolkit.plugins import Route


class KerasOnnx:
    """Writes one self-contained ``.onnx`` file; the same bytes each time.

    Args:
        name: The route's name.
        source: ``keras`` or ``h5``.
    """

    version = 3
    format = "onnx"
    modules: tuple[str, ...] = ("keras", "tensorflow", "tf2onnx", "onnx", "onnxslim", "onnxruntime")
    distributions: tuple[str, ...] = ("keras", "tensorflow", "tf2onnx", "onnx", "onnxslim", "onnxruntime")
    extra = "edgekit[tensorflow,onnx]"
    options: tuple[str, ...] = ("opset",)
    trust = 0.83

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

        # tf2onnx knows a recurrent layer by the sizes that it reads from its input: with a fixed batch those are constants, and a loop
        # takes the place of ONNX's own operator, five times slower.
        try:
            tensorflow_onnx.frozen_to_onnx(keras_models.frozen(program, _free(signature)), out, opset=opset)
        except StageFailed:
            tensorflow_onnx.frozen_to_onnx(keras_models.frozen(program, signature), out, opset=opset)
        model = onnx.load(str(out))
        _fix(model, signature)
        model, _ = onnx_files.guarded(model, onnx_files.slim, onnx_files.random_inputs(signature), "onnxslim")
        onnx_settled.settle(model)
        out.write_bytes(model.SerializeToString(deterministic=True))

    def contract_example(self, folder: Path) -> Any:
        """Writes a small model; see :func:`toolkit.keras_models.write_example`."""
        return keras_models.write_example(folder, self.source, recurrent=False)


def _free(signature: Signature) -> Signature:
    """The same signature with the number of samples left open."""
    return Signature(
        inputs=tuple(spec.model_copy(update={"shape": ("batch", *spec.shape[1:])}) for spec in signature.inputs),
        outputs=tuple(spec.model_copy(update={"shape": ("batch", *spec.shape[1:])}) for spec in signature.outputs),
    )


def _fix(model: Any, signature: Signature) -> None:
    """Gives inputs and outputs their sizes; what was inferred of the values between them is dropped, as it was for any batch."""
    sizes = {spec.name: spec.shape for spec in (*signature.inputs, *signature.outputs)}
    for value in (*model.graph.input, *model.graph.output):
        for axis, size in zip(value.type.tensor_type.shape.dim, sizes[value.name], strict=True):
            axis.dim_value = int(size)
    del model.graph.value_info[:]


ROUTE: Route = KerasOnnx("keras_onnx", "keras")
ROUTE_H5: Route = KerasOnnx("h5_onnx", "h5")
