"""Channels scaled between layers: the float function stays, whatever is on the way; and int8 gets back what badly scaled channels cost."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.rescale import rescale
from tests import models, networks
from tests.networks import Builder, run, sqnr_db, write
from toolkit import plugins
from toolkit.dataset import Dataset
from toolkit.quantization.channels import FIXED, find_units
from toolkit.quantization.equalize import equalize
from toolkit.quantization.network import open_network
from toolkit.quantization.statistics import Observed, Statistics

FORMATS = ("onnx", "tflite")
IMAGES = np.random.default_rng(3).normal(size=(3, 4, 8, 8)).astype(np.float32)


def add(net, x):
    return net.node("Add", x, net.conv(x, 8, 8))


def split(net, x):
    first, second = net.node("Split", x, net.constant([3, 5], "int64"), outputs=2, axis=1)
    return net.node("Concat", net.node("Relu", second), first, axis=1)


def beside(net, x):
    rows = net.node("Concat", x, net.node("Relu", net.conv("image", 4, 8)), axis=2)
    return net.node("MaxPool", rows, kernel_shape=[2, 1], strides=[2, 1])


def transposed(net, x):
    turned = net.node("Transpose", x, perm=[0, 2, 3, 1])
    flat = net.node("Relu", net.node("Reshape", turned, net.constant([1, 64, 8], "int64")))
    return net.node("Transpose", net.node("Reshape", flat, net.constant([1, 8, 8, 8], "int64")), perm=[0, 3, 1, 2])


def shuffled(net, x):
    """Channel shuffle of two groups, as in ShuffleNet."""
    groups = net.node("Reshape", x, net.constant([1, 2, 4, 8, 8], "int64"))
    return net.node("Reshape", net.node("Transpose", groups, perm=[0, 2, 1, 3, 4]), net.constant([1, 8, 8, 8], "int64"))


def halved(net, x):
    """The even channels and the last two, one after the other, as what they are slices of."""
    even = net.node("Slice", x, *(net.constant([value], "int64") for value in (0, 8, 1, 2)))
    last = net.node("Slice", x, *(net.constant([value], "int64") for value in (-2, 100, 1)))
    return net.conv(net.node("Concat", even, net.node("Relu", last), axis=1), 6, 8)


def paired(net, x):
    """A reshape after which a channel holds two of those before."""
    return net.conv(net.node("Reshape", net.node("Relu", x), net.constant([1, 4, 16, 8], "int64")), 4, 8)


def normalized(net, x):
    return net.node("BatchNormalization", x, net.vector(8), net.vector(8, -1), net.vector(8, -1), net.vector(8))


def excited(net, x):
    return networks.gate(net, x, 8)


def shared(net, x, kind):
    """Two operators with the same stored numbers; what is between keeps the compiler from putting them into weights."""
    vector = net.vector(8, rank=3)
    for _ in range(2):
        x = net.conv(net.node("MaxPool", net.node(kind, net.node("Relu", x), vector), kernel_shape=[2, 2]), 8, 8)
    return x


def divided(net, x):
    return net.node("Div", x, net.constant(3.0))


def repeated(net, x):
    return net.node("Resize", x, "", net.constant([1, 1, 2, 2]), mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor")


# What may lie between two convolutions of 8 channels, how many units there are for both outputs and what they meet, and sizes behind it.
PATHS = {
    "nothing": (lambda net, x: x, 8),
    "relu": (lambda net, x: net.node("Relu", x), 8),
    "leaky_relu": (lambda net, x: net.node("LeakyRelu", x, alpha=0.1), 8),
    "prelu": (lambda net, x: net.node("PRelu", x, net.vector(8, rank=3)), 8),
    "negative": (lambda net, x: net.node("Neg", net.node("Abs", x)), 8),
    "clip": (lambda net, x: net.node("Clip", x, net.constant(0.0)), 8),
    "max_pool": (lambda net, x: net.node("MaxPool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1]), 8),
    "average_pool": (lambda net, x: net.node("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2]), 8),
    "mean": (lambda net, x: net.node("ReduceMean", x, net.constant([2, 3], "int64")), 8),
    "resize": (repeated, 8),
    "pad": (lambda net, x: net.node("Pad", x, net.constant([0, 0, 1, 1, 0, 0, 1, 1], "int64")), 8),
    "depthwise": (lambda net, x: net.conv(net.node("Relu", x), 8, 8, 3, groups=8), 16),
    "two_for_each": (lambda net, x: net.conv(net.conv(x, 8, 16, 3, groups=8), 16, 8), 8 + 16 + 8),
    "groups": (lambda net, x: net.conv(x, 8, 8, 3, groups=2), 16),
    "residual": (add, 8),
    "two_residuals": (lambda net, x: add(net, net.node("Relu", add(net, x))), 8),
    "concat": (lambda net, x: net.conv(net.node("Concat", x, net.conv("image", 4, 4), axis=1), 12, 8), 8 + 4 + 8),
    "concat_with_the_input": (lambda net, x: net.conv(net.node("Concat", x, "image", axis=1), 12, 8), 16),
    "concat_along_rows": (beside, 8),
    "split": (split, 8),
    "transpose": (transposed, 8),
    "channel_shuffle": (lambda net, x: net.conv(shuffled(net, x), 8, 8, groups=2), 16),
    "slices": (halved, 16),
    "pairs": (paired, (4 + 8, 8)),
    "a_number_for_each_place": (lambda net, x: net.node("Add", net.node("Relu", x), net.constant(np.ones((1, 8, 8, 8)))), 8),
    "excitation": (excited, 16),  # the gate's inner layer has 8 units too
    "times_a_number": (lambda net, x: net.node("Mul", x, net.constant(0.3)), 8),
    "divided": (divided, 8),
    "batch_norm": (lambda net, x: net.conv(normalized(net, net.node("Relu", x)), 8, 8), (16, 24)),
    "plus_channels": (lambda net, x: net.conv(net.node("Add", net.node("Relu", x), net.vector(8, rank=3)), 8, 8), 16),
    "the_larger_of_channels": (lambda net, x: net.node("Max", x, net.vector(8, rank=3)), 8),
    "shared_summands": (lambda net, x: shared(net, x, "Add"), 24),
    "shared_factors": (lambda net, x: shared(net, x, "Mul"), (24, 32, 40)),
    "times_channels": (lambda net, x: net.conv(net.node("Mul", net.node("Relu", x), net.vector(8, rank=3)), 8, 8), (16, 24)),
}  # fmt: skip


def between(path, folder, format):
    """A convolution, what lies between, and another convolution."""
    net = Builder()
    x = net.conv(path(net, net.conv("image", 4, 8, 3)), 8, 4)
    onnx = pytest.importorskip("onnx")
    shapes = onnx.shape_inference.infer_shapes(net.model(x, (4, 8, 8), (4, None, None)))
    found = next(value for value in shapes.graph.value_info if value.name == x)
    return write(net.model(x, (4, 8, 8), [size.dim_value for size in found.type.tensor_type.shape.dim][1:]), folder, format)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", PATHS)
def test_channels_are_scaled_through(name, format, tmp_path):
    path, count = PATHS[name]
    model, out = between(path, tmp_path, format), tmp_path / f"scaled.{format}"
    scaled = rescale(model, out, spread=6, seed=1)
    assert scaled in (count if isinstance(count, tuple) else (count,))  # the compiler folds some products into weights
    first = open_network(model).layers[0].weight
    moved = open_network(out).array(first) / open_network(model).array(first)
    assert np.abs(np.log2(np.abs(moved))).max() > 1, "the first layer's outputs can be scaled"
    assert sqnr_db(run(model, IMAGES), run(out, IMAGES)) > 100


STOPS = {
    "sigmoid": lambda net, x: net.node("Sigmoid", x),
    "hard_swish": lambda net, x: net.node("HardSwish", x),
    "silu": lambda net, x: net.node("Mul", x, net.node("Sigmoid", x)),
    "relu6": lambda net, x: net.node("Clip", x, net.constant(0.0), net.constant(6.0)),
    "softmax": lambda net, x: net.node("Softmax", x, axis=1),
    "squares": lambda net, x: net.node("Mul", x, x),
    "a_sum_with_the_input": lambda net, x: net.node("Add", x, net.node("Concat", "image", "image", axis=1)),
    "plus_a_number": lambda net, x: net.node("MaxPool", net.node("Add", net.node("Relu", x), net.constant(0.5)), kernel_shape=[2, 2]),
    "the_larger_of_it_and_a_number": lambda net, x: net.node("Max", x, net.constant(0.25)),
    "a_mean_over_channels": lambda net, x: net.node("Sub", x, net.node("ReduceMean", x, net.constant([1], "int64"))),
    "padding_with_ones": lambda net, x: net.node("Pad", x, net.constant([0, 0, 1, 1, 0, 0, 1, 1], "int64"), net.constant(1.0)),
    "a_product_of_rows": lambda net, x: net.node("MatMul", x, x),
}
"""What stands between two convolutions and fixes the channels that it reads."""


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", STOPS)
def test_channels_are_not_scaled_through(name, format, tmp_path):
    model, out = between(STOPS[name], tmp_path, format), tmp_path / f"scaled.{format}"
    rescale(model, out, spread=6, seed=1)
    first = open_network(model).layers[0]
    np.testing.assert_array_equal(open_network(out).array(first.weight), open_network(model).array(first.weight))
    assert sqnr_db(run(model, IMAGES), run(out, IMAGES)) > 100


@pytest.mark.parametrize("format", FORMATS)
def test_an_output_of_the_network_is_not_scaled(format, tmp_path):
    net = Builder()
    model = write(net.model(net.node("Relu", net.conv("image", 4, 8)), (4, 8, 8), (8, 8, 8)), tmp_path, format)
    assert find_units(open_network(model)).count == 1
    assert equalize(open_network(model)) == []


@pytest.mark.parametrize("format", FORMATS)
def test_flattened_images_are_read_channel_by_channel(format, tmp_path):
    net = Builder()
    flat = net.node("Flatten", net.node("Relu", net.conv("image", 4, 8, 3)))
    model, out = write(net.model(net.dense(flat, 512, 5), (4, 8, 8), (5,)), tmp_path, format), tmp_path / f"scaled.{format}"
    assert rescale(model, out, spread=6) == 8
    assert sqnr_db(run(model, IMAGES), run(out, IMAGES)) > 100


def test_a_fully_connected_layer_that_flattens_what_it_reads(tmp_path):
    """TFLite's reads four axes as one, channels last; Edgekit's own compiler never writes that, others do."""
    schema = pytest.importorskip("ai_edge_litert.schema_py_generated")
    random = np.random.default_rng(0)
    kernel, bias, weight = (random.normal(size=size).astype(np.float32) for size in ((3, 1, 1, 2), (3,), (5, 12)))
    tensors = [("image_0", [1, 2, 2, 2], None), ("k", [3, 1, 1, 2], kernel), ("b", [3], bias), ("seen", [1, 2, 2, 3], None)]
    tensors += [("w", [5, 12], weight), ("scores_0", [1, 5], None)]
    walk = schema.Conv2DOptionsT(strideH=1, strideW=1, padding=schema.Padding.VALID, dilationHFactor=1, dilationWFactor=1)
    kinds = schema.BuiltinOperator
    operators = [(kinds.CONV_2D, [0, 1, 2], [3], walk), (kinds.FULLY_CONNECTED, [3, 4, -1], [5], schema.FullyConnectedOptionsT())]
    model = models._write_tflite(tmp_path / "model.tflite", tensors, operators, ("image", 0), ("scores", 5))
    images = random.normal(size=(3, 2, 2, 2)).astype(np.float32)
    np.testing.assert_allclose(run(model, images), (images @ kernel[:, 0, 0].T + bias).reshape(3, 12) @ weight.T, atol=1e-5)
    assert rescale(model, tmp_path / "scaled.tflite") == 3
    assert sqnr_db(run(model, images), run(tmp_path / "scaled.tflite", images)) > 100


def test_two_layers_meet_in_the_middle(tmp_path):
    """Equation 11 of the paper: the factors are ``sqrt(r1 r2) / r2``, so that both ranges become ``sqrt(r1 r2)``."""
    net = Builder(4)
    x = net.conv(net.node("Relu", net.conv("image", 4, 8, 3, bias=False)), 8, 4)
    network = open_network(write(net.model(x, (4, 8, 8), (4, 8, 8)), tmp_path, "onnx"))
    first, second = network.layers
    r1 = np.abs(network.array(first.weight)).max(axis=(1, 2, 3))
    r2 = np.abs(network.array(second.weight)).max(axis=(0, 2, 3))
    before = network.array(first.weight)
    assert len(equalize(network)) == 1
    factor = (network.array(first.weight) / before)[:, 0, 0, 0]
    np.testing.assert_allclose(factor, np.sqrt(r1 * r2) / r1, rtol=0.02)
    np.testing.assert_allclose(np.abs(network.array(second.weight)).max(axis=(0, 2, 3)), np.sqrt(r1 * r2), rtol=0.02)
    assert equalize(network) == [], "nothing is left to do"


def accuracy(scores, data):
    return float((scores.argmax(axis=1) == data["held_out_label"]).mean())


def int8(model, data):
    """What the project's own quantizer makes of a file."""
    out = model.with_name("int8" + model.suffix)
    quantizer = plugins.quantizer(model.suffix[1:], "static_wi8_ai8")
    samples = Dataset(columns={"image": data["fit"][:64]})
    quantizer.quantize(model, out, scheme="static_wi8_ai8", calibration=samples, options={"method": "min_max", "per_channel": True})
    return run(out, data["held_out"])


