"""How many multiply-accumulates a second ONNX Runtime's own matrix products reach on this CPU, for the roofline."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

_SIZES = (384, 768)
_SECONDS = 0.15


def peak_gmacs(threads: int) -> dict[str, float]:
    """Measures square matrix products with constant weights, which the runtime packs once as it does a model's.

    Args:
        threads: Threads of one product.

    Returns:
        The best that was seen, in 10^9 multiply-accumulates a second: ``float32`` (``MatMul``) and ``int8`` (``MatMulInteger``,
        of unsigned and of signed activations).
    """
    float_kinds = [(np.dtype(np.float32), np.dtype(np.float32))]
    integer_kinds = [(np.dtype(kind), np.dtype(np.int8)) for kind in (np.uint8, np.int8)]
    return {
        "float32": max(_best(size, *kinds, threads) for size in _SIZES for kinds in float_kinds),
        "int8": max(_best(size, *kinds, threads) for size in _SIZES for kinds in integer_kinds),
    }


def _best(size: int, data: np.dtype[Any], weights: np.dtype[Any], threads: int) -> float:
    session = _session(size, data, weights, threads)
    inputs = {"x": np.ones((size, size), data)}
    session.run(None, inputs)
    best, end = float("inf"), time.perf_counter() + _SECONDS
    while time.perf_counter() < end:
        start = time.perf_counter_ns()
        session.run(None, inputs)
        best = min(best, time.perf_counter_ns() - start)
    return size**3 / best


def _session(size: int, data: np.dtype[Any], weights: np.dtype[Any], threads: int) -> Any:
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    integer = data.kind != "f"
    node = helper.make_node("MatMulInteger" if integer else "MatMul", ["x", "w"], ["y"])
    output = helper.make_tensor_value_info("y", TensorProto.INT32 if integer else TensorProto.FLOAT, [size, size])
    entry = helper.make_tensor_value_info("x", helper.np_dtype_to_tensor_dtype(data), [size, size])
    stored = numpy_helper.from_array(np.ones((size, size), weights), "w")
    model = helper.make_model(
        helper.make_graph([node], "peak", [entry], [output], [stored]), opset_imports=[helper.make_opsetid("", 17)], ir_version=9
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
