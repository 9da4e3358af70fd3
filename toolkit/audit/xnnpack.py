"""Reads what ExecuTorch's XNNPACK delegate was given: a flatbuffer of its own inside of the ``.pte`` file.

Field and union numbers are those of ``executorch/backends/xnnpack/serialization/schema.fbs`` (XN01), which only ever appends.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from toolkit.audit.flat_tables import FlatTable
from toolkit.contents import Layer

_HEADER = struct.Struct("<4s4sHIIIQ")
_COMPUTED = "-"
# Numbers of XNNDatatype: q is for quantized, d for dynamically, c for by channel, b for by block, p for packed.
_DTYPES = {1: "float32", 2: "float16", 3: "int8", 4: "uint8", 5: "int32", 6: "int8", 7: "int32", 8: "int4", 9: "int8", 10: "int4", 11: "int8"}
_DTYPES |= {12: "int32", 13: "float32", 14: "bfloat16"}
_DYNAMIC = (9, 11)
_BITS = {"float32": 32, "int32": 32, "float16": 16, "bfloat16": 16, "int8": 8, "uint8": 8, "int4": 4}
_NAMES = (
    "Add FullyConnected Softmax Sigmoid StaticTranspose Clamp Conv2d Div StaticResizeBilinear2D StaticConstantPad AvgPooling2d Minimum "
    "DepthwiseConv2d MaxPooling2d Multiply Subtract Floor Convert GlobalAvgPooling2d StaticReshape ArgMaxPooling2d SquareRoot Ceiling "
    "Hardswish LeakyReLU Maximum Negate Square ELU Abs PReLU Concatenate2 Concatenate3 Concatenate4 StaticSlice ScaledDotProductAttention "
    "BatchMatrixMultiply Concatenate5 ConvTranspose2d ReciprocalSquareRoot Log Gelu Tanh Exp Sin Copy Cos"
)
_NODES = tuple(_NAMES.split())
# Node -> fields of its data and its weights.
_LAYERS = {"FullyConnected": (0, 1), "BatchMatrixMultiply": (0, 1), **dict.fromkeys(("Conv2d", "DepthwiseConv2d", "ConvTranspose2d"), (15, 16))}


@dataclass(frozen=True)
class Delegate:
    """What one delegate executes.

    Attributes:
        operators: Its operators, in order.
        layers: Those of them that multiply with weights.
        weights: Size in bytes and element type of each stored tensor, by its key in the file; unnamed ones by their place.
    """

    operators: tuple[str, ...]
    layers: tuple[Layer, ...]
    weights: Mapping[str, tuple[int, str]]


@dataclass(frozen=True)
class _Value:
    dtype: str
    dynamic: bool
    bytes: int
    key: str


def read_delegate(data: bytes | memoryview, number: int) -> Delegate:
    """Reads one delegate.

    Args:
        data: What the program hands to XNNPACK.
        number: Its number in the program, for the names of layers.

    Raises:
        ValueError: It is damaged, or of a version before the named weights.
    """
    if len(data) < _HEADER.size or bytes(data[4:8]) != b"XH00":
        raise ValueError("a delegate lacks the mark XH00")
    _, _, _, start, size, _, _ = _HEADER.unpack_from(data)
    if start + size > len(data):
        raise ValueError("a delegate ends before its graph")
    graph = FlatTable.root(data[start : start + size])
    values = _values(graph, number)
    nodes = [(_node_name(node), node.table(1)) for node in (wrapped for wrapped in graph.tables(1))]
    layers = [_layer(f"delegate {number}, node {place}", name, node, values) for place, (name, node) in enumerate(nodes) if node and name in _LAYERS]
    weights = {value.key: (value.bytes, value.dtype) for value in values.values() if value.key}
    return Delegate(tuple(name for name, _ in nodes), tuple(layers), weights)


def _node_name(node: FlatTable) -> str:
    kind = node.number(0, "B")
    return _NODES[kind - 1] if 0 < kind <= len(_NODES) else f"node {kind}"


def _values(graph: FlatTable, number: int) -> dict[int, _Value]:
    keys = [entry.text(2) or f"delegate {number}, {place}" for place, entry in enumerate(graph.tables(8))]
    found = {}
    for value in graph.tables(2):
        tensor = value.table(1)
        if tensor is not None and value.number(0, "B") == 2:
            tensor = tensor.table(0)
        if tensor is not None:
            found[tensor.number(6, "I")] = _value(tensor, keys)
    return found


def _value(tensor: FlatTable, keys: list[str]) -> _Value:
    kind, constant = tensor.number(0, "h"), tensor.number(3, "I")
    dtype = _DTYPES.get(kind, f"type {kind}")
    stored = (prod(tensor.numbers(2, "I")) * _BITS.get(dtype, 0) + 7) // 8 if constant else 0
    return _Value(dtype, kind in _DYNAMIC, stored, keys[constant] if 0 < constant < len(keys) else "")


def _layer(name: str, operator: str, node: FlatTable, values: Mapping[int, _Value]) -> Layer:
    data, weight = (values.get(node.number(field, "I")) for field in _LAYERS[operator])
    stored = weight is not None and bool(weight.key)
    dtype = data.dtype if data else "float32"
    return Layer(
        name=name,
        operator=operator,
        weight_dtype=weight.dtype if weight and stored else _COMPUTED,
        activation_dtype=f"dynamic {dtype}" if data and data.dynamic else dtype if dtype.startswith(("int", "uint")) else "float32",
        weight_bytes=weight.bytes if weight and stored else 0,
    )
