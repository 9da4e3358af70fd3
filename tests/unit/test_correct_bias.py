"""The mean error of rounded weights: known exactly from what the quantizers store, and taken out of the biases."""

from __future__ import annotations

import numpy as np
import pytest

from tests import networks
from tests.networks import Builder, run, sqnr_db, tensors_of, write
from toolkit import plugins
from toolkit.dataset import Dataset
from toolkit.errors import ConfigError
from toolkit.quantization.correct import correct_bias, rounded
from toolkit.quantization.network import open_network
from toolkit.quantization.statistics import Observed, Statistics

FORMATS = ("onnx", "tflite")
STATIC = "static_wi8_ai8"


def means(**channels):
    """Statistics that know the channels' means."""
    found = {name: Observed(0.0, 1.0, 0.0, 1.0, channel_mean=np.asarray(mean, np.float64)) for name, mean in channels.items()}
    return Statistics("", 1, found)


def with_rounded_weights(model, out, per_channel):
    """A float file whose weights are those that 8 bits leave, written without the code under test."""
    network = open_network(model)
    for layer in network.layers:
        weight = network.array(layer.weight)
        others = tuple(axis for axis in range(weight.ndim) if axis != layer.output_axis) if per_channel else None
        step = np.abs(weight).max(axis=others, keepdims=True) / 127
        network.store(layer.weight, np.round(weight / step) * step)
    network.save(out)
    return out


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("format", FORMATS)
def test_weights_are_rounded_as_the_quantizers_do(format, per_channel, tmp_path):
    model, out = networks.mobile(tmp_path, format), tmp_path / f"int8.{format}"
    options = {"method": "min_max", "per_channel": per_channel}
    samples = Dataset(columns={"image": networks.digits()["fit"][:32]})
    plugins.quantizer(format, STATIC).quantize(model, out, scheme=STATIC, calibration=samples, options=options)
    network, stored = open_network(model), integers(out)
    checked = 0
    for layer in network.layers:
        weight = network.array(layer.weight)
        wanted = rounded(weight, layer.output_axis, per_channel=per_channel)
        fitting = [one for one in stored if one.shape == weight.shape and np.abs(one - weight).max() < 0.1 * np.abs(weight).max()]
        if fitting:
            assert min(np.abs(one - wanted).max() for one in fitting) < 1e-6 * np.abs(weight).max(), layer.name
            checked += 1
    assert checked >= len(network.layers) // 2, "layers that the quantizer leaves in float are not among them"


def integers(model):
    """All integer weights of a file, as the floats that they stand for."""
    if model.suffix == ".onnx":
        onnx = pytest.importorskip("onnx")
        graph = onnx.load(str(model)).graph
        stored = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
        found = []
        for node in graph.node:
            if node.op_type == "DequantizeLinear" and node.input[0] in stored and stored[node.input[0]].dtype == np.int8:
                axis = next((one.i for one in node.attribute if one.name == "axis"), 1)
                weight, scale = stored[node.input[0]].astype(np.float64), stored[node.input[1]].astype(np.float64)
                found.append(weight * (scale.reshape([-1 if i == axis else 1 for i in range(weight.ndim)]) if scale.size > 1 else scale))
        return found
    from ai_edge_litert import schema_py_generated as schema

    file = schema.ModelT.InitFromObj(schema.Model.GetRootAs(model.read_bytes(), 0))
    found = []
    for tensor in file.subgraphs[0].tensors:
        data, scheme = file.buffers[tensor.buffer].data, tensor.quantization
        if data is None or tensor.type != schema.TensorType.INT8 or scheme is None or scheme.scale is None:
            continue
        weight, scale = np.asarray(data, np.uint8).view(np.int8).reshape(tensor.shape).astype(np.float64), np.asarray(scheme.scale, np.float64)
        found.append(weight * (scale.reshape([-1 if i == scheme.quantizedDimension else 1 for i in range(weight.ndim)]) if scale.size > 1 else scale))
    return found


