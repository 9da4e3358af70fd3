"""Activation functions, and the error function that some of them are made of."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from toolkit.convert.tfl.facts import COMMON, FLOATS
from toolkit.convert.tfl.graph import Graph, Tensor
from toolkit.convert.tfl.layout import Demand, can_be_last
from toolkit.convert.tfl.lower import Call, channels_first, either, operator
from toolkit.convert.tfl.operators.comparison import select
from toolkit.convert.tfl.operators.elementwise import floating, log1p, scalar
from toolkit.convert.tfl.program import Node, Program, Unsupported

_SELU = 1.67326319217681884765625, 1.05070102214813232421875
_LAST_KERNELS = {"Softmax": ("SOFTMAX", {"beta": 1.0}), "LogSoftmax": ("LOG_SOFTMAX", {})}
# Since this operator set they work along one axis; before, along all from one axis on.
_ONE_AXIS = 13
_ERF_SERIES = 0.1  # below it three terms are exact to float32
_ERF_ONE = 4.5  # from here on it is one in float32


def along(default: int = -1) -> Callable[[Node, Program], Demand]:
    """Returns the rule of operators whose kernel works along the last axis: the channels go there, or stay away from there."""

    def rule(node: Node, program: Program) -> Demand:
        shape = program.types[node.outputs[0]].shape
        axis = node.attributes.get("axis", default) % max(1, len(shape))
        demand = either(node, program)
        if not can_be_last(shape) or axis == len(shape) - 1:
            return channels_first(node, program)
        return Demand("last", demand.inputs, demand.outputs) if axis == 1 else demand

    return rule


def at_the_end(graph: Graph, value: Tensor, place: int) -> tuple[Tensor, list[int]]:
    """Brings an axis to the end; returns the order that brings it back, too."""
    order = [axis for axis in range(value.rank) if axis != place] + [place]
    return graph.transpose(value, order), [int(axis) for axis in np.argsort(order)]


@operator("Relu", rule=either)
def _relu(call: Call) -> Tensor:
    value = call.x(0)
    return call.graph.unary("RELU", value) if value.dtype.kind == "f" else call.graph.binary("MAXIMUM", value, scalar(call.graph, 0, value))


@operator("HardSwish", rule=either)
def _hard_swish(call: Call) -> Tensor:
    return call.graph.unary("HARD_SWISH", floating(call.x(0)))


@operator("LeakyRelu", rule=either)
def _leaky_relu(call: Call) -> Tensor:
    return call.graph.unary("LEAKY_RELU", floating(call.x(0)), alpha=call.attribute("alpha", 0.01))


@operator("PRelu", rule=either, dtypes=COMMON)
def _prelu(call: Call) -> Tensor:
    graph, (value, slope) = call.graph, call.xs()
    if value.dtype.kind == "f" and slope.data is not None and slope.size == 1:
        return graph.unary("LEAKY_RELU", value, alpha=slope.data.item())
    if value.dtype.kind == "f" and value.rank == 4 and slope.data is not None and slope.size == slope.shape[-1] == value.shape[-1]:
        return graph.add("PRELU", [value, graph.reshape(slope, (1, 1, slope.size))], value.shape)
    if value.dtype.kind == "u":
        raise Unsupported(f"has no kernel for {value.dtype}")
    zero = scalar(graph, 0, value)
    below = graph.binary("MUL", graph.binary("MINIMUM", value, zero), slope)
    return graph.binary("ADD", graph.binary("MAXIMUM", value, zero), below)


@operator("Elu", "Selu", "Celu", rule=either)
def _elu(call: Call) -> Tensor:
    graph, value, kind = call.graph, floating(call.x(0)), call.node.kind
    alpha = call.attribute("alpha", _SELU[0] if kind == "Selu" else 1.0)
    if alpha == 1 and kind != "Selu":
        return graph.unary("ELU", value)
    below = graph.binary("MINIMUM", value, scalar(graph, 0.0, value))
    if kind == "Celu":
        below = graph.binary("DIV", below, scalar(graph, alpha, value))
    curved = graph.binary("MUL", graph.unary("ELU", below), scalar(graph, alpha, value))
    made = graph.binary("ADD", graph.unary("RELU", value), curved)
    return graph.binary("MUL", made, scalar(graph, call.attribute("gamma", _SELU[1]), value)) if kind == "Selu" else made


@operator("ThresholdedRelu", rule=either)
def _thresholded(call: Call) -> Tensor:
    graph, value = call.graph, floating(call.x(0))
    above = graph.binary("GREATER", value, scalar(graph, call.attribute("alpha", 1.0), value), np.bool_)
    return select(graph, above, value, _zeros(graph, value))


@operator("Shrink", rule=either, dtypes=FLOATS)
def _shrink(call: Call) -> Tensor:
    graph, value = call.graph, floating(call.x(0))
    limit, bias = call.attribute("lambd", 0.5), scalar(graph, call.attribute("bias", 0.0), value)
    below = graph.binary("LESS", value, scalar(graph, -limit, value), np.bool_)
    above = graph.binary("GREATER", value, scalar(graph, limit, value), np.bool_)
    upper = select(graph, above, graph.binary("SUB", value, bias), _zeros(graph, value))
    return select(graph, below, graph.binary("ADD", value, bias), upper)


def _zeros(graph: Graph, like: Tensor) -> Tensor:
    """Zeros to choose from: as many axes as the other choice, which is all that its kernel asks for up to four."""
    return graph.constant(np.zeros((1,) * like.rank, like.dtype))


@operator("HardSigmoid", rule=either)
def _hard_sigmoid(call: Call) -> Tensor:
    graph, value = call.graph, floating(call.x(0))
    slope, middle = call.attribute("alpha", 0.2), call.attribute("beta", 0.5)
    if np.isclose(slope, 1 / 6):  # then RELU6 cuts it off, which a kernel does as it adds
        moved = graph.binary("ADD", value, scalar(graph, middle * 6, value))
        return graph.binary("MUL", graph.unary("RELU6", moved), scalar(graph, 1 / 6, value))
    scaled = graph.binary("MUL", value, scalar(graph, slope, value))
    moved = graph.binary("ADD", scaled, scalar(graph, middle, value))
    return graph.binary("MINIMUM", graph.unary("RELU", moved), scalar(graph, 1.0, value))


@operator("Softplus", rule=either)
def _softplus(call: Call) -> Tensor:
    """``max(x, 0) + log1p(exp(-|x|))``, which neither overflows nor loses digits."""
    graph, value = call.graph, floating(call.x(0))
    small = graph.unary("EXP", graph.unary("NEG", graph.unary("ABS", value)))
    return graph.binary("ADD", graph.unary("RELU", value), log1p(graph, small))


@operator("Softsign", rule=either)
def _softsign(call: Call) -> Tensor:
    graph, value = call.graph, floating(call.x(0))
    return graph.binary("DIV", value, graph.binary("ADD", graph.unary("ABS", value), scalar(graph, 1.0, value)))


@operator("Mish", rule=either)
def _mish(call: Call) -> Tensor:
    """``x tanh(log(1 + e))`` for ``e = exp(x)`` is ``x n / (n + 2)`` for ``n = e (e + 2)``; from twenty on it is x itself."""
    graph, value = call.graph, floating(call.x(0))
    two = scalar(graph, 2.0, value)
    grown = graph.unary("EXP", graph.binary("MINIMUM", value, scalar(graph, 20.0, value)))
    above = graph.binary("MUL", grown, graph.binary("ADD", grown, two))
    return graph.binary("MUL", value, graph.binary("DIV", above, graph.binary("ADD", above, two)))


@operator("Swish", rule=either)
def _swish(call: Call) -> Tensor:
    graph, value = call.graph, floating(call.x(0))
    alpha = call.attribute("alpha", 1.0)
    scaled = value if alpha == 1 else graph.binary("MUL", value, scalar(graph, alpha, value))
    return graph.binary("MUL", value, graph.unary("LOGISTIC", scaled))


@operator("Gelu", rule=either)
def _gelu(call: Call) -> Tensor:
    return call.graph.unary("GELU", floating(call.x(0)), approximate=call.attribute("approximate", "none") == "tanh")


@operator("Erf", rule=either)
def _erf(call: Call) -> Tensor:
    """There is no kernel but that of ``gelu(y) = y (1 + erf(y / sqrt 2)) / 2``; near zero, where a difference is lost, its series."""
    graph, value = call.graph, floating(call.x(0))
    bounded = graph.binary("MINIMUM", graph.binary("MAXIMUM", value, scalar(graph, -_ERF_ONE, value)), scalar(graph, _ERF_ONE, value))
    scaled = graph.binary("MUL", bounded, scalar(graph, np.sqrt(2), value))
    ratio = graph.binary("DIV", graph.unary("GELU", scaled, approximate=False), scaled)
    far = graph.binary("SUB", graph.binary("ADD", ratio, ratio), scalar(graph, 1.0, value))
    near = graph.binary("MUL", value, _erf_series(graph, value))
    is_near = graph.binary("LESS", graph.unary("ABS", value), scalar(graph, _ERF_SERIES, value), np.bool_)
    return select(graph, is_near, near, far)


def _erf_series(graph: Graph, value: Tensor) -> Tensor:
    """``erf(x) / x``, by Maclaurin."""
    square = graph.binary("MUL", value, value)
    first, second, third = (scalar(graph, 2 / np.sqrt(np.pi) * factor, value) for factor in (1, -1 / 3, 1 / 10))
    inner = graph.binary("ADD", graph.binary("MUL", square, third), second)
    return graph.binary("ADD", graph.binary("MUL", inner, square), first)


def _softmax_rule(node: Node, program: Program) -> Demand:
    return along()(node, program) if node.version >= _ONE_AXIS else channels_first(node, program)


@operator("Softmax", "LogSoftmax", rule=_softmax_rule, limits="before version 13 no free size behind the axis")
def _softmax(call: Call) -> Tensor:
    kind, options = _LAST_KERNELS[call.node.kind]
    value, order = _last(call)
    made = call.graph.add(kind, [value], value.shape, **options)
    return call.graph.reshape(call.graph.transpose(made, order), call.shape())


@operator("Hardmax", rule=_softmax_rule, limits="no free axis; before version 13 no free size behind the axis")
def _hardmax(call: Call) -> Tensor:
    graph, (value, order) = call.graph, _last(call)
    places = graph.add("ARG_MAX", [value, graph.constant(value.rank - 1, np.int32)], value.shape[:-1], np.int32, outputType=2)
    (depth,) = call.known(value.shape[-1:], "the axis")
    numbers = [graph.constant(depth, np.int32), scalar(graph, 1.0, value), scalar(graph, 0.0, value)]
    made = graph.add("ONE_HOT", [places, *numbers], value.shape, value.dtype, axis=-1)
    return graph.reshape(graph.transpose(made, order), call.shape())


def _last(call: Call) -> tuple[Tensor, list[int]]:
    """Returns the input with what it works along as its last axis, and the order that brings the axes back."""
    graph, value = call.graph, floating(call.x(0))
    if call.node.version >= _ONE_AXIS:
        return at_the_end(graph, value, call.axis(call.attribute("axis", -1), value.rank))
    axis = call.attribute("axis", 1) % value.rank
    merged = int(np.prod(call.known(value.shape[axis:], "a size behind the axis")))
    rows = value.shape[0] if axis == 1 else int(np.prod(call.known(value.shape[:axis], "a size before the axis")))
    return graph.reshape(value, (rows, merged)), [0, 1]
