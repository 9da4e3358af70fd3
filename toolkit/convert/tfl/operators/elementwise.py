"""Operators of arithmetic and analysis that work on every number alone.

Integers of eight and sixteen bits are computed in 32 and wrapped around at once, as ONNX's types do; unsigned ones of 32 bits in signed
ones of 64, for which there are kernels.
"""

from __future__ import annotations

from functools import reduce
from typing import Any

import numpy as np

from toolkit.convert.tfl.facts import COMMON, WIDE
from toolkit.convert.tfl.graph import Graph, Tensor
from toolkit.convert.tfl.lower import Call, carried, either, operator
from toolkit.convert.tfl.program import Unsupported

_BINARY = {"Add": "ADD", "Sub": "SUB", "Mul": "MUL"}
_FLOAT_UNARY = {
    "Sigmoid": "LOGISTIC", "Tanh": "TANH", "Exp": "EXP", "Log": "LOG", "Sqrt": "SQRT", "Floor": "FLOOR", "Ceil": "CEIL", "Sin": "SIN", "Cos": "COS",
    "Round": "ROUND",
}  # fmt: skip
_ANY_UNARY = {"Neg": "NEG", "Abs": "ABS", "Sign": "SIGN"}
_SMALL = ("int8", "uint8", "int16", "uint16")
_BITS = {"int4": (-8, 16), "uint4": (0, 16), "int2": (-2, 4)}  # the least of them, and how many there are
_NARROW = ("bfloat16", *_BITS)
_LEAST = np.iinfo(np.int64).min
_LOG1P_SERIES = 0.15  # below it three terms are exact to float32


def floating(value: Tensor) -> Tensor:
    """Returns a tensor that must be of floating point numbers.

    Raises:
        Unsupported: It is of integers.
    """
    if value.dtype.kind != "f":
        raise Unsupported(f"has no kernel for {value.dtype}")
    return value


def widened(graph: Graph, value: Tensor) -> Tensor:
    """Returns a tensor in a type that there are kernels for; of unsigned numbers of 64 bits the bits, which sums and products have right."""
    if value.dtype == np.uint64:
        return constant_bits(graph, value, np.int64) or graph.unary("BITCAST", value, np.int64)
    return graph.cast(value, np.int64) if value.dtype == np.uint32 else value


def constant_bits(graph: Graph, value: Tensor, dtype: Any) -> Tensor | None:
    """Returns the bits of a constant as numbers of another type of the same size."""
    return None if value.data is None else graph.constant(value.data.view(dtype))


def ordered(graph: Graph, value: Tensor) -> Tensor:
    """Does the same for numbers that are compared: unsigned ones of 64 bits are moved so that the least is the least."""
    made = widened(graph, value)
    return graph.binary("ADD", made, scalar(graph, _LEAST, made)) if value.dtype == np.uint64 else made


def restored(graph: Graph, value: Tensor, declared: np.dtype[Any], *, moved: bool = False) -> Tensor:
    """Returns numbers of the declared type, which were computed in wider ones, or were moved, in the type that values of that are kept in."""
    if declared == np.uint64 and value.dtype == np.int64:
        return graph.unary("BITCAST", graph.binary("ADD", value, scalar(graph, _LEAST, value)) if moved else value, declared)
    return graph.cast(value, declared) if declared == np.uint32 else value


def narrowed(graph: Graph, value: Tensor, declared: np.dtype[Any]) -> Tensor:
    """Does the same for numbers that may have left the declared type's range: they are wrapped around."""
    if declared.name in _SMALL:
        return graph.cast(graph.cast(value, declared), carried(declared))
    return restored(graph, value, declared)


def scalar(graph: Graph, number: float, like: Tensor) -> Tensor:
    """Returns a constant of one number, of the type of another tensor."""
    return graph.constant(number, like.dtype)


