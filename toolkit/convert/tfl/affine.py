"""Lets weights and biases take the products and sums with constants that stand before and after them."""

from __future__ import annotations

from collections.abc import Container, Mapping

import numpy as np

from toolkit.convert.tfl.graph import Graph, Operator, Tensor, makers_of, readers_of
from toolkit.convert.tfl.program import Node

# Where the channels of a filter's outputs are.
_WEIGHTED = {"CONV_2D": 0, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 0}
# A scalar factor may as well stand before them.
_MOVING = {"RESHAPE", "TRANSPOSE"}
_FEW_CHANNELS = 16


def fold(graph: Graph, quantized: Container[str]) -> bool:
    """Folds what it can, in place; returns whether there was anything.

    Args:
        graph: The graph.
        quantized: Names of constants of the source that integers stand for: they stay what they are.
    """
    fixed = {id(one) for one in graph.operators if isinstance(one.origin, Node) and any(name in quantized for name in one.origin.inputs)}
    return _behind(graph, fixed) or _before(graph, fixed) or _scalars(graph, fixed) or _smaller(graph) or _picked(graph, fixed)


def _behind(graph: Graph, fixed: set[int]) -> bool:
    """Folds what follows a layer with weights, as a batch norm does."""
    readers, makers, changed = readers_of(graph), makers_of(graph), False
    for operator in graph.operators:
        value, constant = split(operator)
        if value is None or constant is None or operator.outputs[0].shape != value.shape or value.dtype != np.float32:
            continue
        last = makers.get(id(value))
        layer = _past_reshapes(last, makers, readers)
        if layer is None or last is None or id(layer) in fixed or layer.kind not in _WEIGHTED or readers[id(layer.outputs[0])] > 1:
            continue
        factors = _per_channel(constant, value.shape)
        if layer.options.get("fusedActivationFunction") or readers[id(value)] > 1 or factors is None or not _take(graph, layer, operator, factors):
            continue
        last.outputs[0] = operator.outputs[0]
        operator.outputs = [Tensor("dead", value.shape, value.dtype)]
        makers[id(last.outputs[0])] = last
        changed = True
    return changed


def _past_reshapes(operator: Operator | None, makers: Mapping[int, Operator], readers: Mapping[int, int]) -> Operator | None:
    """Returns what made a value before it was given other axes, the last of which is still that of the channels."""
    while operator is not None and operator.kind == "RESHAPE":
        given = operator.inputs[0]
        if given is None or readers[id(given)] > 1 or not given.shape or given.shape[-1:] != operator.outputs[0].shape[-1:]:
            return None
        operator = makers.get(id(given))
    return operator


def split(operator: Operator) -> tuple[Tensor | None, Tensor | None]:
    """Returns what a product or sum is of: a value and a constant; nothing where it is not one of those."""
    if operator.kind not in ("MUL", "ADD", "SUB") or operator.options.get("fusedActivationFunction"):
        return None, None
    left, right = operator.inputs
    if right is not None and right.data is not None:
        return left, right
    return (right, left) if left is not None and left.data is not None and operator.kind != "SUB" else (None, None)


def _per_channel(constant: Tensor, shape: tuple[int, ...]) -> np.ndarray | None:
    assert constant.data is not None
    sizes = constant.shape or (1,)
    if len(sizes) > len(shape) or any(size != 1 for size in sizes[:-1]) or sizes[-1] not in (1, shape[-1]):
        return None
    return np.broadcast_to(constant.data.reshape(-1), (shape[-1],)).astype(np.float32)


def _weights(operator: Operator) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns the filter and the bias of a layer, where both are known and are numbers of 32 bits."""
    weight, bias = operator.inputs[1], operator.inputs[2] if len(operator.inputs) > 2 else None
    if weight is None or weight.data is None or weight.dtype != np.float32 or (bias is not None and bias.data is None):
        return None
    outputs = weight.shape[_WEIGHTED[operator.kind]]
    return weight.data, bias.data if bias is not None and bias.data is not None else np.zeros(outputs, np.float32)


def _take(graph: Graph, layer: Operator, operator: Operator, factors: np.ndarray) -> bool:
    """Puts factors or addends of a layer's outputs into its own constants."""
    found = _weights(layer)
    if found is None:
        return False
    weight, bias = found
    if operator.kind == "MUL":
        shape = [1] * weight.ndim
        shape[_WEIGHTED[layer.kind]] = -1
        layer.inputs[1] = graph.constant(weight * factors.reshape(shape))
        bias = bias * factors
    else:
        bias = bias + factors if operator.kind == "ADD" else bias - factors
    layer.inputs = [*layer.inputs[:2], graph.constant(np.ascontiguousarray(bias, np.float32))]
    return True


def _before(graph: Graph, fixed: set[int]) -> bool:
    """Folds what goes into matrix products alone, as the gain and the shift of a layer norm do."""
    readers, changed = readers_of(graph), False
    for operator in graph.operators:
        value, constant = split(operator)
        if value is None or constant is None or value.dtype != np.float32 or operator.outputs[0].shape != value.shape:
            continue
        result = operator.outputs[0]
        layers = [one for one in graph.operators if result in one.inputs]
        factors = _per_channel(constant, value.shape)
        whole = len(layers) == readers[id(result)] and all(_multiplies(one, result, readers) and id(one) not in fixed for one in layers)
        if not layers or factors is None or not whole:
            continue
        for layer in layers:
            _give(graph, layer, operator, factors)
            layer.inputs[0] = value
        readers, changed = readers_of(graph), True
    return changed


