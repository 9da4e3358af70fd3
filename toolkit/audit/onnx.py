"""Reads what an ONNX file contains: operators, signature, and how each layer stores its weights and takes its input.

Nothing is executed and no session is made. Formats are those of the ONNX specification (onnx.proto, Operators.md) and of
ONNX Runtime's ``com.microsoft`` operators (ContribOperators.md).

``Layer.activation_dtype`` has one value beyond the quantized types and ``float32``: ``dynamic int8`` for operators whose
input is quantized while the model runs (``DynamicQuantizeLinear`` before ``ConvInteger``, or ``DynamicQuantizeMatMul``).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from toolkit import intake, modelfile, onnx_external
from toolkit.artifact import Signature, TensorSpec
from toolkit.audit.element_types import element_bits
from toolkit.audit.onnx_nodes import read_nodes
from toolkit.audit.onnx_types import STANDARD_DOMAINS, domain_of, dtype_name, int_attribute, label
from toolkit.audit.structure import structure
from toolkit.contents import Contents, Layer
from toolkit.errors import InputRejected

DYNAMIC = "dynamic int8"
COMPUTED = "-"
_MAX_NODES = 1_000_000
_MAX_CALL_DEPTH = 32
_MAX_HOPS = 256


@dataclass(frozen=True)
class _Operands:
    """Where an operator finds its weights and its data.

    Attributes:
        weights: Positions of the weight inputs.
        data: Position of the data input.
        zero_point: Position of the data input's zero point, whose type is the data's.
        either: Whether weights and data may change places, as in a matrix product.
        dynamic: Whether the operator quantizes its input itself.
    """

    weights: tuple[int, ...] = (1,)
    data: int = 0
    zero_point: int | None = None
    either: bool = False
    dynamic: bool = False


_LAYERS = {
    **dict.fromkeys(("Conv", "ConvTranspose", "FusedConv", "ConvInteger", "MatMulNBits", "Attention", "QAttention"), _Operands()),
    **dict.fromkeys(("Gemm", "MatMul", "FusedGemm", "FusedMatMul", "MatMulInteger", "MatMulIntegerToFloat"), _Operands(either=True)),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _Operands(weights=(1, 2))),
    **dict.fromkeys(("QLinearConv", "QLinearMatMul", "QGemm"), _Operands(weights=(3,), zero_point=2)),
    "DynamicQuantizeMatMul": _Operands(dynamic=True),
    "DynamicQuantizeLSTM": _Operands(weights=(1, 2), dynamic=True),
}
_RESHAPING = {"Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"}
_WEIGHT_PATH = _RESHAPING | {"DequantizeLinear", "QuantizeLinear", "Cast"}


class OnnxReader:
    """The reader behind ``edgekit inspect model.onnx`` and the audit of ONNX files."""

    name = "onnx"
    version = 3
    modules = ("onnx",)
    distributions = ("onnx",)
    extra = "edgekit[onnx]"
    format = "onnx"

    def read(self, model: Path) -> Contents:
        """Returns the contents of an ONNX file; weights in external files are measured, not loaded.

        Raises:
            InputRejected: The file is damaged, or its external weights are missing, too short or outside its folder.
        """
        intake.check_model(model, self.format)
        from google.protobuf.message import DecodeError

        hint = "download or export the file again"
        try:
            return _contents(model)
        except ValidationError as error:
            name = error.errors()[0]["input"]
            raise InputRejected(f"is not a usable onnx file: the name {name!r} is not UTF-8 text", where=str(model), hint=hint) from error
        except (DecodeError, ValueError, KeyError, IndexError, OverflowError, RecursionError) as error:
            raise InputRejected(f"is not a usable onnx file: {error}", where=str(model), hint=hint) from error


@dataclass
class _Stored:
    """A tensor that the file carries."""

    dtype: str
    size_bytes: int


@dataclass
class _Scope:
    """The names that nodes of one graph or function call can see.

    Attributes:
        above: The enclosing graph.
        aliases: For a function call: what its parameters are called where it is called.
    """

    stored: dict[str, _Stored] = field(default_factory=dict)
    producer: dict[str, Any] = field(default_factory=dict)
    declared: dict[str, str] = field(default_factory=dict)
    above: _Scope | None = None
    aliases: Mapping[str, tuple[_Scope, str]] = field(default_factory=dict)

    def locate(self, name: str) -> tuple[_Scope, str]:
        """Finds the scope that defines a name."""
        if name in self.aliases:
            scope, outer = self.aliases[name]
            return scope.locate(outer)
        if self.above and name not in self.stored and name not in self.producer and name not in self.declared:
            return self.above.locate(name)
        return self, name

    def constant(self, name: str) -> _Stored | None:
        scope, name = self.locate(name)
        return scope.stored.get(name)

    def origin(self, name: str, through: set[str]) -> tuple[_Scope, str, Any]:
        """Walks up through operators of the given types; returns where the walk ends, with the node that made it."""
        scope = self
        for _ in range(_MAX_HOPS):
            scope, name = scope.locate(name)
            node = scope.producer.get(name)
            if name in scope.stored or node is None or node.op_type not in through or not node.input:
                return scope, name, node
            name = node.input[0]
        raise ValueError(f"tensor {name!r} is fed by itself, or through more than {_MAX_HOPS} reshaping operators")


def _contents(path: Path) -> Contents:
    import onnx

    model = onnx.load(str(path), format="protobuf", load_external_data=False)
    if not model.graph.output:
        raise ValueError("its graph has no outputs")
    walk = _Walk(path, {(function.domain, function.name): function for function in model.functions})
    walk.graph(model.graph, None)
    found = read_nodes(model)
    weight_bytes: Counter[str] = Counter()
    for stored in walk.stored:
        weight_bytes[stored.dtype] += stored.size_bytes
    return Contents(
        format="onnx",
        size_bytes=modelfile.size_bytes(path),
        sha256=modelfile.sha256(path),
        signature=_signature(model.graph),
        operators=dict(walk.operators),
        weight_bytes=dict(weight_bytes),
        layers=tuple(walk.layers),
        nodes=found.nodes,
        structure=structure("onnx", found.nodes),
        arena_bytes=found.arena_bytes,
        details=_details(model, walk) | ({"macs": found.note} if found.note else {}),
    )


def _details(model: Any, walk: _Walk) -> dict[str, str]:
    opsets = {entry.domain: entry.version for entry in model.opset_import if domain_of(entry.domain) in walk.domains}
    return {
        "opset": ", ".join(f"{domain} {version}".strip() for domain, version in sorted(opsets.items())),
        "ir_version": str(model.ir_version),
        "producer": f"{model.producer_name} {model.producer_version}".strip(),
        "external_data": "yes" if walk.external else "no",
    }


class _Walk:
    """One pass over all graphs of a model, subgraphs and called functions included."""

    def __init__(self, path: Path, functions: Mapping[tuple[str, str], Any]) -> None:
        self.path = path
        self.functions = functions
        self.operators: Counter[str] = Counter()
        self.domains: set[str] = set()
        self.layers: list[Layer] = []
        self.stored: list[_Stored] = []
        self.external = False
        self._depth = 0

    def graph(self, graph: Any, above: _Scope | None) -> None:
        scope = _Scope(above=above)
        for value in (*graph.input, *graph.value_info, *graph.output):
            scope.declared[value.name] = dtype_name(value.type.tensor_type.elem_type)
        for tensor in graph.initializer:
            scope.stored[tensor.name] = self._store(tensor)
        for sparse in graph.sparse_initializer:
            scope.stored[sparse.values.name] = self._store(sparse.values)
        self._nodes(graph.node, scope)

    def _nodes(self, nodes: Sequence[Any], scope: _Scope) -> None:
        for node in nodes:
            scope.producer.update(dict.fromkeys(node.output, node))
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    stored = self._store(attribute.t)
                    if node.op_type == "Constant":
                        scope.stored[node.output[0]] = stored
        for node in nodes:
            self._node(node, scope)

    def _node(self, node: Any, scope: _Scope) -> None:
        self.operators[label(node)] += 1
        self.domains.add(domain_of(node.domain))
        if self.operators.total() > _MAX_NODES:
            raise ValueError(f"it expands to more than {_MAX_NODES:,} operators")
        for graph in _subgraphs(node):
            self.graph(graph, scope)
        function = self.functions.get((node.domain, node.op_type))
        if function:
            self._call(function, node, scope)
        elif node.op_type in _LAYERS and (node.domain in STANDARD_DOMAINS or node.domain == "com.microsoft"):
            self.layers.append(_layer(node, scope))

    def _call(self, function: Any, node: Any, scope: _Scope) -> None:
        if self._depth >= _MAX_CALL_DEPTH:
            raise ValueError(f"its functions call each other more than {_MAX_CALL_DEPTH} deep")
        self._depth += 1
        self._nodes(function.node, _Scope(aliases={inner: (scope, outer) for inner, outer in zip(function.input, node.input, strict=False)}))
        self._depth -= 1

    def _store(self, tensor: Any) -> _Stored:
        is_external = tensor.data_location == tensor.EXTERNAL or len(tensor.external_data) > 0
        self.external |= is_external
        size = _external_bytes(self.path, tensor) if is_external else _inline_bytes(tensor)
        dtype = dtype_name(tensor.data_type)
        bits = element_bits(dtype)
        if bits and not is_external and size != -(-prod(tensor.dims) * bits // 8):
            raise ValueError(f"tensor {tensor.name!r} holds {size:,} bytes, which do not fit {list(tensor.dims)} {dtype}")
        stored = _Stored(dtype, size)
        self.stored.append(stored)
        return stored


def _subgraphs(node: Any) -> Iterator[Any]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _layer(node: Any, scope: _Scope) -> Layer:
    operands = _LAYERS[node.op_type]
    weights = [stored for position in operands.weights if (stored := _weight(node, position, scope))]
    data = operands.data
    if not weights and operands.either and (stored := _weight(node, 0, scope)):
        weights, data = [stored], 1
    if node.op_type == "MatMulNBits" and weights:
        weights[0].dtype = f"int{int_attribute(node, 'bits', 4)}"  # the file declares packed bytes
    dtypes = sorted({stored.dtype for stored in weights})
    return Layer(
        name=node.name or (node.output[0] if node.output else ""),
        operator=label(node),
        weight_dtype=" and ".join(dtypes) or COMPUTED,
        activation_dtype=DYNAMIC if operands.dynamic else _activation(node, data, operands.zero_point, scope),
        weight_bytes=sum(stored.size_bytes for stored in weights),
        scales=max((_scales(node, position, scope) for position in (*operands.weights, *([0] if data else []))), default=0),
    )


def _weight(node: Any, position: int, scope: _Scope) -> _Stored | None:
    if position >= len(node.input):
        return None
    found, name, made_by = scope.origin(node.input[position], _WEIGHT_PATH)
    if made_by is not None and made_by.op_type == "Mul" and found.constant(made_by.input[1]):  # integers times their scale
        found, name, _ = found.origin(made_by.input[0], _WEIGHT_PATH)
    return found.stored.get(name)


def _scales(node: Any, position: int, scope: _Scope) -> int:
    """Counts the scales of integer weights: those of ``DequantizeLinear`` on their way, or the operator's own behind them."""
    if position >= len(node.input):
        return 0
    found, _, made_by = scope.origin(node.input[position], _RESHAPING | {"Cast"})
    scale = made_by.input[1] if made_by is not None and made_by.op_type == "DequantizeLinear" and found.constant(made_by.input[0]) else ""
    if node.op_type in ("QLinearConv", "QLinearMatMul", "QGemm"):
        found, scale = scope, node.input[position + 1]
    stored = found.constant(scale) if scale else None
    return stored.size_bytes * 8 // element_bits(stored.dtype) if stored and element_bits(stored.dtype) else 0


