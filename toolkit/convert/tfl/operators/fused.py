"""Operators of ONNX Runtime's own domain, which its optimizer writes. Most are spelled out as what they were made of.

What they mean: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from toolkit.convert.tfl.facts import FLOATS, SPELLED_OUT, Facts
from toolkit.convert.tfl.graph import Tensor
from toolkit.convert.tfl.lower import Call, operator
from toolkit.convert.tfl.program import EXPANSIONS, TYPINGS, Node, Program, Type, Unsupported

_DOMAIN = "com.microsoft."
Constants = Mapping[str, np.ndarray]
# Attributes of an activation, in the order of FusedConv's activation_params.
_PARAMETERS = {"LeakyRelu": ("alpha",), "HardSigmoid": ("alpha", "beta"), "Clip": ("min", "max")}


def _node(kind: str, inputs: list[str], outputs: list[str], like: Any, **attributes: Any) -> Any:
    from onnx import helper

    return helper.make_node(kind, inputs, outputs, name=f"{like.name or like.output[0]}/{kind}", **attributes)


def _constant(content: Any, output: str, like: Any) -> Any:
    from onnx import numpy_helper

    return _node("Constant", [], [output], like, value=numpy_helper.from_array(np.asarray(content)))


def _attributes(proto: Any) -> dict[str, Any]:
    from onnx import helper

    return {one.name: helper.get_attribute_value(one) for one in proto.attribute}


def _inputs(proto: Any, count: int) -> list[str]:
    """Returns so many inputs, empty where left out."""
    return [*proto.input, *[""] * count][:count]


def _outputs(proto: Any, count: int) -> list[str]:
    return [*proto.output, *[""] * count][:count]


def _activated(kind: str, numbers: list[float], source: str, proto: Any) -> list[Any]:
    """Returns the nodes of an activation."""
    names = _PARAMETERS.get(kind, ())
    if kind != "Clip":
        return [_node(kind, [source], [proto.output[0]], proto, **dict(zip(names, numbers, strict=False)))]
    bounds = [f"{source}/{name}" for name in names]
    made = [_constant(np.float32(number), bound, proto) for bound, number in zip(bounds, numbers, strict=False)]
    return [*made, _node("Clip", [source, *bounds[: len(made)]], [proto.output[0]], proto)]


def _fused_conv(proto: Any, constants: Constants) -> list[Any]:
    attributes = _attributes(proto)
    kind, numbers = attributes.pop("activation", b"").decode(), attributes.pop("activation_params", [])
    value, weight, bias, added = _inputs(proto, 4)
    last = f"{proto.output[0]}/conv"
    nodes = [_node("Conv", [value, weight, bias] if bias else [value, weight], [last], proto, **attributes)]
    if added:
        nodes.append(_node("Add", [last, added], [f"{last}/sum"], proto))
        last = f"{last}/sum"
    return [*nodes, *_activated(kind or "Identity", numbers, last, proto)]


def _fused_gemm(proto: Any, constants: Constants) -> list[Any]:
    attributes = _attributes(proto)
    kind = attributes.pop("activation", b"").decode()
    numbers = [attributes.pop(f"activation_{name}") for name in ("alpha", "beta", "gamma") if f"activation_{name}" in attributes]
    made = f"{proto.output[0]}/gemm"
    return [_node("Gemm", list(proto.input), [made], proto, **attributes), *_activated(kind or "Identity", numbers, made, proto)]


def _gelu(approximate: str) -> Callable[[Any, Constants], list[Any]]:
    """``Gelu``, ``BiasGelu`` and ``FastGelu``: GELU, of a sum where a bias is given."""

    def expand(proto: Any, constants: Constants) -> list[Any]:
        value, bias = _inputs(proto, 2)
        total = f"{proto.output[0]}/sum"
        before = [_node("Add", [value, bias], [total], proto)] if bias else []
        return [*before, _node("Gelu", [total if bias else value], [proto.output[0]], proto, approximate=approximate)]

    return expand


def _quick_gelu(proto: Any, constants: Constants) -> list[Any]:
    base, alpha = f"{proto.output[0]}/", np.float32(_attributes(proto).get("alpha", 1.702))
    return [
        _constant(alpha, f"{base}alpha", proto),
        _node("Mul", [proto.input[0], f"{base}alpha"], [f"{base}scaled"], proto),
        _node("Sigmoid", [f"{base}scaled"], [f"{base}gate"], proto),
        _node("Mul", [proto.input[0], f"{base}gate"], [proto.output[0]], proto),
    ]


def _skip_normalization(simplified: bool) -> Callable[[Any, Constants], list[Any]]:
    """A normalization of a sum, which is an output too."""

    def expand(proto: Any, constants: Constants) -> list[Any]:
        value, skip, gamma, *rest = _inputs(proto, 5)
        beta, bias = ("", rest[0]) if simplified else rest
        made, mean, spread, total = _outputs(proto, 4)
        total = total or f"{made}/sum"
        nodes = [_node("Add", [value, skip], [f"{made}/skipped" if bias else total], proto)]
        if bias:
            nodes.append(_node("Add", [f"{made}/skipped", bias], [total], proto))
        epsilon = _attributes(proto).get("epsilon", 1e-12 if not simplified else 1e-5)
        if simplified:
            return [*nodes, _node("SimplifiedLayerNormalization", [total, gamma], [made, spread], proto, epsilon=epsilon)]
        inputs = [total, gamma, beta] if beta else [total, gamma]
        return [*nodes, _node("LayerNormalization", inputs, [made, mean, spread], proto, epsilon=epsilon)]

    return expand


def _embed(proto: Any, constants: Constants) -> list[Any]:
    """``EmbedLayerNormalization``: the sum of the embeddings of words, places and segments, normalized."""
    ids, segments, words, places, kinds, gamma, beta, mask, positions = _inputs(proto, 9)
    made, lengths, total = _outputs(proto, 3)
    base, total = f"{made}/", total or f"{made}/total"
    nodes = [
        _constant(np.zeros(1, np.int64), f"{base}zero", proto),
        _constant(np.ones(1, np.int64), f"{base}one", proto),
        _constant(np.full(1, 2, np.int64), f"{base}two", proto),
        _node("Shape", [ids], [f"{base}sizes"], proto),
        _node("Slice", [f"{base}sizes", f"{base}one", f"{base}two"], [f"{base}length"], proto),
        _node("Gather", [words, ids], [f"{base}words"], proto),
    ]
    if lengths:
        nodes += _lengths(mask, lengths, base, proto)
    if positions:
        nodes.append(_node("Gather", [places, positions], [f"{base}places"], proto))
    else:
        nodes.append(_node("Slice", [places, f"{base}zero", f"{base}length"], [f"{base}places"], proto))
    last = f"{base}sum" if segments else total
    nodes.append(_node("Add", [f"{base}words", f"{base}places"], [last], proto))
    if segments:
        nodes += [_node("Gather", [kinds, segments], [f"{base}kinds"], proto), _node("Add", [last, f"{base}kinds"], [total], proto)]
    return [*nodes, _node("LayerNormalization", [total, gamma, beta], [made], proto, epsilon=_attributes(proto).get("epsilon", 1e-12))]


def _lengths(mask: str, output: str, base: str, proto: Any) -> list[Any]:
    """Returns the nodes that count how many words each sample has: by the mask, or, without one, zero."""
    from onnx import numpy_helper

    if not mask:
        nothing = numpy_helper.from_array(np.zeros(1, np.int32))
        return [
            _node("Slice", [f"{base}sizes", f"{base}zero", f"{base}one"], [f"{base}samples"], proto),
            _node("ConstantOfShape", [f"{base}samples"], [output], proto, value=nothing),
        ]
    return [
        _node("ConstantOfShape", [f"{base}length"], [f"{base}ones"], proto, value=numpy_helper.from_array(np.ones(1, np.float32))),
        _node("Cast", [mask], [f"{base}mask"], proto, to=1),
        _node("MatMul", [f"{base}mask", f"{base}ones"], [f"{base}count"], proto),
        _node("Cast", [f"{base}count"], [output], proto, to=6),
    ]


EXPANSIONS |= {
    f"{_DOMAIN}{kind}": expand
    for kind, expand in {
        "FusedConv": _fused_conv,
        "FusedGemm": _fused_gemm,
        "Gelu": _gelu("none"),
        "BiasGelu": _gelu("none"),
        "FastGelu": _gelu("tanh"),
        "QuickGelu": _quick_gelu,
        "SkipLayerNormalization": _skip_normalization(False),
        "SkipSimplifiedLayerNormalization": _skip_normalization(True),
        "EmbedLayerNormalization": _embed,
    }.items()
}


_REAL = Facts(FLOATS)
SPELLED_OUT |= dict.fromkeys((kind for kind in EXPANSIONS if kind.startswith(_DOMAIN)), _REAL)


def _same_type(node: Node, program: Program) -> list[Type]:
    return [program.type(node.inputs[0])]


def _product_type(node: Node, program: Program) -> list[Type]:
    left, right = (program.type(name) for name in node.inputs[:2])
    if any(node.attributes.get(name, 0) for name in ("transBatchA", "transBatchB")) or min(len(left.shape), len(right.shape)) < 2:
        raise Unsupported("turns the axes of the batch")
    rows = left.shape[-1 if node.attributes.get("transA", 0) else -2]
    columns = right.shape[-2 if node.attributes.get("transB", 0) else -1]
    return [Type(left.dtype, (*_broadcast(left.shape[:-2], right.shape[:-2]), rows, columns))]


def _broadcast(left: tuple[int, ...], right: tuple[int, ...]) -> tuple[int, ...]:
    from toolkit.convert.tfl.graph import broadcast

    return broadcast(left, right)


TYPINGS |= {"Gelu": _same_type, f"{_DOMAIN}FusedMatMul": _product_type}


@operator(f"{_DOMAIN}FusedMatMul", dtypes=FLOATS, limits="no transBatchA, no transBatchB; at least two axes")
def _fused_matmul(call: Call) -> Tensor:
    graph, left, right = call.graph, call.x(0), call.x(1)
    rank = max(left.rank, right.rank)
    left, right = (graph.reshape(one, (1,) * (rank - one.rank) + one.shape) for one in (left, right))
    turned = {"adjX": bool(call.attribute("transA", 0)), "adjY": bool(call.attribute("transB", 0))}
    made = graph.add("BATCH_MATMUL", [left, right], call.shape(), **turned)
    alpha = call.attribute("alpha", 1.0)
    return made if alpha == 1 else graph.binary("MUL", made, graph.constant(np.float32(alpha)))
