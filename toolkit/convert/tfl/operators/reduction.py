"""Sums, means, extremes and norms over axes, the places of extremes, running sums, and the greatest of an axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from toolkit.convert.tfl.facts import COMMON, FLOATS, WIDE
from toolkit.convert.tfl.graph import Graph, Tensor
from toolkit.convert.tfl.layout import Demand
from toolkit.convert.tfl.lower import Call, channels_first, either, operator
from toolkit.convert.tfl.operators.activation import along, at_the_end
from toolkit.convert.tfl.operators.elementwise import floating, ordered, restored, scalar, widened
from toolkit.convert.tfl.program import Node, Program, Unsupported

_KINDS = {"ReduceSum": "SUM", "ReduceMax": "REDUCE_MAX", "ReduceMin": "REDUCE_MIN", "ReduceProd": "REDUCE_PROD"}
_OF_TRUTHS = {"REDUCE_MAX": "REDUCE_ANY", "REDUCE_MIN": "REDUCE_ALL"}
_INT32 = 2  # schema.TensorType
_LEFT = "constant axes; noop_with_empty_axes only where there are axes"


def reducing(node: Node, program: Program) -> Demand:
    """Any layout will do for what is read; what has lost axes is given in ONNX's order."""
    demand = either(node, program)
    if node.attributes.get("keepdims", 1):
        return demand
    read = channels_first(node, program).inputs[:1]
    return Demand(None if read else "first", read, ())


class _Axes:
    """The axes that one call reduces.

    Attributes:
        call: The call.
        rank: How many axes its input has.
        places: Where those are that are reduced, in the node's layout.
        keep: Whether the output has them, with one element each.
    """

    def __init__(self, call: Call, axes: Sequence[int] | None) -> None:
        self.call, self.rank = call, len(call.type(0).shape)
        self.places = sorted({call.axis(axis, self.rank) for axis in (axes or range(self.rank))})
        self.keep = bool(call.attribute("keepdims", 1))

    def left(self, value: Tensor, *, keep: bool) -> tuple[int, ...]:
        """Returns the sizes that are left of a tensor."""
        kept = [1] if keep else []
        return tuple(one for place, size in enumerate(value.shape) for one in (kept if place in self.places else [size]))

    def reduce(self, kind: str, value: Tensor, *, keep: bool | None = None) -> Tensor:
        """Reduces a tensor."""
        keep = self.keep if keep is None else keep
        shape = self.left(value, keep=keep)
        if 0 in value.shape and 0 not in shape:
            return self.call.graph.constant(np.full(shape, _of_nothing(kind, self.call.result().dtype), value.dtype))
        if value.rank == 0:  # there is nothing to reduce
            return value
        return self.call.graph.add(kind, [value, self.call.graph.integers(self.places)], shape, keepDims=keep)

    def finish(self, value: Tensor) -> Tensor:
        """Brings the axes that are left into ONNX's order, unless the output has all of them and so the node's layout."""
        if self.keep:
            return value
        order = self.call.order(self.rank)
        left = [place for place in range(self.rank) if place not in self.places]
        return self.call.graph.transpose(value, np.argsort([order[place] for place in left]).tolist())

    def count(self) -> int:
        """How many elements each result is made of."""
        shape = self.call.ordered(self.call.type(0).shape)
        return int(np.prod(self.call.known([shape[place] for place in self.places], "the size of a reduced axis")))


def _of_nothing(kind: str, declared: np.dtype[Any]) -> Any:
    """What a reduction of no elements is, in ONNX."""
    if kind in ("SUM", "REDUCE_PROD", "REDUCE_ANY", "REDUCE_ALL"):
        return kind in ("REDUCE_PROD", "REDUCE_ALL")
    if kind == "MEAN":
        raise Unsupported("takes the mean of nothing")
    if declared.kind == "f":
        return -np.inf if kind == "REDUCE_MAX" else np.inf
    limits = np.iinfo(declared)
    return limits.min if kind == "REDUCE_MAX" else limits.max


@operator(*_KINDS, rule=reducing, dtypes=WIDE, limits="constant axes")
@operator("ReduceMean", rule=reducing, dtypes=COMMON, limits="constant axes; not of no elements")
@operator("ReduceL1", "ReduceSumSquare", rule=reducing, dtypes=WIDE, limits=_LEFT)
@operator("ReduceL2", "ReduceLogSum", "ReduceLogSumExp", rule=reducing, dtypes=FLOATS, limits=_LEFT)
def _reduce(call: Call) -> Tensor:
    kind, axes = call.node.kind, call.numbers(1, "axes")
    found = _Axes(call, axes)
    if not axes and call.attribute("noop_with_empty_axes", 0):
        if kind not in (*_KINDS, "ReduceMean"):
            raise Unsupported("has no axes, and the attribute that says to leave its input as it is")
        found.places = []
        return found.finish(call.x(0))
    value = widened(call.graph, call.x(0))
    return restored(call.graph, found.finish(_reduced(call, kind, value, found)), call.result().dtype)


