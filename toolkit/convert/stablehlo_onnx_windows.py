"""StableHLO to ONNX: convolutions, pools, sums and paddings."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from toolkit.convert import stablehlo
from toolkit.convert.onnx_graph import Graph, Tensor
from toolkit.convert.stablehlo_values import Unsupported, element_type, region_operator, shape_of, whole

_REDUCE = {"add": "ReduceSum", "multiply": "ReduceProd", "maximum": "ReduceMax", "minimum": "ReduceMin", "and": "ReduceMin", "or": "ReduceMax"}
_JOIN = {"add": "Add", "multiply": "Mul", "maximum": "Max", "minimum": "Min"}


def _convolution(graph: Graph, operation: Any) -> Tensor:
    if operation.attributes["batch_group_count"].value != 1:
        raise Unsupported("convolution with groups of batches", "has no ONNX counterpart")
    if "window_reversal" in operation.attributes and "true" in str(operation.attributes["window_reversal"]):
        raise Unsupported("convolution with a turned kernel", "has no ONNX counterpart")
    data_order, kernel_order, result_order = _orders(operation)
    data = graph.transpose(whole(graph, operation.operands[0]), data_order)
    kernel = graph.transpose(whole(graph, operation.operands[1]), kernel_order)
    shape, dtype = shape_of(operation.results[0]), element_type(operation.results[0])
    if dtype.kind != "f":
        raise Unsupported(f"convolution of {dtype}", "has no kernel in ONNX Runtime")
    wanted = [shape[axis] for axis in result_order]
    axes = len(wanted) - 2
    spread = stablehlo.numbers(operation, "lhs_dilation") or [1] * axes
    convolve = _transposed if max(spread) > 1 else _plain
    found = convolve(graph, operation, data, kernel, wanted)
    return graph.transpose(found, [result_order.index(axis) for axis in range(len(shape))])


def _orders(operation: Any) -> list[list[int]]:
    """Returns, for data, kernel and result, which axes are batch and channels (of a kernel: out and in), then the window's."""
    text = str(operation.attributes["dimension_numbers"])
    orders = []
    for listed, first in zip(re.findall(r"\[([^\]]*)\]", text), ("bf", "oi", "bf"), strict=True):
        names = listed.replace(" ", "").split(",")
        orders.append([names.index(name) for name in (*first, *map(str, range(len(names) - 2)))])
    return orders


def _plain(graph: Graph, operation: Any, data: Tensor, kernel: Tensor, wanted: list[int]) -> Tensor:
    axes = len(wanted) - 2
    pads = stablehlo.padding(operation) or [[0, 0]] * axes
    if min(min(pad) for pad in pads) < 0:
        data, pads = _pad(graph, data, [[0, 0], [0, 0], *pads]), [[0, 0]] * axes
    return graph.add(
        "Conv",
        [data, kernel],
        wanted,
        data.dtype,
        kernel_shape=list(kernel.shape[2:]),
        strides=stablehlo.numbers(operation, "window_strides") or [1] * axes,
        dilations=stablehlo.numbers(operation, "rhs_dilation") or [1] * axes,
        pads=[pad[side] for side in (0, 1) for pad in pads],
        group=operation.attributes["feature_group_count"].value,
    )


