"""Quantized operators, each of them spelled out as dequantize, operator, quantize.

Of those :mod:`toolkit.convert.tfl.integers` makes integer operators.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from toolkit.convert.tfl.facts import FLOATS, SPELLED_OUT, Facts
from toolkit.convert.tfl.graph import Quantization, Tensor
from toolkit.convert.tfl.lower import Call, either, operator
from toolkit.convert.tfl.program import EXPANSIONS, Unsupported

_SHIFT = 128  # between unsigned and signed integers of eight bits
_LIMITS = {"int8": (-128, 127), "uint8": (0, 255), "int16": (-32768, 32767), "uint16": (0, 65535), "int4": (-8, 7), "uint4": (0, 15), "int2": (-2, 1)}


@operator("QuantizeLinear", rule=either, dtypes=FLOATS, limits="constant scale and zero point; to int8, uint8, int16, uint16; not by blocks")
def _quantize(call: Call) -> Tensor:
    value, scale, zero_point = call.x(0), call.constant(1), _zero_point(call, np.dtype("uint8"))
    if value.dtype != np.float32:
        raise Unsupported(f"quantizes {value.dtype}")
    wanted = call.result().dtype
    if scale.size == 1 and wanted.name in ("int8", "uint8"):
        return signed(call, call.graph.unary("QUANTIZE", value, np.int8), scale, zero_point, wanted)
    return _spelled_out(call, value, scale, zero_point, wanted)


def signed(call: Call, made: Tensor, scale: np.ndarray, zero_point: np.ndarray, meant: np.dtype[Any]) -> Tensor:
    """Says how the integers of a tensor are meant: unsigned ones are stored as signed ones, which TFLite's kernels are made for."""
    shift = _SHIFT if meant == np.uint8 else 0
    made.quantization = Quantization(scale.astype(np.float32).reshape(-1), zero_point.astype(np.int64).reshape(-1) - shift)
    return made


def _spelled_out(call: Call, value: Tensor, scale: np.ndarray, zero_point: np.ndarray, wanted: np.dtype[Any]) -> Tensor:
    """Quantizes along an axis, or to integers that no kernel quantizes to, with products and rounding."""
    if wanted.name not in _LIMITS:
        raise Unsupported(f"quantizes to {wanted}")
    graph, low, high = call.graph, *_LIMITS[wanted.name]
    scaled = graph.binary("DIV", value, graph.constant(_along(call, scale.astype(np.float32))))
    moved = graph.binary("ADD", graph.unary("ROUND", scaled), graph.constant(_along(call, zero_point.astype(np.float32))))
    cut = graph.binary("MINIMUM", graph.binary("MAXIMUM", moved, graph.constant(np.float32(low))), graph.constant(np.float32(high)))
    return graph.cast(cut, np.int32)


@operator("DequantizeLinear", rule=either, limits="constant scale and zero point; by blocks only where the integers are constant")
def _dequantize(call: Call) -> Tensor:
    value, scale = call.stored(0), call.constant(1)
    zero_point = _zero_point(call, call.type(0).dtype)
    if value.quantization is not None:
        return call.graph.unary("DEQUANTIZE", value, np.float32)
    if scale.size == 1 and value.dtype.name in ("int8", "uint8") and value in call.graph.inputs:
        value.quantization = Quantization(scale.astype(np.float32).reshape(-1), zero_point.astype(np.int64).reshape(-1))
        return call.graph.unary("DEQUANTIZE", value, np.float32)
    real = call.graph.cast(call.x(0), np.float32)
    moved = call.graph.binary("SUB", real, call.graph.constant(_along(call, zero_point.astype(np.float32))))
    return call.graph.binary("MUL", moved, call.graph.constant(_along(call, scale.astype(np.float32))))


def _zero_point(call: Call, default: np.dtype[Any]) -> np.ndarray:
    return call.constant(2) if call.has(2) else np.zeros(call.constant(1).shape, default)


def _along(call: Call, numbers: np.ndarray) -> np.ndarray:
    """Shapes one number for each element of an axis so that it is broadcast along the others.

    One for each block of an axis is repeated along that.
    """
    rank = len(call.result().shape)
    if numbers.size == 1:
        return numbers.reshape(())
    if numbers.ndim != 1:
        return _by_blocks(call, numbers)
    shape = [1] * rank
    shape[call.axis(call.attribute("axis", 1), rank)] = numbers.size
    return numbers.reshape(shape)


