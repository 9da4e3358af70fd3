"""Which operators of a file are likely to make it slower than its float twin: what is known to lack a fast kernel.

What is known was measured: a convolution as ``ConvInteger`` takes 7 to 10 times the float one's time in ONNX Runtime, a TFLite
convolution that quantizes its input while it runs 2 to 3 times, one operator outside of XNNPACK splits its delegate in two.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence

from toolkit.audit.structure import DEQUANTIZE, QUANTIZE, kind
from toolkit.contents import Contents, Layer, Node
from toolkit.figures import OperatorTime
from toolkit.suspects import Suspect

_NAMED = 5
_KNOWN = {
    "ConvInteger": "convolutions that are quantized while they run have no fast kernel; quantize them statically, or leave them in float",
    "DynamicQuantizeLinear": "finds the range of its input at every inference",
}
_CONVOLUTIONS = ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV")
_HYBRID = "quantizes its input while it runs, for which convolutions have no fast kernel; quantize it statically, or leave it in float"
_UNPACKED = "its integer weights are unpacked while it runs, and it computes in float"
_SIGNED = "takes signed activations; ONNX Runtime's fast kernels on x86 take unsigned ones (U8S8)"


def suspects(contents: Contents, profile: Sequence[OperatorTime] | None = None) -> list[Suspect]:
    """Lists the kinds of operators that are likely to be responsible, the costliest first.

    Args:
        contents: What the file contains.
        profile: Measured times of its operators; ``None`` where nobody measured them. Operators are found again by their names, else by
            their kind.

    Returns:
        One for each kind and reason; empty when nothing in the file is known to be slow.
    """
    total_ms = sum(one.p50_ms for one in profile or ())
    found = [_timed(operator, names, reason, profile or (), total_ms) for operator, reason, names in _groups(contents)]
    return sorted(found, key=lambda one: -(one.share_ms or 0.0))


def _groups(contents: Contents) -> Iterator[tuple[str, str, list[str]]]:
    """Kind, reason and names of the operators of each suspicion."""
    grouped: dict[tuple[str, str], list[str]] = defaultdict(list)
    for node in contents.nodes:
        if kind(node) in _KNOWN:
            grouped[kind(node), _KNOWN[kind(node)]].append(node.name)
    for one in contents.structure.no_kernel if contents.structure else ():
        grouped[one.operator, one.reason].append(one.name)
    for layer in contents.layers:
        if reason := _of_layer(layer, contents.format):
            grouped[layer.operator, reason].append(layer.name)
    islands = len(contents.structure.float_islands) if contents.structure else 0
    if islands:
        borders = _borders(contents.nodes, contents.structure.float_islands if contents.structure else ())
        operator = "QUANTIZE and DEQUANTIZE" if contents.format == "tflite" else "QuantizeLinear and DequantizeLinear"
        grouped[operator, f"convert between integers and {islands} float island{'s' * (islands > 1)}"] += borders
    for (operator, reason), names in grouped.items():
        yield operator, reason, names


def _of_layer(layer: Layer, format: str) -> str:
    if layer.operator in _CONVOLUTIONS and layer.activation_dtype.startswith("dynamic"):
        return _HYBRID
    if layer.weight_dtype.startswith(("int", "uint")) and layer.activation_dtype == "float32":
        return _UNPACKED
    signed = format == "onnx" and layer.weight_dtype == layer.activation_dtype == "int8"
    return _SIGNED if signed else ""


def _borders(nodes: Sequence[Node], islands: Sequence[Sequence[str]]) -> list[str]:
    """Names of the converters around float islands."""
    names = {name for island in islands for name in island}
    inside = [node for node in nodes if node.name in names]
    read = {name for node in inside for name in node.inputs}
    made = {name for node in inside for name in node.outputs}
    return [node.name for node in nodes if _is_border(node, read, made)]


def _is_border(node: Node, read: Collection[str], made: Collection[str]) -> bool:
    if kind(node) in DEQUANTIZE:
        return any(name in read for name in node.outputs)
    return kind(node) in QUANTIZE and any(name in made for name in node.inputs)


def _timed(operator: str, names: Sequence[str], reason: str, profile: Sequence[OperatorTime], total_ms: float) -> Suspect:
    wanted = set(names)
    times = [one.p50_ms for one in profile if one.name in wanted] or [one.p50_ms for one in profile if one.operator == operator]
    return Suspect(
        operator=operator,
        count=len(names),
        reason=reason,
        share_ms=sum(times) if times else None,
        share=sum(times) / total_ms if times and total_ms else None,
        names=tuple(names[:_NAMED]),
    )
