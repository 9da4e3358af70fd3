"""Borders of the lowest number, which converters put around a tensor before its largest values are taken.

In integers such a border is the low end of the range, so that it asks for none of its own. Around what is never negative zeros do the same, and
XNNPACK takes ``PAD``, which ``PADV2`` is not.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.quantization import tflite_file

_LOWEST = float(np.finfo(np.float32).min)
_RELUS = {"RELU", "RELU6", "RELU_0_TO_1"}
_FUSED_RELUS = (1, 3)  # ActivationFunctionType's RELU and RELU6; 2 is RELU_N1_TO_1


def is_lowest(content: Any, graph: Any, operator: Any, kind: str) -> bool:
    """Whether an operator puts the lowest number, or minus infinity, around a float tensor.

    Args:
        content: A file as :func:`toolkit.quantization.tflite_file.read` gives it.
        graph: The operator's subgraph.
        operator: The operator.
        kind: Its kind in the schema's words.
    """
    if kind != "PADV2":
        return False
    border = graph.tensors[operator.inputs[2]]
    data = content.buffers[border.buffer].data
    return int(border.type) == 0 and data is not None and len(data) == 4 and float(np.asarray(data).view(np.float32)[0]) <= _LOWEST


def rectified(content: Any, graph: Any) -> Iterator[int]:
    """Numbers of a subgraph's tensors that are what a ReLU gives."""
    kinds = tflite_file.kinds(content)
    for operator in graph.operators or ():
        if kinds[operator.opcodeIndex] in _RELUS or getattr(operator.builtinOptions, "fusedActivationFunction", 0) in _FUSED_RELUS:
            yield from map(int, operator.outputs)


def with_zeros(model: Path, out: Path) -> Path:
    """Writes a copy that pads what is never negative with zeros where only the largest values of it are read.

    Args:
        model: The float ``.tflite`` file.
        out: The copy.

    Returns:
        The copy, or the model itself where there is no such place.

    Raises:
        InputRejected: The model is damaged.
    """
    from ai_edge_litert import schema_py_generated as schema

    content, data = tflite_file.read_mapped(model)
    places = list(_places(content))
    if not places:
        return model
    pad, code = len(content.operatorCodes), schema.BuiltinOperator.PAD
    content.operatorCodes.append(schema.OperatorCodeT(builtinCode=code, deprecatedBuiltinCode=code, version=1))
    for operator in places:
        operator.opcodeIndex, operator.inputs = pad, operator.inputs[:2]
        operator.builtinOptionsType, operator.builtinOptions = schema.BuiltinOptions.PadOptions, schema.PadOptionsT()
    out.write_bytes(tflite_file.to_bytes(content, data))
    return out


def _places(content: Any) -> Iterator[Any]:
    kinds = tflite_file.kinds(content)
    for graph in content.subgraphs:
        positive = set(rectified(content, graph))
        for operator in graph.operators or ():
            if is_lowest(content, graph, operator, kinds[operator.opcodeIndex]) and int(operator.inputs[0]) in positive:
                padded = int(operator.outputs[0])
                readers = {kinds[one.opcodeIndex] for one in graph.operators if padded in one.inputs}
                if readers == {"MAX_POOL_2D"} and padded not in graph.outputs:
                    yield operator
