"""What the JAX route to ONNX writes as one operator, held against JAX's own outputs; and what only looks like it and stays apart."""

from collections import Counter

import numpy as np
import pytest

from toolkit import plugins
from toolkit.artifact import Signature, TensorSpec

jax = pytest.importorskip("jax")
onnx = pytest.importorskip("onnx")
pytest.importorskip("litert_converter")
pytest.importorskip("onnxruntime")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(3, 6, 8)).astype(np.float32)
SCALE, BIAS = RNG.normal(size=(2, 8)).astype(np.float32)


@pytest.fixture(autouse=True)
def as_jax_is():
    """Other tests of this process may import litert-torch, which turns 64-bit numbers on for everybody."""
    wide = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", False)
    yield
    jax.config.update("jax_enable_x64", wide)


def specs(columns):
    return tuple(TensorSpec(name=name, dtype=str(column.dtype), shape=(1, *column.shape[1:])) for name, column in columns.items())


def converted(function, x, folder):
    """Converts, holds the outputs against JAX's, and returns how often each operator is in the file."""
    program, out = folder / "model.jax", folder / "model.onnx"
    expected = plugins.get("sources", "jax").capture(jax.jit(function), {"x": x}, program)
    plugins.get("routes", "jax_onnx").convert(program, out, Signature(inputs=specs({"x": x}), outputs=specs(expected)))
    session = plugins.runtime_for("onnx").open(out, threads=1)
    found = np.concatenate([session.run({"x": x[row : row + 1]})["output_0"] for row in range(len(x))])
    np.testing.assert_allclose(found, expected["output_0"], rtol=1e-4, atol=2e-5)
    return Counter(node.op_type for node in onnx.load(out).graph.node if node.op_type != "Identity")


def fast(x):
    """As Flax normalizes: the mean of squares without the squared mean."""
    mean = x.mean(-1, keepdims=True)
    variance = jax.numpy.maximum(0.0, (x * x).mean(-1, keepdims=True) - mean * mean)
    return mean, variance


def careful(x):
    """As Equinox normalizes: the mean of squared deviations."""
    return x.mean(-1, keepdims=True), x.var(-1, keepdims=True)


@pytest.mark.parametrize("statistics", [fast, careful])
@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
def test_a_layer_normalization_is_one_operator(statistics, affine, tmp_path):
    def net(x):
        mean, variance = statistics(x)
        root = jax.lax.rsqrt(variance + 1e-3)
        if not affine:
            return (x - mean) * root
        return (x - mean) * (root * SCALE) + BIAS if statistics is fast else (x - mean) * root * SCALE + BIAS

    assert converted(net, X, tmp_path) == {"LayerNormalization": 1}


def test_a_normalization_by_another_tensors_statistics_is_left_alone(tmp_path):
    def net(x):
        mean, variance = careful(x * x)
        return (x - mean) * jax.lax.rsqrt(variance + 1e-3) + BIAS

    assert "LayerNormalization" not in converted(net, X, tmp_path)


def test_a_softmax_along_the_last_axis_is_one_operator(tmp_path):
    assert converted(lambda x: jax.nn.softmax(30 * x), X, tmp_path) == {"Mul": 1, "Softmax": 1}
    assert "Softmax" not in converted(lambda x: jax.nn.softmax(x, axis=1), X, tmp_path)


def test_means_are_means_and_other_quotients_are_not(tmp_path):
    assert converted(lambda x: x.mean((1, 2)), X, tmp_path) == {"ReduceMean": 1}
    assert converted(lambda x: x.sum((1, 2)) / 47, X, tmp_path) == {"ReduceSum": 1, "Div": 1}


def test_a_look_up_gives_nan_for_what_is_not_in_the_table(tmp_path):
    """As ``jax.numpy.take`` defines it: negative indices count from the end, and rows that there are not are NaN."""
    table = RNG.normal(size=(5, 4)).astype(np.float32)
    ids = np.array([[0, 4, -1, -5], [5, 9, -6, 2], [3, -100, 100, -3]], np.int32)
    found = converted(lambda x: jax.numpy.take(table, x, axis=0), ids, tmp_path)
    assert found["Gather"] == 1 and found["Where"] == 1, "the one that counts from the end"


def test_factors_and_sums_by_channel_are_part_of_a_convolution(tmp_path):
    kernel = RNG.normal(size=(3, 8, 4)).astype(np.float32)

    def net(x):
        seen = jax.lax.conv_general_dilated(x, kernel, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))
        return jax.nn.relu((seen - BIAS[:4]) * SCALE[:4] + BIAS[4:])

    assert converted(net, X, tmp_path) == {"Transpose": 2, "Conv": 1, "Relu": 1}


def test_a_factor_of_a_convolution_that_another_one_reads_too_stays(tmp_path):
    kernel = RNG.normal(size=(3, 8, 4)).astype(np.float32)

    def net(x):
        seen = jax.lax.conv_general_dilated(x, kernel, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))
        return jax.numpy.concatenate([seen, seen * SCALE[:4]], -1)

    assert converted(net, X, tmp_path)["Mul"] == 1


def test_a_bias_by_head_is_added_before_the_heads_are_told_apart(tmp_path):
    weights, bias = RNG.normal(size=(8, 2, 3)).astype(np.float32), RNG.normal(size=(2, 3)).astype(np.float32)
    converted(lambda x: jax.numpy.einsum("bsd,dhk->bshk", x, weights) + bias, X, tmp_path)
    nodes = [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node if node.op_type != "Identity"]
    assert nodes == ["MatMul", "Add", "Reshape"]


def test_ones_and_zeros_leave_no_operator(tmp_path):
    ones, zeros = np.ones(8, np.float32), np.zeros(8, np.float32)
    assert converted(lambda x: jax.numpy.tanh(x * ones + zeros), X, tmp_path) == {"Tanh": 1}
