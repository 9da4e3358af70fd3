"""How integers and floats lie in a graph: what a runtime computes in integers, and what it only rounds.

Both lists of operators were measured: each operator between ``QuantizeLinear`` and ``DequantizeLinear`` in ONNX Runtime 1.31, whose
optimized graph tells which pairs it fused, and in int8 in LiteRT 2.3, whose profiler tells which operators XNNPACK executed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from toolkit.contents import Node, NoKernel, Structure

QUANTIZE = {"QuantizeLinear", "QUANTIZE"}
DEQUANTIZE = {"DequantizeLinear", "DEQUANTIZE"}
_EIGHT_BITS = {"int8", "uint8", "int4", "uint4", "int2"}
_FLOATS = {"float32", "float16", "bfloat16", "float64"}
_TRANSPOSES = {"Transpose", "TRANSPOSE"}
# ONNX Runtime fuses a pair around these; a Relu or Clip that cuts where the integers end anyway is dropped.
_FUSED = {
    "Conv", "MatMul", "Gemm", "Add", "Mul", "Sigmoid", "LeakyRelu", "Softmax", "GlobalAveragePool", "AveragePool", "Concat", "Relu", "Clip",
    "MaxPool", "ReduceMax", "ReduceMin", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Split", "Gather", "Resize", "Expand",
    "Tile", "DepthToSpace", "Identity", "Dropout", "Where", "ArgMax",
}  # fmt: skip
_FLOAT_OUT = {"MatMul", "Gemm", "ArgMax"}
_CUTS = {"Relu", "Clip"}
_LAYERS = {"Conv", "ConvTranspose", "MatMul", "Gemm"}
# What XNNPACK leaves to TFLite's own kernels when it comes in int8.
_LEFT_OUT = {
    "ABS", "AVERAGE_POOL_2D", "BATCH_MATMUL", "DIV", "EXP", "GATHER", "GELU", "HARD_SWISH", "L2_NORMALIZATION", "MAXIMUM", "MINIMUM",
    "MIRROR_PAD", "PACK", "RESIZE_NEAREST_NEIGHBOR", "RSQRT", "SOFTMAX", "SPACE_TO_BATCH_ND", "SQUARED_DIFFERENCE", "TILE",
}  # fmt: skip
_MOVES = {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Split", "Gather", "Expand", "Identity", "Dropout", "Relu", "Clip"}


def structure(format: str, nodes: Sequence[Node]) -> Structure:
    """Reads how integers and floats lie in a file's main graph.

    Args:
        format: ``onnx`` or ``tflite``, whose runtimes decide what has a kernel.
        nodes: Its operators, in the order of the file.
    """
    graph = _Graph(nodes)
    lacking = _unfused(graph) if format == "onnx" else _left_out(nodes)
    names = {one.name for one in lacking}
    counted = sum(node.macs for node in nodes)
    in_integers = sum(node.macs for node in nodes if node.dtype in _EIGHT_BITS and not (format == "onnx" and node.name in names))
    return Structure(
        int8_share=in_integers / counted if counted else None,
        no_kernel=tuple(lacking),
        float_islands=tuple(_islands(graph, names if format == "onnx" else set(), fused=format == "onnx")),
        transposes=sum(kind(node) in _TRANSPOSES and bool(node.inputs) for node in nodes),
    )


def kind(node: Node) -> str:
    """An operator's kind without its domain."""
    return node.operator.rpartition(".")[2]


class _Graph:
    """The operators with the way from a tensor to who makes it and who reads it."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.nodes = nodes
        self.made_by: dict[str, Node] = {name: node for node in nodes for name in node.outputs}
        self.read_by: Mapping[str, list[Node]] = defaultdict(list)
        self._quantized: dict[tuple[str, ...], bool] = {}
        for node in nodes:
            for name in node.inputs:
                self.read_by[name].append(node)

    def dequantized(self, name: str) -> bool:
        """Whether a computed tensor comes out of a dequantizer."""
        return name in self.made_by and kind(self.made_by[name]) in DEQUANTIZE

    def integers(self, name: str) -> str:
        """Element type of what enters the dequantizer of a tensor; empty where nobody says."""
        source = next(iter(self.made_by[name].inputs), "") if self.dequantized(name) else ""
        return self.made_by[source].dtype if source in self.made_by else ""

    def quantized(self, node: Node) -> bool:
        """Whether all that reads a node's results quantizes them, a ``Relu`` or ``Clip`` between them at most."""
        if node.outputs not in self._quantized:
            self._quantized[node.outputs] = self._is_quantized(node)
        return self._quantized[node.outputs]

    def _is_quantized(self, node: Node) -> bool:
        readers = [reader for name in node.outputs for reader in self.read_by[name]]
        cuts = [reader for reader in readers if kind(reader) in _CUTS]
        if len(readers) == 1 and cuts and kind(node) not in _CUTS:
            return self.quantized(cuts[0])
        return bool(readers) and all(kind(reader) in QUANTIZE for reader in readers)


