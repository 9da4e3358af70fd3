"""Writes groups of ONNX nodes as the one operator that they are: what XLA splits, runtimes have a kernel for.

A mean is a sum and a quotient in StableHLO, a softmax seven operators, a layer normalization fifteen, a look-up in a table fourteen; and
what multiplies or is added after a convolution with constant weights is a part of these. Specification: https://onnx.ai/onnx/operators
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from toolkit.convert.onnx_graph import Graph, Tensor, needed

_LEAST_RANK = 2


def fuse(graph: Graph, outputs: Sequence[Tensor]) -> None:
    """Changes the nodes of a graph in place; what ``outputs`` do not need any longer is left out.

    Args:
        graph: The main graph, complete but for the names of its outputs.
        outputs: Its outputs.
    """
    kept = {graph.name(tensor) for tensor in outputs}
    for step in (_kept_axes, _means, _look_ups, _layer_norms, _softmaxes, _kept_axes, _biases_before_splits, _weights):
        step(_View(graph, kept))
        graph.nodes[:] = needed(graph.nodes, kept)


class _View:
    """What a step knows of the nodes: who makes a tensor, who reads it, its constant, its sizes."""

    def __init__(self, graph: Graph, kept: set[str]) -> None:
        self.graph = graph
        self._made = {name: node for node in graph.nodes for name in node.output}
        self._readers: dict[str, int] = dict.fromkeys(kept, 1)
        for node in needed(graph.nodes, kept):
            for name in (*node.input, *_inner_reads(node)):
                self._readers[name] = self._readers.get(name, 0) + 1

    def made(self, name: str, *operators: str) -> Any:
        """The node of one of these kinds that makes a tensor, or ``None``."""
        node = self._made.get(name)
        return node if node is not None and node.op_type in operators else None

    def constant(self, name: str) -> np.ndarray | None:
        from onnx import numpy_helper

        tensor = self.graph.shared.initializers.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)

    def number(self, name: str) -> float | None:
        """The one number that a constant repeats, or ``None``."""
        found = self.constant(name)
        return float(found.flat[0]) if found is not None and found.size and np.all(found == found.flat[0]) else None

    def shape(self, name: str) -> tuple[int, ...]:
        found = self.constant(name)
        return self.graph.shared.shapes.get(name, ()) if found is None else found.shape

    def is_read_once(self, name: str) -> bool:
        """Whether one node reads a tensor; what this step has made itself has one reader."""
        return self._readers.get(name, 1) == 1

    def store(self, array: np.ndarray) -> str:
        return self.graph.name(self.graph.constant(array))

    def axes(self, node: Any) -> list[int]:
        """The axes of a reduction."""
        found = self.constant(node.input[1]) if len(node.input) > 1 else None
        return [] if found is None else [int(axis) for axis in found.reshape(-1)]

    def pairs(self, node: Any) -> list[tuple[str, str]]:
        """Both orders of the operands of a sum, a product or a maximum."""
        left, right = node.input
        return [(left, right), (right, left)]

    def unkept(self, name: str) -> str:
        """What has the values of a tensor whose last axis has size 1, perhaps without that axis; empty for other tensors."""
        if self.shape(name)[-1:] != (1,):
            return ""
        reshape = self.made(name, "Reshape")
        return str(reshape.input[0]) if reshape is not None and self.shape(name) == (*self.shape(reshape.input[0]), 1) else name


def _inner_reads(node: Any) -> set[str]:
    from toolkit.convert.onnx_graph import reads

    return reads(node) - set(node.input)


def _become(view: _View, node: Any, operator: str, inputs: Sequence[str], **attributes: Any) -> None:
    """Makes another operator of a node, in the same layer and with the same output."""
    from onnx import helper

    view.graph.shared.layer = node.name.rpartition("/")[0]
    node.CopyFrom(helper.make_node(operator, list(inputs), list(node.output), name=view.graph.new_name(operator), **attributes))


def _means(view: _View) -> None:
    for node in view.graph.nodes:
        if node.op_type != "Div" or (total := view.made(node.input[0], "ReduceSum")) is None:
            continue
        shape = view.shape(total.input[0])
        count = int(np.prod([shape[axis] for axis in view.axes(total)]))
        if view.number(node.input[1]) == count and view.shape(node.output[0]) == view.shape(total.output[0]):
            keepdims = next(attribute.i for attribute in total.attribute if attribute.name == "keepdims")
            _become(view, node, "ReduceMean", total.input, keepdims=keepdims)


def _softmaxes(view: _View) -> None:
    for node in view.graph.nodes:
        if node.op_type != "Div" or (power := view.made(node.input[0], "Exp")) is None:
            continue
        below = view.made(power.input[0], "Sub")
        total = view.made(view.unkept(node.input[1]), "ReduceSum")
        if below is None or total is None or total.input[0] != power.output[0]:
            continue
        last = [len(view.shape(power.output[0])) - 1]
        largest = _largest(view, below.input[1])
        if largest is not None and largest.input[0] == below.input[0] and view.axes(largest) == last == view.axes(total):
            _become(view, node, "Softmax", [below.input[0]], axis=-1)


def _largest(view: _View, name: str) -> Any:
    """The maximum along the last axis, of which JAX takes the maximum with minus infinity once more."""
    inner = view.unkept(name)
    again = view.made(inner, "Max")
    for one, other in view.pairs(again) if again is not None else []:
        if view.number(other) == -np.inf:
            inner = one
    return view.made(inner, "ReduceMax")


def _layer_norms(view: _View) -> None:
    for node in reversed(view.graph.nodes):  # a product of three has a product of two inside
        for product, shift in [*view.pairs(node), (node.output[0], "")] if node.op_type in ("Add", "Mul") else []:
            found = _normalized(view, product)
            bias = view.constant(shift) if shift else np.zeros(1, np.float32)
            if found is None or bias is None or (shift and node.op_type == "Mul"):
                continue
            source, scale, epsilon = found
            width = view.shape(source)[-1:]
            if len(width) == 1 and max(scale.size, bias.size) <= width[0] and view.shape(node.output[0]) == view.shape(source):
                vectors = [view.store(np.array(np.broadcast_to(array.reshape(-1), width))) for array in (scale, bias)]
                _become(view, node, "LayerNormalization", [source, *vectors], axis=-1, epsilon=epsilon)
                break


def _normalized(view: _View, name: str) -> tuple[str, np.ndarray, float] | None:
    """What ``(x - mean) / sqrt(variance + epsilon) * scale`` is made of, however its product is grouped: x, scale, epsilon."""
    factors = _factors(view, name)
    scale = np.ones(1, np.float32)
    source, spread = "", None
    for factor in factors:
        constant, root = view.constant(factor), view.made(factor, "Reciprocal")
        if constant is not None:
            scale = scale * constant
        elif root is not None and spread is None:
            spread = _epsilon(view, root)
        elif not source:
            source = _centred(view, factor)
        else:
            return None
    if spread is None or not source or spread[0] != source:
        return None
    return source, scale.astype(np.float32), spread[1]


def _factors(view: _View, name: str) -> list[str]:
    product = view.made(name, "Mul")
    return [name] if product is None else [factor for one in product.input for factor in _factors(view, one)]


def _epsilon(view: _View, reciprocal: Any) -> tuple[str, float] | None:
    """The tensor whose variance is under a root, and what is added to it."""
    root = view.made(reciprocal.input[0], "Sqrt")
    total = view.made(root.input[0], "Add") if root is not None else None
    for variance, added in view.pairs(total) if total is not None else []:
        epsilon, source = view.number(added), _of_variance(view, variance)
        if epsilon is not None and source:
            return source, epsilon
    return None


def _of_variance(view: _View, name: str) -> str:
    """The tensor whose variance along the last axis this is: the mean of squared deviations, or of squares without the squared mean."""
    inner = view.unkept(name)
    positive = view.made(inner, "Relu")
    inner = positive.input[0] if positive is not None else inner
    difference = view.made(inner, "Sub")
    if difference is None:
        return _centred(view, _square_root(view, _mean_along_last(view, inner)))
    source = _square_root(view, _mean_along_last(view, difference.input[0]))
    mean = _square_root(view, difference.input[1])
    return source if source and _mean_along_last(view, mean) == source else ""


def _centred(view: _View, name: str) -> str:
    """The tensor that is left when its mean along the last axis is taken from it."""
    difference = view.made(name, "Sub")
    if difference is None:
        return ""
    source, mean = difference.input
    return source if _mean_along_last(view, view.unkept(mean)) == source else ""


def _mean_along_last(view: _View, name: str) -> str:
    mean = view.made(name, "ReduceMean")
    return mean.input[0] if mean is not None and view.axes(mean) == [len(view.shape(mean.input[0])) - 1] else ""


def _square_root(view: _View, name: str) -> str:
    product = view.made(name, "Mul")
    return product.input[0] if product is not None and product.input[0] == product.input[1] else ""


def _look_ups(view: _View) -> None:
    """A row that is not in the table is NaN: that becomes a row of the table, to which indices on either side lead."""
    for node in view.graph.nodes:
        if node.op_type != "Where" or (gather := view.made(node.input[1], "Gather")) is None:
            continue
        table, missing = view.constant(gather.input[0]), view.constant(node.input[2])
        if table is None or missing is None or table.dtype.kind != "f" or not np.isnan(missing).all() or not view.is_read_once(gather.input[0]):
            continue
        clamped, places = _clamped(view, gather.input[1], len(table) - 1)
        if clamped is None or _checked(view, node.input[0], len(table) - 1) != places or view.shape(node.output[0]) != view.shape(gather.output[0]):
            continue
        dtype = view.constant(clamped.input[1]).dtype  # type: ignore[union-attr]  # found to be a constant by _clamped
        nowhere = np.full((1, *table.shape[1:]), np.nan, table.dtype)
        rows = view.store(np.concatenate([table, nowhere]))
        low = view.made(clamped.input[0], "Min")
        low.input[1] = view.store(np.array(len(table), dtype))
        clamped.input[1] = view.store(np.array(-1, dtype))  # the last row
        _become(view, node, "Gather", [rows, gather.input[1]], axis=0)


def _clamped(view: _View, name: str, last: int) -> tuple[Any, str]:
    """The node that keeps indices between 0 and ``last``, and the indices as they were."""
    inner = _without(view, name, "Reshape")
    high = view.made(inner, "Max")
    low = view.made(high.input[0], "Min") if high is not None else None
    if low is None or view.number(high.input[1]) != 0 or view.number(low.input[1]) != last:
        return None, ""
    alone = view.is_read_once(high.output[0]) and view.is_read_once(low.output[0])
    return (high if alone else None), _without(view, low.input[0], "Reshape", "Cast")


def _checked(view: _View, name: str, last: int) -> str:
    """The indices of which a condition says that they are between 0 and ``last``."""
    least = view.made(_without(view, name, "Reshape", "Cast"), "ReduceMin")
    both = view.made(_without(view, least.input[0], "Reshape", "Cast") if least is not None else "", "And")
    if both is None:
        return ""
    low, high = view.made(both.input[0], "GreaterOrEqual"), view.made(both.input[1], "LessOrEqual")
    if low is None or high is None or low.input[0] != high.input[0] or view.number(low.input[1]) != 0 or view.number(high.input[1]) != last:
        return ""
    return _without(view, low.input[0], "Reshape", "Cast")


def _without(view: _View, name: str, *operators: str) -> str:
    """The tensor before operators that only change its shape or type."""
    while (node := view.made(name, *operators)) is not None:
        name = node.input[0]
    return name


def _kept_axes(view: _View) -> None:
    """A reduction keeps its axis itself, where nothing reads it without."""
    for node in view.graph.nodes:
        if node.op_type != "Reshape" or (total := view.made(node.input[0], "ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin")) is None:
            continue
        shape = view.shape(total.input[0])
        kept = tuple(1 if axis in view.axes(total) else size for axis, size in enumerate(shape))
        if view.shape(node.output[0]) == kept and view.is_read_once(total.output[0]) and len(total.input) > 1:
            _become(view, node, total.op_type, total.input, keepdims=1)


def _biases_before_splits(view: _View) -> None:
    """A bias by head is added before the heads are told apart, where runtimes take it into the product."""
    from onnx import helper

    nodes = []
    for node in view.graph.nodes:
        reshape = view.made(node.input[0], "Reshape") if node.op_type == "Add" else None
        bias = _bias_of_split(view, node, reshape) if reshape is not None else None
        if reshape is not None and bias is not None:
            product, name = reshape.input[0], view.graph.new_name("Add")
            nodes.append(helper.make_node("Add", [product, view.store(bias)], [name], name=name))
            view.graph.shared.shapes[name] = view.shape(product)
            _become(view, node, "Reshape", [name, reshape.input[1]])
        nodes.append(node)
    view.graph.nodes[:] = nodes


def _bias_of_split(view: _View, total: Any, reshape: Any) -> np.ndarray | None:
    """A constant that is added to a product's split columns, as one number a column; ``None`` where it is something else."""
    product, bias = view.made(reshape.input[0], "MatMul"), view.constant(total.input[1])
    if product is None or bias is None or not view.is_read_once(reshape.output[0]) or not view.is_read_once(product.output[0]):
        return None
    width, shape = view.shape(product.output[0])[-1], view.shape(reshape.output[0])
    parts = [size for size in bias.shape if size > 1] or [1]
    fits = bias.size == width and list(shape[-len(parts) :]) == parts and view.shape(total.output[0]) == shape
    return bias.reshape(-1) if fits else None