def log1p(graph: Graph, value: Tensor) -> Tensor:
    """Returns ``log(1 + x)`` of numbers from zero on; small ones by the series of ``2 atanh(x / (2 + x))``, as the sum would lose their digits."""
    one, two = scalar(graph, 1.0, value), scalar(graph, 2.0, value)
    ratio = graph.binary("DIV", value, graph.binary("ADD", value, two))
    square = graph.binary("MUL", ratio, ratio)
    inner = graph.binary("ADD", graph.binary("MUL", square, scalar(graph, 2 / 5, value)), scalar(graph, 2 / 3, value))
    near = graph.binary("MUL", ratio, graph.binary("ADD", graph.binary("MUL", square, inner), two))
    far = graph.unary("LOG", graph.binary("ADD", value, one))
    is_near = graph.binary("LESS", value, scalar(graph, _LOG1P_SERIES, value), np.bool_)
    return graph.add("SELECT_V2", [is_near, near, far], value.shape, value.dtype)


@operator(*_FLOAT_UNARY, rule=either)
def _float_unary(call: Call) -> Tensor:
    return call.graph.unary(_FLOAT_UNARY[call.node.kind], floating(call.x(0)))


@operator("Neg", "Abs", rule=either)
@operator("Sign", rule=either, dtypes=COMMON)
def _any_unary(call: Call) -> Tensor:
    value, declared = call.x(0), call.result().dtype
    if call.node.kind == "Abs" and declared.kind == "u":
        return value
    if value.dtype.kind == "u":
        raise Unsupported(f"has no kernel for {value.dtype}")
    return narrowed(call.graph, call.graph.unary(_ANY_UNARY[call.node.kind], value), declared)


@operator(*_BINARY, "Sum", rule=either)
def _arithmetic(call: Call) -> Tensor:
    return narrowed(call.graph, _folded(call, _BINARY.get(call.node.kind, "ADD")), call.result().dtype)


@operator("Max", "Min", rule=either)
def _extreme(call: Call) -> Tensor:
    return restored(call.graph, _folded(call, "MAXIMUM" if call.node.kind == "Max" else "MINIMUM"), call.result().dtype, moved=True)


@operator("Mean", rule=either)
def _mean(call: Call) -> Tensor:
    total, count = _folded(call, "ADD"), len(call.node.inputs)
    return total if count == 1 else call.graph.binary("MUL", total, scalar(call.graph, 1 / count, total))


def _folded(call: Call, kind: str) -> Tensor:
    """Applies an operator on two tensors to all inputs, one after the other."""
    wide = ordered if kind in ("MAXIMUM", "MINIMUM") else widened
    values = [wide(call.graph, one) for one in call.xs()]
    return reduce(lambda left, right: call.graph.binary(kind, left, right), values)


@operator("Div", rule=either, dtypes=COMMON)
def _div(call: Call) -> Tensor:
    left, right = call.xs()
    if left.dtype.kind == "u":
        raise Unsupported(f"has no kernel for {left.dtype}")
    inverse = _inverse(right)
    if inverse is not None:
        return call.graph.binary("MUL", left, call.graph.constant(inverse))
    return narrowed(call.graph, call.graph.binary("DIV", left, right), call.result().dtype)


def _inverse(value: Tensor) -> np.ndarray | None:
    """Returns one divided by a constant, where float32 has that with all of its digits."""
    if value.data is None or value.dtype.kind != "f" or np.any(value.data == 0):
        return None
    inverse = 1 / value.data.astype(np.float64)
    sizes, limits = np.abs(inverse), np.finfo(np.float32)
    return inverse.astype(np.float32) if np.all((sizes >= limits.tiny) & (sizes <= limits.max)) else None


@operator("Reciprocal", rule=either)
def _reciprocal(call: Call) -> Tensor:
    value = floating(call.x(0))
    return call.graph.binary("DIV", scalar(call.graph, 1.0, value), value)


@operator("Clip", rule=either, dtypes=WIDE)
def _clip(call: Call) -> Tensor:
    graph, declared = call.graph, call.result().dtype
    value = widened(graph, call.x(0))
    bounds = [_bound(call, place, name, value) for place, name in ((1, "min"), (2, "max"))]
    known = tuple(one.data.item() if one is not None and one.data is not None else one for one in bounds)
    if value.dtype.kind == "f" and known in _CLIPS:
        return graph.unary(_CLIPS[known], value)
    low, high = bounds
    value = value if low is None else graph.binary("MAXIMUM", value, low)
    value = value if high is None else graph.binary("MINIMUM", value, high)
    return restored(graph, value, declared)


