"""Makes a lowered graph smaller: dead operators, activations that kernels apply themselves, products and sums that weights can take."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from toolkit.convert.tfl.graph import Graph, Operator, Tensor

_ACTIVATIONS = {"RELU": 1, "RELU_N1_TO_1": 2, "RELU6": 3}  # schema.ActivationFunctionType
_ACTIVATED = {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "ADD", "SUB", "MUL", "DIV", "AVERAGE_POOL_2D", "MAX_POOL_2D"}
# Where the channels of a filter's outputs are.
_WEIGHTED = {"CONV_2D": 0, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 0}


def clean(graph: Graph) -> None:
    """Cleans a graph in place, and those inside it."""
    for operator in graph.operators:
        for inner in operator.graphs:
            clean(inner)
    _drop_dead(graph)
    while _fold_affine(graph) or _join(graph):
        _drop_dead(graph)
    _activate(graph)
    _pad_with_zeros(graph)
    _drop_dead(graph)


def _pad_with_zeros(graph: Graph) -> None:
    """Pads what is never negative with zeros before its maximum is taken: PAD is delegated, PADV2 with the lowest number is not."""
    makers = _makers(graph)
    for operator in graph.operators:
        if operator.kind != "PADV2":
            continue
        readers = [one for one in graph.operators if operator.outputs[0] in one.inputs]
        before, border = makers.get(id(operator.inputs[0])), operator.inputs[2]
        positive = before is not None and (before.kind in ("RELU", "RELU6") or before.options.get("fusedActivationFunction") in (1, 3))
        lowest = border is not None and border.data is not None and float(border.data.reshape(-1)[0]) <= np.finfo(np.float32).min
        pooled = readers and all(one.kind == "MAX_POOL_2D" for one in readers) and operator.outputs[0] not in graph.outputs
        if positive and lowest and pooled:
            operator.kind, operator.inputs = "PAD", operator.inputs[:2]


def _readers(graph: Graph) -> Counter[int]:
    found = Counter(id(one) for operator in graph.operators for one in operator.inputs if one is not None)
    found.update(id(one) for one in graph.outputs)
    return found


def _makers(graph: Graph) -> dict[int, Operator]:
    return {id(one): operator for operator in graph.operators for one in operator.outputs}


def _drop_dead(graph: Graph) -> None:
    used = {id(one) for one in graph.outputs}
    kept = []
    for operator in reversed(graph.operators):
        if any(id(one) in used for one in operator.outputs):
            kept.append(operator)
            used |= {id(one) for one in operator.inputs if one is not None}
    graph.operators = kept[::-1]


def _fold_affine(graph: Graph) -> bool:
    """Lets weights and biases take a product or a sum with constants, one for each channel, that follows."""
    readers, makers, changed = _readers(graph), _makers(graph), False
    for operator in graph.operators:
        if operator.kind not in ("MUL", "ADD", "SUB") or operator.options.get("fusedActivationFunction"):
            continue
        value, constant = _split(operator)
        before = makers.get(id(value)) if value is not None else None
        if before is None or before.kind not in _WEIGHTED or readers[id(value)] > 1 or before.options.get("fusedActivationFunction"):
            continue
        if constant is None or value is None or operator.outputs[0].shape != value.shape or value.dtype != np.float32:
            continue
        factors = _per_channel(constant, value.shape)
        if factors is None or not _take(graph, before, operator, factors):
            continue
        before.outputs[0] = operator.outputs[0]
        operator.outputs = [Tensor("dead", value.shape, value.dtype)]
        makers[id(before.outputs[0])] = before
        changed = True
    return changed


def _split(operator: Operator) -> tuple[Tensor | None, Tensor | None]:
    left, right = operator.inputs
    if right is not None and right.data is not None:
        return left, right
    return (right, left) if left is not None and left.data is not None and operator.kind != "SUB" else (None, None)


def _per_channel(constant: Tensor, shape: tuple[int, ...]) -> np.ndarray | None:
    assert constant.data is not None
    sizes = constant.shape or (1,)
    if any(size != 1 for size in sizes[:-1]) or sizes[-1] not in (1, shape[-1]) or len(sizes) > len(shape):
        return None
    return np.broadcast_to(constant.data.reshape(-1), (shape[-1],)).astype(np.float32)


def _take(graph: Graph, before: Operator, operator: Operator, factors: np.ndarray) -> bool:
    """Puts factors or addends into an operator's own constants."""
    weight, bias = before.inputs[1], before.inputs[2] if len(before.inputs) > 2 else None
    if weight is None or weight.data is None or weight.dtype != np.float32 or (bias is not None and bias.data is None):
        return False
    own = bias.data if bias is not None and bias.data is not None else np.zeros(len(factors), np.float32)
    if operator.kind == "MUL":
        shape = [1] * weight.rank
        shape[_WEIGHTED[before.kind]] = -1
        before.inputs[1] = graph.constant(weight.data * factors.reshape(shape))
        own = own * factors
    else:
        own = own + factors if operator.kind == "ADD" else own - factors
    before.inputs = [*before.inputs[:2], graph.constant(np.ascontiguousarray(own, np.float32))]
    return True


def _join(graph: Graph) -> bool:
    """Joins reshapes and transposes that follow each other, and drops those that do nothing."""
    makers, changed = _makers(graph), False
    outputs = {id(one) for one in graph.outputs}
    replaced: dict[int, Tensor] = {}
    for operator in graph.operators:
        operator.inputs = [replaced.get(id(one), one) if one is not None else None for one in operator.inputs]
        if operator.kind not in ("RESHAPE", "TRANSPOSE"):
            continue
        source: Any = operator.inputs[0]
        result = operator.outputs[0]
        before = makers.get(id(source))
        if before is not None and before.kind == operator.kind == "RESHAPE" and before.inputs[0] is not source:
            operator.inputs[0] = source = before.inputs[0]
            changed = True
        elif before is not None and before.kind == operator.kind == "TRANSPOSE":
            first, second = before.inputs[1], operator.inputs[1]
            assert first is not None and second is not None and first.data is not None and second.data is not None
            order = first.data[second.data]
            operator.inputs = [before.inputs[0], graph.integers(order)]
            source = before.inputs[0]
            changed = True
        idle = operator.kind == "RESHAPE" and source.shape == result.shape
        if operator.kind == "TRANSPOSE":
            order_tensor = operator.inputs[1]
            assert order_tensor is not None and order_tensor.data is not None
            idle = list(order_tensor.data) == list(range(source.rank))
        if idle and id(result) not in outputs:
            replaced[id(result)] = source
            changed = True
    return changed


def _activate(graph: Graph) -> None:
    """Lets kernels apply the activation that follows them."""
    readers, makers = _readers(graph), _makers(graph)
    for operator in graph.operators:
        if operator.kind not in _ACTIVATIONS:
            continue
        source = operator.inputs[0]
        before = makers.get(id(source))
        if before is None or before.kind not in _ACTIVATED or readers[id(source)] > 1 or before.options.get("fusedActivationFunction"):
            continue
        if before.outputs[0].dtype != np.float32:
            continue
        before.options["fusedActivationFunction"] = _ACTIVATIONS[operator.kind]
        before.outputs[0] = operator.outputs[0]
        operator.outputs = [Tensor("dead", operator.outputs[0].shape, operator.outputs[0].dtype)]
        makers[id(before.outputs[0])] = before
