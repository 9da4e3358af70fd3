"""Unsigned integers throughout, for models whose weights have a zero point: TFLite's signed kernels know none for weights, its unsigned ones do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from toolkit.convert.tfl.graph import Graph, Tensor
from toolkit.convert.tfl.program import Quantized

_SHIFT = 128


def wanted(graph: Graph, constants: Iterable[Quantized]) -> bool:
    """Whether weights are unsigned with a zero point off the middle, and nothing needs signed integers: scales by channel, or a signed border."""
    found = list(constants)
    off_middle = any(one.dtype == np.uint8 and np.any(one.zero_point != _SHIFT) for one in found)
    by_channel = any(one.dtype.itemsize == 1 and one.scale.size > 1 for one in found)
    return off_middle and not by_channel and not any(one.dtype == np.int8 for one in (*graph.inputs, *graph.outputs))


def convert(graph: Graph) -> None:
    """Lets all signed quantized tensors of a graph be unsigned ones of the same meaning."""
    tensors = {id(one): one for operator in graph.operators for one in (*operator.inputs, *operator.outputs) if one is not None}
    for tensor in tensors.values():
        if tensor.dtype == np.int8 and tensor.quantization is not None:
            _shift(tensor)
    for operator in list(graph.operators):
        source, result = operator.inputs[0], operator.outputs[0]
        if operator.kind == "QUANTIZE" and source is not None and source.dtype == result.dtype == np.uint8 and _same(source, result):
            operator.kind, operator.options = "RESHAPE", {"newShape": list(source.shape)}
            operator.inputs = [source, graph.integers(source.shape)]


def _shift(tensor: Tensor) -> None:
    assert tensor.quantization is not None
    tensor.quantization = replace(tensor.quantization, zero_point=tensor.quantization.zero_point + _SHIFT)
    tensor.dtype = np.dtype(np.uint8)
    if tensor.data is not None:
        tensor.data = (tensor.data.astype(np.int16) + _SHIFT).astype(np.uint8)


def _same(left: Tensor, right: Tensor) -> bool:
    if left.quantization is None or right.quantization is None:
        return False
    return np.array_equal(left.quantization.scale, right.quantization.scale) and np.array_equal(
        left.quantization.zero_point, right.quantization.zero_point
    )