def _by_blocks(call: Call, numbers: np.ndarray) -> np.ndarray:
    """Repeats one number for each block of an axis, whose last one may be cut off.

    Raises:
        Unsupported: The axis is free.
    """
    axis = call.attribute("axis", 1) % numbers.ndim
    (size,) = call.known((call.result().shape[axis],), "the axis that is quantized by blocks")
    block = call.attribute("block_size", 0) or -(-size // numbers.shape[axis])
    full = np.repeat(numbers, block, axis).take(range(size), axis)
    return full.transpose(call.order(numbers.ndim))


@operator("DynamicQuantizeLinear")
def _dynamic(call: Call) -> list[Tensor]:
    """Chooses scale and zero point by the data, as ONNX defines it; the integers are carried as 32-bit ones."""
    graph, value = call.graph, call.x(0)
    axes = graph.integers(range(value.rank))
    zero = graph.constant(np.float32(0))
    low = graph.binary("MINIMUM", graph.add("REDUCE_MIN", [value, axes], (), keepDims=False), zero)
    high = graph.binary("MAXIMUM", graph.add("REDUCE_MAX", [value, axes], (), keepDims=False), zero)
    scale = graph.binary("DIV", graph.binary("SUB", high, low), graph.constant(np.float32(255)))
    zero_point = _cut(call, graph.unary("ROUND", graph.unary("NEG", graph.binary("DIV", low, scale))))
    moved = graph.binary("ADD", graph.unary("ROUND", graph.binary("DIV", value, scale)), zero_point)
    return [graph.cast(_cut(call, moved), np.int32), scale, graph.cast(zero_point, np.int32)]


def _cut(call: Call, value: Tensor) -> Tensor:
    graph = call.graph
    return graph.binary("MINIMUM", graph.binary("MAXIMUM", value, graph.constant(np.float32(0))), graph.constant(np.float32(255)))


def _node(kind: str, inputs: list[str], output: str, like: Any, **attributes: Any) -> Any:
    from onnx import helper

    return helper.make_node(kind, inputs, [output], name=like.name or like.output[0], **attributes)


def _attributes(proto: Any) -> dict[str, Any]:
    from onnx import helper

    return {one.name: helper.get_attribute_value(one) for one in proto.attribute}


def _known(names: list[str], constants: Mapping[str, np.ndarray]) -> bool:
    return all(name in constants for name in names if name)


def _qlinear_conv(proto: Any, constants: Mapping[str, np.ndarray]) -> list[Any]:
    x, xs, xz, w, ws, wz, ys, yz, *bias = proto.input
    base = f"{proto.output[0]}/"
    nodes = [
        _node("DequantizeLinear", [x, xs, xz], f"{base}x", proto),
        _node("DequantizeLinear", [w, ws, wz], f"{base}w", proto, axis=0),
    ]
    inputs = [f"{base}x", f"{base}w"]
    if bias and bias[0]:
        nodes += [
            _node("Mul", [xs, ws], f"{base}bs", proto),
            _node("DequantizeLinear", [bias[0], f"{base}bs"], f"{base}b", proto, axis=0),
        ]
        inputs.append(f"{base}b")
    nodes.append(_node("Conv", inputs, f"{base}y", proto, **_attributes(proto)))
    return [*nodes, _node("QuantizeLinear", [f"{base}y", ys, yz], proto.output[0], proto)]


def _qlinear_matmul(proto: Any, constants: Mapping[str, np.ndarray]) -> list[Any]:
    a, a_scale, az, b, bs, bz, ys, yz = proto.input
    base = f"{proto.output[0]}/"
    return [
        _node("DequantizeLinear", [a, a_scale, az], f"{base}a", proto),
        _node("DequantizeLinear", [b, bs, bz], f"{base}b", proto, axis=-1),
        _node("MatMul", [f"{base}a", f"{base}b"], f"{base}y", proto),
        _node("QuantizeLinear", [f"{base}y", ys, yz], proto.output[0], proto),
    ]


def _integer_product(kind: str) -> Any:
    """``MatMulInteger`` and ``ConvInteger``: the products of what is left after the zero points, exact in float32 up to 2 ** 24."""

    def expand(proto: Any, constants: Mapping[str, np.ndarray]) -> list[Any]:
        base = f"{proto.output[0]}/"
        given = [*proto.input, "", ""][:4]
        nodes = []
        for name, zero, made in ((given[0], given[2], "a"), (given[1], given[3], "b")):
            nodes.append(_node("Cast", [name], f"{base}{made}r", proto, to=1))
            if zero:
                nodes += [_node("Cast", [zero], f"{base}{made}z", proto, to=1)]
                shifted = f"{base}{made}z"
                if zero in constants and constants[zero].ndim == 1 and constants[zero].size > 1:
                    return []  # along an axis: nobody writes that
                nodes.append(_node("Sub", [f"{base}{made}r", shifted], f"{base}{made}", proto))
            else:
                nodes.append(_node("Identity", [f"{base}{made}r"], f"{base}{made}", proto))
        nodes.append(_node(kind, [f"{base}a", f"{base}b"], f"{base}y", proto, **_attributes(proto)))
        return [*nodes, _node("Cast", [f"{base}y"], proto.output[0], proto, to=6)]

    return expand


def _qlinear_binary(kind: str) -> Any:
    """``com.microsoft``'s QLinearAdd and QLinearMul."""

    def expand(proto: Any, constants: Mapping[str, np.ndarray]) -> list[Any]:
        a, a_scale, az, b, bs, bz, ys, *yz = proto.input
        base = f"{proto.output[0]}/"
        return [
            _node("DequantizeLinear", [a, a_scale, az], f"{base}a", proto),
            _node("DequantizeLinear", [b, bs, bz], f"{base}b", proto),
            _node(kind, [f"{base}a", f"{base}b"], f"{base}y", proto),
            _node("QuantizeLinear", [f"{base}y", ys, *yz], proto.output[0], proto),
        ]

    return expand


def _qlinear_unary(kind: str) -> Any:
    """``com.microsoft``'s QLinearSigmoid, QLinearLeakyRelu, QLinearSoftmax and pooling."""

    def expand(proto: Any, constants: Mapping[str, np.ndarray]) -> list[Any]:
        x, xs, xz, ys, *yz = proto.input
        base = f"{proto.output[0]}/"
        attributes = {name: value for name, value in _attributes(proto).items() if name not in ("channels_last", "opset")}
        return [
            _node("DequantizeLinear", [x, xs, xz], f"{base}x", proto),
            _node(kind, [f"{base}x"], f"{base}y", proto, **attributes),
            _node("QuantizeLinear", [f"{base}y", ys, *yz], proto.output[0], proto),
        ]

    return expand


def _qgemm(proto: Any, constants: Mapping[str, np.ndarray]) -> list[Any]:
    """``com.microsoft.QGemm``; without an output scale it gives real numbers."""
    a, a_scale, az, b, bs, bz, *rest = proto.input
    bias, ys, yz = (*rest, "", "", "")[:3]
    base, attributes = f"{proto.output[0]}/", _attributes(proto)
    axis = 0 if attributes.get("transB") else 1
    nodes = [
        _node("DequantizeLinear", [a, a_scale, az], f"{base}a", proto),
        _node("DequantizeLinear", [b, bs, bz], f"{base}b", proto, axis=axis),
    ]
    inputs = [f"{base}a", f"{base}b"]
    if bias:
        nodes += [_node("Mul", [a_scale, bs], f"{base}cs", proto), _node("DequantizeLinear", [bias, f"{base}cs"], f"{base}c", proto, axis=0)]
        inputs.append(f"{base}c")
    nodes.append(_node("Gemm", inputs, f"{base}y" if ys else proto.output[0], proto, **attributes))
    return [*nodes, _node("QuantizeLinear", [f"{base}y", ys, yz], proto.output[0], proto)] if ys else nodes


EXPANSIONS |= {
    "QLinearConv": _qlinear_conv,
    "QLinearMatMul": _qlinear_matmul,
    "MatMulInteger": _integer_product("MatMul"),
    "ConvInteger": _integer_product("Conv"),
    "com.microsoft.QGemm": _qgemm,
    "com.microsoft.QLinearAdd": _qlinear_binary("Add"),
    "com.microsoft.QLinearMul": _qlinear_binary("Mul"),
    "com.microsoft.QLinearSigmoid": _qlinear_unary("Sigmoid"),
    "com.microsoft.QLinearLeakyRelu": _qlinear_unary("LeakyRelu"),
    "com.microsoft.QLinearGlobalAveragePool": _qlinear_unary("GlobalAveragePool"),
    "com.microsoft.QLinearAveragePool": _qlinear_unary("AveragePool"),
    "com.microsoft.QLinearSoftmax": _qlinear_unary("Softmax"),
}
_EIGHT_BITS = frozenset({"int8", "uint8"})
_KNOWN = "constant scales and zero points"
SPELLED_OUT |= dict.fromkeys((kind for kind in EXPANSIONS if "QLinear" in kind or "QGemm" in kind), Facts(_EIGHT_BITS, limits=_KNOWN))
SPELLED_OUT |= dict.fromkeys(("MatMulInteger", "ConvInteger"), Facts(_EIGHT_BITS, limits="zero points for whole tensors; sums up to 2 ** 24"))
