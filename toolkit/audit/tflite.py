"""Reads what a TFLite file contains: operators, signature, and how each layer stores its weights and takes its input.

The flatbuffer is read in Python through the schema's generated accessors (tensorflow/lite schema.fbs); no interpreter is
made. A layer with integer weights says how it computes by what surrounds it (TFLite 8-bit quantization specification):

* integer input: static, ``activation_dtype`` is ``int8``, ``uint8`` or ``int16``;
* float input, weights used as they are: the kernel quantizes its input while it runs, ``activation_dtype`` is ``dynamic int8``;
* float input, weights through ``DEQUANTIZE``: weight-only, ``activation_dtype`` is ``float32``.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from toolkit import modelfile
from toolkit.artifact import Signature, TensorSpec
from toolkit.audit import tflite_nodes
from toolkit.audit.damage import reading
from toolkit.audit.structure import structure
from toolkit.contents import Contents, Layer, Node

DYNAMIC = "dynamic int8"
COMPUTED = "-"
_MAX_HOPS = 64

# Operator -> (positions of its weights, position of its data), from the operators' kernels in tensorflow/lite/kernels.
_LAYERS: dict[str, tuple[tuple[int, ...], int]] = {
    **dict.fromkeys(("CONV_2D", "DEPTHWISE_CONV_2D", "CONV_3D", "FULLY_CONNECTED", "BATCH_MATMUL"), ((1,), 0)),
    **dict.fromkeys(("TRANSPOSE_CONV", "CONV_3D_TRANSPOSE"), ((1,), 2)),
    **dict.fromkeys(("SVDF", "RNN", "UNIDIRECTIONAL_SEQUENCE_RNN"), ((1, 2), 0)),
    "BIDIRECTIONAL_SEQUENCE_RNN": ((1, 2, 5, 6), 0),
    **dict.fromkeys(("LSTM", "UNIDIRECTIONAL_SEQUENCE_LSTM"), (tuple(range(1, 9)), 0)),
    "BIDIRECTIONAL_SEQUENCE_LSTM": ((*range(1, 9), *range(18, 26)), 0),
}
_RESHAPING = {"RESHAPE", "TRANSPOSE", "SQUEEZE", "EXPAND_DIMS"}
_INTEGERS = {"int8", "uint8", "int16", "int4", "uint4", "int2"}

Item = TypeVar("Item")


class TfliteReader:
    """The reader behind ``edgekit inspect model.tflite`` and the audit of TFLite files."""

    name = "tflite"
    version = 3
    modules = ("ai_edge_litert",)
    distributions = ("ai-edge-litert",)
    extra = "edgekit[litert]"
    format = "tflite"

    def read(self, model: Path) -> Contents:
        """Returns the contents of a TFLite file.

        Raises:
            InputRejected: The file is damaged.
        """
        with reading(model, self.format, struct.error, ValueError, IndexError, KeyError, TypeError, OverflowError, AttributeError):
            return _contents(model)


@dataclass(frozen=True)
class _Tensor:
    """One tensor; ``buffer`` is the index of its stored data, 0 when it is computed; ``scales`` counts its scales."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    buffer: int
    scales: int = 0


@dataclass(frozen=True)
class _Operator:
    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


class _Graph:
    """One subgraph, with the way back from a tensor to the operator that made it."""

    def __init__(self, tensors: list[_Tensor], operators: list[_Operator], inputs: tuple[int, ...], outputs: tuple[int, ...]) -> None:
        self.tensors = tensors
        self.operators = operators
        self.inputs = inputs
        self.outputs = outputs
        self._producer = {index: operator for operator in operators for index in operator.outputs}

    def at(self, operator: _Operator, position: int) -> int | None:
        """Index of an operator's input tensor; ``None`` when it is left out."""
        index = operator.inputs[position] if position < len(operator.inputs) else -1
        return index if index >= 0 else None

    def weight(self, index: int) -> tuple[_Tensor | None, bool]:
        """Finds the stored tensor behind an input, and whether it passed ``DEQUANTIZE`` on the way."""
        dequantized = False
        for _ in range(_MAX_HOPS):
            tensor = self.tensors[index]
            made_by = self._producer.get(index)
            if tensor.buffer:
                return tensor, dequantized
            if made_by is None or not made_by.inputs or made_by.name not in _RESHAPING | {"DEQUANTIZE"}:
                return None, dequantized
            dequantized |= made_by.name == "DEQUANTIZE"
            index = made_by.inputs[0]
        return None, dequantized