def _unfused(graph: _Graph) -> list[NoKernel]:
    """Operators of an ONNX graph that stand between integers, and that ONNX Runtime computes in float."""
    found = []
    for node in graph.nodes:
        if kind(node) in QUANTIZE | DEQUANTIZE or not node.inputs or not all(map(graph.dequantized, node.inputs)):
            continue
        paired = graph.quantized(node)
        if not paired and (kind(node) not in _LAYERS or node.dtype in _FLOATS):
            continue
        if reason := _why_not(node, paired, {graph.integers(name) for name in node.inputs}):
            found.append(NoKernel(name=node.name, operator=node.operator, reason=reason))
    return found


def _why_not(node: Node, paired: bool, integers: Iterable[str]) -> str:
    if kind(node) not in _MOVES and any(dtype in ("int16", "uint16") for dtype in integers):
        return "no kernel takes 16-bit activations: it runs in float between two conversions"
    if kind(node) not in _FUSED:
        return "ONNX Runtime has no int8 kernel: it runs in float between two conversions"
    if not paired and kind(node) not in _FLOAT_OUT:
        return "its result is not quantized, so that ONNX Runtime computes it in float"
    if kind(node) in _LAYERS and node.dtype in _FLOATS:
        return "its weights are not integers: it runs in float between two conversions"
    return ""


def _left_out(nodes: Sequence[Node]) -> list[NoKernel]:
    """Integer operators of a TFLite graph that XNNPACK does not execute."""
    found = []
    for node in nodes:
        if node.dtype == "int16" and (node.macs or kind(node) in _LEFT_OUT):
            found.append(NoKernel(name=node.name, operator=node.operator, reason="XNNPACK has no 16-bit kernels: it runs in reference code"))
        elif kind(node) in _LEFT_OUT and node.dtype in _EIGHT_BITS and node.inputs:
            found.append(NoKernel(name=node.name, operator=node.operator, reason="XNNPACK has no int8 kernel: it runs outside of the delegate"))
    return found


def _islands(graph: _Graph, unfused: set[str], *, fused: bool) -> list[tuple[str, ...]]:
    """Float operators that hang together, read what was dequantized, and whose results are quantized again."""
    floats = [node for node in graph.nodes if node.inputs and _is_float(graph, node, unfused, fused=fused)]
    made_by = {name: number for number, node in enumerate(floats) for name in node.outputs}
    above = list(range(len(floats)))
    for number, node in enumerate(floats):
        for name in node.inputs:
            if name in made_by:
                above[_root(above, number)] = _root(above, made_by[name])
    together: dict[int, list[Node]] = defaultdict(list)
    for number, node in enumerate(floats):
        together[_root(above, number)].append(node)
    return [tuple(node.name for node in members) for members in together.values() if _between(graph, members)]


def _root(above: list[int], number: int) -> int:
    """Follows a disjoint set up to its representative, and shortens the way."""
    while above[number] != number:
        above[number] = above[above[number]]
        number = above[number]
    return number


def _is_float(graph: _Graph, node: Node, unfused: set[str], *, fused: bool) -> bool:
    if kind(node) in QUANTIZE | DEQUANTIZE or node.dtype not in _FLOATS:
        return node.name in unfused
    return node.name in unfused or not (fused and _computes_integers(graph, node))


def _computes_integers(graph: _Graph, node: Node) -> bool:
    """Whether an operator that the file writes in float is one of a pair that is fused."""
    if all(map(graph.dequantized, node.inputs)):
        return graph.quantized(node) or kind(node) in _FLOAT_OUT
    return kind(node) in _CUTS and all(name in graph.made_by and graph.quantized(graph.made_by[name]) for name in node.inputs)


def _between(graph: _Graph, members: Sequence[Node]) -> bool:
    reads = any(graph.dequantized(name) for node in members for name in node.inputs)
    return reads and any(kind(reader) in QUANTIZE for node in members for name in node.outputs for reader in graph.read_by[name])