def _weights(view: _View) -> None:
    """Takes factors and sums by channel into the weights of the convolution before them, and factors into a matrix."""
    for node in view.graph.nodes:
        if node.op_type not in ("Mul", "Add", "Div"):
            continue
        given, constant = node.input[0], view.constant(node.input[1])
        source = view.made(given, "Conv", "MatMul")
        if source is None or constant is None or not view.is_read_once(given) or view.shape(node.output[0]) != view.shape(given):
            continue
        weights = view.constant(source.input[1])
        channels = _by_channel(constant, view.shape(given), source.op_type)
        if weights is None or channels is None or not view.is_read_once(source.input[1]):
            continue
        if node.op_type == "Add" and source.op_type == "MatMul":
            continue  # runtimes do that themselves
        _absorb(view, node, source, weights, channels)


def _absorb(view: _View, node: Any, source: Any, weights: np.ndarray, channels: np.ndarray) -> None:
    bias = view.constant(source.input[2]) if len(source.input) > 2 else None
    if node.op_type == "Add":
        bias = channels if bias is None else bias + channels
    else:
        factor = channels if node.op_type == "Mul" else 1 / channels
        weights = weights * (factor.reshape(-1, *[1] * (weights.ndim - 1)) if source.op_type == "Conv" else factor)
        bias = None if bias is None else bias * factor
    inputs = [source.input[0], view.store(weights), *([] if bias is None else [view.store(bias)])]
    output = list(node.output)
    node.CopyFrom(source)  # the convolution's own name and attributes
    node.input[:], node.output[:] = inputs, output


def _by_channel(constant: np.ndarray, shape: Sequence[int], operator: str) -> np.ndarray | None:
    """A constant as one number for each channel, ``[c]``; ``None`` where it differs within a channel."""
    place = 1 if operator == "Conv" else len(shape) - 1
    if len(shape) < _LEAST_RANK or constant.ndim > len(shape):
        return None
    full = (*[1] * (len(shape) - constant.ndim), *constant.shape)
    if any(size > 1 for axis, size in enumerate(full) if axis != place):
        return None
    return np.array(np.broadcast_to(constant.reshape(-1), (shape[place],)))
