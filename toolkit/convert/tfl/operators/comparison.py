"""Comparisons, logic, choice, and bits."""

from __future__ import annotations

from typing import Any

import numpy as np

from toolkit.convert.tfl.facts import WIDE
from toolkit.convert.tfl.graph import Graph, Tensor, broadcast
from toolkit.convert.tfl.lower import Call, either, operator
from toolkit.convert.tfl.operators.elementwise import floating, narrowed, ordered, scalar
from toolkit.convert.tfl.program import TYPINGS, Node, Program, Type, Unsupported

_COMPARED = {"Equal": "EQUAL", "Less": "LESS", "Greater": "GREATER", "LessOrEqual": "LESS_EQUAL", "GreaterOrEqual": "GREATER_EQUAL"}
_LOGICAL = {"And": "LOGICAL_AND", "Or": "LOGICAL_OR", "Xor": "NOT_EQUAL"}
_HALF_BITS, _LAST_BIT = 16, 31
# The kernel of SELECT_V2 broadcasts over this many axes.
_SELECT_RANK = 5


def _truths(node: Node, program: Program) -> list[Type]:
    """Types of what ONNX has definitions for before operator set 16, but no inference."""
    left, right = (program.type(name).shape for name in node.inputs)
    return [Type(np.dtype(np.bool_), broadcast(left, right))]


TYPINGS |= dict.fromkeys(("LessOrEqual", "GreaterOrEqual"), _truths)


@operator(*_COMPARED, rule=either)
def _compare(call: Call) -> Tensor:
    left, right = (ordered(call.graph, one) for one in call.xs())
    if left.dtype.kind not in "fib":
        raise Unsupported(f"has no kernel for {left.dtype}")
    return call.graph.binary(_COMPARED[call.node.kind], left, right, np.bool_)


@operator(*_LOGICAL, rule=either)
def _logic(call: Call) -> Tensor:
    left, right = call.xs()
    return call.graph.binary(_LOGICAL[call.node.kind], left, right, np.bool_)


@operator("Not", rule=either)
def _not(call: Call) -> Tensor:
    return call.graph.unary("LOGICAL_NOT", call.x(0))


@operator("Where", rule=either, typed=1, limits="no broadcasting over more than five axes")
def _where(call: Call) -> Tensor:
    return select(call.graph, *call.xs())


