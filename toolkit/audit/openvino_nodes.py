"""The operators of OpenVINO IR's main graph one by one: their layers, their work, and the memory between them.

Multiply-accumulates follow from the shapes that OpenVINO's operation sets ask for; a size that is free counts as 1. What
``FakeQuantize`` describes and integer kernels never make, the float side of a quantized tensor, is counted as none.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

from toolkit.audit import layers
from toolkit.audit.arena import Step, arena_bytes, lives
from toolkit.audit.element_types import element_bits
from toolkit.audit.openvino_graph import CONST, PARAMETER, RESULT, Graph, Operator
from toolkit.contents import Node

FAKE_QUANTIZE = "FakeQuantize"
VIEWS = {"Reshape", "Squeeze", "Unsqueeze"}
# What moves numbers about and leaves them as they are: a tensor is quantized after it if it was before.
MOVING = VIEWS | {
    "Transpose", "MaxPool", "Concat", "Split", "VariadicSplit", "StridedSlice", "Slice", "Gather", "DepthToSpace", "SpaceToDepth",
    "ShuffleChannels", "Broadcast", "Tile", "ReduceMax",
}  # fmt: skip
_LOOKUPS = {"Gather", "GatherElements", "GatherND", "EmbeddingBagOffsets", "EmbeddingBagOffsetsSum"}
# What hides multiplications in a graph of its own, or in a formula.
_UNCOUNTED = {"Einsum", "Loop", "TensorIterator", "If", "DeformableConvolution", "BinaryConvolution"}
_LEVELS = {256: 8, 255: 8, 65536: 16, 65535: 16, 16: 4, 15: 4}
_MAX_HOPS = 64
_MAX_TENSORS = 50_000

_NO_LAYER = re.compile(r"^[A-Z]\w*_\d+/|/aten\b")

Shape = tuple[int, ...]

# Operator -> (positions of its weights, position of its data); a matrix product takes weights on either side.
LAYERS: Mapping[str, tuple[tuple[int, ...], int]] = {
    **dict.fromkeys(("Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData", "MatMul"), ((1,), 0)),
    "ScaledDotProductAttention": ((), 0),
    "LSTMSequence": ((4, 5), 0),
    **dict.fromkeys(("GRUSequence", "RNNSequence", "LSTMCell"), ((3, 4), 0)),
    **dict.fromkeys(("GRUCell", "RNNCell"), ((2, 3), 0)),
}


@dataclass
class _Memory:
    """Where each tensor of a graph really lies."""

    graph: Graph
    home: dict[str, str] = field(default_factory=dict)
    bits: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for operator in self.graph.operators:
            if operator.kind in VIEWS and operator.inputs:
                self.home[operator.outputs[0]] = operator.inputs[0]
            elif operator.kind == FAKE_QUANTIZE and operator.inputs[0] not in self.graph.constants:
                self._quantize(operator)

    def _quantize(self, operator: Operator) -> None:
        source, result = operator.inputs[0], operator.outputs[0]
        self.bits[result] = quantized_bits(operator) or element_bits(self.graph.tensors[result].dtype)
        maker = self.graph.producer[source]
        if maker.kind != PARAMETER and self.graph.consumers[source] == 1:
            self.home[self.of(source)] = result

    def of(self, key: str) -> str:
        """The tensor in whose memory another one lies."""
        for _ in range(_MAX_HOPS):
            if key not in self.home:
                break
            key = self.home[key]
        return key

    def bytes(self, key: str) -> int:
        """Size of a tensor in memory, of a constant in the file."""
        if key in self.graph.constants:
            return self.graph.constants[key].size_bytes
        key = self.of(key)
        tensor = self.graph.tensors[key]
        return -(-prod(map(abs, tensor.shape)) * self.bits.get(key, element_bits(tensor.dtype)) // 8)


def quantized_bits(operator: Operator) -> int:
    """Returns the bits of the integers that a ``FakeQuantize`` stands for; 0 for another number of levels."""
    return _LEVELS.get(int(operator.attributes.get("levels", "0")), 0)


def activation(key: str, graph: Graph) -> str:
    """Returns the element type that a tensor carries when the model runs.

    It is an integer one behind ``FakeQuantize``; in a model that has those, also what is looked up in a table of integers.
    """
    first = key
    for _ in range(_MAX_HOPS):
        operator = graph.producer[key]
        if operator.kind == FAKE_QUANTIZE and quantized_bits(operator):
            return f"int{quantized_bits(operator)}"
        if key in graph.constants:
            table = graph.constants[key].dtype
            return table if "int" in table and any(graph.of_kind(FAKE_QUANTIZE)) else graph.tensors[first].dtype
        if operator.kind not in MOVING or not operator.inputs:
            break
        key = operator.inputs[0]
    return graph.tensors[first].dtype


def read_nodes(graph: Graph) -> tuple[tuple[Node, ...], int | None, str]:
    """Reads the operators of the main graph.

    Returns:
        Every operator but constants, parameters and results, in the order of the file; the smallest arena, see
        :func:`toolkit.audit.arena.arena_bytes`, ``None`` where sizes are free; and why some multiplications were not counted,
        empty when all were.
    """
    memory, found, unknown = _Memory(graph), [], Counter[str]()
    for operator, layer in zip(graph.operators, _layers(graph), strict=True):
        if operator.kind in (CONST, PARAMETER, RESULT):
            continue
        count = _macs(operator, graph)
        if count is None:
            unknown[operator.kind] += 1
        found.append(_node(operator, layer, count or 0, memory))
    note = ", ".join(f"{count} {kind}" for kind, count in unknown.most_common())
    free = any(size < 0 for operator in graph.of_kind(PARAMETER) for key in operator.outputs for size in graph.tensors[key].shape)
    return tuple(found), None if free else _arena(memory), f"incomplete: not counted: {note}" if note else ""


def _node(operator: Operator, layer: str, macs: int, memory: _Memory) -> Node:
    graph = memory.graph
    return Node(
        name=operator.name,
        operator=operator.kind,
        layer=layer,
        outputs=tuple(name for key in operator.outputs for name in graph.tensors[key].names),
        macs=macs,
        moved_bytes=_moved(operator, memory),
        dtype=_dtype(operator, graph),
    )


def _moved(operator: Operator, memory: _Memory) -> int:
    made = {memory.of(key) for key in operator.outputs}
    if all(key in memory.graph.constants for key in operator.outputs) or operator.kind in VIEWS:
        return 0
    written = sum(map(memory.bytes, made))
    if operator.kind in _LOOKUPS:
        return 2 * written + sum(map(memory.bytes, operator.inputs[1:]))
    read = {memory.of(key) if key not in memory.graph.constants else key for key in operator.inputs} - made
    return written + sum(map(memory.bytes, read)) if read else 0


def _dtype(operator: Operator, graph: Graph) -> str:
    """A product of integers with integers is one; anything else computes in the type it makes."""
    made = graph.tensors[operator.outputs[0]].dtype if operator.outputs else "float32"
    if operator.kind not in LAYERS:
        return made
    positions, data = LAYERS[operator.kind]
    places = [data, *(positions[:1] or (1,))]
    keys = [operator.inputs[place] for place in places if place < len(operator.inputs)]
    kinds = [graph.constants[key].dtype if key in graph.constants else activation(key, graph) for key in keys]
    if all("int" in kind for kind in kinds):
        return "int8" if max(map(element_bits, kinds)) <= 8 else "int16"
    return made


def _macs(operator: Operator, graph: Graph) -> int | None:
    """Counts one operator: 0 when it multiplies nothing, ``None`` when it cannot be told."""
    if operator.kind in _UNCOUNTED:
        return None
    count = _COUNTS.get(operator.kind)
    if count is None or all(key in graph.constants for key in operator.outputs):
        return 0
    inputs = [_fixed(graph.tensors[key].shape) for key in operator.inputs]
    try:
        return count(inputs, _fixed(graph.tensors[operator.outputs[0]].shape), operator.attributes)
    except IndexError:
        return None


def _fixed(shape: Shape) -> Shape:
    return tuple(1 if size < 0 else size for size in shape)


def _convolution(inputs: Sequence[Shape], output: Shape, _: Mapping[str, str]) -> int:
    """Weights ``[out x in x ...]``."""
    return prod(output) * prod(inputs[1][1:])


def _grouped(inputs: Sequence[Shape], output: Shape, _: Mapping[str, str]) -> int:
    """Weights ``[groups x out x in x ...]``."""
    return prod(output) * prod(inputs[1][2:])


def _transposed(inputs: Sequence[Shape], output: Shape, _: Mapping[str, str]) -> int:
    """Weights ``[in x out x ...]``: each input element goes into the kernel of each output channel."""
    return prod(inputs[0]) * prod(inputs[1][1:])


def _transposed_grouped(inputs: Sequence[Shape], output: Shape, _: Mapping[str, str]) -> int:
    """Weights ``[groups x in x out x ...]``."""
    return prod(inputs[0]) * prod(inputs[1][2:])


def _matrix_product(inputs: Sequence[Shape], output: Shape, attributes: Mapping[str, str]) -> int:
    """``[... x m x k]`` times ``[... x k x n]``, either of them transposed where the attributes say so."""
    turned = attributes.get("transpose_a", "false") in ("true", "1") and len(inputs[0]) > 1
    return prod(output) * inputs[0][-2 if turned else -1]


def _attention(inputs: Sequence[Shape], output: Shape, _: Mapping[str, str]) -> int:
    """Query ``[... x l x e]``, key ``[... x s x e]``, value ``[... x s x v]``: two products."""
    return prod(inputs[0][:-1]) * inputs[1][-2] * (inputs[0][-1] + inputs[2][-1])


def _recurrent(kind: str) -> Callable[[Sequence[Shape], Shape, Mapping[str, str]], int]:
    """Data ``[batch x in]`` of a cell, ``[batch x steps x in]`` of a sequence: every step multiplies with all weights."""
    places = LAYERS[kind][0]
    return lambda inputs, output, _: prod(inputs[0][:-1]) * sum(prod(inputs[place]) for place in places)


_COUNTS: Mapping[str, Callable[[Sequence[Shape], Shape, Mapping[str, str]], int]] = {
    "Convolution": _convolution,
    "GroupConvolution": _grouped,
    "ConvolutionBackpropData": _transposed,
    "GroupConvolutionBackpropData": _transposed_grouped,
    "MatMul": _matrix_product,
    "ScaledDotProductAttention": _attention,
    **{kind: _recurrent(kind) for kind in ("LSTMSequence", "GRUSequence", "RNNSequence", "LSTMCell", "GRUCell", "RNNCell")},
}


def _layers(graph: Graph) -> list[str]:
    """Each operator's layer: its own where a name tells, else that of the operator whose output it reads first."""
    own, of_output = [], dict[str, str]()
    for operator in graph.operators:
        layer = "" if operator.kind in (PARAMETER, RESULT, CONST) else _own_layer(operator, graph)
        layer = layer or next((of_output[key] for key in operator.inputs if key in of_output), "")
        own.append(layer)
        if layer and not all(key in graph.constants for key in operator.outputs):
            of_output.update(dict.fromkeys(operator.outputs, layer))
    return layers.without_wrapper(own)


