"""The operators of a TFLite file's main graph one by one: their layers, their work, and the memory between them.

Multiply-accumulates follow from the shapes that the operators' kernels ask for (tensorflow/lite/kernels); a size that is
free counts as 1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

from toolkit.audit import layers
from toolkit.audit.arena import Step, arena_bytes, lives
from toolkit.audit.element_types import element_bits
from toolkit.contents import Node

_MAX_TENSORS = 50_000
_MAX_HOPS = 64
_VIEWS = {"RESHAPE", "SQUEEZE", "EXPAND_DIMS"}
_LOOKUPS = {"GATHER", "GATHER_ND", "EMBEDDING_LOOKUP"}
_FOLDED = {"DEQUANTIZE", "TRANSPOSE", "CAST"}
_INTEGERS = {"int2": 2, "int4": 4, "uint4": 4, "int8": 8, "uint8": 8, "int16": 16}
# What hides multiplications in a graph of its own, or in a kernel that is not TFLite's.
_UNCOUNTED = {"WHILE", "IF", "CALL", "CALL_ONCE", "STABLEHLO_DOT_GENERAL", "STABLEHLO_CONVOLUTION", "STABLEHLO_COMPOSITE", "STABLEHLO_WHILE"}

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Tensor:
    """One tensor of the graph.

    Attributes:
        name: Its name.
        dtype: Its element type.
        shape: Its sizes, 1 for each free one.
        stored_bytes: Size of its stored data; ``None`` when it is computed.
    """

    name: str
    dtype: str
    shape: Shape
    stored_bytes: int | None


@dataclass(frozen=True)
class Operator:
    """One operator: its name, and the indices of its tensors, -1 for one that is left out."""

    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass
class Graph:
    """The main graph.

    Attributes:
        tensors: All tensors.
        operators: All operators, in the order in which they run.
        inputs: Indices of the model's inputs.
        outputs: Indices of its outputs.
    """

    tensors: Sequence[Tensor]
    operators: Sequence[Operator]
    inputs: Sequence[int]
    outputs: Sequence[int]
    home: dict[int, int] = field(default_factory=dict)
    constant: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.constant = {index for index, tensor in enumerate(self.tensors) if tensor.stored_bytes is not None}
        for operator in self.operators:
            read = [index for index in operator.inputs if index >= 0]
            # Weights that are turned or widened before their first use are so once, when the model is loaded.
            if operator.name in _FOLDED | _VIEWS and read and all(index in self.constant for index in read):
                self.constant.update(operator.outputs)
                self.home[operator.outputs[0]] = read[0]
            elif operator.name in _VIEWS and read:
                self.home[operator.outputs[0]] = read[0]

    def memory(self, index: int) -> int:
        """The tensor in whose memory another one lies."""
        for _ in range(_MAX_HOPS):
            if index not in self.home:
                break
            index = self.home[index]
        return index

    def bytes(self, index: int) -> int:
        """Size of a tensor in memory."""
        tensor = self.tensors[self.memory(index)]
        if tensor.stored_bytes is not None:
            return tensor.stored_bytes
        return -(-prod(tensor.shape) * element_bits(tensor.dtype) // 8)


def read_nodes(graph: Graph) -> tuple[tuple[Node, ...], int | None, str]:
    """Reads the operators of the main graph.

    Returns:
        Every operator in the order of the file; the smallest arena, see :func:`toolkit.audit.arena.arena_bytes`; and why some
        multiplications were not counted, empty when all were.
    """
    found, unknown = [], Counter[str]()
    for operator, layer in zip(graph.operators, _layers(graph), strict=True):
        count = _macs(operator, graph)
        if count is None:
            unknown[operator.name] += 1
        found.append(_node(operator, layer, count or 0, graph))
    note = ", ".join(f"{count} {name}" for name, count in unknown.most_common())
    return tuple(found), _arena(graph), f"incomplete: not counted: {note}" if note else ""


def _node(operator: Operator, layer: str, macs: int, graph: Graph) -> Node:
    outputs = tuple(graph.tensors[index].name for index in operator.outputs if index >= 0)
    return Node(
        name=next(iter(outputs), ""),
        operator=operator.name,
        layer=layer,
        inputs=tuple(graph.tensors[index].name for index in operator.inputs if index >= 0 and index not in graph.constant),
        outputs=outputs,
        macs=macs,
        moved_bytes=_moved(operator, graph),
        dtype=_dtype(operator, graph),
    )


def _moved(operator: Operator, graph: Graph) -> int:
    made = {graph.memory(index) for index in operator.outputs if index >= 0}
    if made <= graph.constant or (operator.name in _VIEWS and operator.outputs):
        return 0
    written, read = sum(map(graph.bytes, made)), [index for index in operator.inputs if index >= 0]
    if operator.name in _LOOKUPS:
        table = max(read, key=graph.bytes)
        return 2 * written + sum(graph.bytes(index) for index in read if index != table)
    return written + sum(map(graph.bytes, {graph.memory(index) for index in read}))


def _dtype(operator: Operator, graph: Graph) -> str:
    """An integer input multiplies as integers; so does a float one with integer weights, which is quantized while it runs."""
    data, weights = _DATA.get(operator.name, 0), _WEIGHTS.get(operator.name, ())
    kinds = [graph.tensors[operator.inputs[place]].dtype for place in (data, *weights[:1]) if _given(operator, place)]
    if not weights or not kinds:
        return graph.tensors[operator.outputs[0]].dtype if operator.outputs else "float32"
    integers = [_INTEGERS[kind] for kind in kinds if kind in _INTEGERS]
    return kinds[0] if not integers else "int16" if max(integers) > 8 else "int8"


def _given(operator: Operator, place: int) -> bool:
    return place < len(operator.inputs) and operator.inputs[place] >= 0


def _macs(operator: Operator, graph: Graph) -> int | None:
    """Counts one operator: 0 when it multiplies nothing, ``None`` when it cannot be told."""
    if operator.name in _UNCOUNTED or operator.name.startswith("CUSTOM "):
        return None
    count = _COUNTS.get(operator.name)
    if count is None:
        return 0
    inputs = [graph.tensors[index].shape if index >= 0 else () for index in operator.inputs]
    try:
        return count(inputs, graph.tensors[operator.outputs[0]].shape)
    except (IndexError, ValueError, ZeroDivisionError):
        return None


def _convolution(inputs: Sequence[Shape], output: Shape) -> int:
    """Weights ``[out x h x w x in/groups]``."""
    return prod(output) * prod(inputs[1][1:])


def _depthwise(inputs: Sequence[Shape], output: Shape) -> int:
    """Weights ``[1 x h x w x out]``."""
    return prod(output) * prod(inputs[1][1:3])


def _transposed(inputs: Sequence[Shape], output: Shape) -> int:
    """Weights ``[out x h x w x in]``: each input element goes into the kernel of each output channel."""
    return prod(inputs[2]) * prod(inputs[1][:-1])


def _convolution_3d(inputs: Sequence[Shape], output: Shape) -> int:
    """Weights ``[d x h x w x in x out]``."""
    return prod(output) * prod(inputs[1][:-1])


def _transposed_3d(inputs: Sequence[Shape], output: Shape) -> int:
    """Weights ``[d x h x w x out x in]``."""
    return prod(inputs[2]) * prod(inputs[1][:-1])


def _fully_connected(inputs: Sequence[Shape], output: Shape) -> int:
    """Weights ``[out x in]``."""
    return prod(output) * inputs[1][-1]


def _matrix_product(inputs: Sequence[Shape], output: Shape) -> int:
    """The first operand is ``[... x m x k]`` or its transpose; the output says which of the two is ``m``."""
    return prod(output) * (inputs[0][-1] * inputs[0][-2] // output[-2])


def _recurrent(places: Sequence[int]) -> Callable[[Sequence[Shape], Shape], int]:
    """Data ``[... x in]``: every step multiplies with all weight matrices."""
    return lambda inputs, output: prod(inputs[0][:-1]) * sum(prod(inputs[place]) for place in places if place < len(inputs) and inputs[place])


_GATES = tuple(range(1, 9))
_LSTM = (*_GATES, 16)
_RECURRENT: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("SVDF", "RNN", "UNIDIRECTIONAL_SEQUENCE_RNN"), (1, 2)),
    "BIDIRECTIONAL_SEQUENCE_RNN": (1, 2, 5, 6),
    **dict.fromkeys(("LSTM", "UNIDIRECTIONAL_SEQUENCE_LSTM"), _LSTM),
    "BIDIRECTIONAL_SEQUENCE_LSTM": (*_LSTM, *range(18, 26), 33),
}
_COUNTS: Mapping[str, Callable[[Sequence[Shape], Shape], int]] = {
    "CONV_2D": _convolution,
    "DEPTHWISE_CONV_2D": _depthwise,
    "TRANSPOSE_CONV": _transposed,
    "CONV_3D": _convolution_3d,
    "CONV_3D_TRANSPOSE": _transposed_3d,
    "FULLY_CONNECTED": _fully_connected,
    "BATCH_MATMUL": _matrix_product,
    **{name: _recurrent(places) for name, places in _RECURRENT.items()},
}
_WEIGHTS: Mapping[str, tuple[int, ...]] = {**dict.fromkeys(_COUNTS, (1,)), **_RECURRENT, "LSTM": (2,), "UNIDIRECTIONAL_SEQUENCE_LSTM": (2,)}
_DATA = {"TRANSPOSE_CONV": 2, "CONV_3D_TRANSPOSE": 2}


def _layers(graph: Graph) -> list[str]:
    """Each operator's layer: its own where its output's name tells, else that of the operator whose output it reads first."""
    listed = [layers.fused(graph.tensors[operator.outputs[0]].name) if operator.outputs else [] for operator in graph.operators]
    multiplies = [operator.name in _COUNTS for operator in graph.operators]
    found = layers.from_tensor_names(listed, multiplies)
    of_output: dict[int, str] = {}
    for number, operator in enumerate(graph.operators):
        found[number] = found[number] or next((of_output[index] for index in operator.inputs if index in of_output), "")
        of_output.update(dict.fromkeys(operator.outputs, found[number]))
    return layers.without_wrapper(found)


def _arena(graph: Graph) -> int | None:
    computed = {graph.memory(index) for operator in graph.operators for index in operator.outputs if index >= 0}
    computed = (computed | {graph.memory(index) for index in graph.inputs}) - graph.constant
    if len(computed) > _MAX_TENSORS:
        return None

    def names(indices: Sequence[int]) -> list[str]:
        return [str(home) for index in indices if index >= 0 and (home := graph.memory(index)) in computed]

    steps = [Step(names(operator.inputs), names(operator.outputs)) for operator in graph.operators]
    return arena_bytes(lives(steps, names(graph.inputs), names(graph.outputs), {str(index): graph.bytes(index) for index in computed}))