def seen(model, data):
    """Ranges of all channels on samples, from the runtime's own outputs."""
    network = open_network(model)
    names = tuple(find_units(network).tensors)
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    graph = onnx.load(str(model))
    graph.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = runtime.InferenceSession(graph.SerializeToString())
    found = [dict(zip(names, session.run(names, {"image": data["fit"][i : i + 1]}), strict=True)) for i in range(64)]
    tensors = {}
    for name in names:
        axis = find_units(network).tensors[name][0]
        values = np.moveaxis(np.concatenate([one[name] for one in found]), axis, 0).reshape(found[0][name].shape[axis], -1)
        low, high = values.min(axis=1), values.max(axis=1)
        tensors[name] = Observed(float(low.min()), float(high.max()), float(low.min()), float(high.max()), channel_low=low, channel_high=high)
    return Statistics("", 64, tensors)


@pytest.mark.parametrize("observed", [False, True])
@pytest.mark.parametrize("format", FORMATS)
def test_what_int8_loses_to_badly_scaled_channels_comes_back(format, observed, tmp_path):
    if observed and format == "tflite":
        pytest.skip("statistics are the same for both formats")
    data = networks.digits()
    model = networks.mobile(tmp_path, format)
    plain = run(model, data["held_out"])
    bad, repaired = tmp_path / "bad" / model.name, tmp_path / "repaired" / model.name
    for path in (bad, repaired):
        path.parent.mkdir()
    rescale(model, bad, spread=5)
    assert sqnr_db(plain, run(bad, data["held_out"])) > 100, "the float function is the same"
    broken = int8(bad, data)
    assert accuracy(broken, data) < accuracy(plain, data) - 0.2, "int8 alone collapses"
    network = open_network(bad)
    done = equalize(network, seen(bad, data) if observed else None)
    network.save(repaired)
    assert len(done) == 1 and "17 layers" in done[0]
    assert sqnr_db(plain, run(repaired, data["held_out"])) > 100
    found = int8(repaired, data)
    assert accuracy(found, data) >= accuracy(plain, data) - 0.01
    assert sqnr_db(plain, found) > sqnr_db(plain, int8(model, data)) - 1, "as good as before the channels were scaled"


