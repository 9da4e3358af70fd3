"""Reads what OpenVINO IR contains: operators, signature, and how each layer stores its weights and takes its input.

Nothing is executed and OpenVINO is not imported. A layer says how it computes by what surrounds it, as NNCF writes it:

* weights stored as integers and a data input behind ``FakeQuantize``: static, ``activation_dtype`` is ``int8``;
* weights stored as integers, a float data input: weight-only, ``activation_dtype`` is ``float32``.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from toolkit import modelfile
from toolkit.artifact import Signature, TensorSpec
from toolkit.audit import openvino_graph
from toolkit.audit.damage import reading
from toolkit.audit.openvino_graph import CONST, PARAMETER, RESULT, Graph, Operator
from toolkit.audit.openvino_nodes import FAKE_QUANTIZE, LAYERS, activation, read_nodes
from toolkit.contents import Contents, Layer
from toolkit.openvino_ir import BIN, XML

COMPUTED = "-"


class OpenVinoReader:
    """The reader behind ``edgekit inspect`` of OpenVINO IR and its audit."""

    name = "openvino"
    version = 1
    modules = ("numpy",)
    distributions = ("numpy",)
    extra = "edgekit"
    format = "openvino"

    def read(self, model: Path) -> Contents:
        """Returns the contents of a folder with ``model.xml`` and ``model.bin``.

        Raises:
            InputRejected: The folder is damaged.
        """
        with reading(model, self.format, OSError, ValueError, KeyError, IndexError, OverflowError):
            return _contents(model)


def _contents(path: Path) -> Contents:
    graphs, root = openvino_graph.read_graphs(path / XML, (path / BIN).stat().st_size)
    main, operators = graphs[0], [operator for graph in graphs for operator in graph.operators]
    nodes, arena, note = read_nodes(main)
    stored = {one.constants[key] for one in graphs for operator in one.of_kind(CONST) for key in operator.outputs}
    weight_bytes: Counter[str] = Counter()
    for constant in {(one.offset, one.size_bytes): one for one in stored}.values():  # equal constants are stored once
        weight_bytes[constant.dtype] += constant.size_bytes
    return Contents(
        format="openvino",
        size_bytes=modelfile.size_bytes(path),
        sha256=modelfile.sha256(path),
        signature=_signature(main),
        operators=dict(Counter(operator.kind for operator in operators if operator.kind not in (CONST, PARAMETER, RESULT))),
        weight_bytes=dict(weight_bytes),
        layers=tuple(_layer(operator, graph) for graph in graphs for operator in graph.operators if _multiplies(operator, graph)),
        nodes=nodes,
        arena_bytes=arena,
        details=_details(root, operators) | ({"macs": note} if note else {}),
    )


def _details(root: Any, operators: list[Operator]) -> dict[str, str]:
    opsets = sorted({operator.opset for operator in operators}, key=lambda name: (len(name), name))
    quantized = sum(operator.kind == FAKE_QUANTIZE for operator in operators)
    return {"ir_version": root.attrib.get("version", "-"), "opsets": ", ".join(opsets), "quantized_tensors": str(quantized)}


def _multiplies(operator: Operator, graph: Graph) -> bool:
    return operator.kind in LAYERS and not all(key in graph.constants for key in operator.outputs)


def _layer(operator: Operator, graph: Graph) -> Layer:
    positions, data = LAYERS[operator.kind]
    found = [graph.constants[operator.inputs[place]] for place in positions if operator.inputs[place] in graph.constants]
    if not found and operator.kind == "MatMul" and operator.inputs[0] in graph.constants:
        found, data = [graph.constants[operator.inputs[0]]], 1
    return Layer(
        name=operator.name,
        operator=operator.kind,
        weight_dtype=" and ".join(sorted({stored.dtype for stored in found})) or COMPUTED,
        activation_dtype=activation(operator.inputs[data], graph),
        weight_bytes=sum(stored.size_bytes for stored in found),
    )


def _signature(graph: Graph) -> Signature:
    outputs = [_output_name(operator, graph) for operator in graph.of_kind(RESULT)]
    results = [graph.tensors[operator.inputs[0]] for operator in graph.of_kind(RESULT)]
    inputs = [(operator, graph.tensors[operator.outputs[0]]) for operator in graph.of_kind(PARAMETER)]
    if not results:
        raise ValueError("its graph has no outputs")
    return Signature(
        inputs=tuple(_spec(_input_name(operator, tensor, outputs), tensor) for operator, tensor in inputs),
        outputs=tuple(_spec(name, tensor) for name, tensor in zip(outputs, results, strict=True)),
    )


def _input_name(operator: Operator, tensor: openvino_graph.Tensor, outputs: list[str]) -> str:
    """As :func:`toolkit.openvino_ir.name_of_input` chooses it."""
    return operator.name if operator.name in tensor.names else min(set(tensor.names) - set(outputs), default=operator.name)


def _output_name(operator: Operator, graph: Graph) -> str:
    return min(operator.result_names or graph.tensors[operator.inputs[0]].names, default=operator.name)


def _spec(name: str, tensor: openvino_graph.Tensor) -> TensorSpec:
    shape = tuple(f"d{axis}" if size < 0 else size for axis, size in enumerate(tensor.shape))
    return TensorSpec(name=name, dtype=tensor.dtype, shape=shape)


READER = OpenVinoReader()