def layer_of(kind, net):
    if kind == "dense":
        return net.dense(net.node("Flatten", "image"), 6 * 5 * 5, 4), (4,)
    given = {"conv": {}, "strided": {"strides": [2, 2]}, "groups": {"groups": 3}, "depthwise": {"groups": 6}, "dilated": {"dilations": [2, 2]}}[kind]
    sizes = {"strided": (3, 3), "dilated": (3, 3)}.get(kind, (5, 5))
    return net.conv("image", 6, 12, 3, **given), (12, *sizes)


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("kind", ["conv", "strided", "groups", "depthwise", "dilated", "dense"])
@pytest.mark.parametrize("format", FORMATS)
def test_the_mean_of_every_output_comes_back(format, kind, per_channel, tmp_path):
    """Inputs that never vary are their own mean, so that the correction must be exact, zeros around the image included."""
    net = Builder(2)
    output, shape = layer_of(kind, net)
    model = write(net.model(output, (6, 5, 5), shape), tmp_path, format)
    channels = np.linspace(0.5, 3, 6).astype(np.float32)
    image = np.broadcast_to(channels[:, None, None], (1, 6, 5, 5)).copy()
    network = open_network(model)
    (layer,) = network.layers
    read = tensors_of(model, {layer.input}, image)[layer.input]
    mean = read.reshape(-1) if kind == "dense" else np.moveaxis(read, layer.channel_axis, -1).reshape(-1, 6).mean(axis=0)
    done = correct_bias(network, means(**{layer.input: mean}), scheme=STATIC, per_channel=per_channel)
    assert len(done) == 1
    network.save(tmp_path / f"corrected.{format}")
    plain = run(model, image)
    rounded_only = run(with_rounded_weights(model, tmp_path / f"rounded.{format}", per_channel), image)
    corrected = run(with_rounded_weights(tmp_path / f"corrected.{format}", tmp_path / f"both.{format}", per_channel), image)
    places = tuple(range(2, plain.ndim))
    before, after = (np.abs((one - plain).mean(axis=places)).max() for one in (rounded_only, corrected))
    assert after < 1e-4 * np.abs(plain).max() and after < before / 50


@pytest.mark.parametrize("format", FORMATS)
def test_int8_gets_better(format, tmp_path):
    """Means from the runtime itself, eight bits from the quantizer: the file as a whole is nearer to the float model."""
    data, model = networks.digits(), networks.mobile(tmp_path, format)
    network = open_network(model)
    inputs = {layer.input: layer for layer in network.layers}
    rows = [tensors_of(model, set(inputs), data["fit"][i : i + 1]) for i in range(24)]
    found = {}
    for name, layer in inputs.items():
        values = np.concatenate([np.moveaxis(row[name], layer.channel_axis, -1) for row in rows])
        found[name] = values.reshape(-1, values.shape[-1]).mean(axis=0)
    assert correct_bias(network, means(**found), scheme=STATIC, per_channel=False)
    network.save(tmp_path / f"corrected.{format}")
    plain = run(model, data["held_out"])
    before, after = (
        sqnr_db(plain, run(with_rounded_weights(one, tmp_path / f"weights.{format}", per_channel=False), data["held_out"]))
        for one in (model, tmp_path / f"corrected.{format}")
    )
    assert after > before + 1


def two_layers(tmp_path):
    net = Builder()
    seen = net.node("Relu", net.conv("image", 3, 4, bias=False))
    flat = net.node("Flatten", net.node("Relu", net.conv(seen, 4, 4)))
    model = write(net.model(net.dense(flat, 4 * 16, 5), (3, 4, 4), (5,)), tmp_path, "onnx")
    network = open_network(model)
    first, second, last = network.layers
    return network, means(**{first.input: np.ones(3), second.input: np.ones(4), last.input: np.ones(64)}), (first, second, last)


def test_layers_without_biases_are_told(tmp_path):
    network, statistics, (first, *_) = two_layers(tmp_path)
    told = correct_bias(network, statistics, scheme=STATIC)
    assert len(told) == 2 and "2 layers" in told[0] and first.name in told[1]


def test_layers_that_stay_float_are_left_alone(tmp_path):
    network, statistics, (_, second, last) = two_layers(tmp_path)
    before = {layer: network.array(layer.bias) for layer in (second, last)}
    correct_bias(network, statistics, scheme=STATIC, keep_float=(second.name,))
    assert (network.array(second.bias) == before[second]).all() and (network.array(last.bias) != before[last]).any()
    network, statistics, (_, second, last) = two_layers(tmp_path)
    correct_bias(network, statistics, scheme="dynamic_wi8")
    assert (network.array(second.bias) == before[second]).all(), "dynamic int8 in ONNX touches no convolution"
    assert (network.array(last.bias) != before[last]).any()


def test_other_schemes_and_unobserved_layers(tmp_path):
    network, statistics, _ = two_layers(tmp_path)
    for scheme in ("float16", "weight_only_wi4"):
        assert correct_bias(network, statistics, scheme=scheme) == []
    assert correct_bias(network, means(), scheme=STATIC) == []
    with pytest.raises(ConfigError):
        correct_bias(network, statistics, scheme="static_wi9")
