"""Which operators of a TFLite graph static schemes quantize: those for which XNNPACK, the fast delegate, has integer kernels.

One that it lacks breaks the delegate up: ``HARD_SWISH`` in int8 gave 20 islands on mobilenet_v3_small, and 2.2 times the float model's time
instead of 0.9. ``BATCH_MATMUL`` in int8 took 0.39 of a MiniLM's time instead of 0.16.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.quantization import tflite_file
from toolkit.quantization.islands import Operator, join
from toolkit.quantization.tflite_taps import sources

LAYERS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV")
"""Layers that every scheme quantizes."""
UNPACKED = ("DEPTHWISE_CONV_2D", "TRANSPOSE_CONV")
"""Those of them whose kernels take no 4-bit weights."""
_OTHER_LAYERS = (
    "BATCH_MATMUL", "CONV_3D", "CONV_3D_TRANSPOSE", "SVDF", "RNN", "LSTM", "UNIDIRECTIONAL_SEQUENCE_RNN", "UNIDIRECTIONAL_SEQUENCE_LSTM",
    "BIDIRECTIONAL_SEQUENCE_RNN", "BIDIRECTIONAL_SEQUENCE_LSTM",
)  # fmt: skip
_ABLE = (
    "ADD", "SUB", "MUL", "MEAN", "AVERAGE_POOL_2D", "MAX_POOL_2D", "CONCATENATION", "PAD", "RESHAPE", "TRANSPOSE", "SLICE", "STRIDED_SLICE",
    "SPLIT", "LOGISTIC", "TANH", "RESIZE_BILINEAR",
)  # fmt: skip
_ACTIVATIONS = ("HARD_SWISH", "GELU", "LEAKY_RELU", "ELU", "PRELU", "RELU", "RELU6", "RELU_N1_TO_1", "RELU_0_TO_1")


@dataclass(frozen=True)
class Node:
    """One operator.

    Attributes:
        name: Name of its first output, which is the layer's name; the scope that ai-edge-quantizer knows it by begins with it.
        scope: That scope.
        kind: The operator in the schema's words.
        graph: Number of its subgraph.
        reads: Numbers of the float tensors that it reads and nobody stores.
        writes: Numbers of the tensors that it computes.
    """

    name: str
    scope: str
    kind: str
    graph: int
    reads: frozenset[int]
    writes: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """What a static scheme does with a graph.

    Attributes:
        floats: Scopes of operators that stay float.
        layers: Names of layers among them.
        ranges: Names of the tensors whose range has to be known.
    """

    floats: tuple[str, ...]
    layers: tuple[str, ...]
    ranges: tuple[str, ...]


def nodes(content: Any) -> list[Node]:
    """All operators of a file as :func:`toolkit.quantization.tflite_file.read` gives it."""
    kinds = tflite_file.kinds(content)
    found = []
    for number, graph in enumerate(content.subgraphs):
        for operator in graph.operators or ():
            written = [int(one) for one in operator.outputs if one >= 0]
            names = [tflite_file.text(graph.tensors[one].name) for one in written]
            scope = ";".join(name for name in names if name) + ";"
            reads = frozenset(int(one) for one in operator.inputs if one >= 0 and _is_activation(content, graph.tensors[one]))
            found.append(Node(names[0] if names else "", scope, kinds[operator.opcodeIndex], number, reads, tuple(written)))
    return found


def plan(model: Path, kept: Collection[str], columns: Collection[str] = ()) -> Plan:
    """Decides which operators stay float.

    Args:
        model: The float file.
        kept: Names of layers that have to.
        columns: Names of the samples' columns, by which one of several signatures is observed; the first without them.

    Raises:
        InputRejected: The file is damaged.
    """
    content = tflite_file.read(model)
    observed = tflite_file.entry_for(content, columns).graph
    every = nodes(content)
    floats: list[str] = []
    layers: list[str] = []
    ranges: dict[str, None] = {}
    for number, graph in enumerate(content.subgraphs):
        mine = [node for node in every if node.graph == number]
        joined = _joined(mine, kept, graph)
        floats += [node.scope for node, takes_part in zip(mine, joined, strict=True) if not takes_part]
        layers += [node.name for node, takes_part in zip(mine, joined, strict=True) if not takes_part and node.kind in (*LAYERS, *_OTHER_LAYERS)]
        if number == observed:
            ranges |= dict.fromkeys(_ranges(content, number, (node for node, takes_part in zip(mine, joined, strict=True) if takes_part)))
    return Plan(tuple(dict.fromkeys(floats)), tuple(dict.fromkeys(layers)), tuple(ranges))


def without_nibbles(model: Path) -> list[str]:
    """Names layers that no 4-bit weights can be stored for.

    Raises:
        InputRejected: The file is damaged.
    """
    return [node.name for node in nodes(tflite_file.read(model)) if node.kind in UNPACKED]


def _joined(mine: list[Node], kept: Collection[str], graph: Any) -> list[bool]:
    operators = [
        Operator(
            reads=frozenset(map(str, node.reads)),
            writes=tuple(map(str, node.writes)),
            able=node.kind in (*LAYERS, *_ABLE) and node.name not in kept,
            core=node.kind in LAYERS and node.name not in kept,
            activation=node.kind in _ACTIVATIONS,
        )
        for node in mine
    ]
    return join(operators, constants=(), inputs=[str(int(one)) for one in graph.inputs])


def _ranges(content: Any, number: int, taking_part: Iterator[Node]) -> Iterator[str]:
    """Names of the tensors that tell the ranges of all that integer operators read and write."""
    traced, tensors = sources(content, number), content.subgraphs[number].tensors
    for node in taking_part:
        for one in (*sorted(node.reads), *node.writes):
            source = traced.get(one)
            if isinstance(source, int) and 0 not in [int(size) for size in tensors[source].shape]:
                yield tflite_file.text(tensors[source].name)


def _is_activation(content: Any, tensor: Any) -> bool:
    from ai_edge_litert import schema_py_generated as schema

    data = content.buffers[tensor.buffer].data
    return bool(tensor.type == schema.TensorType.FLOAT32 and (data is None or len(data) == 0))