def _contents(path: Path) -> Contents:
    from ai_edge_litert import schema_py_generated as schema

    data = path.read_bytes()
    model = schema.Model.GetRootAs(data, 0)
    file = _File(model, len(data))
    weight_bytes: Counter[str] = Counter()
    nodes, arena, note = file.main_nodes()
    owners = {tensor.buffer: tensor for graph in file.graphs for tensor in graph.tensors if tensor.buffer}
    for buffer, tensor in owners.items():
        weight_bytes[tensor.dtype] += file.stored[buffer]
    return Contents(
        format="tflite",
        size_bytes=len(data),
        sha256=modelfile.sha256(path),
        signature=file.signature(),
        operators=dict(Counter(operator.name for graph in file.graphs for operator in graph.operators)),
        weight_bytes=dict(weight_bytes),
        layers=tuple(_layer(operator, graph, file.stored) for graph in file.graphs for operator in graph.operators if operator.name in _LAYERS),
        nodes=nodes,
        structure=structure("tflite", nodes),
        arena_bytes=arena,
        details=file.details() | ({"macs": note} if note else {}),
    )


class _File:
    """A parsed model. Vector lengths are checked against the file's size, so that a damaged one cannot loop for hours."""

    def __init__(self, model: Any, size_bytes: int) -> None:
        self.model = model
        self._most = size_bytes // 4
        self._types = _names("TensorType")
        self._builtins = _names("BuiltinOperator")
        self.stored = dict(enumerate(self._each(model.BuffersLength(), lambda i: _buffer_bytes(model.Buffers(i), size_bytes))))
        self._codes = self._each(model.OperatorCodesLength(), lambda i: self._operator_name(model.OperatorCodes(i)))
        self.graphs = self._each(model.SubgraphsLength(), lambda i: self._graph(model.Subgraphs(i)))
        if not self.graphs:
            raise ValueError("it has no subgraph")

    def _each(self, length: int, item: Callable[[int], Item]) -> list[Item]:
        if length > self._most:
            raise ValueError(f"a list claims {length:,} entries, the file has room for {self._most:,}")
        return [item(i) for i in range(length)]

    def _operator_name(self, code: Any) -> str:
        # Codes below 127 are also written to the older, narrower field; the larger one counts (schema.fbs).
        name = self._builtins[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())]
        return f"CUSTOM {_text(code.CustomCode())}" if name == "CUSTOM" else name

    def _graph(self, graph: Any) -> _Graph:
        tensors = self._each(graph.TensorsLength(), lambda i: self._tensor(graph.Tensors(i)))
        operators = self._each(graph.OperatorsLength(), lambda i: self._operator(graph.Operators(i)))
        inputs = self._indices(graph.InputsLength(), graph.Inputs)
        outputs = self._indices(graph.OutputsLength(), graph.Outputs)
        used = [index for operator in operators for index in (*operator.inputs, *operator.outputs)]
        wrong = [index for index in (*used, *inputs, *outputs) if not -1 <= index < len(tensors)]
        if wrong:
            raise ValueError(f"it uses tensor {wrong[0]} of {len(tensors)}")
        return _Graph(tensors, operators, inputs, outputs)

    def _indices(self, length: int, item: Callable[[int], int]) -> tuple[int, ...]:
        return tuple(map(int, self._each(length, item)))

    def _operator(self, operator: Any) -> _Operator:
        inputs = self._indices(operator.InputsLength(), operator.Inputs)
        return _Operator(self._codes[operator.OpcodeIndex()], inputs, self._indices(operator.OutputsLength(), operator.Outputs))

    def _tensor(self, tensor: Any) -> _Tensor:
        sizes = self._indices(tensor.ShapeLength(), tensor.Shape)
        free = self._indices(tensor.ShapeSignatureLength(), tensor.ShapeSignature) or sizes
        shape = tuple(f"dim_{axis}" if size < 0 else size for axis, size in enumerate(free))
        buffer = tensor.Buffer()
        if buffer not in self.stored:
            raise ValueError(f"a tensor uses buffer {buffer:,} of {len(self.stored)}")
        scales = tensor.Quantization().ScaleLength() if tensor.Quantization() else 0
        return _Tensor(_text(tensor.Name()), self._types[tensor.Type()].lower(), shape, buffer if self.stored[buffer] else 0, scales)

    def main_nodes(self) -> tuple[tuple[Node, ...], int | None, str]:
        """Reads the main graph's operators; see :func:`toolkit.audit.tflite_nodes.read_nodes`."""
        graph = self.graphs[0]
        free = any(isinstance(size, str) for index in graph.inputs for size in graph.tensors[index].shape)
        tensors = [
            tflite_nodes.Tensor(
                tensor.name,
                tensor.dtype,
                tuple(1 if isinstance(size, str) else size for size in tensor.shape),
                self.stored[tensor.buffer] if tensor.buffer else None,
            )
            for tensor in graph.tensors
        ]
        operators = [tflite_nodes.Operator(operator.name, operator.inputs, operator.outputs) for operator in graph.operators]
        nodes, arena, note = tflite_nodes.read_nodes(tflite_nodes.Graph(tensors, operators, graph.inputs, graph.outputs))
        return nodes, None if free else arena, note

    def signature(self) -> Signature:
        """Names from the first signature definition, else the names of the main subgraph's tensors."""
        if not self.model.SignatureDefsLength():
            graph = self.graphs[0]
            return Signature(inputs=_specs(graph, _own_names(graph, graph.inputs)), outputs=_specs(graph, _own_names(graph, graph.outputs)))
        definition = self.model.SignatureDefs(0)
        graph = self.graphs[definition.SubgraphIndex()]
        inputs = self._each(definition.InputsLength(), lambda i: _named(definition.Inputs(i)))
        outputs = self._each(definition.OutputsLength(), lambda i: _named(definition.Outputs(i)))
        return Signature(inputs=_specs(graph, inputs), outputs=_specs(graph, outputs))

    def details(self) -> dict[str, str]:
        keys = self._each(self.model.SignatureDefsLength(), lambda i: _text(self.model.SignatureDefs(i).SignatureKey()))
        facts = {"version": str(self.model.Version()), "description": _text(self.model.Description()), "signatures": ", ".join(keys)}
        for entry in self._each(self.model.MetadataLength(), self.model.Metadata):
            if _text(entry.Name()) == "min_runtime_version" and self.stored.get(entry.Buffer()):
                facts["min_runtime_version"] = _text(self.model.Buffers(entry.Buffer()).DataAsNumpy().tobytes().rstrip(b"\0"))
        return facts