@pytest.mark.parametrize("observed", [False, True])
def test_channels_whose_weights_have_died_are_not_blown_up(observed, tmp_path):
    """With the ranges of weights alone, as the paper has them, a constant channel would fill the range of all others."""
    data, model = networks.digits(), networks.mobile(tmp_path, "onnx")
    network = open_network(model)
    random = np.random.default_rng(0)
    for layer in network.layers:
        if layer.activation == "relu" and layer.bias:
            weight, bias = network.array(layer.weight), network.array(layer.bias)
            dead = random.random(len(bias)) < 0.15
            weight[dead] *= 1e-9
            bias[dead] = 0.2
            network.store(layer.weight, weight)
            network.store(layer.bias, bias)
    dying, out = tmp_path / "dying.onnx", tmp_path / "out.onnx"
    network.save(dying)
    plain = run(dying, data["held_out"])
    network = open_network(dying)
    equalize(network, seen(dying, data) if observed else None)
    network.save(out)
    assert sqnr_db(plain, int8(out, data)) > sqnr_db(plain, int8(dying, data)) - 1


def test_factors_of_one_unit_are_one(tmp_path):
    """A unit of a residual group: every writer is multiplied and every reader divided by the same factor."""
    net = Builder()
    x = add(net, net.conv("image", 4, 8))
    network = open_network(write(net.model(net.conv(x, 8, 4), (4, 8, 8), (4, 8, 8)), tmp_path, "onnx"))
    units = find_units(network)
    assert units.count == 9
    before = [network.array(layer.weight) for layer in network.layers]
    factors = np.r_[1.0, 2.0 ** np.arange(1, 9)]
    assert units.tensors[network.layers[0].output][1].tolist() == list(range(1, 9)) and FIXED == 0
    units.scale(network, factors)
    first, inner, last = (network.array(layer.weight) / was for layer, was in zip(network.layers, before, strict=True))
    np.testing.assert_allclose(first[:, 0, 0, 0], factors[1:])
    np.testing.assert_allclose(inner[:, :, 0, 0], factors[1:, None] / factors[None, 1:])
    np.testing.assert_allclose(last[0, :, 0, 0], 1 / factors[1:])
