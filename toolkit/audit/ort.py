"""Reads what a file of ONNX Runtime's own format contains: signature, operators as the runtime fused them, and weights.

Field numbers are those of ``onnxruntime/core/flatbuffers/schema/ort.fbs`` (version 6), which only ever appends. Operators of
the runtime's own domains, such as ``com.microsoft.nchwc``, are counted by their names alone, like those of ONNX.
"""

from __future__ import annotations

from collections import Counter
from math import prod
from pathlib import Path

from toolkit import modelfile
from toolkit.artifact import Signature, TensorSpec
from toolkit.audit.damage import reading
from toolkit.audit.element_types import element_bits
from toolkit.audit.flat_tables import FlatTable
from toolkit.contents import Contents, Layer

_COMPUTED = "-"
_TENSOR, _NUMBER = 1, 1
# Numbers of TensorDataType, which are those of ONNX.
_DTYPES = dict(
    enumerate(
        (
            *("-", "float32", "uint8", "int8", "uint16", "int16", "int32", "int64", "str", "bool", "float16", "float64"),
            *("uint32", "uint64", "complex64", "complex128", "bfloat16"),
        )
    )
)
# Operator -> place of its weights.
_FLOAT = dict.fromkeys(("Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "LSTM", "GRU", "RNN"), 1)
_STATIC = dict.fromkeys(("QLinearConv", "QLinearMatMul", "QGemm"), 3)
_DYNAMIC = dict.fromkeys(("ConvInteger", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"), 1)
_LAYERS = {**_FLOAT, **_STATIC, **_DYNAMIC}


class OrtReader:
    """The reader behind ``edgekit inspect model.ort`` and the audit of ORT-format files."""

    name = "ort"
    version = 1
    modules: tuple[str, ...] = ("onnxruntime",)
    distributions: tuple[str, ...] = ("onnxruntime",)
    extra = "edgekit[onnx]"
    format = "ort"

    def read(self, model: Path) -> Contents:
        """Returns the contents of an ``.ort`` file.

        Raises:
            InputRejected: The file is damaged.
        """
        with reading(model, self.format, ValueError, OverflowError):
            return _contents(model)


READER = OrtReader()


def _contents(path: Path) -> Contents:
    session = FlatTable.root(memoryview(path.read_bytes()))
    model = session.table(1)
    graph = model.table(7) if model else None
    if model is None or graph is None:
        raise ValueError("it has no graph")
    stored = {tensor.text(0): _stored(tensor) for tensor in graph.tables(0)}
    weight_bytes: Counter[str] = Counter()
    for dtype, size in stored.values():
        weight_bytes[dtype] += size
    types = {value.text(0): value for value in graph.tables(1)}
    nodes = graph.tables(2)
    opsets = {entry.text(0) or "ai.onnx": entry.number(1, "q") for entry in model.tables(1)}
    return Contents(
        format="ort",
        size_bytes=modelfile.size_bytes(path),
        sha256=modelfile.sha256(path),
        signature=Signature(
            inputs=tuple(_spec(name, types) for name in graph.texts(5) if name not in stored),
            outputs=tuple(_spec(name, types) for name in graph.texts(6)),
        ),
        operators=dict(Counter(node.text(5) for node in nodes)),
        weight_bytes=dict(weight_bytes),
        layers=tuple(_layer(node, stored) for node in nodes if node.text(5) in _LAYERS),
        details={"opset": ", ".join(f"{name} {number}" for name, number in opsets.items() if name == "ai.onnx"), "ort_version": session.text(0)},
    )


def _stored(tensor: FlatTable) -> tuple[str, int]:
    dtype = _DTYPES.get(tensor.number(3, "i"), "unknown")
    return dtype, tensor.length(4) or (prod(tensor.numbers(2, "q")) * element_bits(dtype) + 7) // 8


def _layer(node: FlatTable, stored: dict[str, tuple[str, int]]) -> Layer:
    operator, inputs = node.text(5), node.texts(8)
    names = [inputs[_LAYERS[operator]]] if len(inputs) > _LAYERS[operator] else []
    if "MatMul" in operator:
        names += inputs[:1]  # a product takes weights on either side
    dtype, size = next((stored[name] for name in names if name in stored), (_COMPUTED, 0))
    activation = "int8" if operator in _STATIC else "dynamic int8" if operator in _DYNAMIC else "float32"
    return Layer(name=node.text(0), operator=operator, weight_dtype=dtype, activation_dtype=activation, weight_bytes=size)


def _spec(name: str, types: dict[str, FlatTable]) -> TensorSpec:
    described = types[name].table(2) if name in types else None
    value = described.table(2) if described and described.number(1, "B") == _TENSOR else None
    if value is None:
        raise ValueError(f"{name!r} is no tensor")
    shape = value.table(1)
    sizes = [_size(axis, dimension) for axis, dimension in enumerate(shape.tables(0) if shape else [])]
    return TensorSpec(name=name, dtype=_DTYPES.get(value.number(0, "i"), "unknown"), shape=tuple(sizes))


def _size(axis: int, dimension: FlatTable) -> int | str:
    value = dimension.table(0)
    if value is not None and value.number(0, "b") == _NUMBER:
        return value.number(1, "q")
    return (value.text(2) if value is not None else "") or f"d{axis}"