def _own_layer(operator: Operator, graph: Graph) -> str:
    """What multiplies is called after its weights; everything else after its own name, or its tensors' where TFLite named them."""
    weights = [graph.producer[key].name for key in operator.inputs if key in graph.constants]
    from_weight = next((layer for weight in weights if (layer := layers.from_weight(weight))), "")
    if from_weight and operator.kind in LAYERS:
        return from_weight
    own = layers.from_node_name(operator.name.removeprefix("__module."))
    # What precedes a slash may also be an input or a constant that was quantized, or a node of torch.fx.
    if own and own not in {one.name for one in graph.of_kind(PARAMETER)} and not _NO_LAYER.search(operator.name):
        return own
    tensors = [name for key in operator.outputs for name in graph.tensors[key].names]
    found = next((found for text in (operator.name, *tensors, *weights) if (found := layers.fused(text))), [])
    return found[-1] if found else from_weight


def _arena(memory: _Memory) -> int | None:
    graph = memory.graph
    computed = {memory.of(key) for key in graph.tensors if key not in graph.constants}
    if len(computed) > _MAX_TENSORS or any(size < 0 for key in computed for size in graph.tensors[key].shape):
        return None

    def homes(keys: Iterable[str]) -> list[str]:
        return [memory.of(key) for key in keys if key not in graph.constants]

    steps = [Step(homes(operator.inputs), homes(operator.outputs)) for operator in graph.operators]
    inputs = homes(key for operator in graph.of_kind(PARAMETER) for key in operator.outputs)
    outputs = homes(key for operator in graph.of_kind(RESULT) for key in operator.inputs)
    return arena_bytes(lives(steps, inputs, outputs, {key: memory.bytes(key) for key in computed}))