def _transposed(graph: Graph, operation: Any, data: Tensor, kernel: Tensor, wanted: list[int]) -> Tensor:
    """Spreading the data and convolving is what a ConvTranspose does with the kernel turned around, in and out swapped."""
    axes = len(wanted) - 2
    spread, dilations = stablehlo.numbers(operation, "lhs_dilation"), stablehlo.numbers(operation, "rhs_dilation") or [1] * axes
    if max(stablehlo.numbers(operation, "window_strides") or [1]) > 1 or kernel.constant is None:
        raise Unsupported("transposed convolution with strides or a computed kernel", "has no ONNX counterpart")
    groups = operation.attributes["feature_group_count"].value
    out, inner, *window = kernel.shape
    turned = np.flip(kernel.constant, tuple(range(2, axes + 2))).reshape(groups, out // groups, inner, *window)
    swapped = np.ascontiguousarray(turned.swapaxes(1, 2).reshape(groups * inner, out // groups, *window))
    given = stablehlo.padding(operation) or [[0, 0]] * axes
    reach = [(size - 1) * dilation for size, dilation in zip(window, dilations, strict=True)]
    cuts = [[far - before, far - after] for far, (before, after) in zip(reach, given, strict=True)]
    full = [(size - 1) * step + far + 1 for size, step, far in zip(data.shape[2:], spread, reach, strict=True)]
    pads = [[max(0, cut) for cut in pair] for pair in cuts]
    made = [size - sum(pad) for size, pad in zip(full, pads, strict=True)]
    found = graph.add(
        "ConvTranspose",
        [data, graph.constant(swapped)],
        [*wanted[:2], *made],
        data.dtype,
        kernel_shape=window,
        strides=spread,
        dilations=dilations,
        pads=[pad[side] for side in (0, 1) for pad in pads],
        group=groups,
    )
    return _pad(graph, found, [[0, 0], [0, 0], *([max(0, -cut) for cut in pair] for pair in cuts)])


def _pad(graph: Graph, value: Tensor, edges: list[list[int]], filling: Tensor | None = None) -> Tensor:
    """Adds numbers around a tensor, and cuts where an edge is negative."""
    if value.base is not None:
        inner = _pad(graph, value.base, [edges[place] for place in np.argsort(value.order)], filling)
        return graph.transpose(inner, value.order)
    starts = [max(0, -before) for before, _ in edges]
    ends = [size - max(0, -after) for size, (_, after) in zip(value.shape, edges, strict=True)]
    value = graph.slice(value, starts, ends, [1] * len(edges))
    wider = [max(0, edge[side]) for side in (0, 1) for edge in edges]
    if not any(wider):
        return value
    shape = [size + max(0, before) + max(0, after) for size, (before, after) in zip(value.shape, edges, strict=True)]
    filling = filling or graph.constant(0, value.dtype)
    return graph.add("Pad", [value, graph.integers(*wider), filling], shape, value.dtype, mode="constant")


def _padded(graph: Graph, operation: Any) -> Tensor:
    if any(stablehlo.numbers(operation, "interior_padding")):
        raise Unsupported("pad between the elements", "has no ONNX counterpart")
    low, high = (stablehlo.numbers(operation, f"edge_padding_{side}") for side in ("low", "high"))
    value, filling = (whole(graph, operand) for operand in operation.operands)
    if value.dtype == np.bool_:
        numbers = _pad(graph, graph.cast(value, np.int32), [list(pair) for pair in zip(low, high, strict=True)], graph.cast(filling, np.int32))
        return graph.cast(numbers, np.bool_)
    return _pad(graph, value, [list(pair) for pair in zip(low, high, strict=True)], filling)


def _identity(kind: str, dtype: np.dtype[Any]) -> Any:
    """The number that changes nothing in a sum, a product, a largest or a smallest."""
    if kind in ("add", "multiply"):
        return 0 if kind == "add" else 1
    if dtype == np.bool_:
        return kind in ("and", "minimum")
    if dtype.kind == "f":
        return -np.inf if kind == "maximum" else np.inf
    return np.iinfo(dtype).min if kind == "maximum" else np.iinfo(dtype).max


def _reduce(graph: Graph, operation: Any) -> Tensor | list[Tensor]:
    if len(operation.results) == 2:
        return _arg_max(graph, operation)
    kind, value = region_operator(operation), whole(graph, operation.operands[0])
    if kind not in _REDUCE or len(operation.results) != 1:
        raise Unsupported("reduce by a function of its own", "has no ONNX counterpart")
    dtype = value.dtype
    axes = stablehlo.numbers(operation, "dimensions")
    given = graph.cast(value, np.int32) if dtype == np.bool_ else value
    if not axes:
        return value
    found = _reduced(graph, _REDUCE[kind], given, axes)
    start = graph.values[operation.operands[1]]
    if start.constant is None or start.constant != _identity(kind, dtype):
        if kind not in _JOIN or dtype == np.bool_:
            raise Unsupported(f"reduce by {kind} from a start of its own", "has no ONNX counterpart")
        found = graph.elementwise(_JOIN[kind], [found, start], dtype)
    return graph.cast(found, dtype)


def _reduced(graph: Graph, operator: str, value: Tensor, axes: list[int]) -> Tensor:
    if value.base is not None:
        gone = [value.order[axis] for axis in axes]
        left = [axis for axis in range(len(value.shape)) if axis not in gone]
        order = [left.index(place) for axis, place in enumerate(value.order) if axis not in axes]
        return graph.transpose(_reduced(graph, operator, value.base, gone), order)
    shape = [size for axis, size in enumerate(value.shape) if axis not in axes]
    return graph.add(operator, [value, graph.integers(*axes)], shape, value.dtype, keepdims=0)


def _arg_max(graph: Graph, operation: Any) -> list[Tensor]:
    """A pair of reductions, of numbers and of their places, is a maximum and its place; which one says the first comparison."""
    value, place = whole(graph, operation.operands[0]), graph.values[operation.operands[1]]
    (axis,) = stablehlo.numbers(operation, "dimensions") or [0]
    compares = [inner.operation for inner in operation.regions[0].blocks[0].operations if inner.operation.name == "stablehlo.compare"]
    directions = [str(one.attributes["comparison_direction"]).split()[-1].rstrip(">") for one in compares]
    kind = next(({"GT": "Max", "LT": "Min"}[one] for one in directions if one in ("GT", "LT")), "")
    steps = None if place.constant is None else np.broadcast_to(place.constant, place.shape).reshape(-1)
    if not kind or steps is None or not np.array_equal(steps, np.arange(value.shape[axis])):
        raise Unsupported("reduce of several tensors", "has no ONNX counterpart")
    shape = shape_of(operation.results[0])
    best = graph.add(f"Reduce{kind}", [value, graph.integers(axis)], shape, value.dtype, keepdims=0)
    index = graph.add(f"Arg{kind}", [value], shape, np.int64, axis=axis, keepdims=0)
    return [best, graph.cast(index, element_type(operation.results[1]))]


def _reduce_window(graph: Graph, operation: Any) -> Tensor:
    kind, value = region_operator(operation), whole(graph, operation.operands[0])
    rank = len(value.shape)
    window = stablehlo.numbers(operation, "window_dimensions")
    steps = stablehlo.numbers(operation, "window_strides") or [1] * rank
    dilations = stablehlo.numbers(operation, "window_dilations") or [1] * rank
    pads = stablehlo.padding(operation) or [[0, 0]] * rank
    start = graph.values[operation.operands[1]].constant
    if kind not in ("add", "maximum", "minimum") or start is None or max(stablehlo.numbers(operation, "base_dilations") or [1]) > 1:
        raise Unsupported(f"reduce_window by {kind or 'a function of its own'}", "has no ONNX counterpart")
    running = kind == "add" and start == 0 and _is_running(window, value.shape, pads)
    if not running and (start != _identity(kind, value.dtype) or value.dtype.kind != "f"):
        raise Unsupported(f"reduce_window by {kind} of {value.dtype} from {start}", "has no ONNX counterpart")
    axes = [axis for axis in range(rank) if window[axis] > 1 or steps[axis] > 1 or any(pads[axis])]
    if running:
        return graph.add("CumSum", [value, graph.constant(axes[0], np.int64)], value.shape, value.dtype)
    if not axes:
        return value
    return _pool(graph, operation, kind, value, [(window[axis], steps[axis], dilations[axis], pads[axis], axis) for axis in axes])


def _is_running(window: list[int], shape: tuple[int, ...], pads: list[list[int]]) -> bool:
    """Whether a window that ends at every element reaches back to the first one, along one axis."""
    moved = [axis for axis, size in enumerate(window) if size > 1]
    return len(moved) == 1 and window[moved[0]] == shape[moved[0]] and pads[moved[0]] == [window[moved[0]] - 1, 0]


def _pool(graph: Graph, operation: Any, kind: str, value: Tensor, windows: list[tuple[int, int, int, list[int], int]]) -> Tensor:
    sizes, steps, dilations, pads, axes = (list(column) for column in zip(*windows, strict=True))
    rest = [axis for axis in range(len(value.shape)) if axis not in axes]
    order = rest + axes
    shape = shape_of(operation.results[0])
    moved = graph.transpose(value, order)
    if kind == "minimum":
        moved = graph.elementwise("Neg", [moved], value.dtype)
    outer = [moved.shape[0], int(np.prod(moved.shape[1 : len(rest)]))] if len(rest) > 1 else [1, *moved.shape[: len(rest)]] if rest else [1, 1]
    moved = graph.reshape(moved, [*outer, *(value.shape[axis] for axis in axes)])
    wanted = [*outer, *(shape[axis] for axis in axes)]
    facts = {"kernel_shape": sizes, "strides": steps, "dilations": dilations, "pads": [pad[side] for side in (0, 1) for pad in pads]}

    def back(found: Tensor) -> Tensor:
        found = graph.reshape(found, [shape[axis] for axis in order])
        return graph.transpose(found, [order.index(axis) for axis in range(len(shape))])

    if kind == "add":
        mean = back(graph.add("AveragePool", [moved], wanted, value.dtype, count_include_pad=1, **facts))
        total = graph.elementwise("Mul", [mean, graph.constant(np.prod(sizes), value.dtype)], value.dtype)
        graph.shared.means[(total.base or total).name] = (mean, int(np.prod(sizes)))
        return total
    found = graph.add("MaxPool", [moved], wanted, value.dtype, **facts)
    return back(graph.elementwise("Neg", [found], value.dtype) if kind == "minimum" else found)


def mean_of(graph: Graph, total: Tensor, count: Tensor) -> Tensor | None:
    """Returns the mean of a pool where its sum is divided by the window's size, and ``None`` for other quotients."""
    mean, size = graph.shared.means.get((total.base or total).name, (None, 0))
    return mean if mean is not None and count.constant is not None and count.constant.size and np.all(count.constant == size) else None


OPERATORS: dict[str, Callable[[Graph, Any], Tensor | list[Tensor]]] = {
    "convolution": _convolution,
    "pad": _padded,
    "reduce": _reduce,
    "reduce_window": _reduce_window,
}
