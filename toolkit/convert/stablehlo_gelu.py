"""Finds exact GELUs that were spelled out, and makes one operator of each.

JAX writes the error function as two polynomials of 65 operators, of which nothing tells that they are a GELU but what they
compute. So each product ``x * f(x)`` of operators that work on every number alone is computed on a grid and held against
``x / 2 * (1 + erf(x / sqrt(2)))`` (Hendrycks and Gimpel, Gaussian Error Linear Units, https://arxiv.org/abs/1606.08415).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from toolkit.convert import stablehlo

_GRID = np.concatenate([np.linspace(-6, 6, 41), [-11.0, 11.0]]).astype(np.float32)
_GELU = np.array([x / 2 * math.erfc(-x / math.sqrt(2)) for x in _GRID.tolist()], np.float32)
_TOLERANCE = 2e-6  # absolute; the spelled-out polynomials err by less than 1e-6 on the grid
_MOST_OPERATORS = 150

_ELEMENTWISE: dict[str, Callable[..., np.ndarray]] = {
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "divide": np.divide,
    "negate": np.negative,
    "abs": np.abs,
    "exponential": np.exp,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "select": np.where,
    "sign": np.sign,
    "tanh": np.tanh,
    "clamp": lambda low, value, high: np.clip(value, low, high),
    "chlo.erf": np.vectorize(math.erf, otypes=[np.float32]),
}
_COMPARE = {"EQ": np.equal, "NE": np.not_equal, "GE": np.greater_equal, "GT": np.greater, "LE": np.less_equal, "LT": np.less}


class _NotAlone(Exception):
    """A value depends on more than the one number."""


def fuse(module: Any) -> int:
    """Replaces every exact GELU of a StableHLO module by one ``tfl.gelu``; what is left over is dead code. Returns their number."""
    from litert_converter.mlir import ir

    found = 0
    for product in stablehlo.operations(module, "stablehlo.multiply"):
        source = _argument(product)
        if source is None:
            continue
        result = product.results[0]
        with ir.InsertionPoint(product), product.location:
            exact = {"approximate": ir.BoolAttr.get(False)}
            fused = ir.Operation.create("tfl.gelu", results=[result.type], operands=[source], attributes=exact)
        result.replace_all_uses_with(fused.results[0])
        product.erase()
        found += 1
    return found


def _argument(product: Any) -> Any:
    """Returns the value whose GELU a product is, if it is one."""
    factors = _factors(product.results[0])
    if str(product.results[0].type).find("xf32") < 0 or not any(map(_looks_like_erf, factors)):
        return None
    for value in factors:
        if value.type != product.results[0].type or _looks_like_erf(value):
            continue
        if _is_gelu(product.results[0], value):
            return value
    return None


def _factors(value: Any, depth: int = 2) -> list[Any]:
    owner = _owner(value)
    if owner is None or owner.name != "stablehlo.multiply" or not depth:
        return [value]
    return [value, *(factor for operand in owner.operands for factor in _factors(operand, depth - 1))]


def _looks_like_erf(value: Any) -> bool:
    """Whether a factor may be ``erfc(...)``, which chooses between two polynomials, or ``1 + erf(...)``."""
    owner = _owner(value)
    if owner is None:
        return False
    return owner.name == "stablehlo.select" or (owner.name == "stablehlo.add" and any(_constant(operand) == 1 for operand in owner.operands))


def _is_gelu(result: Any, argument: Any) -> bool:
    known: dict[int, np.ndarray] = {hash(argument): _GRID}
    try:
        with np.errstate(all="ignore"):
            found = _compute(result, known)
    except _NotAlone:
        return False
    return bool(np.allclose(found, _GELU, rtol=1e-5, atol=_TOLERANCE))


def _compute(value: Any, known: dict[int, np.ndarray]) -> np.ndarray:
    if hash(value) in known:
        return known[hash(value)]
    owner, number = _owner(value), _constant(value)
    if number is not None:
        found = np.asarray(number, np.float32)
    elif owner is None or len(known) > _MOST_OPERATORS:
        raise _NotAlone
    elif owner.name == "stablehlo.compare":
        direction = str(owner.attributes["comparison_direction"]).split()[-1].rstrip(">")
        found = _COMPARE[direction](*(_compute(operand, known) for operand in owner.operands))
    else:
        composite = owner.name == "stablehlo.composite"
        function = _ELEMENTWISE.get(owner.attributes["name"].value if composite else str(owner.name).removeprefix("stablehlo."))
        if function is None:
            raise _NotAlone
        found = function(*(_compute(operand, known) for operand in owner.operands))
    known[hash(value)] = found
    return found


def _constant(value: Any) -> float | None:
    """Returns the number that a constant repeats everywhere; ``None`` for other values."""
    from litert_converter.mlir import ir

    owner = _owner(value)
    if owner is not None and owner.name == "stablehlo.broadcast_in_dim":
        return _constant(owner.operands[0])
    if owner is None or owner.name != "stablehlo.constant" or not isinstance(owner.attributes["value"], ir.DenseElementsAttr):
        return None
    numbers = owner.attributes["value"]
    if not numbers.is_splat:
        return None
    number = numbers.get_splat_value()
    return float(number.value) if hasattr(number, "value") else None


def _owner(value: Any) -> Any:
    """Returns the operation that computes a value; ``None`` for an argument."""
    from litert_converter.mlir import ir

    owner = getattr(value.owner, "operation", value.owner)
    return None if isinstance(owner, ir.Block) else owner