def _reduced(call: Call, kind: str, value: Tensor, axes: _Axes) -> Tensor:
    graph = call.graph
    if kind in _KINDS:
        return axes.reduce(_OF_TRUTHS[_KINDS[kind]] if value.dtype == np.bool_ else _KINDS[kind], value)
    if kind == "ReduceMean":
        if value.dtype == np.int64:
            raise Unsupported("has no kernel for uint32")
        return axes.reduce("MEAN", value)
    if kind == "ReduceL1":
        return axes.reduce("SUM", value if call.type(0).dtype.kind == "u" else graph.unary("ABS", value))
    if kind == "ReduceSumSquare":
        return axes.reduce("SUM", graph.binary("MUL", value, value))
    value = floating(value)
    if kind == "ReduceL2":
        return graph.unary("SQRT", axes.reduce("SUM", graph.binary("MUL", value, value)))
    return graph.unary("LOG", axes.reduce("SUM", value)) if kind == "ReduceLogSum" else _log_sum_exp(graph, value, axes)


def _log_sum_exp(graph: Graph, value: Tensor, axes: _Axes) -> Tensor:
    """The greatest is taken off first, so that nothing overflows; it is finite, so that no infinity is taken from another."""
    limit = float(np.finfo(np.float32).max)
    greatest = axes.reduce("REDUCE_MAX", value, keep=True)
    greatest = graph.binary("MAXIMUM", graph.binary("MINIMUM", greatest, scalar(graph, limit, value)), scalar(graph, -limit, value))
    total = axes.reduce("SUM", graph.unary("EXP", graph.binary("SUB", value, greatest)))
    return graph.binary("ADD", graph.unary("LOG", total), graph.reshape(greatest, total.shape))


@operator("ArgMax", "ArgMin", rule=reducing, dtypes=COMMON)
def _extreme_place(call: Call) -> Tensor:
    graph, value = call.graph, call.x(0)
    if value.dtype.kind == "u":
        raise Unsupported(f"has no kernel for {value.dtype}")
    axes = _Axes(call, [call.attribute("axis", 0)])
    (place,) = axes.places
    last = bool(call.attribute("select_last_index", 0))
    if last:
        value = graph.add("REVERSE_V2", [value, graph.integers([place])], value.shape)
    kind = "ARG_MAX" if call.node.kind == "ArgMax" else "ARG_MIN"
    found = graph.add(kind, [value, graph.constant(place, np.int32)], axes.left(value, keep=False), np.int32, outputType=_INT32)
    if last:
        found = graph.binary("SUB", scalar(graph, axes.count() - 1, found), found)
    return graph.reshape(found, axes.left(value, keep=True)) if axes.keep else axes.finish(found)


@operator("CumSum", rule=either, limits="a constant axis")
def _cumulative(call: Call) -> Tensor:
    graph, value = call.graph, widened(call.graph, call.x(0))
    place = call.axis(int(call.constant(1).reshape(-1)[0]), value.rank)
    options = {name: bool(call.attribute(name, 0)) for name in ("exclusive", "reverse")}
    made = graph.add("CUMSUM", [value, graph.constant(place, np.int32)], value.shape, **options)
    return restored(graph, made, call.result().dtype)


@operator("TopK", rule=along(), limits="a constant k")
def _top(call: Call) -> list[Tensor]:
    graph, value = call.graph, ordered(call.graph, call.x(0))
    count = int(call.number(1, "k"))
    value, back = at_the_end(graph, value, call.axis(call.attribute("axis", -1), value.rank))
    largest = bool(call.attribute("largest", 1))
    shape = (*value.shape[:-1], count)
    given = value if largest else _reversed(graph, value)
    found, places = graph.add_many("TOPK_V2", [given, graph.constant(count, np.int32)], [(shape, None), (shape, np.int32)])
    found = restored(graph, found if largest else _reversed(graph, found), call.result().dtype, moved=True)
    return [graph.transpose(one, back) for one in (found, places)]


def _reversed(graph: Graph, value: Tensor) -> Tensor:
    """Turns the order of numbers around; of integers so that the least has a counterpart."""
    return graph.unary("NEG", value) if value.dtype.kind == "f" else graph.binary("SUB", scalar(graph, -1, value), value)
