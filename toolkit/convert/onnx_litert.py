"""ONNX to TFLite without TensorFlow: Edgekit's own compiler, see :mod:`toolkit.convert.tfl`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from toolkit import intake
from toolkit.artifact import Signature, TensorSpec
from toolkit.convert.tfl import clean, integers, lower, operators, write
from toolkit.convert.tfl.graph import Graph
from toolkit.convert.tfl.layout import Layout
from toolkit.convert.tfl.program import FREE, Program, Type, read
from toolkit.errors import InputRejected, StageFailed
from toolkit.factory import CODE_ERRORS, first_line
from toolkit.plugins import Obstacle, Route

_WHERE = "onnx_litert"
_DEFAULT = "serving_default"
_HINT = "write that layer with other operators, or keep it outside of the graph"


class OnnxLiteRT:
    """Writes a ``.tflite`` file with the signature ``serving_default``; 64-bit integers become 32-bit ones."""

    name = "onnx_litert"
    version = 1
    source = "onnx"
    format = "tflite"
    modules: tuple[str, ...] = ("onnx", "ai_edge_litert")
    distributions: tuple[str, ...] = ("onnx", "ai-edge-litert")
    extra = "edgekit[onnx,litert]"
    options: tuple[str, ...] = ("layout",)
    trust = 0.9

    def convert(self, program: Path, out: Path, signature: Signature, *, layout: str | None = None) -> None:
        """Converts an ONNX file.

        Args:
            program: The ``.onnx`` file.
            out: The ``.tflite`` file to write.
            signature: Inputs and outputs; the first axis may be free.
            layout: ``channels_last`` for four-dimensional inputs ``[n x h x w x c]``.

        Raises:
            InputRejected: The file is damaged.
            StageFailed: An operator has no counterpart in TFLite.
        """
        graph, found = _lowered(program, signature, layout)
        if found.problems:
            told = "; ".join(dict.fromkeys(f"{node.kind} ({node.name}, opset {node.version}) {reason}" for node, reason in found.problems))
            raise StageFailed(f"cannot convert the graph: {told}", where=_WHERE, hint=_HINT)
        clean.clean(graph, found.quantized)
        integers.integrate(graph, found.quantized)
        found.constants.clear()  # what the graph has of them is its own
        clean.clean(graph, found.quantized)
        names = dict(zip(found.inputs, graph.inputs, strict=True)), dict(zip(found.outputs, graph.outputs, strict=True))
        out.write_bytes(write.to_bytes([write.Entry(_DEFAULT, graph, *names)]))

    def preflight(self, program: Path, signature: Signature) -> list[Obstacle]:
        """Returns every operator that cannot be lowered, with its node and the reason.

        Raises:
            InputRejected: The file is damaged.
        """
        _, found = _lowered(program, signature, None)
        return [Obstacle(node.kind, node.layer, reason, _HINT) for node, reason in found.problems]


ROUTE: Route = OnnxLiteRT()


def _lowered(program: Path, signature: Signature, layout: str | None) -> tuple[Graph, Program]:
    model = _load(program)
    types = {spec.name: _type(spec) for spec in signature.inputs}
    constants = {tensor.name for tensor in model.graph.initializer}
    ordered = {value.name: types[value.name] for value in model.graph.input if value.name not in constants}
    found = read(model, ordered, lambda kind: kind in lower.REGISTRY)
    del model  # a large model is not held twice
    graph = Graph()
    last: Layout = "last" if layout == "channels_last" else "first"
    given = {name: _input(graph, name, type, last if len(type.shape) == 4 else "first") for name, type in ordered.items()}
    lower.lower(found, graph, given, {})
    return graph, found


def _type(spec: TensorSpec) -> Type:
    return Type(np.dtype(spec.dtype), tuple(FREE if isinstance(size, str) else size for size in spec.shape))


def _input(graph: Graph, name: str, type: Type, layout: Layout) -> tuple[Any, Layout]:
    shape = tuple(type.shape[axis] for axis in (0, 2, 3, 1)) if layout == "last" else type.shape
    narrowed = np.dtype("int32") if type.dtype == np.int64 else type.dtype
    return graph.input(name, shape, narrowed), layout


def _load(program: Path) -> Any:
    import onnx

    intake.check_model(program, "onnx")
    try:
        return onnx.load_model(str(program))
    except (*CODE_ERRORS, EOFError) as error:
        raise InputRejected(f"is not a readable ONNX file: {first_line(error)}", where=program.name, hint="export the model again") from error


assert operators  # importing it registers the operators
