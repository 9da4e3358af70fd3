"""Quantized ONNX graphs become integer TFLite: the same scales, integer operators, and what ONNX Runtime computes up to the last bit."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from toolkit.artifact import Signature, TensorSpec
from toolkit.convert import onnx_litert

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
interpreter = pytest.importorskip("ai_edge_litert.interpreter")

helper, numpy_helper, FLOAT = onnx.helper, onnx.numpy_helper, onnx.TensorProto.FLOAT
RANDOM = np.random.default_rng(3)
IMAGE = RANDOM.normal(size=(1, 3, 8, 8)).astype(np.float32)


def quantized(name, source, scale, zero_point, dtype=np.int8):
    """Nodes and constants of a pair of QuantizeLinear and DequantizeLinear."""
    constants = {f"{name}_s": np.float32(scale), f"{name}_z": dtype(zero_point)}
    nodes = [
        helper.make_node("QuantizeLinear", [source, *constants], [f"{name}_q"], name=f"{name}/quantize"),
        helper.make_node("DequantizeLinear", [f"{name}_q", *constants], [name], name=f"{name}/dequantize"),
    ]
    return nodes, constants


def weights(name, values, axis=0):
    """A dequantized constant with a scale for each channel."""
    others = tuple(place for place in range(values.ndim) if place != axis)
    scale = (np.abs(values).max(others) / 127).astype(np.float32)
    shape = [1] * values.ndim
    shape[axis] = -1
    integers = np.round(values / scale.reshape(shape)).astype(np.int8)
    constants = {f"{name}_i": integers, f"{name}_s": scale, f"{name}_z": np.zeros(scale.shape, np.int8)}
    return [helper.make_node("DequantizeLinear", list(constants), [name], name=f"{name}/dequantize", axis=axis)], constants


def save(path, nodes, constants, inputs, outputs):
    values = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    given = [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()]
    results = [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in outputs.items()]
    model = helper.make_model(helper.make_graph(nodes, "net", given, results, values), opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def both(folder: Path, given: dict[str, np.ndarray]):
    """What ONNX Runtime and LiteRT compute, and the operators of the TFLite file."""
    model = folder / "net.onnx"
    plain = onnxruntime.SessionOptions()
    plain.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(model), plain)
    expected = dict(zip([one.name for one in session.get_outputs()], session.run(None, given), strict=True))
    inputs = tuple(TensorSpec(name=name, dtype=array.dtype.name, shape=array.shape) for name, array in given.items())
    outputs = tuple(TensorSpec(name=name, dtype=array.dtype.name, shape=array.shape) for name, array in expected.items())
    onnx_litert.ROUTE.convert(model, folder / "net.tflite", Signature(inputs=inputs, outputs=outputs))
    own = interpreter.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    made = interpreter.Interpreter(str(folder / "net.tflite"), num_threads=1, experimental_op_resolver_type=own)
    found = made.get_signature_runner()(**given)
    return expected, found, Counter(one["op_name"] for one in made._get_ops_details()), made.get_tensor_details()


def network(folder, dtype=np.int8, shift=0):
    """Padding, a strided convolution with an activation, a pool, a mean and a dense layer, with every tensor quantized."""
    nodes, constants = [], {}
    filters, dense = RANDOM.normal(size=(6, 3, 3, 3)).astype(np.float32), RANDOM.normal(size=(6, 5)).astype(np.float32)
    parts = [
        quantized("x", "image", 0.03, 5 + shift, dtype),
        weights("w", filters),
        ([helper.make_node("Conv", ["x", "w", "b"], ["c"], strides=[2, 2], pads=[1, 1, 1, 1], name="stem/Conv")], {"b": np.zeros(6, np.float32)}),
        ([helper.make_node("Relu", ["c"], ["r"])], {}),
        quantized("a", "r", 0.05, -128 + shift, dtype),
        ([helper.make_node("MaxPool", ["a"], ["p"], kernel_shape=[2, 2], strides=[1, 1])], {}),
        ([helper.make_node("GlobalAveragePool", ["p"], ["g"])], {}),
        ([helper.make_node("Flatten", ["g"], ["f"])], {}),
        quantized("h", "f", 0.03, -128 + shift, dtype),
        weights("d", dense, axis=1),
        ([helper.make_node("MatMul", ["h", "d"], ["m"], name="head/MatMul")], {}),
        quantized("scores", "m", 0.1, 3 + shift, dtype),
    ]
    for more, known in parts:
        nodes, constants = nodes + more, constants | known
    save(folder / "net.onnx", nodes, constants, {"image": (FLOAT, [1, 3, 8, 8])}, {"scores": (FLOAT, [1, 5])})


@pytest.mark.parametrize(("dtype", "shift"), [(np.int8, 0), (np.uint8, 128)], ids=["signed", "unsigned"])
def test_a_quantized_network_computes_with_integers_from_end_to_end(tmp_path, dtype, shift):
    network(tmp_path, dtype, shift)
    expected, found, operators, _ = both(tmp_path, {"image": IMAGE})
    assert operators["QUANTIZE"] <= 2 and operators["DEQUANTIZE"] == 1, operators
    np.testing.assert_allclose(found["scores"], expected["scores"], atol=0.1001, err_msg="one step of the output's scale")
    assert np.ptp(expected["scores"]) > 0.5


def test_the_files_own_integers_are_in_the_result(tmp_path):
    network(tmp_path)
    given = {one.name: numpy_helper.to_array(one) for one in onnx.load(str(tmp_path / "net.onnx")).graph.initializer}
    *_, tensors = both(tmp_path, {"image": IMAGE})
    filters = next(one for one in tensors if one["dtype"] == np.int8 and list(one["shape"]) == [6, 3, 3, 3])
    np.testing.assert_array_equal(filters["quantization_parameters"]["scales"], given["w_s"])
    assert not filters["quantization_parameters"]["zero_points"].any()


def test_weights_alone_stay_integers_and_are_computed_with_exactly(tmp_path):
    more, constants = weights("w", RANDOM.normal(size=(4, 6)).astype(np.float32), axis=1)
    nodes = [*more, helper.make_node("MatMul", ["x", "w"], ["y"], name="head/MatMul")]
    save(tmp_path / "net.onnx", nodes, constants, {"x": (FLOAT, [2, 4])}, {"y": (FLOAT, [2, 6])})
    expected, found, operators, tensors = both(tmp_path, {"x": RANDOM.normal(size=(2, 4)).astype(np.float32)})
    np.testing.assert_allclose(found["y"], expected["y"], rtol=1e-6, atol=1e-6)
    assert operators == {"DEQUANTIZE": 1, "FULLY_CONNECTED": 1}
    assert any(one["dtype"] == np.int8 and list(one["shape"]) == [6, 4] for one in tensors)


def test_values_that_are_only_moved_are_moved_as_integers(tmp_path):
    nodes, constants = quantized("x", "image", 0.03, 5)
    more, known = quantized("y", "t", 0.03, 5)
    nodes = [*nodes, helper.make_node("Transpose", ["x"], ["t"], perm=[0, 1, 3, 2]), *more]
    save(tmp_path / "net.onnx", nodes, constants | known, {"image": (FLOAT, [1, 3, 8, 8])}, {"y": (FLOAT, [1, 3, 8, 8])})
    expected, found, operators, _ = both(tmp_path, {"image": IMAGE})
    assert operators == {"QUANTIZE": 1, "TRANSPOSE": 1, "DEQUANTIZE": 1}
    np.testing.assert_allclose(found["y"], expected["y"], atol=1e-6)


def test_quantized_outputs_are_the_integers_that_onnx_means(tmp_path):
    x = RANDOM.normal(size=(2, 6)).astype(np.float32)
    for dtype, zero_point in ((np.int8, -3), (np.uint8, 120)):
        nodes, constants = quantized("y", "x", 0.02, zero_point, dtype)
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        save(tmp_path / "net.onnx", nodes[:1], constants, {"x": (FLOAT, [2, 6])}, {"y_q": (kind, [2, 6])})
        expected, found, _, _ = both(tmp_path, {"x": x})
        assert found["y_q"].dtype == dtype
        np.testing.assert_allclose(found["y_q"].astype(int), expected["y_q"].astype(int), atol=1)
        assert np.mean(found["y_q"] == expected["y_q"]) > 0.9