def _multiplies(operator: Operator, value: Tensor, readers: dict[int, int]) -> bool:
    """Whether an operator multiplies a value by weights that it shares with nobody."""
    if operator.kind not in ("FULLY_CONNECTED", "CONV_2D") or operator.inputs[0] is not value or _weights(operator) is None:
        return False
    weight = operator.inputs[1]
    whole = weight is not None and weight.shape[-1] == value.shape[-1] and all(size == 1 for size in weight.shape[1:-1])
    return whole and readers[id(weight)] == 1


def _give(graph: Graph, layer: Operator, operator: Operator, factors: np.ndarray) -> None:
    """Puts factors or addends of a layer's inputs into its own constants."""
    found = _weights(layer)
    assert found is not None
    weight, bias = found
    if operator.kind == "MUL":
        layer.inputs[1] = graph.constant(weight * factors)
        return
    moved = weight.reshape(len(weight), -1).astype(np.float64) @ factors
    bias = bias + moved if operator.kind == "ADD" else bias - moved
    layer.inputs = [*layer.inputs[:2], graph.constant(np.ascontiguousarray(bias, np.float32))]


def _scalars(graph: Graph, fixed: set[int]) -> bool:
    """Brings a product with one number behind the layer that it can be folded into, past what only moves numbers."""
    readers, makers = readers_of(graph), makers_of(graph)
    for operator in graph.operators:
        value, constant = split(operator)
        if operator.kind != "MUL" or constant is None or constant.size != 1 or value is None or value.dtype != np.float32:
            continue
        chain = []
        before = makers.get(id(value))
        while before is not None and before.kind in _MOVING and readers[id(before.outputs[0])] == 1:
            chain.append(before)
            before = makers.get(id(before.inputs[0]))
        alone = before is not None and readers[id(before.outputs[0])] == 1 and before.kind in _WEIGHTED and _weights(before) is not None
        if not chain or before is None or id(before) in fixed or not alone or before.options.get("fusedActivationFunction"):
            continue
        _scale(graph, before, operator, chain[0], constant)
        return True
    return False


def _scale(graph: Graph, layer: Operator, product: Operator, last: Operator, constant: Tensor) -> None:
    assert constant.data is not None
    factors = np.full(layer.outputs[0].shape[-1], constant.data.reshape(-1)[0], np.float32)
    _take(graph, layer, product, factors)
    last.outputs[0], product.outputs[0] = product.outputs[0], last.outputs[0]
    graph.operators.remove(product)


def _smaller(graph: Graph) -> bool:
    """Multiplies what a matrix product is of by a number, instead of its larger result, as attention scales its scores."""
    readers, makers = readers_of(graph), makers_of(graph)
    for operator in graph.operators:
        value, constant = split(operator)
        product = makers.get(id(value)) if value is not None else None
        if operator.kind != "MUL" or constant is None or constant.size != 1 or value is None or value.dtype != np.float32:
            continue
        if product is None or product.kind != "BATCH_MATMUL" or readers[id(value)] > 1 or operator.outputs[0].shape != value.shape:
            continue
        place, factor = min(enumerate(one for one in product.inputs if one is not None), key=lambda numbered: numbered[1].size)
        if factor.size >= value.size or factor.data is not None or constant.rank > factor.rank:
            continue
        scaled = Tensor(f"{factor.name}_scaled", factor.shape, factor.dtype)
        product.inputs[place], product.outputs[0], operator.outputs[0] = scaled, operator.outputs[0], scaled
        operator.inputs = [factor, constant]
        graph.operators.remove(operator)
        graph.operators.insert(graph.operators.index(product), operator)
        return True
    return False


def _picked(graph: Graph, fixed: set[int]) -> bool:
    """Lets a layer give its channels in the order, or the choice, that is taken of them."""
    readers, makers = readers_of(graph), makers_of(graph)
    for operator in graph.operators:
        value, places = (operator.inputs[0], operator.inputs[1]) if operator.kind == "GATHER" else (None, None)
        layer = makers.get(id(value)) if value is not None else None
        if value is None or places is None or places.data is None or places.rank != 1 or operator.options.get("axis") != value.rank - 1:
            continue
        if layer is None or id(layer) in fixed or layer.kind not in ("CONV_2D", "FULLY_CONNECTED") or readers[id(value)] > 1:
            continue
        found = _weights(layer)
        if found is None or value.dtype != np.float32:
            continue
        layer.inputs = [layer.inputs[0], *(graph.constant(np.ascontiguousarray(one[places.data])) for one in found)]
        layer.outputs[0], operator.outputs[0] = operator.outputs[0], layer.outputs[0]
        graph.operators.remove(operator)
        return True
    return False


def widen(graph: Graph) -> None:
    """Repeats constants of a few channels along the axis before, which kernels then add and multiply many numbers at a time by.

    XNNPACK takes a picture of 320 x 320 less its mean of three channels ten times as fast so.
    """
    for operator in graph.operators:
        if operator.kind not in ("MUL", "ADD", "SUB", "DIV") or len(operator.inputs) != 2:
            continue
        for place, constant in enumerate(operator.inputs):
            value = operator.inputs[1 - place]
            if constant is None or constant.data is None or value is None or value.data is not None or constant.quantization is not None:
                continue
            wide = value.shape[-2:]
            few = value.rank >= 3 and constant.size == wide[1] and constant.shape[-1:] == wide[1:] and 1 < wide[1] <= _FEW_CHANNELS < wide[0]
            if few and operator.outputs[0].shape == value.shape:
                operator.inputs[place] = graph.constant(np.ascontiguousarray(np.broadcast_to(constant.data.reshape(-1), wide)))
