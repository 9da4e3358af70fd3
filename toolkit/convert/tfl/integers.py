"""Makes integer operators of what stands between dequantized inputs and quantized outputs.

TFLite's quantized kernels compute what ONNX's pair of DequantizeLinear and QuantizeLinear around an operator means, up to the rounding of
the last bit. Scales and zero points stay those of the file. What kernels ask for is in LiteRT's quantization specification:
https://ai.google.dev/edge/litert/models/quantization_spec
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from toolkit.convert.tfl import unsigned
from toolkit.convert.tfl.graph import Graph, Operator, Quantization, Tensor, makers_of
from toolkit.convert.tfl.program import Node, Quantized

_SIGNED = np.dtype(np.int8)
# Kernels that weigh: where the output channels of the filter are.
_WEIGHTED = {"CONV_2D": 0, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 0}
# Kernels that move integers, whose output means what the input means.
_MOVING = {
    "RESHAPE", "TRANSPOSE", "SLICE", "STRIDED_SLICE", "PAD", "MAX_POOL_2D", "AVERAGE_POOL_2D", "CONCATENATION", "SPLIT", "SPLIT_V", "GATHER",
    "RESIZE_NEAREST_NEIGHBOR", "RESIZE_BILINEAR", "REDUCE_MAX", "REDUCE_MIN", "MAXIMUM", "MINIMUM", "TILE", "DEPTH_TO_SPACE", "SPACE_TO_DEPTH",
    "BROADCAST_TO", "PACK", "UNPACK", "SQUEEZE", "EXPAND_DIMS",
}  # fmt: skip
# Kernels that pick values without computing any: before or after quantization makes no difference.
_PICKING = {"RESHAPE", "TRANSPOSE", "SLICE", "STRIDED_SLICE", "PAD", "MAX_POOL_2D", "GATHER", "SQUEEZE", "EXPAND_DIMS", "TILE", "BROADCAST_TO"}
# Kernels whose output has one meaning only.
_GIVEN = {
    "SOFTMAX": Quantization(np.array([1 / 256], np.float32), np.array([-128])),
    "LOGISTIC": Quantization(np.array([1 / 256], np.float32), np.array([-128])),
    "TANH": Quantization(np.array([1 / 128], np.float32), np.array([0])),
}
# Kernels that take any scales, on one side and on the other.
_FREE = {"ADD", "SUB", "MUL", "MEAN", "SUM", "HARD_SWISH", "LEAKY_RELU", "PRELU", "RELU", "RELU6", "BATCH_MATMUL", "GELU", "ELU"}


def integrate(graph: Graph, quantized: Mapping[str, Quantized]) -> int:
    """Replaces float operators by integer ones where both sides are quantized, and stores quantized weights as integers.

    Args:
        graph: The graph; changed in place.
        quantized: How the constants of the source were quantized.

    Returns:
        How many operators compute with integers now.
    """
    makers = makers_of(graph)
    for operator in list(graph.operators):
        _sink(graph, operator, makers)
    for operator in reversed(list(graph.operators)):
        _hoist(graph, operator, makers)
    pass_ = _Pass(graph, quantized)
    changed = sum(pass_.integer(operator) for operator in list(graph.operators))
    for operator in list(graph.operators):
        pass_.cancel(operator)
        pass_.store(operator)
    if pass_.unsigned:
        unsigned.convert(graph)
    return changed


def _sink(graph: Graph, operator: Operator, makers: dict[int, Operator]) -> None:
    """Lets what only picks values pick integers: the DEQUANTIZE before it goes behind it."""
    before = makers.get(id(operator.inputs[0])) if operator.kind in _PICKING else None
    if before is None or before.kind != "DEQUANTIZE" or before.inputs[0] is None or before.inputs[0].data is not None:
        return
    source, result = before.inputs[0], operator.outputs[0]
    integers = Tensor(result.name, result.shape, source.dtype, quantization=source.quantization)
    operator.inputs, operator.outputs = [source, *operator.inputs[1:]], [integers]
    behind = Operator("DEQUANTIZE", [integers], [result], origin=operator.origin)
    graph.operators.insert(graph.operators.index(operator) + 1, behind)
    makers |= {id(integers): operator, id(result): behind}


def _hoist(graph: Graph, operator: Operator, makers: dict[int, Operator]) -> None:
    """Lets a QUANTIZE go before what only picks values, where nobody else reads those."""
    before = makers.get(id(operator.inputs[0])) if operator.kind == "QUANTIZE" else None
    if before is None or before.kind not in _PICKING or before.outputs[0] in graph.outputs or operator.inputs[0].dtype != np.float32:  # type: ignore[union-attr]
        return
    readers = [one for one in graph.operators if before.outputs[0] in one.inputs]
    source, result = before.inputs[0], operator.outputs[0]
    if len(readers) > 1 or source is None or source.data is not None:
        return
    integers = Tensor(source.name, source.shape, result.dtype, quantization=result.quantization)
    earlier = Operator("QUANTIZE", [source], [integers], origin=before.origin)
    graph.operators.insert(graph.operators.index(before), earlier)
    before.inputs, before.outputs = [integers, *before.inputs[1:]], [result]
    graph.operators.remove(operator)
    makers |= {id(integers): earlier, id(result): before}


class _Pass:
    """One walk over a graph."""

    def __init__(self, graph: Graph, quantized: Mapping[str, Quantized]) -> None:
        self.graph, self.quantized = graph, quantized
        self.unsigned = unsigned.wanted(graph, quantized.values())
        self.makers = {id(one): operator for operator in graph.operators for one in operator.outputs}
        self.readers: dict[int, list[Operator]] = {}
        for operator in graph.operators:
            for one in operator.inputs:
                if one is not None:
                    self.readers.setdefault(id(one), []).append(operator)
        self.ends = {id(one) for one in graph.outputs}

    def integer(self, operator: Operator) -> bool:
        """Makes one operator an integer one where that is possible."""
        known = operator.kind in _WEIGHTED or operator.kind in _MOVING or operator.kind in _GIVEN or operator.kind in _FREE
        meanings = [self.meaning_of(one) for one in operator.outputs]
        if not known or not operator.outputs or any(one is None for one in meanings):
            return False
        inputs = self.inputs(operator, [one for one in meanings if one is not None])
        if inputs is None:
            return False
        operator.inputs = inputs
        source = next(one for one in inputs if one is not None and one.quantization is not None)
        for place, meaning in enumerate(meanings):
            assert meaning is not None
            own = source.quantization if operator.kind in _MOVING and operator.kind != "CONCATENATION" else _GIVEN.get(operator.kind, meaning)
            assert own is not None
            self.give(operator, place, own, meaning)
        return True

    def cancel(self, operator: Operator) -> None:
        """Lets a QUANTIZE read the integers that a DEQUANTIZE before it read, or drops both where they mean the same."""
        maker = self.makers.get(id(operator.inputs[0])) if operator.kind == "QUANTIZE" else None
        if maker is None or maker.kind != "DEQUANTIZE" or maker.inputs[0] is None or maker.inputs[0].dtype != _SIGNED:
            return
        source, result = maker.inputs[0], operator.outputs[0]
        operator.inputs = [source]
        if result.dtype == _SIGNED and result.quantization is not None and _equal(result.quantization, source.quantization):
            self.replace(result, source)

    def meaning_of(self, tensor: Tensor) -> Quantization | None:
        """How a tensor is quantized by all who read it; ``None`` where somebody reads real numbers."""
        readers = self.readers.get(id(tensor), [])
        if not readers or id(tensor) in self.ends or tensor.dtype != np.float32:
            return None
        found = [one.outputs[0].quantization for one in readers if one.kind == "QUANTIZE" and one.outputs[0].dtype == _SIGNED]
        first = found[0] if found else None
        return first if len(found) == len(readers) and first is not None and all(_equal(first, one) for one in found) else None

    def give(self, operator: Operator, place: int, own: Quantization, wanted: Quantization) -> None:
        """Lets an operator give integers: its own readers take them as they are, or requantized where they mean something else."""
        old = operator.outputs[place]
        made = Tensor(old.name, old.shape, _SIGNED, quantization=own)
        operator.outputs[place] = made
        self.makers[id(made)] = operator
        for reader in self.readers.pop(id(old)):
            if _equal(own, wanted):
                self.replace(reader.outputs[0], made)
                reader.outputs = [Tensor("dead", old.shape, _SIGNED)]
            else:
                reader.inputs = [made]

    def replace(self, old: Tensor, new: Tensor) -> None:
        for reader in self.readers.pop(id(old), []):
            reader.inputs = [new if one is old else one for one in reader.inputs]
            self.readers.setdefault(id(new), []).append(reader)
        self.graph.outputs = [new if one is old else one for one in self.graph.outputs]

    def inputs(self, operator: Operator, meanings: list[Quantization]) -> list[Tensor | None] | None:
        """Returns an operator's inputs as integers; ``None`` where one of them is not quantized."""
        if operator.kind in _WEIGHTED:
            return self.weighted(operator)
        found: list[Tensor | None] = []
        for place, one in enumerate(operator.inputs):
            if one is None or one.dtype != np.float32:
                found.append(one)
                continue
            integers = self.integers_of(one, operator, place)
            if integers is None:
                return None
            found.append(integers)
        real = [one for one in found if one is not None and one.quantization is not None]
        if not real:
            return None
        if operator.kind in ("CONCATENATION", "MAXIMUM", "MINIMUM", "PACK"):
            target = meanings[0] if operator.kind == "CONCATENATION" else real[0].quantization
            assert target is not None
            found = [self.requantized(one, target, operator) for one in found]
        return found

    def requantized(self, value: Tensor | None, target: Quantization, before: Operator) -> Tensor | None:
        if value is None or value.quantization is None or _equal(value.quantization, target):
            return value
        made = Tensor(value.name, value.shape, _SIGNED, quantization=target)
        self.graph.operators.insert(self.graph.operators.index(before), Operator("QUANTIZE", [value], [made], origin=before.origin))
        return made

    def integers_of(self, value: Tensor, operator: Operator, place: int) -> Tensor | None:
        """Returns the integers that a real number was made from: those before a DEQUANTIZE, or of a quantized constant."""
        maker = self.makers.get(id(value))
        if maker is not None and maker.kind == "DEQUANTIZE":
            source = maker.inputs[0]
            return source if source is not None and source.dtype == _SIGNED else None
        if value.data is None:
            return None
        known = self.constant_meaning(operator, place)
        return None if known is None or known.scale.size > 1 else self.stored(value, known, 0)

    def constant_meaning(self, operator: Operator, place: int) -> Quantized | None:
        """How the constant at a place was quantized: operators keep the order of inputs, but for those that are commutative."""
        if not isinstance(operator.origin, Node):
            return None
        names = [name for name in operator.origin.inputs if name in self.quantized]
        own = operator.origin.inputs[place] if place < len(operator.origin.inputs) else ""
        name = own if own in self.quantized else (names[0] if len(names) == 1 else "")
        return self.quantized.get(name)

    def weighted(self, operator: Operator) -> list[Tensor | None] | None:
        """Returns input, filter and bias as integers; the bias has the product of both scales."""
        value, weight, *rest = operator.inputs
        bias = rest[0] if rest else None
        meaning = self.constant_meaning(operator, 1)
        if value is None or weight is None or weight.data is None or meaning is None or (bias is not None and bias.data is None):
            return None
        integers = self.integers_of(value, operator, 0)
        filters = self.stored(weight, meaning, _WEIGHTED[operator.kind], signed=not self.unsigned)
        if integers is None or integers.quantization is None or filters is None or filters.quantization is None:
            return None
        if np.any(filters.quantization.zero_point) and filters.dtype == _SIGNED and not self.unsigned:
            return None
        scales = integers.quantization.scale.astype(np.float64) * filters.quantization.scale.astype(np.float64)
        numbers = np.zeros(weight.shape[_WEIGHTED[operator.kind]]) if bias is None or bias.data is None else bias.data
        rounded = np.round(numbers.astype(np.float64) / scales)
        if np.abs(rounded).max(initial=0) >= 2**31:
            return None
        added = Tensor(f"{weight.name}/bias", rounded.shape, np.dtype(np.int32), rounded.astype(np.int32))
        added.quantization = Quantization(scales.astype(np.float32), np.zeros(len(scales), np.int64))
        return [integers, filters, added]

    def stored(self, value: Tensor, meaning: Quantized, axis: int, *, signed: bool = True) -> Tensor | None:
        """Returns a constant as the integers that it was made from, unsigned ones as signed ones; ``None`` where it was changed since."""
        assert value.data is not None
        if meaning.dtype.name not in ("int8", "uint8"):
            return None
        shift = 128 if meaning.dtype == np.uint8 and signed else 0
        limits = np.iinfo(_SIGNED if signed else meaning.dtype)
        scale, zero_point = meaning.scale.astype(np.float32).reshape(-1), meaning.zero_point.astype(np.int64).reshape(-1) - shift
        if scale.size > 1 and scale.size != value.shape[axis]:
            return None
        shape = [1] * value.rank
        if scale.size > 1:
            shape[axis] = scale.size
        along = (scale.reshape(shape), zero_point.reshape(shape)) if scale.size > 1 else (scale, zero_point)
        exact = value.data / along[0] + along[1]
        integers = np.round(exact)
        if np.abs(exact - integers).max(initial=0) > 1e-2 or integers.min(initial=0) < limits.min or integers.max(initial=0) > limits.max:
            return None
        return Tensor(value.name, value.shape, limits.dtype, integers.astype(limits.dtype), Quantization(scale, zero_point, axis))

    def store(self, operator: Operator) -> None:
        """Stores the weights of an operator that stays one of real numbers as integers, with a DEQUANTIZE that runs once."""
        if operator.kind not in _WEIGHTED or operator.inputs[1] is None or operator.inputs[1].data is None:
            return
        weight = operator.inputs[1]
        meaning = self.constant_meaning(operator, 1)
        if weight.dtype != np.float32 or meaning is None:
            return
        integers = self.stored(weight, meaning, _WEIGHTED[operator.kind])
        if integers is None:
            return
        made = replace(weight, data=None)
        self.graph.operators.insert(self.graph.operators.index(operator), Operator("DEQUANTIZE", [integers], [made], origin=operator.origin))
        operator.inputs[1] = made


def _equal(left: Quantization, right: Quantization | None) -> bool:
    return right is not None and np.array_equal(left.scale, right.scale) and np.array_equal(left.zero_point, right.zero_point)
