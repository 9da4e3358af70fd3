"""The view of float files through which weights are edited: it must say the truth of every layer, and change nothing but what it is told to."""

from __future__ import annotations

import numpy as np
import pytest

from tests import networks
from tests.networks import Builder, run, tensors_of, write
from toolkit import plugins
from toolkit.errors import InputRejected
from toolkit.quantization.network import open_network

FORMATS = ("onnx", "tflite")
IMAGES = np.random.default_rng(3).uniform(0, 1, (6, 1, 8, 8)).astype(np.float32)


@pytest.fixture(scope="module", params=FORMATS)
def mobile(request, tmp_path_factory):
    return networks.mobile(tmp_path_factory.mktemp("mobile"), request.param)


def by_hand(layer, network, x):
    """A layer's output before its activation, from its description alone; channels last."""
    x = np.moveaxis(x, layer.channel_axis, -1).astype(np.float64)
    weight = network.array(layer.weight).astype(np.float64)
    bias = network.array(layer.bias).astype(np.float64).reshape(-1) if layer.bias else 0.0
    if layer.kind == "dense":
        return x @ np.moveaxis(weight, layer.output_axis, 1) + bias
    spatial = range(2, 4) if layer.channel_axis == 1 else range(1, 3)
    outputs = weight.shape[layer.output_axis]
    if layer.kind == "depthwise":
        kernel = np.moveaxis(weight, layer.output_axis, 0).reshape(outputs, 1, *[weight.shape[axis] for axis in spatial])
    else:
        kernel = np.moveaxis(weight, [layer.output_axis, layer.input_axis], [0, 1])
    g = layer.geometry
    padded = np.pad(x, [(0, 0), *g.pads, (0, 0)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, [d * (k - 1) + 1 for k, d in zip(kernel.shape[2:], g.dilations, strict=True)], (1, 2))
    windows = windows[:, :: g.strides[0], :: g.strides[1], :, :: g.dilations[0], :: g.dilations[1]]
    per, groups = outputs // layer.groups, layer.groups
    parts = [
        np.einsum("nhwikl,oikl->nhwo", windows[..., i * kernel.shape[1] : (i + 1) * kernel.shape[1], :, :], kernel[i * per : (i + 1) * per])
        for i in range(groups)
    ]
    return np.concatenate(parts, axis=-1) + bias


ACTIVATIONS = {"none": lambda x: x, "relu": lambda x: np.maximum(x, 0), "relu6": lambda x: np.clip(x, 0, 6)}


def assert_layers_say_what_they_compute(model, images):
    network = open_network(model)
    wanted = {name for layer in network.layers for name in (layer.input, layer.output, layer.activated)}
    found = tensors_of(model, wanted, images)
    for layer in network.layers:
        output = by_hand(layer, network, found[layer.input])
        shown = ACTIVATIONS[layer.activation](output) if layer.fused else output
        actual = np.moveaxis(found[layer.output], layer.channel_axis, -1)
        np.testing.assert_allclose(shown.reshape(actual.shape), actual, atol=2e-5, err_msg=layer.name)
        if layer.activation in ACTIVATIONS:
            behind = np.moveaxis(found[layer.activated], layer.channel_axis, -1)
            np.testing.assert_allclose(ACTIVATIONS[layer.activation](output).reshape(behind.shape), behind, atol=2e-5)
    return network


def test_layers_say_what_they_compute(mobile):
    network = assert_layers_say_what_they_compute(mobile, IMAGES[:1])
    assert {layer.kind for layer in network.layers} == {"conv", "depthwise", "dense"}
    assert {"none", "relu", "other"} <= {layer.activation for layer in network.layers}


@pytest.mark.parametrize("format", FORMATS)
def test_strides_groups_and_dilations(format, tmp_path):
    net = Builder()
    x = net.node("Relu", net.conv("image", 4, 8, 3, strides=[2, 2]))
    x = net.node("Clip", net.conv(x, 8, 12, 3, groups=4), net.constant(0.0), net.constant(6.0))
    x = net.node("Relu", net.conv(x, 12, 24, 3, groups=12, pads=[2, 2, 2, 2], dilations=[2, 2]))
    x = net.node("Conv", x, net.constant(net.random.normal(size=(4, 24, 2, 2))), auto_pad="SAME_LOWER")
    model = write(net.model(x, (4, 12, 12), (4, 6, 6)), tmp_path, format)
    images = np.random.default_rng(0).normal(size=(1, 4, 12, 12)).astype(np.float32)
    network = assert_layers_say_what_they_compute(model, images)
    assert [layer.groups for layer in network.layers] == [1, 4, 12, 1]
    assert network.layers[1].activation == "relu6"


def test_names_are_those_of_the_audit(mobile):
    contents = plugins.reader(mobile.suffix[1:]).read(mobile)
    assert [layer.name for layer in open_network(mobile).layers] == [layer.name for layer in contents.layers]


def test_saving_without_edits_changes_no_output(mobile, tmp_path):
    out = tmp_path / mobile.name
    open_network(mobile).save(out)
    np.testing.assert_array_equal(run(mobile, IMAGES), run(out, IMAGES))


def test_edits_arrive_in_the_file(mobile, tmp_path):
    network = open_network(mobile)
    last = network.layers[-1]
    weight, bias = network.array(last.weight), network.array(last.bias)
    weight[:] = 0  # a copy: the network must not change with it
    assert network.array(last.weight).any()
    network.store(last.weight, weight)
    network.store(last.bias, bias + 1)
    out = tmp_path / mobile.name
    network.save(out)
    np.testing.assert_allclose(run(out, IMAGES), np.broadcast_to(bias + 1, (6, 10)), atol=1e-6)
    np.testing.assert_array_equal(open_network(out).array(last.bias), bias + 1)


def test_what_cannot_be_stored_is_refused(mobile):
    network = open_network(mobile)
    bias = network.layers[-1].bias
    with pytest.raises(ValueError, match="shape"):
        network.store(bias, np.zeros(3))
    with pytest.raises(ValueError, match="finite"):
        network.store(bias, np.full(10, 1e39))
    with pytest.raises(KeyError):
        network.array("nothing of this name")


def test_readers_and_writers(mobile):
    network = open_network(mobile)
    for node in network.nodes:
        assert all(network.writer(name) is node for name in node.outputs)
        assert all(node in network.readers(name) for name in node.inputs)
    assert network.writer(network.inputs[0]) is None
    gated = [layer for layer in network.layers if len(network.readers(layer.activated)) == 2]
    assert gated, "what squeeze-and-excitation gates is read twice"


@pytest.mark.parametrize("format", FORMATS)
def test_shared_biases_are_told_apart_and_shared_weights_are_left_alone(format, tmp_path):
    net = Builder()
    bias = net.constant(np.linspace(-1, 1, 4))
    kernels = [net.constant(net.random.normal(size=(4, 4, 1, 1))) for _ in range(2)]
    x = net.node("Relu", net.node("Conv", "image", kernels[0], bias))
    for kernel in (kernels[1], kernels[1], net.constant(net.random.normal(size=(4, 4, 1, 1)))):
        x = net.node("Relu", net.node("Conv", x, kernel, bias))
    model = write(net.model(x, (4, 5, 5), (4, 5, 5)), tmp_path, format)
    network = open_network(model)
    assert len(network.layers) == 2, "the two in the middle have the same weights"
    first, last = network.layers
    assert first.bias != last.bias
    network.store(first.bias, np.zeros(4))
    np.testing.assert_allclose(network.array(last.bias), np.linspace(-1, 1, 4), atol=1e-7)
    out = tmp_path / ("edited" + model.suffix)
    network.save(out)
    net.stored["first"], net.nodes[0].input[2] = np.zeros(4, np.float32), "first"
    wanted = write(net.model(x, (4, 5, 5), (4, 5, 5)), tmp_path / "wanted", format)
    images = np.random.default_rng(0).normal(size=(3, 4, 5, 5)).astype(np.float32)
    np.testing.assert_allclose(run(out, images), run(wanted, images), atol=1e-6)


def test_weights_that_share_a_buffer_are_stored_one_by_one(tmp_path):
    """Some converters keep equal numbers once, under several names."""
    schema, flatbuffers = pytest.importorskip("ai_edge_litert.schema_py_generated"), pytest.importorskip("flatbuffers")
    net = Builder()
    x = net.conv(net.node("Relu", net.conv("image", 4, 4)), 4, 4)
    model = write(net.model(x, (4, 5, 5), (4, 5, 5)), tmp_path, "tflite")
    names = [layer.weight for layer in open_network(model).layers]
    file = schema.ModelT.InitFromObj(schema.Model.GetRootAs(model.read_bytes(), 0))
    first, second = (next(one for one in file.subgraphs[0].tensors if one.name.decode() == name) for name in names)
    second.buffer = first.buffer
    builder = flatbuffers.Builder(0)
    builder.Finish(file.Pack(builder), file_identifier=b"TFL3")
    model.write_bytes(builder.Output())
    network = open_network(model)
    assert network.layers == (), "neither has weights of its own"
    before = network.array(names[1])
    network.store(names[0], np.zeros_like(before))
    np.testing.assert_array_equal(network.array(names[1]), before)
    assert before.any() and not network.array(names[0]).any()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("spelled", [False, True])
def test_norms(format, spelled, tmp_path):
    net = Builder()
    scale, shift = net.vector(8), net.vector(8, -1, 1)
    if spelled:
        centered = net.node("Sub", "image", net.node("ReduceMean", "image", net.constant([-1], "int64")))
        variance = net.node("ReduceMean", net.node("Mul", centered, centered), net.constant([-1], "int64"))
        normal = net.node("Div", centered, net.node("Sqrt", net.node("Add", variance, net.constant(1e-5))))
        normed = net.node("Add", net.node("Mul", normal, scale), shift)
    else:
        normed = net.node("LayerNormalization", "image", scale, shift, epsilon=1e-5)
    weight = net.constant(net.random.normal(size=(8, 3)))
    scores = net.node("Add", net.node("MatMul", normed, weight), net.constant([1, 2, 3]))
    scores = net.node("Concat", scores, normed, axis=2)  # read twice, or the compiler puts it into the weights
    model = write(net.model(scores, (5, 8), (5, 11)), tmp_path, format)
    images = np.random.default_rng(0).normal(size=(1, 5, 8)).astype(np.float32)
    network = open_network(model)
    (norm,), (dense,) = network.norms, network.layers
    found = tensors_of(model, {norm.output, dense.input}, images)
    x = images.astype(np.float64)
    normal = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(found[norm.output], normal * network.array(norm.scale) + network.array(norm.shift), atol=1e-4)
    assert dense.input == norm.output and np.allclose(network.array(dense.bias).reshape(-1), [1, 2, 3])


def test_weights_lie_on_boundaries_of_sixteen_bytes(tmp_path):
    model = networks.mobile(tmp_path, "tflite")
    from ai_edge_litert import schema_py_generated as schema

    out = tmp_path / "saved.tflite"
    open_network(model).save(out)
    data = out.read_bytes()
    found = schema.Model.GetRootAs(data, 0)
    buffers = [found.Buffers(i) for i in range(found.BuffersLength()) if found.Buffers(i).DataLength()]
    starts = {data.find(buffer.DataAsNumpy().tobytes()) % 16 for buffer in buffers if buffer.DataLength() > 256}
    assert starts == {0}


def test_what_an_inner_graph_reads_has_a_reader(tmp_path):
    onnx = pytest.importorskip("onnx")
    net = Builder()
    seen = net.conv("image", 1, 4)
    ends = [onnx.helper.make_tensor_value_info("inner", 1, [1, 4, 8, 8])]
    graphs = [onnx.helper.make_graph([onnx.helper.make_node(kind, [seen], ["inner"])], kind, [], ends) for kind in ("Exp", "Relu")]
    chosen = net.node("If", net.constant(True, "bool"), then_branch=graphs[0], else_branch=graphs[1])
    model = write(net.model(chosen, (1, 8, 8), (4, 8, 8)), tmp_path, "onnx")
    assert [reader.operator for reader in open_network(model).readers(seen)] == ["If"]


def test_weights_in_another_file(tmp_path):
    onnx = pytest.importorskip("onnx")
    model = networks.mobile(tmp_path, "onnx")
    apart = tmp_path / "apart" / "model.onnx"
    apart.parent.mkdir()
    onnx.save_model(onnx.load(str(model)), str(apart), save_as_external_data=True, location="model.onnx.data", size_threshold=0)
    out = tmp_path / "whole.onnx"
    open_network(apart).save(out)
    np.testing.assert_array_equal(run(model, IMAGES), run(out, IMAGES))


def test_other_formats_and_damaged_files_are_refused(tmp_path):
    for name, content in (("model.pt2", b"x"), ("model.onnx", b"\x08\x07"), ("model.tflite", b"\x1c\x00\x00\x00TFL3" + b"\xff" * 40)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputRejected):
            open_network(tmp_path / name)
