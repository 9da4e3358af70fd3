"""ONNX to OpenVINO IR through OpenVINO's ONNX frontend, which needs no PyTorch; the ``onnx`` package reads the file's names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from toolkit import openvino_ir
from toolkit.plugins import Route


def _names(path: Path) -> tuple[list[str], list[str], set[str]]:
    """Returns the names of a file's inputs, of its outputs, and of all its nodes and of the tensors that they make."""
    import onnx

    graph: Any = onnx.load(str(path), load_external_data=False).graph
    stored = {tensor.name for tensor in graph.initializer}
    inputs = [value.name for value in graph.input if value.name not in stored]
    nodes = {name for node in graph.node for name in (node.name, *node.output) if name}
    return inputs, [value.name for value in graph.output], nodes | stored


ROUTE: Route = openvino_ir.FileRoute("onnx", _names, ("onnx",), ("onnx",), "edgekit[onnx,openvino]")