_CLIPS: dict[tuple[Any, ...], str] = {(0, 6): "RELU6", (-1, 1): "RELU_N1_TO_1", (0, None): "RELU"}


def _bound(call: Call, place: int, name: str, like: Tensor) -> Tensor | None:
    if call.has(place):
        return call.graph.reshape(widened(call.graph, call.x(place)), ())
    number = call.attribute(name)
    return None if number is None else scalar(call.graph, number, like)


@operator("Pow", rule=either, dtypes=COMMON, limits="integers to whole powers from zero on, constant ones if they are real numbers")
def _pow(call: Call) -> Tensor:
    graph, declared = call.graph, call.result().dtype
    base, exponent = call.xs()
    if base.dtype.kind == "u" or exponent.dtype == np.uint64 or (exponent.dtype == np.uint32 and base.dtype.kind != "f"):
        raise Unsupported(f"has no kernel for {base.dtype} to the power of {exponent.dtype}")
    fixed = exponent.data.item() if exponent.data is not None and exponent.size == 1 else None
    found = _power(graph, base, fixed) if fixed is not None and base.shape == call.shape() else None
    if found is None and base.dtype.kind == "i":
        found = graph.binary("POW", base, _whole(graph, exponent))
    return narrowed(graph, found or graph.binary("POW", base, graph.cast(exponent, base.dtype)), declared)


def _whole(graph: Graph, exponent: Tensor) -> Tensor:
    """Returns exponents of integers, which the kernel takes as integers from zero on."""
    if exponent.dtype.kind == "i" and exponent.data is None:
        return exponent  # the kernel itself stops at a negative one
    if exponent.data is None or np.any((exponent.data != np.floor(exponent.data)) | (exponent.data < 0)):
        raise Unsupported("raises integers to powers that are fractions, or may be")
    return graph.cast(exponent, np.int32)


def _power(graph: Graph, base: Tensor, exponent: float) -> Tensor | None:
    """Returns a power that faster kernels compute."""
    if exponent == 1:
        return base
    if exponent in (2, 3):
        square = graph.binary("MUL", base, base)
        return square if exponent == 2 else graph.binary("MUL", square, base)
    if base.dtype.kind == "f" and exponent == 0.5:
        return graph.unary("SQRT", base)
    return graph.binary("DIV", scalar(graph, 1.0, base), base) if base.dtype.kind == "f" and exponent == -1 else None


@operator("Mod", rule=either, dtypes=WIDE)
def _mod(call: Call) -> Tensor:
    graph, declared = call.graph, call.result().dtype
    left, right = (widened(graph, one) for one in call.xs())
    if declared.kind == "u" or not call.attribute("fmod", 0):
        return restored(graph, graph.binary("FLOOR_MOD", left, right), declared)
    # The remainder has the sign of the dividend; among positive numbers there is only one kind of remainder.
    size = graph.binary("FLOOR_MOD", graph.unary("ABS", left), graph.unary("ABS", right))
    return graph.binary("MUL", graph.unary("SIGN", left), size)


@operator("Cast", "CastLike", rule=either, dtypes=WIDE, limits="not to uint64")
def _cast(call: Call) -> Tensor:
    graph, value = call.graph, call.x(0)
    source, wanted = call.type(0).dtype, call.result().dtype
    if "uint64" in (source.name, wanted.name) and source != wanted:
        raise Unsupported(f"has no kernel from {source} to {wanted}")
    if any(one.kind not in "fiub" and one.name not in _NARROW for one in (source, wanted)):
        raise Unsupported(f"has no kernel from {source} to {wanted}")
    if wanted.name in _SMALL or wanted.name in _BITS:
        whole = graph.cast(value, np.int32)
        if wanted.name in _BITS:
            return _wrapped(graph, whole, *_BITS[wanted.name])
        return whole if np.can_cast(source, wanted) else narrowed(graph, whole, wanted)
    if value.dtype.kind == "f" and wanted == np.bool_:
        return graph.binary("NOT_EQUAL", value, scalar(graph, 0.0, value), np.bool_)  # a fraction is true
    return graph.cast(value, carried(wanted))


