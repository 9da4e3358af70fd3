"""ONNX to OpenVINO IR through OpenVINO's ONNX frontend, which needs neither PyTorch nor the ``onnx`` package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from toolkit import intake, openvino_ir
from toolkit.artifact import Signature
from toolkit.plugins import Route


class OnnxOpenVino:
    """Writes a folder with ``model.xml`` and ``model.bin``; operators keep the names of their nodes."""

    name = "onnx_openvino"
    version = 1
    source = "onnx"
    format = "openvino"
    modules: tuple[str, ...] = ("openvino", "onnx")
    distributions: tuple[str, ...] = ("openvino", "onnx")
    extra = "edgekit[onnx,openvino]"
    options: tuple[str, ...] = ("dynamic",)

    def convert(self, program: Path, out: Path, signature: Signature) -> None:
        """Converts an ``.onnx`` file.

        Args:
            program: The model file.
            out: The folder to write.
            signature: Inputs and outputs; where it has a size that is free in the file, the size becomes fixed.

        Raises:
            InputRejected: The file is damaged.
            StageFailed: An operator has no OpenVINO counterpart, or the model has other inputs and outputs.
        """
        intake.check_model(program, self.source)
        inputs, outputs, nodes = _names(program)
        model = openvino_ir.convert(str(program), self.name)
        openvino_ir.rename(model, inputs, outputs)
        openvino_ir.fix_sizes(model, signature)
        openvino_ir.write(model, out, nodes)


ROUTE: Route = OnnxOpenVino()


def _names(path: Path) -> tuple[list[str], list[str], set[str]]:
    """Returns the names of a file's inputs, of its outputs, and of all its nodes and of the tensors that they make."""
    import onnx

    graph: Any = onnx.load(str(path), load_external_data=False).graph
    stored = {tensor.name for tensor in graph.initializer}
    inputs = [value.name for value in graph.input if value.name not in stored]
    nodes = {name for node in graph.node for name in (node.name, *node.output) if name}
    return inputs, [value.name for value in graph.output], nodes | stored