def select(graph: Graph, condition: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """Adds a choice between two tensors; all three are broadcast to each other.

    Raises:
        Unsupported: They would have to be broadcast over more axes than the kernel can.
    """
    shape = broadcast(condition.shape, yes.shape, no.shape)
    if len(shape) > _SELECT_RANK and any(one.shape != shape for one in (condition, yes, no)):
        raise Unsupported(f"chooses among tensors that are broadcast over more than {_SELECT_RANK} axes")
    return graph.add("SELECT_V2", [condition, yes, no], shape, yes.dtype)


@operator("IsNaN", rule=either)
def _is_nan(call: Call) -> Tensor:
    value = floating(call.x(0))
    return call.graph.binary("NOT_EQUAL", value, value, np.bool_)


@operator("IsInf", rule=either)
def _is_inf(call: Call) -> Tensor:
    graph, value = call.graph, floating(call.x(0))
    above, below = call.attribute("detect_positive", 1), call.attribute("detect_negative", 1)
    if not above and not below:
        return graph.binary("GREATER", value, scalar(graph, np.inf, value), np.bool_)  # which nothing is
    if above and below:
        value = graph.unary("ABS", value)
    return graph.binary("EQUAL", value, scalar(graph, np.inf if above else -np.inf, value), np.bool_)


@operator("BitwiseNot", rule=either)
def _bitwise_not(call: Call) -> Tensor:
    graph, declared = call.graph, call.result().dtype
    value = _halves(graph, call.x(0))
    ones = np.iinfo(np.uint32 if declared == np.uint64 else declared).max if declared.kind == "u" else -1
    return _whole(graph, graph.binary("BITWISE_XOR", value, scalar(graph, ones, value)), declared)


@operator("BitwiseXor", rule=either)
def _bitwise_xor(call: Call) -> Tensor:
    left, right = (_halves(call.graph, one) for one in call.xs())
    return _whole(call.graph, call.graph.binary("BITWISE_XOR", left, right), call.result().dtype)


@operator("BitwiseAnd", "BitwiseOr", rule=either)
def _bitwise(call: Call) -> Tensor:
    """There is a kernel for exclusive or alone: ``a + b`` is ``(a ^ b) + 2 (a & b)``, and ``a | b`` is ``(a ^ b) + (a & b)``."""
    graph, declared = call.graph, call.result().dtype
    left, right = (graph.cast(_halves(graph, one), np.int32) for one in call.xs())
    both = _and_small(graph, left, right) if declared.itemsize <= 2 else _and(graph, left, right)
    made = both if call.node.kind == "BitwiseAnd" else graph.binary("ADD", graph.binary("BITWISE_XOR", left, right), both)
    return _whole(graph, graph.cast(made, np.uint32) if declared.name in ("uint32", "uint64") else made, declared)


def _halves(graph: Graph, value: Tensor) -> Tensor:
    """Returns numbers of 64 bits as two of 32 each, along one more axis."""
    if value.dtype != np.uint64:
        return value
    if value.data is not None:
        return graph.constant(np.ascontiguousarray(value.data)[..., None].view(np.uint32))
    return graph.add("BITCAST", [value], (*value.shape, 2), np.uint32)


def _whole(graph: Graph, value: Tensor, declared: np.dtype[Any]) -> Tensor:
    return graph.add("BITCAST", [value], value.shape[:-1], np.uint64) if declared == np.uint64 else value


def _and_small(graph: Graph, left: Tensor, right: Tensor) -> Tensor:
    """Of numbers whose sum has 32 bits."""
    double = graph.binary("SUB", graph.binary("ADD", left, right), graph.binary("BITWISE_XOR", left, right))
    return graph.binary("RIGHT_SHIFT", double, scalar(graph, 1, double))


def _and(graph: Graph, left: Tensor, right: Tensor) -> Tensor:
    """Of any numbers: their halves one by one."""
    bits, factor = scalar(graph, _HALF_BITS, left), scalar(graph, 1 << _HALF_BITS, left)
    high = [graph.binary("RIGHT_SHIFT", one, bits) for one in (left, right)]
    low = [graph.binary("SUB", one, graph.binary("MUL", part, factor)) for one, part in zip((left, right), high, strict=True)]
    return graph.binary("ADD", graph.binary("MUL", _and_small(graph, *high), factor), _and_small(graph, *low))


@operator("BitShift", rule=either, dtypes=WIDE)
def _bit_shift(call: Call) -> Tensor:
    """A shift by a negative number, or by more bits than there are, is one by all of them."""
    graph, declared = call.graph, call.result().dtype
    if declared == np.uint64:
        raise Unsupported("has no kernel for uint64")
    value, bits = call.xs()
    bits = graph.cast(bits, np.int32)
    return _left(graph, value, bits, declared) if call.attribute("direction") == "LEFT" else _right(graph, value, bits)


def _left(graph: Graph, value: Tensor, bits: Tensor, declared: np.dtype[Any]) -> Tensor:
    """Multiplies by a power out of a table, which begins and ends with zero for what is out of range."""
    powers = np.left_shift(np.uint32(1), np.arange(_LAST_BIT + 1, dtype=np.uint32)).view(np.int32)
    bounded = graph.binary("MINIMUM", graph.binary("MAXIMUM", bits, scalar(graph, -1, bits)), scalar(graph, _LAST_BIT + 1, bits))
    place = graph.binary("ADD", bounded, scalar(graph, 1, bits))
    factor = graph.add("GATHER", [graph.constant(np.pad(powers, 1)), place], place.shape, axis=0, batchDims=0)
    return narrowed(graph, graph.binary("MUL", graph.cast(value, np.int32), factor), declared)


def _right(graph: Graph, value: Tensor, bits: Tensor) -> Tensor:
    last = scalar(graph, _LAST_BIT, bits)
    negative = graph.binary("LESS", bits, scalar(graph, 0, bits), np.bool_)
    bounded = select(graph, negative, graph.constant(np.full((1,) * bits.rank, _LAST_BIT, np.int32)), graph.binary("MINIMUM", bits, last))
    made = graph.binary("RIGHT_SHIFT", value, graph.cast(bounded, value.dtype))
    if value.dtype != np.uint32:
        return made
    # Of these the last bit is one of the number's, and goes as well.
    gone = graph.binary("LOGICAL_OR", negative, graph.binary("GREATER", bits, last, np.bool_), np.bool_)
    return select(graph, gone, graph.constant(np.zeros((1,) * made.rank, np.uint32)), made)
