"""Small ONNX models that are converted to TFLite and held against ONNX Runtime."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from toolkit.artifact import Signature, TensorSpec
from toolkit.convert import onnx_litert

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
interpreter = pytest.importorskip("ai_edge_litert.interpreter")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402  after what may skip the module

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
Arrays = Mapping[str, np.ndarray]


def drawer(seed: int) -> Callable[..., np.ndarray]:
    """Returns a function that draws normal numbers ``[*shape] float32``, of a sequence of its own."""
    random = np.random.default_rng(seed)
    return lambda *shape: (random.standard_normal(shape) * 0.5).astype(np.float32)


def node(kind: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> Any:
    return helper.make_node(kind, inputs, outputs, **attributes)


def fused(kind: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> Any:
    return helper.make_node(kind, inputs, outputs, domain="com.microsoft", **attributes)


def model_of(nodes: Sequence[Any], given: Arrays, outputs: Sequence[str], constants: Arrays, opset: int) -> Any:
    values = [helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(one.dtype), one.shape) for name, one in given.items()]
    results = [helper.make_empty_tensor_value_info(name) for name in outputs]
    graph = helper.make_graph(nodes, "graph", values, results, [numpy_helper.from_array(one, name) for name, one in constants.items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)], ir_version=9)


def convert(model: Any, given: Arrays, wanted: Arrays, folder: Path) -> Any:
    """Returns an interpreter of the converted model."""

    def specs(arrays: Arrays) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(name=name, dtype=one.dtype.name, shape=one.shape) for name, one in arrays.items())

    source, out = folder / "model.onnx", folder / "model.tflite"
    onnx.save(model, str(source))
    onnx_litert.ROUTE.convert(source, out, Signature(inputs=specs(given), outputs=specs(wanted)))
    return interpreter.Interpreter(str(out), num_threads=1)


def agree(
    folder: Path, nodes: Sequence[Any], given: Arrays, outputs: Sequence[str] = ("y",), constants: Arrays | None = None, opset: int = 17
) -> Counter[str]:
    """Checks that LiteRT gives what ONNX Runtime gives, twice in a row; returns how many operators of which kind run."""
    model = model_of(nodes, given, outputs, constants or {}, opset)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    wanted = dict(zip(outputs, session.run(None, dict(given)), strict=True))
    made = convert(model, given, wanted, folder)
    run = made.get_signature_runner()
    for _ in range(2):  # nothing is kept from one run to the next
        found = run(**{name: one.astype(np.int32) if one.dtype == np.int64 else one for name, one in given.items()})
        for name, expected in wanted.items():
            assert found[name].shape == expected.shape
            np.testing.assert_allclose(found[name], expected, rtol=3e-5, atol=3e-5)
    return Counter(one["op_name"] for one in made._get_ops_details())
