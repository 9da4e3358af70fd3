"""Normalization: what is left of numbers without their mean, over their spread."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from toolkit.convert.tfl.facts import FLOATS
from toolkit.convert.tfl.graph import Graph, Tensor
from toolkit.convert.tfl.lower import Call, channels_last, either, operator
from toolkit.convert.tfl.program import FREE, TYPINGS, Node, Program, Type, Unsupported


def _typed(node: Node, program: Program) -> list[Type]:
    """Types of what ONNX has definitions for, or not yet in the model's operator set, but no inference: the first input's."""
    given = program.type(node.inputs[0])
    axis = node.attributes.get("axis", -1) % len(given.shape)
    reduced = Type(np.dtype(np.float32), (*given.shape[:axis], *[1] * (len(given.shape) - axis)))
    return [given, reduced, reduced]


TYPINGS |= dict.fromkeys(("GroupNormalization", "MeanVarianceNormalization", "LayerNormalization", "SimplifiedLayerNormalization"), _typed)


@operator("BatchNormalization", rule=either, limits="as in inference")
def _batch(call: Call) -> Tensor | list[Tensor]:
    """A product and a sum for each channel, which a convolution before it can take."""
    epsilon = call.attribute("epsilon", 1e-5)
    if call.attribute("training_mode", 0):
        return _batch_trained(call, epsilon)
    if any(call.node.outputs[1:]):
        raise Unsupported("is in training mode")
    if all(call.is_constant(place) for place in range(1, 5)):
        scale, bias, mean, variance = (call.constant(place).astype(np.float64) for place in range(1, 5))
        factor = scale / np.sqrt(variance + epsilon)
        factors, addends = (call.graph.constant(one.astype(np.float32)) for one in (factor, bias - mean * factor))
    else:
        factors, addends = _affine(call, epsilon)
    product = call.graph.binary("MUL", call.x(0), _by_channel(call, factors))
    return call.graph.binary("ADD", product, _by_channel(call, addends))


def _batch_trained(call: Call, epsilon: float) -> list[Tensor]:
    """Normalizes by the numbers' own mean and variance, and gives the running ones."""
    graph, value = call.graph, call.x(0)
    rank = value.rank
    axes = [axis for axis in range(rank) if axis != (call.axis(1, rank) if rank > 1 else 0)]
    mean = mean_of(graph, value, axes)
    centred = graph.binary("SUB", value, mean)
    variance = mean_of(graph, graph.unary("SQUARE", centred), axes)
    product = graph.binary("MUL", graph.binary("MUL", centred, _inverse_root(graph, variance, epsilon)), _by_channel(call, call.x(1)))
    made, part = [graph.binary("ADD", product, _by_channel(call, call.x(2)))], call.attribute("momentum", 0.9)
    for place, found in ((3, mean), (4, variance)):
        kept = graph.binary("MUL", call.x(place), graph.constant(np.float32(part)))
        added = graph.binary("MUL", graph.reshape(found, kept.shape), graph.constant(np.float32(1 - part)))
        made.append(graph.binary("ADD", kept, added))
    return made


def _affine(call: Call, epsilon: float) -> tuple[Tensor, Tensor]:
    graph = call.graph
    scale, bias, mean, variance = (call.x(place) for place in range(1, 5))
    factors = graph.binary("MUL", scale, _inverse_root(graph, variance, epsilon))
    return factors, graph.binary("SUB", bias, graph.binary("MUL", mean, factors))


def _by_channel(call: Call, numbers: Tensor) -> Tensor:
    """Shapes one number for each channel so that it is broadcast along all other axes."""
    rank = len(call.type(0).shape)
    place = call.axis(1, rank) if rank > 1 else 0
    return call.graph.reshape(numbers, (numbers.size, *[1] * (rank - 1 - place)))


def _inverse_root(graph: Graph, variance: Tensor, epsilon: float) -> Tensor:
    return graph.unary("RSQRT", graph.binary("ADD", variance, graph.constant(np.float32(epsilon))))


def mean_of(graph: Graph, value: Tensor, axes: Sequence[int], kind: str = "MEAN") -> Tensor:
    """Returns the mean, or another reduction, over axes, which stay with size 1."""
    shape = [1 if axis in axes else size for axis, size in enumerate(value.shape)]
    return graph.add(kind, [value, graph.integers(sorted(axes))], shape, keepDims=True)


