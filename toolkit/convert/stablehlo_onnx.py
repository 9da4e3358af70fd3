"""StableHLO to ONNX: the operators that have a counterpart, and the walk through a program.

Specifications: https://openxla.org/stablehlo/spec and https://onnx.ai/onnx/operators
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from toolkit.convert import stablehlo, stablehlo_onnx_fused, stablehlo_onnx_index, stablehlo_onnx_loops, stablehlo_onnx_windows
from toolkit.convert.onnx_graph import Graph, Tensor, reads
from toolkit.convert.stablehlo_values import Unsupported, dense, element_type, shape_of, whole

OPSET = 20
_MISSING = "has no ONNX counterpart"
_Fold = Callable[..., Any] | None
_UNARY: dict[str, tuple[str, _Fold]] = {
    "abs": ("Abs", np.abs),
    "ceil": ("Ceil", np.ceil),
    "cosine": ("Cos", np.cos),
    "exponential": ("Exp", np.exp),
    "floor": ("Floor", np.floor),
    "log": ("Log", np.log),
    "logistic": ("Sigmoid", None),
    "negate": ("Neg", np.negative),
    "not": ("Not", np.logical_not),
    "round_nearest_even": ("Round", np.round),
    "sign": ("Sign", np.sign),
    "sine": ("Sin", np.sin),
    "sqrt": ("Sqrt", np.sqrt),
    "tan": ("Tan", np.tan),
    "tanh": ("Tanh", np.tanh),
}
_BINARY: dict[str, tuple[str, _Fold]] = {
    "add": ("Add", np.add),
    "and": ("And", np.logical_and),
    "divide": ("Div", None),
    "maximum": ("Max", np.maximum),
    "minimum": ("Min", np.minimum),
    "multiply": ("Mul", np.multiply),
    "or": ("Or", np.logical_or),
    "power": ("Pow", np.power),
    "remainder": ("Mod", np.fmod),
    "subtract": ("Sub", np.subtract),
    "xor": ("Xor", np.logical_xor),
}
_OF_BOOL = {"add": "or", "multiply": "and", "maximum": "or", "minimum": "and"}
_COMPARE = {"EQ": "Equal", "GE": "GreaterOrEqual", "GT": "Greater", "LE": "LessOrEqual", "LT": "Less"}
_BITWISE = {"and": "BitwiseAnd", "or": "BitwiseOr", "xor": "BitwiseXor", "not": "BitwiseNot"}


def lower(module: Any, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> Any:
    """Returns a StableHLO module, with its GELUs fused, as an ONNX ``GraphProto``.

    Raises:
        Unsupported: An operator has no counterpart.
    """
    functions = {operation.attributes["sym_name"].value: operation for operation in stablehlo.operations(module, "func.func")}
    graph = Graph()
    main = functions["main"].regions[0].blocks[0]
    taken = []
    for name, argument in zip(inputs, main.arguments, strict=True):
        graph.values[argument] = Tensor(name, shape_of(argument), element_type(argument))
        graph.shared.used[name] += 1
        graph.shared.shapes[name] = graph.values[argument].shape
        taken.append((name, graph.values[argument]))
    graph.shared.used.update(outputs)
    found = _Walk(functions).block(graph, main)
    stablehlo_onnx_fused.fuse(graph, found)
    proto = graph.finish(taken, list(zip(outputs, found, strict=True)), "model")
    used = {name for node in proto.node for name in reads(node)}
    proto.initializer.extend(graph.shared.initializers[name] for name in sorted(used & set(graph.shared.initializers)))
    return proto


def unknown(module: Any) -> list[Unsupported]:
    """Returns the operators that have no counterpart whatever they are given, one for each operator and layer."""
    known = {*_UNARY, *_BINARY, *_OTHERS, *stablehlo_onnx_windows.OPERATORS, *stablehlo_onnx_index.OPERATORS, "while", "case", "if", "composite"}
    found: dict[tuple[str, str], Unsupported] = {}
    for operation in stablehlo.operations(module):
        name = str(operation.name)
        if name.startswith("stablehlo.") and name.removeprefix("stablehlo.") not in known | {"return"}:
            one = Unsupported(stablehlo.spoken(operation), _MISSING)
            one.layer = stablehlo.layer(operation)
            found.setdefault((one.operator, one.layer), one)
    return list(found.values())


class _Walk:
    """Goes through blocks of operations; knows the functions that operations name."""

    def __init__(self, functions: dict[str, Any]) -> None:
        self._functions = functions

    def block(self, graph: Graph, block: Any) -> list[Tensor]:
        """Converts a block and returns what its last operation gives back, in whole shapes."""
        for found in block.operations:
            operation = found.operation
            if str(operation.name).rpartition(".")[2] == "return":
                return [whole(graph, value) for value in operation.operands]
            graph.shared.layer = stablehlo.layer(operation) or graph.shared.layer
            try:
                results = self._operation(graph, operation)
            except Unsupported as error:
                error.layer = error.layer or graph.shared.layer
                raise
            for value, tensor in zip(operation.results, results, strict=True):
                graph.values[value] = tensor
        raise Unsupported("block", "it has no end")

    def _operation(self, graph: Graph, operation: Any) -> list[Tensor]:
        name = str(operation.name).removeprefix("stablehlo.")
        if name in ("while", "case", "if"):
            lowered = stablehlo_onnx_loops.loop if name == "while" else stablehlo_onnx_loops.choice
            return lowered(self.block, graph, operation)
        if name == "func.call":
            return self._call(graph, operation, operation.attributes["callee"].value)
        if name == "composite":
            if operation.attributes["name"].value == "chlo.erf":
                return [graph.elementwise("Erf", [graph.values[operation.operands[0]]], element_type(operation.results[0]))]
            return self._call(graph, operation, operation.attributes["decomposition"].value)
        if name in _UNARY or name in _BINARY:
            return [_arithmetic(graph, operation, name)]
        found = _OTHERS.get(name) or stablehlo_onnx_windows.OPERATORS.get(name) or stablehlo_onnx_index.OPERATORS.get(name)
        if found is None:
            raise Unsupported(stablehlo.spoken(operation), _MISSING)
        made = found(graph, operation)
        return made if isinstance(made, list) else [made]

    def _call(self, graph: Graph, operation: Any, name: str) -> list[Tensor]:
        block = self._functions[name].regions[0].blocks[0]
        for argument, value in zip(block.arguments, operation.operands, strict=True):
            graph.values[argument] = graph.values[value]
        return self.block(graph, block)


def _arithmetic(graph: Graph, operation: Any, name: str) -> Tensor:
    dtype = element_type(operation.results[0])
    inputs = [graph.values[value] for value in operation.operands]
    if dtype.kind == "c":
        raise Unsupported(f"{name} of complex numbers", "has no ONNX counterpart")
    if dtype == np.bool_:
        name = _OF_BOOL.get(name, name)
    elif name in _BITWISE:
        return graph.elementwise(_BITWISE[name], inputs, dtype)
    if name == "divide":
        mean = stablehlo_onnx_windows.mean_of(graph, *inputs)
        if mean is not None:
            return mean
    if dtype.kind == "f" and name in ("add", "maximum", "minimum", "multiply", "subtract"):
        fusible = _fusible(graph, name, *inputs)
        if fusible is not None:
            return fusible
    if name == "negate" and dtype.kind == "u":
        raise Unsupported("negate of unsigned numbers", "has no ONNX counterpart")
    operator, fold = _UNARY.get(name) or _BINARY[name]
    extra = {"fmod": 1} if name == "remainder" else {}
    return graph.elementwise(operator, inputs, dtype, fold, **extra)


def _fusible(graph: Graph, name: str, left: Tensor, right: Tensor) -> Tensor | None:
    """Writes ReLU, ReLU6 and a normalization by constants as what runtimes fuse with the convolution before them."""
    if name != "subtract" and left.constant is not None:
        left, right = right, left
    known = right.constant
    if known is None or left.constant is not None:
        return None
    if name in ("add", "multiply", "subtract"):
        idle = known.ndim <= len(left.shape) and np.broadcast_shapes(known.shape, left.shape) == left.shape and np.all(known == (name == "multiply"))
        return left if idle else _scaled(graph, name, left, known)
    if name == "maximum" and not np.any(known) and known.size == 1:
        found = graph.elementwise("Relu", [left], left.dtype)
        graph.shared.rectified[(found.base or found).name] = left
        return found
    source = graph.shared.rectified.get((left.base or left).name)
    if name == "minimum" and known.size == 1 and source is not None and known.reshape(()) > 0:
        limits = [graph.constant(0, left.dtype), graph.constant(known.reshape(()), left.dtype)]
        return graph.clip(source, *limits)
    return None


def _scaled(graph: Graph, name: str, value: Tensor, known: np.ndarray) -> Tensor:
    """Keeps a chain of constants as one product and one sum behind it: ``(x + a) * b + c`` is ``x * b + (a * b + c)``."""
    source, shift = graph.shared.shifted.get((value.base or value).name, (value, None))
    if shift is not None and shift.constant is not None and source.shape == value.shape:
        if name == "multiply":
            scaled = graph.elementwise("Mul", [source, graph.constant(known)], value.dtype)
            return _scaled(graph, "add", scaled, shift.constant * known)
        value, known = source, shift.constant + (known if name == "add" else -known)
    elif name == "multiply":
        return graph.elementwise("Mul", [value, graph.constant(known)], value.dtype)
    elif name == "subtract":
        known = -known
    found = graph.elementwise("Add", [value, graph.constant(known)], value.dtype)
    graph.shared.shifted[(found.base or found).name] = (value, graph.constant(known))
    return found


def _constant(graph: Graph, operation: Any) -> Tensor:
    dtype = element_type(operation.results[0])
    return dense(operation.attributes["value"], shape_of(operation.results[0]), dtype)


def _compare(graph: Graph, operation: Any) -> Tensor:
    direction = str(operation.attributes["comparison_direction"]).split()[-1].rstrip(">")
    inputs = [graph.values[value] for value in operation.operands]
    if inputs[0].dtype == np.bool_ and direction not in ("EQ", "NE"):
        inputs = [graph.cast(tensor, np.int32) for tensor in inputs]
    folds = {"EQ": np.equal, "NE": np.not_equal, "GE": np.greater_equal, "GT": np.greater, "LE": np.less_equal, "LT": np.less}
    if direction == "NE":
        equal = graph.elementwise("Equal", inputs, np.bool_, np.equal)
        return graph.elementwise("Not", [equal], np.bool_, np.logical_not)
    return graph.elementwise(_COMPARE[direction], inputs, np.bool_, folds[direction])


def _select(graph: Graph, operation: Any) -> Tensor:
    inputs = [graph.values[value] for value in operation.operands]
    known = inputs[0].constant
    if known is not None and known.size and np.all(known == known.flat[0]):  # as in jax.numpy.var, which asks whether there are numbers
        chosen = inputs[1 if known.flat[0] else 2]
        if chosen.shape == np.broadcast_shapes(*(one.shape for one in inputs)):
            return chosen
    return graph.elementwise("Where", inputs, element_type(operation.results[0]), np.where)


def _clamp(graph: Graph, operation: Any) -> Tensor:
    low, value, high = (graph.values[operand] for operand in operation.operands)
    dtype = element_type(operation.results[0])
    if dtype.kind == "f" and low.shape == high.shape == () and value.constant is None:
        return graph.clip(value, low, high)
    return graph.elementwise("Min", [graph.elementwise("Max", [value, low], dtype, np.maximum), high], dtype, np.minimum)


def _convert(graph: Graph, operation: Any) -> Tensor:
    return graph.cast(graph.values[operation.operands[0]], element_type(operation.results[0]))


def _one(number: float, operator: str, before: str) -> Callable[[Graph, Any], Tensor]:
    """Makes ``operator`` and an ``Add`` of a number, which comes before or after it."""

    def make(graph: Graph, operation: Any) -> Tensor:
        value = graph.values[operation.operands[0]]
        shift = graph.constant(number, value.dtype)
        if before:
            return graph.elementwise(operator, [graph.elementwise("Add", [value, shift], value.dtype)], value.dtype)
        return graph.elementwise("Add", [graph.elementwise(operator, [value], value.dtype), shift], value.dtype)

    return make


def _rsqrt(graph: Graph, operation: Any) -> Tensor:
    value = graph.values[operation.operands[0]]
    return graph.elementwise("Reciprocal", [graph.elementwise("Sqrt", [value], value.dtype, np.sqrt)], value.dtype, np.reciprocal)


def _cbrt(graph: Graph, operation: Any) -> Tensor:
    value = graph.values[operation.operands[0]]
    size = graph.elementwise("Pow", [graph.elementwise("Abs", [value], value.dtype), graph.constant(1 / 3, value.dtype)], value.dtype)
    return graph.elementwise("Mul", [graph.elementwise("Sign", [value], value.dtype), size], value.dtype)


def _is_finite(graph: Graph, operation: Any) -> Tensor:
    value = graph.values[operation.operands[0]]
    odd = [graph.elementwise(operator, [value], np.bool_) for operator in ("IsInf", "IsNaN")]
    return graph.elementwise("Not", [graph.elementwise("Or", odd, np.bool_)], np.bool_)


def _gelu(graph: Graph, operation: Any) -> Tensor:
    value = graph.values[operation.operands[0]]
    return graph.elementwise("Gelu", [value], value.dtype, approximate="none")


def _broadcast(graph: Graph, operation: Any) -> Tensor:
    """Puts the axes in place; repeating is left to whoever needs the whole tensor."""
    value = graph.values[operation.operands[0]]
    places = stablehlo.numbers(operation, "broadcast_dimensions")
    if not value.shape:
        return value
    order = sorted(range(len(places)), key=places.__getitem__)
    shape = [1] * len(shape_of(operation.results[0]))
    for axis in order:
        shape[places[axis]] = value.shape[axis]
    return graph.reshape(graph.transpose(value, order), shape)


def _reshape(graph: Graph, operation: Any) -> Tensor:
    value = graph.values[operation.operands[0]]
    return value if not value.shape else graph.reshape(whole(graph, operation.operands[0]), shape_of(operation.results[0]))


def _transpose(graph: Graph, operation: Any) -> Tensor:
    value = graph.values[operation.operands[0]]
    return value if not value.shape else graph.transpose(value, stablehlo.numbers(operation, "permutation"))


def _slice(graph: Graph, operation: Any) -> Tensor:
    value = whole(graph, operation.operands[0])
    return graph.slice(value, *(stablehlo.numbers(operation, key) for key in ("start_indices", "limit_indices", "strides")))


def _reverse(graph: Graph, operation: Any) -> Tensor:
    value = whole(graph, operation.operands[0])
    turned = stablehlo.numbers(operation, "dimensions")
    steps = [-1 if axis in turned else 1 for axis in range(len(value.shape))]
    return graph.slice(value, [0] * len(steps), value.shape, steps)


def _concatenate(graph: Graph, operation: Any) -> Tensor:
    parts = [whole(graph, value) for value in operation.operands]
    axis = operation.attributes["dimension"].value
    if all(part.constant is not None for part in parts):
        return graph.constant(np.concatenate([part.constant for part in parts], axis))  # type: ignore[misc]  # asked above
    shape, order = shape_of(operation.results[0]), parts[0].order
    if order and all(part.order == order for part in parts):
        moved = [part.base for part in parts if part.base is not None]
        inner = [shape[place] for place in np.argsort(order)]
        return graph.transpose(graph.add("Concat", moved, inner, parts[0].dtype, axis=order[axis]), order)
    return graph.add("Concat", parts, shape, parts[0].dtype, axis=axis)


def _iota(graph: Graph, operation: Any) -> Tensor:
    shape, axis = shape_of(operation.results[0]), operation.attributes["iota_dimension"].value
    narrow = [size if place == axis else 1 for place, size in enumerate(shape)]
    return graph.constant(np.arange(shape[axis]).reshape(narrow), element_type(operation.results[0]))


def _same(graph: Graph, operation: Any) -> list[Tensor]:
    return [graph.values[value] for value in operation.operands]


def _dot(graph: Graph, operation: Any) -> Tensor:
    text = str(operation.attributes["dot_dimension_numbers"])

    def axes(key: str) -> list[int]:
        found = re.search(rf"{key} = \[([^\]]*)\]", text)
        return [int(axis) for axis in found[1].split(",")] if found else []

    left, right = (whole(graph, value) for value in operation.operands)
    sides = []
    for value, side in ((left, "lhs"), (right, "rhs")):
        batch, summed = axes(f"{side}_batching_dimensions"), axes(f"{side}_contracting_dimensions")
        sides.append((batch, summed, [axis for axis in range(len(value.shape)) if axis not in batch + summed]))
    (batch, summed, free), (other_batch, other_summed, other_free) = sides
    shape, dtype = shape_of(operation.results[0]), element_type(operation.results[0])
    if dtype.kind not in "fiu" or dtype.name == "bfloat16":
        raise Unsupported(f"dot_general of {dtype}", "has no kernel in ONNX Runtime")
    many = int(np.prod([left.shape[axis] for axis in summed]))
    left, right = graph.transpose(left, batch + free + summed), graph.transpose(right, other_batch + other_summed + other_free)
    outer = [left.shape[axis] for axis in range(len(batch))]
    columns = int(np.prod(right.shape[len(batch) + len(summed) :]))
    keep = (
        left.shape[: len(left.shape) - len(summed)] if len(free) == 1 or not batch else (*outer, int(np.prod(left.shape[len(batch) : -len(summed)])))
    )
    if not free:
        keep = (*outer, 1)
    left, right = graph.reshape(left, (*keep, many)), graph.reshape(right, (*outer, many, columns))
    return graph.reshape(graph.add("MatMul", [left, right], (*keep, columns), dtype), shape)


_OTHERS: dict[str, Callable[[Graph, Any], Tensor | list[Tensor]]] = {
    "broadcast_in_dim": _broadcast,
    "cbrt": _cbrt,
    "clamp": _clamp,
    "compare": _compare,
    "concatenate": _concatenate,
    "constant": _constant,
    "convert": _convert,
    "dot_general": _dot,
    "exponential_minus_one": _one(-1, "Exp", before=""),
    "iota": _iota,
    "is_finite": _is_finite,
    "log_plus_one": _one(1, "Log", before="add"),
    "optimization_barrier": _same,
    "reshape": _reshape,
    "reverse": _reverse,
    "rsqrt": _rsqrt,
    "select": _select,
    "slice": _slice,
    "tfl.gelu": _gelu,
    "transpose": _transpose,
}
