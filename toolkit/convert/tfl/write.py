"""Writes TFLite graphs as a FlatBuffer, after LiteRT's own schema."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from toolkit.convert.tfl.graph import Graph, Operator, Quantization, Tensor
from toolkit.errors import StageFailed
from toolkit.modelfile import BUFFER_BYTES

_VERSION = 3
_ALIGNMENT = 16  # kernels read weights where they lie in the file, sixteen bytes at a time
_MARGIN_BYTES = 1 << 16
_ENTRY_BYTES = 512  # a tensor or an operator with its name: a builder that turns out too small copies all it has into one of twice the size
_COMPARED = 16  # numbers by which constants are told apart before they are compared
_DTYPES = {
    "float32": "FLOAT32", "float16": "FLOAT16", "float64": "FLOAT64", "bool": "BOOL", "int8": "INT8", "int16": "INT16", "int32": "INT32",
    "int64": "INT64", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64",
    "bfloat16": "BFLOAT16", "int4": "INT4", "uint4": "UINT4", "int2": "INT2",
}  # fmt: skip
# Tables of options whose name is not the operator's.
_TABLES = {
    "AVERAGE_POOL_2D": "Pool2DOptions", "MAX_POOL_2D": "Pool2DOptions", "L2_POOL_2D": "Pool2DOptions", "MEAN": "ReducerOptions",
    "SUM": "ReducerOptions", "REDUCE_MAX": "ReducerOptions", "REDUCE_MIN": "ReducerOptions", "REDUCE_PROD": "ReducerOptions",
    "REDUCE_ANY": "ReducerOptions", "REDUCE_ALL": "ReducerOptions", "MAXIMUM": "MaximumMinimumOptions", "MINIMUM": "MaximumMinimumOptions",
    "BATCH_MATMUL": "BatchMatMulOptions", "L2_NORMALIZATION": "L2NormOptions", "CONV_3D_TRANSPOSE": "Conv3DOptions", "ATAN2": "ATan2Options",
    "UNIDIRECTIONAL_SEQUENCE_LSTM": "UnidirectionalSequenceLSTMOptions", "SPACE_TO_BATCH_ND": "SpaceToBatchNDOptions",
    "BATCH_TO_SPACE_ND": "BatchToSpaceNDOptions", "TOPK_V2": "TopKV2Options", "RFFT2D": "Rfft2dOptions",
}  # fmt: skip
_SECOND_UNION = {"DILATE", "REDUCE_WINDOW"}


@dataclass(frozen=True)
class Entry:
    """One signature of a file: what a caller names inputs and outputs, and the graph that runs."""

    key: str
    graph: Graph
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]


@dataclass
class _Parts:
    """What all graphs of a file share."""

    buffers: list[Any] = field(default_factory=list)
    shared: dict[Any, list[tuple[np.ndarray, int]]] = field(default_factory=dict)
    codes: dict[str, int] = field(default_factory=dict)
    graphs: dict[int, int] = field(default_factory=dict)
    used: Counter[str] = field(default_factory=Counter)
    size_bytes: int = 0


def to_bytes(entries: Sequence[Entry], *, description: str = "") -> memoryview:
    """Returns a file with a signature for each entry; graphs inside operators follow the entries' own.

    Raises:
        StageFailed: It would be larger than a FlatBuffer can be.
    """
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    parts = _Parts(buffers=[schema.BufferT()])
    graphs = _in_order([entry.graph for entry in entries])
    parts.graphs = {id(graph): number for number, graph in enumerate(graphs)}
    model = schema.ModelT(version=_VERSION, description=description.encode(), metadata=None)
    indices: dict[int, int] = {}
    model.subgraphs = [_graph(graph, parts, indices) for graph in graphs]
    model.operatorCodes = [_code(kind) for kind in parts.codes]
    model.buffers = parts.buffers
    model.signatureDefs = [_signature(entry, parts, indices) for entry in entries]
    if parts.size_bytes > BUFFER_BYTES - _MARGIN_BYTES:
        told = f"the constants take {parts.size_bytes:,} bytes, and a TFLite file holds {BUFFER_BYTES:,}"
        raise StageFailed(told, where="onnx_litert", hint="quantize the model first, or export it to another format")
    entries_bytes = _ENTRY_BYTES * sum(len(graph.tensors) + len(graph.operators) for graph in model.subgraphs)
    builder = flatbuffers.Builder(parts.size_bytes + entries_bytes + _MARGIN_BYTES)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return memoryview(builder.Bytes)[builder.Head() :]


def _in_order(graphs: Sequence[Graph]) -> list[Graph]:
    found = list(graphs)
    for graph in found:  # which grows meanwhile
        found += [inner for operator in graph.operators for inner in operator.graphs if inner not in found]
    return found


def _graph(graph: Graph, parts: _Parts, indices: dict[int, int]) -> Any:
    from ai_edge_litert import schema_py_generated as schema

    tensors: dict[int, Tensor] = {}
    for one in (*graph.inputs, *(one for operator in graph.operators for one in (*operator.inputs, *operator.outputs)), *graph.outputs):
        if one is not None:
            tensors.setdefault(id(one), one)
    own = {key: number for number, key in enumerate(tensors)}
    indices.update(own)
    made = schema.SubGraphT(name=graph.name.encode())
    made.tensors = [_tensor(one, parts) for one in tensors.values()]
    made.inputs = [own[id(one)] for one in graph.inputs]
    made.outputs = [own[id(one)] for one in graph.outputs]
    made.operators = [_operator(one, parts, own) for one in graph.operators]
    return made


def _tensor(tensor: Tensor, parts: _Parts) -> Any:
    from ai_edge_litert import schema_py_generated as schema

    made = schema.TensorT(name=_unique(tensor.name, parts.used).encode(), type=getattr(schema.TensorType, _DTYPES[tensor.dtype.name]), hasRank=True)
    made.shape = np.array([abs(size) for size in tensor.shape], np.int32)
    if -1 in tensor.shape:
        made.shapeSignature = np.array(tensor.shape, np.int32)
    made.buffer = _buffer(tensor.data, parts)
    made.quantization = _quantization(tensor.quantization)
    return made


def _unique(name: str, used: Counter[str]) -> str:
    stem = name
    while used[name]:
        used[stem] += 1
        name = f"{stem}_{used[stem] - 1}"
    used[name] += 1
    return name


def _buffer(data: np.ndarray | None, parts: _Parts) -> int:
    """Writes a constant once, however many tensors have it; nothing at all for one without elements."""
    if data is None:
        return 0
    if not data.size:
        return 0
    alike = parts.shared.setdefault((data.nbytes, data.flat[:_COMPARED].tobytes()), [])
    for other, number in alike:
        if _same_bytes(other, data):
            return number
    alike.append((data, len(parts.buffers)))
    parts.buffers.append(_aligned(data))
    parts.size_bytes += data.nbytes + 64
    return alike[-1][1]


def _same_bytes(one: np.ndarray, other: np.ndarray) -> bool:
    return one is other or bool(np.array_equal(_bytes(one), _bytes(other)))


def _bytes(data: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(data).reshape(-1).view(np.uint8)


def _aligned(data: np.ndarray) -> Any:
    from ai_edge_litert import schema_py_generated as schema

    class Aligned(schema.BufferT):  # type: ignore[misc]  # the schema has no types
        """A buffer that lies on a boundary of sixteen bytes, which the generated code forgets.

        Weights that are turned are so only here, where they are written: all turned at once would be the model once more.
        """

        def Pack(self, builder: Any) -> Any:
            builder.StartVector(1, data.nbytes, _ALIGNMENT)
            builder.head -= data.nbytes
            np.ndarray(data.shape, data.dtype, builder.Bytes, builder.head)[...] = data
            vector = builder.EndVector()
            schema.BufferStart(builder)
            schema.BufferAddData(builder, vector)
            return schema.BufferEnd(builder)

    return Aligned()


def _quantization(given: Quantization | None) -> Any:
    from ai_edge_litert import schema_py_generated as schema

    if given is None:
        return None
    made = schema.QuantizationParametersT(quantizedDimension=given.axis)
    made.scale, made.zeroPoint = np.asarray(given.scale, np.float32).reshape(-1), np.asarray(given.zero_point, np.int64).reshape(-1)
    return made


def _operator(operator: Operator, parts: _Parts, own: Mapping[int, int]) -> Any:
    from ai_edge_litert import schema_py_generated as schema

    made = schema.OperatorT(opcodeIndex=parts.codes.setdefault(operator.kind, len(parts.codes)))
    made.inputs = [-1 if one is None else own[id(one)] for one in operator.inputs]
    made.outputs = [own[id(one)] for one in operator.outputs]
    options = dict(operator.options)
    if operator.kind == "WHILE":
        options |= {"condSubgraphIndex": parts.graphs[id(operator.graphs[0])], "bodySubgraphIndex": parts.graphs[id(operator.graphs[1])]}
    if operator.kind == "IF":
        options |= {"thenSubgraphIndex": parts.graphs[id(operator.graphs[0])], "elseSubgraphIndex": parts.graphs[id(operator.graphs[1])]}
    table = _table(operator.kind)
    if table is None:
        return made
    content = getattr(schema, f"{table}T")()
    for name, value in options.items():
        if not hasattr(content, name):
            raise AttributeError(f"{table} has no field {name}")
        setattr(content, name, value)
    if operator.kind in _SECOND_UNION:
        made.builtinOptions2Type, made.builtinOptions2 = getattr(schema.BuiltinOptions2, table), content
    else:
        made.builtinOptionsType, made.builtinOptions = getattr(schema.BuiltinOptions, table), content
    return made


def _table(kind: str) -> str | None:
    """Returns the name of an operator's options; ``None`` where it has none, as ``RELU``."""
    from ai_edge_litert import schema_py_generated as schema

    union = schema.BuiltinOptions2 if kind in _SECOND_UNION else schema.BuiltinOptions
    guessed = _TABLES.get(kind) or "".join(word.capitalize() for word in kind.split("_")) + "Options"
    found = {name.lower(): name for name in vars(union) if name.endswith("Options")}
    return found.get(guessed.lower())


def _code(kind: str) -> Any:
    from ai_edge_litert import schema_py_generated as schema

    number = getattr(schema.BuiltinOperator, kind)
    return schema.OperatorCodeT(builtinCode=number, deprecatedBuiltinCode=min(number, 127), version=1)


def _signature(entry: Entry, parts: _Parts, indices: Mapping[int, int]) -> Any:
    from ai_edge_litert import schema_py_generated as schema

    def named(tensors: Mapping[str, Tensor]) -> list[Any]:
        return [schema.TensorMapT(name=name.encode(), tensorIndex=indices[id(tensor)]) for name, tensor in tensors.items()]

    inputs, outputs = named(entry.inputs), named(entry.outputs)
    return schema.SignatureDefT(signatureKey=entry.key.encode(), subgraphIndex=parts.graphs[id(entry.graph)], inputs=inputs, outputs=outputs)