def normalized(graph: Graph, value: Tensor, axes: Sequence[int], epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    """Returns a tensor without its mean over some axes and with variance one, that mean, and one over its spread."""
    mean = mean_of(graph, value, axes)
    centred = graph.binary("SUB", value, mean)
    spread = _inverse_root(graph, mean_of(graph, graph.unary("SQUARE", centred), axes), epsilon)
    return graph.binary("MUL", centred, spread), mean, spread


def scaled(graph: Graph, value: Tensor, scale: Tensor | None, bias: Tensor | None) -> Tensor:
    """Returns a tensor times a scale plus a bias; either may be left out."""
    if scale is not None:
        value = graph.binary("MUL", value, scale)
    return value if bias is None else graph.binary("ADD", value, bias)


@operator("InstanceNormalization", rule=either)
def _instance(call: Call) -> Tensor:
    rank = len(call.type(0).shape)
    axes = [call.axis(axis, rank) for axis in range(2, rank)]
    made, _, _ = normalized(call.graph, call.x(0), axes, call.attribute("epsilon", 1e-5))
    return scaled(call.graph, made, _by_channel(call, call.x(1)), _by_channel(call, call.x(2)))


@operator("GroupNormalization", rule=either, limits="images of a known size")
def _group(call: Call) -> Tensor:
    graph, value, groups = call.graph, call.x(0), call.attribute("num_groups")
    scale, bias = call.x(1), call.x(2)
    batch, channels, *spatial = call.type(0).shape
    each, area = channels // groups, int(np.prod(call.known(spatial, "an image's size")))
    by_group = scale.size == groups and call.node.version < 21  # later there is one number for each channel
    last = call.layout == "last"
    split = (batch, area, groups, each) if last else (batch, groups, each * area)
    axes = [1, 3] if last else [2]
    made, _, _ = normalized(graph, graph.reshape(value, split), axes, call.attribute("epsilon", 1e-5))
    if by_group:
        made = scaled(graph, made, graph.reshape(scale, (groups, 1)), graph.reshape(bias, (groups, 1)))
        return graph.reshape(made, value.shape)
    return scaled(graph, graph.reshape(made, value.shape), _by_channel(call, scale), _by_channel(call, bias))


@operator("LayerNormalization", rule=either)
def _layer(call: Call) -> list[Tensor]:
    rank = len(call.type(0).shape)
    first = call.attribute("axis", -1) % rank
    axes = [call.axis(axis, rank) for axis in range(first, rank)]
    made, mean, spread = normalized(call.graph, call.x(0), axes, call.attribute("epsilon", 1e-5))
    scale, bias = (_aligned(call, place) for place in (1, 2))
    return [scaled(call.graph, made, scale, bias), mean, spread]


def _aligned(call: Call, place: int) -> Tensor | None:
    """An input that may be left out, so that it can be broadcast to the first one."""
    if not call.has(place):
        return None
    rank = len(call.type(0).shape)
    return call.spread(call.x(place), rank, given=len(call.type(place).shape) == rank and not call.is_constant(place))


@operator("RMSNormalization", rule=either)
@operator("SimplifiedLayerNormalization", rule=either, dtypes=FLOATS)
def _root_mean_square(call: Call) -> list[Tensor]:
    graph, value, rank = call.graph, call.x(0), len(call.type(0).shape)
    axes = [call.axis(axis, rank) for axis in range(call.attribute("axis", -1) % rank, rank)]
    spread = _inverse_root(graph, mean_of(graph, graph.unary("SQUARE", value), axes), call.attribute("epsilon", 1e-5))
    return [scaled(graph, graph.binary("MUL", value, spread), _aligned(call, 1), None), spread]


@operator("MeanVarianceNormalization", rule=either)
def _mean_variance(call: Call) -> Tensor:
    graph, value, rank = call.graph, call.x(0), len(call.type(0).shape)
    axes = [call.axis(axis, rank) for axis in call.attribute("axes", [0, 2, 3])]
    centred = graph.binary("SUB", value, mean_of(graph, value, axes))
    deviation = graph.unary("SQRT", mean_of(graph, graph.unary("SQUARE", centred), axes))
    return graph.binary("DIV", centred, graph.binary("ADD", deviation, graph.constant(np.float32(1e-9))))


@operator("LpNormalization", rule=either)
def _norm(call: Call) -> Tensor:
    graph, value, rank = call.graph, call.x(0), len(call.type(0).shape)
    axes = [call.axis(call.attribute("axis", -1), rank)]
    if call.attribute("p", 2) == 1:
        norm = mean_of(graph, graph.unary("ABS", value), axes, "SUM")
    else:
        norm = graph.unary("SQRT", mean_of(graph, graph.unary("SQUARE", value), axes, "SUM"))
    # Where all numbers are zero, so is the result.
    return graph.binary("DIV", value, graph.binary("MAXIMUM", norm, graph.constant(np.finfo(np.float32).tiny)))


@operator("LRN", rule=channels_last, limits="windows of an odd number of channels; at least one spatial axis; one free size at most")
def _local_response(call: Call) -> Tensor:
    graph, value, size = call.graph, call.x(0), call.attribute("size")
    if value.rank < 3 or size % 2 == 0:
        raise Unsupported("has windows of an even number of channels, or no spatial axis")
    alpha, beta, bias = (float(call.attribute(name, default)) for name, default in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0)))
    flat = (value.shape[0], 1, FREE if FREE in value.shape[1:-1] else int(np.prod(value.shape[1:-1])), value.shape[-1])
    if flat[0] == FREE and flat[2] == FREE:
        raise Unsupported("has several sizes that are free at run time")
    # The kernel sums squares where ONNX takes their mean.
    options = {"radius": size // 2, "bias": bias, "alpha": alpha / size, "beta": beta}
    made = graph.add("LOCAL_RESPONSE_NORMALIZATION", [graph.reshape(value, flat)], flat, **options)
    return graph.reshape(made, value.shape)
