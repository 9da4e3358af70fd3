"""What a StableHLO operation says about itself: shapes, element types, constants, and the operator inside of a region."""

from __future__ import annotations

from typing import Any

import numpy as np

from toolkit.convert.onnx_graph import Graph, Tensor

_TYPES = {
    **{f"f{bits}": f"float{bits}" for bits in (16, 32, 64)},
    **{f"i{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"ui{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
    "i1": "bool",
}


class Unsupported(Exception):
    """An operator cannot be written in the other format.

    Attributes:
        operator: The operator, in the program's own words.
        reason: What is wrong with it, as a part of a sentence.
        layer: Path of the layer that it belongs to, where that is known.
    """

    layer = ""

    def __init__(self, operator: str, reason: str) -> None:
        super().__init__(f"{operator} {reason}")
        self.operator, self.reason = operator, reason


def shape_of(value: Any) -> tuple[int, ...]:
    """Returns the sizes of an MLIR value."""
    from litert_converter.mlir import ir

    return tuple(ir.ShapedType(value.type).shape)


def element_type(value: Any) -> np.dtype[Any]:
    """Returns the element type of an MLIR value.

    Raises:
        Unsupported: NumPy has no such type.
    """
    from litert_converter.mlir import ir

    name = str(ir.ShapedType(value.type).element_type)
    if name not in _TYPES:
        raise Unsupported(f"{name} numbers", "have no kernels in ONNX Runtime")
    return np.dtype(_TYPES[name])


def whole(graph: Graph, value: Any) -> Tensor:
    """Returns the tensor of an MLIR value in its whole shape: a broadcast that was put off is made."""
    return graph.expand(graph.values[value], shape_of(value))


def dense(attribute: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Tensor:
    """Returns a constant; one that repeats a number everywhere as that number."""
    from litert_converter.mlir import ir

    if not isinstance(attribute, ir.DenseElementsAttr):
        raise Unsupported("constant", f"is stored as {type(attribute).__name__}")
    if attribute.is_splat:
        content = np.array(attribute.get_splat_value().value, dtype)
    elif dtype == np.bool_:
        content = np.array([bool(flag) for flag in ir.DenseIntElementsAttr(attribute)]).reshape(shape)
    else:
        content = np.array(attribute, dtype).reshape(shape)
    return Tensor("", content.shape, dtype, content)


def region_operator(operation: Any) -> str:
    """Returns the only operator in an operation's region, ``add`` of a sum; empty where there are others."""
    found = [inner.operation.name for inner in operation.regions[0].blocks[0].operations]
    return str(found[0]).removeprefix("stablehlo.") if len(found) == 2 else ""