def _activation(node: Any, data: int, zero_point: int | None, scope: _Scope) -> str:
    if zero_point is not None:
        stored = scope.constant(node.input[zero_point])
        return stored.dtype if stored else "uint8"
    found, name, made_by = scope.origin(node.input[data], _RESHAPING)
    kind = made_by.op_type if made_by is not None else ""
    if kind == "DequantizeLinear":
        return _quantized(made_by, 0, found)
    if kind == "DynamicQuantizeLinear":
        return DYNAMIC
    if kind == "QuantizeLinear":
        return _quantized_by(made_by, found)
    declared = found.declared.get(name, "")
    return declared if re.fullmatch(r"u?int(4|8|16)", declared) else "float32"


def _quantized(node: Any, position: int, scope: _Scope) -> str:
    """Element type of a tensor that enters ``DequantizeLinear``."""
    found, name, made_by = scope.origin(node.input[position], _RESHAPING)
    if made_by is not None and made_by.op_type == "DynamicQuantizeLinear":
        return DYNAMIC
    zero_point = scope.constant(node.input[2]) if len(node.input) > 2 else None
    if zero_point:
        return zero_point.dtype
    if made_by is not None and made_by.op_type == "QuantizeLinear":
        return _quantized_by(made_by, found)
    return found.declared.get(name, "uint8")


