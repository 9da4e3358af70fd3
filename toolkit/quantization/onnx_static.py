"""Static quantization of ONNX graphs: pairs of ``QuantizeLinear`` and ``DequantizeLinear`` around what the runtime computes in integers."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from toolkit.quantization.islands import Operator, join
from toolkit.quantization.onnx_prepared import layers
from toolkit.quantization.scheme import Scheme

Ranges = Mapping[str, tuple[float, float]]

_CORE = ("Conv", "Gemm", "MatMul")
_FLOAT_OUT = ("Gemm", "MatMul")
_COMPUTED = ("Add", "Mul", "Sigmoid", "LeakyRelu", "GlobalAveragePool", "AveragePool", "Concat")
_PASSED = ("Relu", "Clip", "MaxPool", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Split", "Pad", "Resize")
OPERATORS: tuple[str, ...] = (*_CORE, *_COMPUTED, *_PASSED)
"""Those for which ONNX Runtime's CPU kernels take 8-bit tensors: a pair around another one costs time and precision and gives nothing."""


def without_kernel(model: Any) -> list[str]:
    """Names layers that have no integer kernel: transposed and 3-dimensional convolutions, recurrent layers."""
    return [node.name for node, _ in layers(model) if node.op_type not in OPERATORS]


def left_in_float(model: Any, kept: Collection[str], rewritten: Collection[str] = ()) -> list[str]:
    """Names nodes that stay float though there may be kernels: those that :func:`toolkit.quantization.islands.join` leaves out.

    Matrix products give float, which their kernels can, and are rounded where the next layer reads them.

    Args:
        model: The float model.
        kept: Names of nodes that stay float.
        rewritten: Names of nodes that :mod:`toolkit.quantization.onnx_integer` is going to write as others.
    """
    floats = float_out(model)
    operators = [
        Operator(
            reads=reads(node),
            writes=tuple(node.output),
            able=(node.op_type in OPERATORS or node.name in rewritten) and node.name not in kept,
            core=node.op_type in _CORE and node.name not in kept,
            float_out=node.op_type in floats,
        )
        for node in model.graph.node
    ]
    constants = {tensor.name for tensor in model.graph.initializer}
    joined = join(operators, constants=constants, inputs={value.name for value in model.graph.input})
    return [node.name for node, is_joined in zip(model.graph.node, joined, strict=True) if not is_joined]


def float_out(model: Any) -> tuple[str, ...]:
    """Operators that give float: matrix products, but for the dense layers of a convolutional network, which then is int8 up to its output."""
    return tuple(name for name in _FLOAT_OUT if name != "Gemm" or not any(node.op_type == "Conv" for node in model.graph.node))


def reads(node: Any) -> frozenset[str]:
    """The activations that a node reads: shapes, pads and bounds are none."""
    several = node.op_type in ("Add", "Mul", "Concat", "MatMul")
    return frozenset(name for name in (node.input if several or node.op_type not in OPERATORS else node.input[:1]) if name)


def carried(model: Any, scheme: Scheme, kept: Collection[str]) -> list[str]:
    """Names the activations that get a scale.

    Args:
        model: The float model; it is changed, give a copy.
        scheme: The scheme.
        kept: Names of nodes that stay float, those of :func:`left_in_float` too.
    """
    from onnxruntime.quantization.qdq_quantizer import QDQQuantTensorType
    from onnxruntime.quantization.registry import CreateQDQQuantizer

    every = {name: (0.0, 1.0) for node in model.graph.node for name in (*node.input, *node.output) if name}
    with _quiet():
        library = _library(model, every, scheme, kept, per_channel=False, reduce_range=False)
        for node in list(library.model.nodes()):
            if library.should_quantize_node(node):
                CreateQDQQuantizer(library, node).quantize()
    known = {tensor.name for tensor in library.model.initializer()}
    marked = library.tensors_to_quantize.items()
    return [name for name, one in marked if one.tensor_type is QDQQuantTensorType.ACTIVATION and not one.is_shared and name not in known]


def quantize(model: Any, ranges: Ranges, scheme: Scheme, kept: Collection[str], *, per_channel: bool, reduce_range: bool) -> Any:
    """Returns the quantized graph.

    Args:
        model: The float model; it is changed.
        ranges: Smallest and largest value of every tensor that :func:`carried` names.
        scheme: The scheme.
        kept: Names of nodes that stay float.
        per_channel: A scale for every output channel of a weight, or one for the whole tensor.
        reduce_range: Weights of 7 bits, whose products do not saturate on x86 without VNNI.
    """
    every = dict(ranges)
    for node in model.graph.node:
        if node.op_type in ("Relu", "Clip") and node.output[0] in every:  # what a range cuts off needs no operator of its own
            every.setdefault(node.input[0], every[node.output[0]])
    with _quiet():
        library = _library(model, every, scheme, kept, per_channel=per_channel, reduce_range=reduce_range)
        library.quantize_model()
    library.model.topological_sort()
    return library.model.model


def _library(model: Any, ranges: Ranges, scheme: Scheme, kept: Collection[str], *, per_channel: bool, reduce_range: bool) -> Any:
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    data = {name: TensorData(lowest=np.float32(low), highest=np.float32(high)) for name, (low, high) in ranges.items()}
    wide = scheme.activation_bits == 16
    options: dict[str, Any] = {"WeightSymmetric": True, "ActivationSymmetric": False, "OpTypesToExcludeOutputQuantization": list(float_out(model))}
    if wide:  # with activations this fine, an integer bias would not fit into 32 bits
        options["QuantizeBias"] = False
    return QDQQuantizer(
        model,
        per_channel,
        reduce_range,
        QuantType.QInt8,
        QuantType.QUInt16 if wide else QuantType.QUInt8,
        TensorsData(CalibrationMethod.MinMax, data),
        [],
        list(kept),
        list(OPERATORS),
        options,
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences what the library logs about choices that are ours, and NumPy's warnings on overflow: scales are checked afterwards."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        try:
            yield
        finally:
            logging.disable(level)
