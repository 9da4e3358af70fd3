"""Makes a lowered graph smaller: dead operators, activations that kernels apply themselves, transposes that meet."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import numpy as np

from toolkit.convert.tfl import affine, motion, products
from toolkit.convert.tfl.graph import Graph, Operator, Tensor, makers_of, readers_of

_ACTIVATIONS = {"RELU": 1, "RELU_N1_TO_1": 2, "RELU6": 3}  # schema.ActivationFunctionType
_ACTIVATED = {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "ADD", "SUB", "MUL", "DIV", "AVERAGE_POOL_2D", "MAX_POOL_2D"}

_OVERWRITING = {"ADD", "SUB", "MUL", "DIV"}
_NOT_DELEGATED = {"int32", "uint32", "int64", "uint64"}


def clean(graph: Graph, quantized: Container[str] = ()) -> None:
    """Cleans a graph in place, and those inside it; constants of the source that integers stand for are not changed."""
    for operator in graph.operators:
        for inner in operator.graphs:
            clean(inner, quantized)
    _drop_dead(graph)
    _share(graph)
    _reduce_at_once(graph)
    _extend_concatenations(graph)
    while affine.fold(graph, quantized) or products.fold(graph) or _join(graph) or motion.simplify(graph):
        _drop_dead(graph)
    _activate(graph)
    _pad_with_zeros(graph)
    _drop_dead(graph)
    _keep_apart(graph)


def _keep_apart(graph: Graph) -> None:
    """Copies what LiteRT's memory planner would let be overwritten.

    It gives a RESHAPE the memory of its input, and a sum or product that of the operand that nobody else reads, even where that is such a
    RESHAPE whose input is read later on (LiteRT 2.1; 5 of 5,000 random graphs gave wrong numbers, none with this copy). Delegated
    operators have memory of their own, so real numbers need no copy.
    """
    readers, shared = readers_of(graph), set[int]()
    for operator in list(graph.operators):
        if operator.kind == "RESHAPE" and (readers[id(operator.inputs[0])] > 1 or id(operator.inputs[0]) in shared):
            shared.add(id(operator.outputs[0]))
        if operator.kind not in _OVERWRITING or operator.outputs[0].dtype.name not in _NOT_DELEGATED:
            continue
        for place, one in enumerate(operator.inputs):
            if one is not None and id(one) in shared:
                copy = Tensor(one.name, one.shape, one.dtype)
                graph.operators.insert(graph.operators.index(operator), Operator("CAST", [one], [copy], origin=operator.origin))
                operator.inputs[place] = copy


def _pad_with_zeros(graph: Graph) -> None:
    """Pads what is never negative with zeros before its maximum is taken: PAD is delegated, PADV2 with the lowest number is not."""
    makers = makers_of(graph)
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


def _drop_dead(graph: Graph) -> None:
    used = {id(one) for one in graph.outputs}
    kept = []
    for operator in reversed(graph.operators):
        if any(id(one) in used for one in operator.outputs):
            kept.append(operator)
            used |= {id(one) for one in operator.inputs if one is not None}
    graph.operators = kept[::-1]


def _share(graph: Graph) -> None:
    """Lets operators that compute the same be one."""
    known: dict[Any, list[Tensor]] = {}
    replaced: dict[int, Tensor] = {}
    outputs = {id(one) for one in graph.outputs}
    for operator in graph.operators:
        operator.inputs = [replaced.get(id(one), one) if one is not None else None for one in operator.inputs]
        if operator.graphs or any(id(one) in outputs for one in operator.outputs):
            continue
        types = tuple((one.shape, one.dtype.name, id(one.quantization)) for one in operator.outputs)
        first = known.setdefault((operator.kind, tuple(map(id, operator.inputs)), repr(sorted(operator.options.items())), types), operator.outputs)
        replaced |= {id(one): kept for one, kept in zip(operator.outputs, first, strict=True) if one is not kept}


def _reduce_at_once(graph: Graph) -> None:
    """Lets a reduction drop its axes itself where all that follows is a reshape that does."""
    readers, makers = readers_of(graph), makers_of(graph)
    for operator in graph.operators:
        before = makers.get(id(operator.inputs[0])) if operator.kind == "RESHAPE" else None
        if before is None or not before.options.get("keepDims") or readers[id(before.outputs[0])] > 1:
            continue
        value, axes = before.inputs[0], before.inputs[1]
        assert value is not None and axes is not None and axes.data is not None
        dropped = {int(axis) % value.rank for axis in axes.data.reshape(-1)}
        if operator.outputs[0].shape == tuple(size for axis, size in enumerate(value.shape) if axis not in dropped):
            before.options["keepDims"] = False
            before.outputs[0], operator.outputs[0] = operator.outputs[0], before.outputs[0]
    _drop_dead(graph)


def _extend_concatenations(graph: Graph) -> None:
    """Lets a concatenation start from an earlier one that it begins with, as every layer of a DenseNet does.

    As many bytes are copied, but delegates take few inputs at a time.
    """
    known: dict[tuple[int, ...], Tensor] = {}
    quantized = {id(one.outputs[0]) for one in graph.operators if one.kind == "DEQUANTIZE"}
    quantized |= {id(one.inputs[0]) for one in graph.operators if one.kind == "QUANTIZE"}
    for operator in list(graph.operators):
        touched = {id(one) for one in (*operator.inputs, *operator.outputs)}
        if operator.kind != "CONCATENATION" or touched & quantized or operator.outputs[0].shape[operator.options["axis"]] < 0:
            continue  # real numbers between integers are to become integers first
        parts, axis = list(operator.inputs), operator.options["axis"]
        keys = tuple(map(id, parts))
        longest = next((size for size in range(len(parts) - 1, 1, -1) if (axis, *keys[:size]) in known), 0)
        if longest:
            parts = [known[axis, *keys[:longest]], *parts[longest:]]
        known[axis, *keys] = operator.outputs[0]
        operator.inputs = parts


def _join(graph: Graph) -> bool:
    """Joins reshapes and transposes that follow each other, and drops those that do nothing."""
    makers, changed = makers_of(graph), False
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
    readers, makers = readers_of(graph), makers_of(graph)
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