def _wrapped(graph: Graph, value: Tensor, low: int, count: int) -> Tensor:
    """Wraps integers around to a range, of whose numbers there are no operators."""
    moved = graph.binary("FLOOR_MOD", graph.binary("SUB", value, scalar(graph, low, value)), scalar(graph, count, value))
    return graph.binary("ADD", moved, scalar(graph, low, value))


@operator("Tan", rule=either)
def _tan(call: Call) -> Tensor:
    value = floating(call.x(0))
    return call.graph.binary("DIV", call.graph.unary("SIN", value), call.graph.unary("COS", value))


@operator("Asin", "Acos", "Atan", rule=either)
def _arc(call: Call) -> Tensor:
    graph, value = call.graph, floating(call.x(0))
    one = scalar(graph, 1.0, value)
    if call.node.kind == "Atan":
        # The kernel's sizes must be equal: it does not broadcast.
        return graph.add("ATAN2", [value, _ones(graph, value)], value.shape)
    product = graph.binary("MUL", graph.binary("SUB", one, value), graph.binary("ADD", one, value))
    other = graph.unary("SQRT", product)
    return graph.add("ATAN2", [value, other] if call.node.kind == "Asin" else [other, value], value.shape)


def _ones(graph: Graph, value: Tensor) -> Tensor:
    """Returns ones of a tensor's sizes, which may be free: made of its numbers, so that infinities do no harm."""
    zeros = graph.binary("MINIMUM", graph.unary("ABS", value), scalar(graph, 0.0, value))
    return graph.binary("ADD", zeros, scalar(graph, 1.0, value))


@operator("Sinh", "Cosh", rule=either)
def _hyperbolic(call: Call) -> Tensor:
    graph, value = call.graph, floating(call.x(0))
    total = graph.binary("ADD", graph.unary("EXP", value), graph.unary("EXP", graph.unary("NEG", value)))
    cosine = graph.binary("MUL", total, scalar(graph, 0.5, value))
    # The difference of the two would lose the digits of small numbers.
    return graph.binary("MUL", graph.unary("TANH", value), cosine) if call.node.kind == "Sinh" else cosine


@operator("Asinh", rule=either)
def _asinh(call: Call) -> Tensor:
    """``sign(x) log1p(|x| (1 + |x| / (1 + sqrt(x² + 1))))``; the square is taken of bounded numbers, where the fraction is one already."""
    graph, value = call.graph, floating(call.x(0))
    one, size = scalar(graph, 1.0, value), graph.unary("ABS", value)
    bounded = graph.binary("MINIMUM", size, scalar(graph, 1e9, value))
    root = graph.unary("SQRT", graph.binary("ADD", graph.binary("MUL", bounded, bounded), one))
    fraction = graph.binary("DIV", bounded, graph.binary("ADD", root, one))
    return _signed(graph, log1p(graph, graph.binary("MUL", size, graph.binary("ADD", fraction, one))), value)


@operator("Acosh", rule=either)
def _acosh(call: Call) -> Tensor:
    """``log1p(x - 1 + sqrt(x - 1) sqrt(x + 1))``."""
    graph, value = call.graph, floating(call.x(0))
    one = scalar(graph, 1.0, value)
    below, above = graph.binary("SUB", value, one), graph.binary("ADD", value, one)
    product = graph.binary("MUL", graph.unary("SQRT", below), graph.unary("SQRT", above))
    return log1p(graph, graph.binary("ADD", below, product))


@operator("Atanh", rule=either)
def _atanh(call: Call) -> Tensor:
    """``sign(x) log1p(2 |x| / (1 - |x|)) / 2``."""
    graph, value = call.graph, floating(call.x(0))
    size = graph.unary("ABS", value)
    quotient = graph.binary("DIV", graph.binary("ADD", size, size), graph.binary("SUB", scalar(graph, 1.0, value), size))
    return _signed(graph, graph.binary("MUL", log1p(graph, quotient), scalar(graph, 0.5, value)), value)


def _signed(graph: Graph, size: Tensor, value: Tensor) -> Tensor:
    return graph.binary("MUL", graph.unary("SIGN", value), size)
