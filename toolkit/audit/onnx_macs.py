"""Multiply-accumulates of ONNX operators, from their shapes alone (Operators.md, and ONNX Runtime's ContribOperators.md)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

from toolkit.audit.onnx_types import int_attribute

Shape = tuple[int, ...]
Shapes = Callable[[str], Shape]


class UnknownShape(Exception):
    """A shape that a count needs is not known."""


def macs(node: Any, shapes: Mapping[str, Shape]) -> int:
    """Counts one operator: 0 when it multiplies nothing.

    Raises:
        UnknownShape: A shape that the count needs is not known, or does not fit the operator.
    """
    count = _COUNTS.get(node.op_type)
    if count is None:
        return 0

    def shape(name: str) -> Shape:
        if name not in shapes:
            raise UnknownShape(name)
        return shapes[name]

    try:
        return count(node, shape)
    except (IndexError, ValueError, KeyError, ZeroDivisionError) as error:
        raise UnknownShape(node.op_type) from error


def _convolution(position: int) -> Callable[[Any, Shapes], int]:
    """Weights ``[out x in/groups x kernel ...]``: each output element takes ``in/groups`` times the kernel."""
    return lambda node, shape: prod(shape(node.output[0])) * prod(shape(node.input[position])[1:])


def _transposed_convolution(node: Any, shape: Shapes) -> int:
    """Weights ``[in x out/groups x kernel ...]``: each input element goes into ``out/groups`` times the kernel."""
    return prod(shape(node.input[0])) * prod(shape(node.input[1])[1:])


def _product(node: Any, shape: Shapes) -> int:
    """Each output element sums over the first operand's last axis, or the one before where that is transposed."""
    first = shape(node.input[0])
    return prod(shape(node.output[0])) * first[-2 if int_attribute(node, "transA", 0) else -1]


def _packed_product(node: Any, shape: Shapes) -> int:
    """Weights of ``N`` columns; shape inference does not know the output of ONNX Runtime's own operator."""
    return prod(shape(node.input[0])) * int_attribute(node, "N", 0)


def _packed_attention(node: Any, shape: Shapes) -> int:
    """``Attention`` of ONNX Runtime: input ``[b x s x d]``, weights ``[d x 3h]``: the projection, then both products."""
    batch, sequence, width = shape(node.input[0])
    projected = shape(node.input[1])[1]
    return batch * sequence * (width * projected + 2 * sequence * (projected // 3))


def _attention(node: Any, shape: Shapes) -> int:
    """Queries times keys, and their weights times values: each of ``t`` keys meets every element of queries and outputs."""
    queries, keys = shape(node.input[0]), shape(node.input[1])
    past = shape(node.input[4])[-2] if node.op_type == "Attention" and len(node.input) > 4 and node.input[4] else 0
    steps = (keys[1] if len(keys) == 3 else keys[2]) + past
    return steps * (prod(queries) + prod(shape(node.output[0])))


def _any_attention(node: Any, shape: Shapes) -> int:
    return _packed_attention(node, shape) if node.domain == "com.microsoft" else _attention(node, shape)


def _recurrent(node: Any, shape: Shapes) -> int:
    """Input ``[steps x b x in]``, or ``[b x steps x in]``: every step multiplies with both weight tensors of each direction."""
    steps, batch, _ = shape(node.input[0])
    return steps * batch * (prod(shape(node.input[1])) + prod(shape(node.input[2])))


def _einsum(node: Any, shape: Shapes) -> int:
    """One multiplication per combination of all indices and operand beyond the first."""
    equation = next(entry.s.decode() for entry in node.attribute if entry.name == "equation").replace(" ", "")
    if "." in equation:
        raise UnknownShape("Einsum with an ellipsis")
    sizes: dict[str, int] = {}
    for term, name in zip(equation.partition("->")[0].split(","), node.input, strict=True):
        sizes.update(zip(term, shape(name), strict=True))
    return prod(sizes.values()) * (len(node.input) - 1)


def _uncounted(node: Any, shape: Shapes) -> int:
    raise UnknownShape(node.op_type)


_COUNTS: dict[str, Callable[[Any, Shapes], int]] = {
    **dict.fromkeys(("Conv", "FusedConv", "NhwcConv", "NhwcFusedConv", "ConvInteger"), _convolution(1)),
    "QLinearConv": _convolution(3),
    "ConvTranspose": _transposed_convolution,
    **dict.fromkeys(("Gemm", "FusedGemm", "QGemm", "MatMul", "FusedMatMul", "MatMulInteger", "MatMulIntegerToFloat"), _product),
    **dict.fromkeys(("DynamicQuantizeMatMul", "QLinearMatMul", "GemmFastGelu"), _product),
    "MatMulNBits": _packed_product,
    "Attention": _any_attention,
    "QAttention": _packed_attention,
    "MultiHeadAttention": _attention,
    **dict.fromkeys(("LSTM", "GRU", "RNN", "DynamicQuantizeLSTM"), _recurrent),
    "Einsum": _einsum,
    # What hides multiplications behind a graph of its own, or depends on values.
    **dict.fromkeys(("If", "Loop", "Scan", "SequenceMap", "GroupQueryAttention", "PagedAttention", "DeformConv", "MoE", "QMoE"), _uncounted),
}

MULTIPLYING = frozenset(_COUNTS)
