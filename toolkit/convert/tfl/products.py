"""Makes products of two matrices cheaper: one factor instead of two, and no transpose that the kernel does by itself."""

from __future__ import annotations

import numpy as np

from toolkit.convert.tfl.affine import split
from toolkit.convert.tfl.graph import Graph, Operator, Tensor, makers_of, readers_of


def fold(graph: Graph) -> bool:
    """Folds what it can, in place; returns whether there was anything."""
    makers, readers, changed = makers_of(graph), readers_of(graph), False
    for operator in list(graph.operators):
        if operator.kind == "BATCH_MATMUL" and operator.inputs[0] is not operator.inputs[1]:
            changed |= (
                _one_factor(graph, operator, makers, readers) or _turn(graph, operator, makers, readers) or _turn_matrices(graph, operator, makers)
            )
    return changed


def _one_factor(graph: Graph, operator: Operator, makers: dict[int, Operator], readers: dict[int, int]) -> bool:
    """Multiplies one side by both factors: attention has the root of its scale on queries and keys."""
    left, right = (_scaled(one, makers, readers) for one in operator.inputs)
    if left is None or right is None:
        return False
    (kept, value, first), (dropped, other, second) = left, right
    factor = graph.constant(np.float32(first * second))
    kept.inputs = [value, factor]
    for reader in graph.operators:
        if dropped.outputs[0] in reader.inputs:
            reader.inputs = [other if one is dropped.outputs[0] else one for one in reader.inputs]
    graph.operators.remove(dropped)
    return True


def _scaled(value: Tensor | None, makers: dict[int, Operator], readers: dict[int, int]) -> tuple[Operator, Tensor, float] | None:
    """Returns the product with a number that a side is made by, be it before a transpose, what it is of, and the number."""
    maker = makers.get(id(value))
    while maker is not None and maker.kind in ("TRANSPOSE", "RESHAPE") and readers[id(maker.outputs[0])] == 1:
        maker = makers.get(id(maker.inputs[0]))
    if maker is None or maker.kind != "MUL" or readers[id(maker.outputs[0])] != 1 or maker.outputs[0].dtype != np.float32:
        return None
    source, constant = split(maker)
    if source is None or constant is None or constant.data is None or constant.size != 1:
        return None
    return maker, source, float(constant.data.reshape(-1)[0])


def _turn(graph: Graph, operator: Operator, makers: dict[int, Operator], readers: dict[int, int]) -> bool:
    """Lets the kernel turn the second matrix where a transpose moved its columns: what is left of that moves whole rows, or nothing."""
    right = operator.inputs[1]
    maker = makers.get(id(right))
    if right is None or maker is None or maker.kind != "TRANSPOSE" or readers[id(right)] != 1 or right.quantization is not None:
        return False
    order_tensor = maker.inputs[1]
    assert order_tensor is not None and order_tensor.data is not None
    order = [int(axis) for axis in order_tensor.data]
    swapped = [*order[:-2], order[-1], order[-2]]
    if order[-1] == right.rank - 1 or swapped[-1] != right.rank - 1:
        return False
    turned = Tensor(right.name, (*right.shape[:-2], right.shape[-1], right.shape[-2]), right.dtype)
    maker.inputs = [maker.inputs[0], graph.integers(swapped)]
    maker.outputs = [turned]
    operator.inputs = [operator.inputs[0], turned]
    operator.options["adjY"] = not operator.options.get("adjY", False)
    makers[id(turned)] = maker
    readers[id(turned)] = 1
    return True


def _turn_matrices(graph: Graph, operator: Operator, makers: dict[int, Operator]) -> bool:
    """The same where the transpose is of matrices in a row, and a reshape behind it puts their axes back."""
    right = operator.inputs[1]
    back = makers.get(id(right))
    turn = makers.get(id(back.inputs[0])) if back is not None and back.kind == "RESHAPE" else None
    source = turn.inputs[0] if turn is not None and turn.kind == "TRANSPOSE" else None
    if right is None or turn is None or source is None or right.quantization is not None or right.shape[-2:] != turn.outputs[0].shape[-2:]:
        return False
    order = turn.inputs[1]
    assert order is not None and order.data is not None
    if list(order.data) != [*range(source.rank - 2), source.rank - 1, source.rank - 2]:
        return False
    shape = (*right.shape[:-2], *source.shape[-2:])
    turned = Tensor(right.name, shape, right.dtype)
    made = Operator("RESHAPE", [source, graph.integers(shape)], [turned], {"newShape": list(shape)}, origin=turn.origin)
    graph.operators.insert(graph.operators.index(operator), made)
    operator.inputs = [operator.inputs[0], turned]
    operator.options["adjY"] = not operator.options.get("adjY", False)
    makers[id(turned)] = made
    return True