def _layer(operator: _Operator, graph: _Graph, stored: Mapping[int, int]) -> Layer:
    positions, data = _LAYERS[operator.name]
    found = _weights(operator, positions, graph)
    if not found and operator.name == "BATCH_MATMUL":
        found, data = _weights(operator, (0,), graph), 1
    dtypes = sorted({tensor.dtype for tensor, _ in found})
    return Layer(
        name=graph.tensors[operator.outputs[0]].name,
        operator=operator.name,
        weight_dtype=" and ".join(dtypes) or COMPUTED,
        activation_dtype=_activation(graph.at(operator, data), graph, direct=any(t.dtype in _INTEGERS and not passed for t, passed in found)),
        weight_bytes=sum(stored[tensor.buffer] for tensor, _ in found),
        scales=max((tensor.scales for tensor, _ in found if tensor.dtype in _INTEGERS), default=0),
    )


def _weights(operator: _Operator, positions: tuple[int, ...], graph: _Graph) -> list[tuple[_Tensor, bool]]:
    indices = [index for position in positions if (index := graph.at(operator, position)) is not None]
    found = [graph.weight(index) for index in indices]
    return [(tensor, dequantized) for tensor, dequantized in found if tensor is not None]


def _activation(index: int | None, graph: _Graph, *, direct: bool) -> str:
    dtype = graph.tensors[index].dtype if index is not None else "float32"
    if dtype in _INTEGERS:
        return dtype
    return DYNAMIC if direct else "float32"


def _buffer_bytes(buffer: Any, size_bytes: int) -> int:
    """Stored size of a buffer; files above 2 GiB keep the data behind the flatbuffer, at ``offset``."""
    length = int(buffer.DataLength()) or (int(buffer.Size()) if buffer.Offset() > 1 else 0)
    if length > size_bytes:
        raise ValueError(f"a buffer claims {length:,} bytes, the file has {size_bytes:,}")
    return length


def _named(entry: Any) -> tuple[str, int]:
    return _text(entry.Name()), int(entry.TensorIndex())


def _own_names(graph: _Graph, indices: tuple[int, ...]) -> list[tuple[str, int]]:
    return [(graph.tensors[index].name, index) for index in indices]


def _specs(graph: _Graph, names: list[tuple[str, int]]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name=name, dtype=graph.tensors[index].dtype, shape=graph.tensors[index].shape) for name, index in names)


def _text(value: bytes | None) -> str:
    return (value or b"").decode("utf-8")


def _names(enumeration: str) -> dict[int, str]:
    from ai_edge_litert import schema_py_generated as schema

    return {value: name for name, value in vars(getattr(schema, enumeration)).items() if isinstance(value, int)}


READER = TfliteReader()