def _quantized_by(node: Any, scope: _Scope) -> str:
    """Element type that ``QuantizeLinear`` gives: its zero point's, else ``output_dtype``, else uint8 (ONNX Operators.md)."""
    zero_point = scope.constant(node.input[2]) if len(node.input) > 2 else None
    if zero_point:
        return zero_point.dtype
    code = int_attribute(node, "output_dtype", 0)
    return dtype_name(code) if code else "uint8"


def _inline_bytes(tensor: Any) -> int:
    if tensor.HasField("raw_data"):
        return len(tensor.raw_data)
    # int32_data carries every type of at most 32 bits, one element each, but packs those below 8 bits into bytes.
    bits = element_bits(dtype_name(tensor.data_type))
    small = max(bits // 8, 1)
    wide = 4 if bits == 32 else 8
    return (
        len(tensor.float_data) * 4
        + len(tensor.double_data) * 8
        + len(tensor.int64_data) * 8
        + len(tensor.uint64_data) * wide
        + len(tensor.int32_data) * small
        + sum(map(len, tensor.string_data))
    )


def _external_bytes(model: Path, tensor: Any) -> int:
    """Checks where a tensor's external data lies and returns its size in bytes; the data is not read."""
    span = onnx_external.locate(model, tensor.name, {entry.key: entry.value for entry in tensor.external_data})
    found = span.file.stat().st_size if span.file.is_file() else 0
    given = found - span.offset if span.length is None else span.length
    bits = element_bits(dtype_name(tensor.data_type))
    size = -(-prod(tensor.dims) * bits // 8) if bits else given
    if span.length is not None and span.length != size:
        raise ValueError(f"tensor {tensor.name!r} has {span.length:,} bytes of external data, expected {size:,}")
    if span.offset + size > found:
        what = f"needs bytes {span.offset:,} to {span.offset + size:,} of {span.file.name!r}, which has {found:,}"
        raise InputRejected(what, where=f"{model}: tensor {tensor.name!r}", hint="copy the file again; it is truncated")
    return size


def _signature(graph: Any) -> Signature:
    stored = {tensor.name for tensor in graph.initializer}
    inputs = tuple(_spec(value) for value in graph.input if value.name not in stored)
    return Signature(inputs=inputs, outputs=tuple(_spec(value) for value in graph.output))


def _spec(value: Any) -> TensorSpec:
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        return TensorSpec(name=value.name, dtype=(kind or "unknown").removesuffix("_type"), shape=())
    tensor = value.type.tensor_type
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else dim.dim_param or f"dim_{axis}" for axis, dim in enumerate(tensor.shape.dim))
    return TensorSpec(name=value.name, dtype=dtype_name(tensor.elem_type), shape=shape)


READER = OnnxReader()
