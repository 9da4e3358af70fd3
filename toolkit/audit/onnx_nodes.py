"""The operators of an ONNX file's main graph one by one: their layers, their work, and the memory between them.

Shapes come from ONNX's own shape inference, over a copy of the graph without its large weights. What a runtime does at no
cost is counted as none: a tensor that is only looked at in another shape, and the float side of a quantized tensor, which
``DequantizeLinear`` and ``QuantizeLinear`` describe and integer kernels never make.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

from toolkit.audit import layers
from toolkit.audit.arena import Step, arena_bytes, lives
from toolkit.audit.element_types import element_bits
from toolkit.audit.onnx_macs import MULTIPLYING, Shape, UnknownShape, macs
from toolkit.audit.onnx_types import STANDARD_DOMAINS, dtype_name, int_attribute, label
from toolkit.contents import Node

_SMALL_BYTES = 1024
_MAX_HOPS = 64
_MAX_TENSORS = 50_000
_VIEWS = {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout"}
_LOOKUPS = {"Gather", "GatherElements", "GatherND"}
_INTEGER_OPERATORS = {"ConvInteger", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM"}
_SCOPES = "pkg.torch.onnx.name_scopes"


@dataclass
class Nodes:
    """What a file's main graph consists of.

    Attributes:
        nodes: Every operator, in the order of the file.
        arena_bytes: See :func:`toolkit.audit.arena.arena_bytes`; ``None`` where sizes are free or unknown.
        note: Why some multiplications were not counted; empty when all were.
    """

    nodes: tuple[Node, ...]
    arena_bytes: int | None
    note: str


def read_nodes(model: Any) -> Nodes:
    """Reads the operators of a model whose graph has been checked.

    Raises:
        ValueError: A name is not UTF-8 text.
    """
    _check_names(model.graph)
    free, inferred = _infer(model)
    graph = _Graph(model, inferred)
    found, unknown = [], Counter[str]()
    names = _layers(graph)
    for node, layer in zip(graph.nodes, names, strict=True):
        try:
            count = graph.macs(node)
        except UnknownShape:
            count = 0
            unknown[label(node)] += 1
        found.append(graph.describe(node, layer, count))
    note = ", ".join(f"{count} {name}" for name, count in unknown.most_common())
    return Nodes(tuple(found), None if free else graph.arena_bytes(), f"incomplete: not counted: {note}" if note else "")


@dataclass
class _Graph:
    """The main graph with shapes, and where each tensor really lies."""

    model: Any
    inferred: Any
    shapes: dict[str, Shape] = field(default_factory=dict)
    dtypes: dict[str, str] = field(default_factory=dict)
    constants: set[str] = field(default_factory=set)
    producer: dict[str, Any] = field(default_factory=dict)
    home: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        graph = self.model.graph
        self.nodes = list(graph.node)
        self.functions = {(function.domain, function.name) for function in self.model.functions}
        for value in (*self.inferred.input, *self.inferred.value_info, *self.inferred.output):
            self._know(value.name, value.type.tensor_type)
        for tensor in graph.initializer:
            self.shapes[tensor.name], self.dtypes[tensor.name] = tuple(tensor.dims), dtype_name(tensor.data_type)
            self.constants.add(tensor.name)
        self.outputs = [value.name for value in graph.output]
        self.inputs = [value.name for value in graph.input if value.name not in self.constants]
        consumers = Counter(name for node in self.nodes for name in node.input)
        for node in self.nodes:
            self._place(node, consumers)

    def _know(self, name: str, kind: Any) -> None:
        sizes = [dimension.dim_value for dimension in kind.shape.dim if dimension.HasField("dim_value")]
        if kind.HasField("shape") and len(sizes) == len(kind.shape.dim) and min(sizes, default=1) >= 0:
            self.shapes[name] = tuple(sizes)
        self.dtypes[name] = dtype_name(kind.elem_type)

    def _place(self, node: Any, consumers: Counter[str]) -> None:
        """Notes what is constant, and which tensors are another one's memory."""
        self.producer.update(dict.fromkeys((name for name in node.output if name), node))
        given = [name for name in node.input if name]
        if node.op_type == "Constant" or (given and all(name in self.constants for name in given)):
            self.constants.update(node.output)
        if not given or not node.output:
            return
        source, result = given[0], node.output[0]
        if node.op_type == "QuantizeLinear" and len(node.input) > 2:  # shape inference does not know ONNX Runtime's own
            self.dtypes.setdefault(result, self.dtypes.get(node.input[2], "uint8"))
        if node.op_type in _VIEWS or (node.op_type == "DequantizeLinear" and result not in self.outputs):
            self.home[result] = source
        elif node.op_type == "QuantizeLinear" and source in self.producer and consumers[source] == 1 and source not in self.outputs:
            self.home[self.memory(source)] = result

    def memory(self, name: str) -> str:
        """The tensor in whose memory another one lies."""
        for _ in range(_MAX_HOPS):
            if name not in self.home:
                break
            name = self.home[name]
        return name

    def bytes(self, name: str) -> int:
        """Size of a tensor in memory; 0 when it is unknown."""
        name = self.memory(name)
        return -(-prod(self.shapes[name]) * element_bits(self.dtypes.get(name, "")) // 8) if name in self.shapes else 0

    def macs(self, node: Any) -> int:
        """Counts an operator's multiply-accumulates.

        Raises:
            UnknownShape: A shape that the count needs is not known.
        """
        if (node.domain, node.op_type) in self.functions:
            raise UnknownShape(node.op_type)
        known = node.domain in STANDARD_DOMAINS or node.domain.startswith("com.microsoft") or node.domain == "com.ms.internal.nhwc"
        return macs(node, self.shapes) if known and not all(name in self.constants for name in node.output) else 0

    def describe(self, node: Any, layer: str, count: int) -> Node:
        outputs = tuple(name for name in node.output if name)
        return Node(
            name=node.name or next(iter(outputs), ""),
            operator=label(node),
            layer=layer,
            inputs=tuple(name for name in node.input if name and name not in self.constants),
            outputs=outputs,
            macs=count,
            moved_bytes=self._moved(node, outputs),
            dtype=self._dtype(node, outputs),
        )

    def _moved(self, node: Any, outputs: Sequence[str]) -> int:
        if all(name in self.constants for name in outputs):
            return 0
        read = [name for name in node.input if name]
        made = {self.memory(name) for name in outputs}
        if {self.memory(name) for name in read[:1]} == made:
            return 0
        written = sum(map(self.bytes, made))
        if node.op_type in _LOOKUPS:
            return 2 * written + sum(map(self.bytes, read[1:]))
        return written + sum(map(self.bytes, {self.memory(name) for name in read}))

    def _dtype(self, node: Any, outputs: Sequence[str]) -> str:
        # accuracy_level 4 lets MatMulNBits quantize its input while it runs (ContribOperators.md).
        if node.op_type in _INTEGER_OPERATORS or (node.op_type == "MatMulNBits" and int_attribute(node, "accuracy_level", 0) == 4):
            return "int8"
        if node.op_type not in MULTIPLYING:
            return self.dtypes.get(next(iter(outputs), ""), "float32")
        operands = self.operands(node)
        kinds = [self.dtypes.get(self._quantized(name), "float32") for name in operands]
        if kinds and all("int" in kind for kind in kinds):
            return "int8" if max(map(element_bits, kinds)) <= 8 else "int16"
        return next((self.dtypes.get(name, "float32") for name in operands), "float32")

    def operands(self, node: Any) -> list[str]:
        """Names of the two tensors that an operator multiplies."""
        positions = (0, 3) if node.op_type in ("QLinearConv", "QLinearMatMul", "QGemm") else (0, 1)
        return [node.input[position] for position in positions if position < len(node.input) and node.input[position]]

    def _quantized(self, name: str) -> str:
        """The integer tensor behind ``DequantizeLinear``, through views and transpositions; else the tensor itself."""
        current = name
        for _ in range(_MAX_HOPS):
            node = self.producer.get(current)
            if node is None or not node.input or node.op_type not in _VIEWS | {"DequantizeLinear", "Transpose"}:
                break
            current = node.input[0]
            if node.op_type == "DequantizeLinear":
                return current
        return name

    def arena_bytes(self) -> int | None:
        computed = {self.memory(name) for name in (*self.inputs, *self.producer)} - self.constants
        if len(computed) > _MAX_TENSORS or any(name not in self.shapes for name in computed):
            return None
        steps = [Step(self._computed(node.input, computed), self._computed(node.output, computed)) for node in self.nodes]
        sizes = {name: self.bytes(name) for name in computed}
        return arena_bytes(lives(steps, self._computed(self.inputs, computed), self._computed(self.outputs, computed), sizes))

    def _computed(self, names: Iterable[str], computed: set[str]) -> list[str]:
        return [home for name in names if name and (home := self.memory(name)) in computed]


def _check_names(graph: Any) -> None:
    """The parser gives names that are not UTF-8 text as bytes, which fit nowhere."""
    values = (*graph.input, *graph.output, *graph.value_info, *graph.initializer)
    names = [value.name for value in values]
    for node in graph.node:
        names += (node.name, node.op_type, node.domain, *node.input, *node.output)
        names += [text for entry in node.metadata_props for text in (entry.key, entry.value)]
    wrong = next((name for name in names if isinstance(name, bytes)), None)
    if wrong is not None:
        raise ValueError(f"the name {wrong!r} is not UTF-8 text")


def _layers(graph: _Graph) -> list[str]:
    """Each operator's layer: its own where a name tells, else that of the operator whose output it reads first."""
    own, of_output = [], dict[str, str]()
    for node in graph.nodes:
        layer = _own_layer(node, graph) or next((of_output[name] for name in node.input if name in of_output), "")
        own.append(layer)
        if layer:
            of_output.update(dict.fromkeys((name for name in node.output if name not in graph.constants), layer))
    return layers.without_wrapper(own)


def _own_layer(node: Any, graph: _Graph) -> str:
    """What multiplies is called after its weights, as exporters fuse it with what follows; everything else after its own name."""
    multiplies = node.op_type in MULTIPLYING
    stored = (graph.memory(name) for name in (graph.operands(node) if multiplies else node.input) if name in graph.constants)
    weight = next((layer for name in stored if (layer := layers.from_weight(name))), "")
    if weight and multiplies:
        return weight
    note = next((entry.value for entry in node.metadata_props if entry.key == _SCOPES), "")
    return layers.from_scopes(note) or layers.from_node_name(node.name) or weight


def _infer(model: Any) -> tuple[bool, Any]:
    """Returns whether the model's own sizes are free, and its graph with the shape of every tensor that can be inferred."""
    import onnx

    skeleton = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    graph = skeleton.graph
    graph.name = "main"
    graph.node.extend(model.graph.node)
    for node in graph.node:
        if node.domain == "com.microsoft" and node.op_type in ("QuantizeLinear", "DequantizeLinear"):  # shapes as the standard's
            node.domain = ""
    stored = {tensor.name for tensor in model.graph.initializer}
    graph.input.extend(value for value in model.graph.input if value.name not in stored)
    free = _fix_sizes(graph.input)
    for tensor in model.graph.initializer:
        if prod(tensor.dims) * 8 <= _SMALL_BYTES and not tensor.external_data:
            graph.initializer.append(tensor)
        else:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    graph.output.extend(onnx.ValueInfoProto(name=value.name) for value in model.graph.output)
    graph.value_info.extend(value for value in model.graph.value_info if not _is_free(value.type.tensor_type))
    try:
        return free, onnx.shape_inference.infer_shapes(skeleton, data_prop=True).graph
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        return free, graph


def _fix_sizes(values: Iterable[Any]) -> bool:
    """Sets every free size to 1; returns whether there was one."""
    free = False
    for value in values:
        for dimension in value.type.tensor_type.shape.dim:
            if not dimension.HasField("dim_value"):
                dimension.dim_value = 1
                free = True
    return free


def _is_free(kind: Any) -> bool:
    return not kind.HasField("shape") or any(not dimension.HasField("dim_value") for dimension in kind.shape.dim)
