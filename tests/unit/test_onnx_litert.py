"""The route from ONNX to TFLite as a whole: names, sizes, element types, layers, layouts and refusals."""

from pathlib import Path

import numpy as np
import pytest

from toolkit.artifact import Signature, TensorSpec
from toolkit.convert import onnx_litert
from toolkit.errors import InputRejected, StageFailed

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
interpreter = pytest.importorskip("ai_edge_litert.interpreter")

helper, numpy_helper = onnx.helper, onnx.numpy_helper
FLOAT, INT64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
RANDOM = np.random.default_rng(5)


def save(path: Path, nodes, inputs, outputs, **constants):
    def values(given):
        return [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in given.items()]

    stored = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "net", values(inputs), values(outputs), stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), str(path))


def spec(name, dtype, *shape):
    return TensorSpec(name=name, dtype=dtype, shape=shape)


def network(path: Path, batch=1):
    """A convolution, a residual sum, a pool over the image and a dense layer: ``image [n x 3 x 8 x 8]`` to ``scores [n x 5]``."""
    nodes = [
        helper.make_node("Conv", ["image", "kernel"], ["c"], name="stem/Conv", pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c", "gain", "shift", "mean", "spread"], ["n"], name="stem/BatchNormalization"),
        helper.make_node("Relu", ["n"], ["r"], name="stem/Relu"),
        helper.make_node("Conv", ["r", "second"], ["d"], name="block/Conv", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["r", "d"], ["s"], name="block/Add"),
        helper.make_node("GlobalAveragePool", ["s"], ["p"], name="pool/GlobalAveragePool"),
        helper.make_node("Flatten", ["p"], ["f"], name="pool/Flatten"),
        helper.make_node("Gemm", ["f", "dense", "bias"], ["scores"], name="head/Gemm"),
    ]
    shapes = {"kernel": (8, 3, 3, 3), "second": (8, 8, 3, 3), "gain": 8, "shift": 8, "mean": 8, "dense": (8, 5), "bias": 5}
    constants = {name: RANDOM.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    constants["spread"] = RANDOM.uniform(0.5, 2, 8).astype(np.float32)
    save(path, nodes, {"image": (FLOAT, [batch, 3, 8, 8])}, {"scores": (FLOAT, [batch, 5])}, **constants)
    return Signature(inputs=(spec("image", "float32", batch, 3, 8, 8),), outputs=(spec("scores", "float32", batch, 5),))


def reference(path, given):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, given)


def opened(path):
    made = interpreter.Interpreter(
        str(path), num_threads=1, experimental_op_resolver_type=interpreter.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    )
    return made, [one["op_name"] for one in made._get_ops_details()]


def test_a_network_keeps_its_names_and_needs_one_transpose(tmp_path):
    signature = network(tmp_path / "net.onnx")
    onnx_litert.ROUTE.convert(tmp_path / "net.onnx", tmp_path / "net.tflite", signature)
    made, operators = opened(tmp_path / "net.tflite")
    image = RANDOM.normal(size=(1, 3, 8, 8)).astype(np.float32)
    found = made.get_signature_runner("serving_default")(image=image)
    np.testing.assert_allclose(found["scores"], reference(tmp_path / "net.onnx", {"image": image})[0], rtol=1e-5, atol=1e-5)
    # Batch norm, activation and flattening are part of what they stand behind.
    assert operators == ["TRANSPOSE", "CONV_2D", "CONV_2D", "ADD", "MEAN", "RESHAPE", "FULLY_CONNECTED"] or operators.count("RESHAPE") == 0
    assert {"stem/Relu/RELU", "block/Conv/CONV_2D"} <= {one["name"] for one in made.get_tensor_details()}


def test_channels_last_inputs_need_no_transpose(tmp_path):
    signature = network(tmp_path / "net.onnx")
    onnx_litert.ROUTE.convert(tmp_path / "net.onnx", tmp_path / "net.tflite", signature, layout="channels_last")
    made, operators = opened(tmp_path / "net.tflite")
    image = RANDOM.normal(size=(1, 3, 8, 8)).astype(np.float32)
    found = made.get_signature_runner()(image=np.ascontiguousarray(image.transpose(0, 2, 3, 1)))
    np.testing.assert_allclose(found["scores"], reference(tmp_path / "net.onnx", {"image": image})[0], rtol=1e-5, atol=1e-5)
    assert "TRANSPOSE" not in operators


def test_the_batch_may_stay_free(tmp_path):
    signature = network(tmp_path / "net.onnx", "batch")
    onnx_litert.ROUTE.convert(tmp_path / "net.onnx", tmp_path / "net.tflite", signature)
    made, _ = opened(tmp_path / "net.tflite")
    (entry,), (end,) = made.get_input_details(), made.get_output_details()
    assert list(entry["shape_signature"]) == [-1, 3, 8, 8]
    for batch in (1, 4):
        image = RANDOM.normal(size=(batch, 3, 8, 8)).astype(np.float32)
        made.resize_tensor_input(entry["index"], image.shape)
        made.allocate_tensors()
        made.set_tensor(entry["index"], image)
        made.invoke()
        np.testing.assert_allclose(made.get_tensor(end["index"]), reference(tmp_path / "net.onnx", {"image": image})[0], rtol=1e-5, atol=1e-5)


def test_token_ids_of_64_bits_become_ones_of_32(tmp_path):
    table = RANDOM.normal(size=(10, 4)).astype(np.float32)
    save(
        tmp_path / "net.onnx", [helper.make_node("Gather", ["table", "ids"], ["y"])], {"ids": (INT64, [1, 3])}, {"y": (FLOAT, [1, 3, 4])}, table=table
    )
    signature = Signature(inputs=(spec("ids", "int64", 1, 3),), outputs=(spec("y", "float32", 1, 3, 4),))
    onnx_litert.ROUTE.convert(tmp_path / "net.onnx", tmp_path / "net.tflite", signature)
    made, _ = opened(tmp_path / "net.tflite")
    assert made.get_input_details()[0]["dtype"] == np.int32
    np.testing.assert_array_equal(made.get_signature_runner()(ids=np.array([[7, 0, -1]], np.int32))["y"], table[[[7, 0, -1]]])


def test_all_that_cannot_be_expressed_is_named_at_once_with_its_layer(tmp_path):
    nodes = [
        helper.make_node("Unique", ["x"], ["places"], name="encoder.3/Unique"),
        helper.make_node("Det", ["x"], ["d"], name="encoder.4/Det"),
        helper.make_node("Relu", ["d"], ["y"], name="head/Relu"),
    ]
    save(tmp_path / "net.onnx", nodes, {"x": (FLOAT, [1, 6, 6])}, {"y": (FLOAT, [1]), "places": (FLOAT, ["n"])})
    signature = Signature(inputs=(spec("x", "float32", 1, 6, 6),), outputs=(spec("y", "float32", 1), spec("places", "float32", 3)))
    with pytest.raises(StageFailed, match=r"Unique \(encoder\.3/Unique, of float32 \[1 x 6 x 6\], opset 11\).*Det \(encoder.4/Det, .*\) is of"):
        onnx_litert.ROUTE.convert(tmp_path / "net.onnx", tmp_path / "net.tflite", signature)
    assert not (tmp_path / "net.tflite").exists()
    found = onnx_litert.ROUTE.preflight(tmp_path / "net.onnx", signature)
    assert [(one.operator, one.layer) for one in found][:2] == [("Unique", "encoder.3"), ("Det", "encoder.4")]


@pytest.mark.parametrize("content", [b"", b"no model", b"\x08\x07" + b"\xff" * 40])
def test_a_damaged_file_is_refused(tmp_path, content):
    (tmp_path / "net.onnx").write_bytes(content)
    signature = Signature(inputs=(spec("x", "float32", 1),), outputs=(spec("y", "float32", 1),))
    with pytest.raises(InputRejected):
        onnx_litert.ROUTE.convert(tmp_path / "net.onnx", tmp_path / "net.tflite", signature)


def test_the_same_model_gives_the_same_bytes(tmp_path):
    signature = network(tmp_path / "net.onnx")
    for name in ("one", "two"):
        onnx_litert.ROUTE.convert(tmp_path / "net.onnx", tmp_path / f"{name}.tflite", signature)
    assert (tmp_path / "one.tflite").read_bytes() == (tmp_path / "two.tflite").read_bytes()


def test_pytorch_by_way_of_onnx_names_the_rewrite_that_a_spectrum_needs(tmp_path):
    torch = pytest.importorskip("torch")
    from toolkit.convert import torch_onnx_litert
    from toolkit.sources.torch import SOURCE

    class Spectrum(torch.nn.Module):
        def forward(self, sound):
            return torch.fft.rfft(sound).abs()

    sound = RANDOM.normal(size=(2, 16)).astype(np.float32)
    found = SOURCE.capture(torch.nn.Sequential(torch.nn.Linear(16, 16), Spectrum()).eval(), {"sound": sound}, tmp_path / "net.pt2")
    signature = Signature(inputs=(spec("sound", "float32", 1, 16),), outputs=(spec("output_0", "float32", 1, 9),))
    (obstacle,) = torch_onnx_litert.ROUTE.preflight(tmp_path / "net.pt2", signature)
    assert obstacle.layer == "1" and "--rewrite dft-matmul" in obstacle.hint
    torch_onnx_litert.ROUTE.convert(tmp_path / "net.pt2", tmp_path / "net.tflite", signature, rewrites=("dft-matmul",))
    made, _ = opened(tmp_path / "net.tflite")
    np.testing.assert_allclose(made.get_signature_runner()(sound=sound[:1])["output_0"], found["output_0"][:1], rtol=1e-4, atol=1e-4)


def test_batch_sizes_are_signatures_that_share_the_weights(tmp_path):
    signature = network(tmp_path / "net.onnx", "n")
    onnx_litert.ROUTE.convert(tmp_path / "net.onnx", tmp_path / "one.tflite", signature)
    onnx_litert.ROUTE.convert(tmp_path / "net.onnx", tmp_path / "three.tflite", signature, batch_sizes=(1, 2, 5))
    made = interpreter.Interpreter(str(tmp_path / "three.tflite"), num_threads=1)
    assert set(made.get_signature_list()) == {"serving_default", "batch_2", "batch_5"}
    for name, size in (("serving_default", 1), ("batch_2", 2), ("batch_5", 5)):
        given = {"image": RANDOM.normal(size=(size, 3, 8, 8)).astype(np.float32)}
        (wanted,) = reference(tmp_path / "net.onnx", given)
        np.testing.assert_allclose(made.get_signature_runner(name)(**given)["scores"], wanted, rtol=1e-4, atol=1e-5)
    content = (tmp_path / "three.tflite").read_bytes()
    (weights,) = [numpy_helper.to_array(one) for one in onnx.load(str(tmp_path / "net.onnx")).graph.initializer if one.name == "second"]
    assert content.count(np.ascontiguousarray(weights.transpose(0, 2, 3, 1)).tobytes()) == 1


def test_a_batch_size_that_is_written_into_the_graph_is_refused(tmp_path):
    nodes = [helper.make_node("Reshape", ["x", "sizes"], ["y"], name="flat")]
    save(tmp_path / "net.onnx", nodes, {"x": (FLOAT, [1, 2, 3])}, {"y": (FLOAT, [1, 6])}, sizes=np.array([1, -1]))
    signature = Signature(inputs=(spec("x", "float32", 1, 2, 3),), outputs=(spec("y", "float32", 1, 6),))
    with pytest.raises(StageFailed, match="'y' has 1 rows for a batch of 4"):
        onnx_litert.ROUTE.convert(tmp_path / "net.onnx", tmp_path / "net.tflite", signature, batch_sizes=(4,))
    assert not (tmp_path / "net.tflite").exists()


def test_a_free_size_behind_the_batch_is_refused_by_name(tmp_path):
    save(tmp_path / "net.onnx", [helper.make_node("Relu", ["x"], ["y"])], {"x": (FLOAT, ["n", "length"])}, {"y": (FLOAT, ["n", "length"])})
    signature = Signature(inputs=(spec("x", "float32", "n", "length"),), outputs=(spec("y", "float32", "n", "length"),))
    with pytest.raises(StageFailed, match="input 'x' has a free size, 'length', on axis 1"):
        onnx_litert.ROUTE.convert(tmp_path / "net.onnx", tmp_path / "net.tflite", signature)


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_recurrent_layers_take_a_free_batch_or_say_that_they_do_not(tmp_path, kind):
    gates, hidden = {"LSTM": 4, "GRU": 3}[kind], 3
    constants = {"w": RANDOM.normal(size=(1, gates * hidden, 2)), "r": RANDOM.normal(size=(1, gates * hidden, hidden))}
    nodes = [helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2]), helper.make_node(kind, ["t", "w", "r"], ["y"], hidden_size=hidden)]
    stored = {name: one.astype(np.float32) for name, one in constants.items()}
    save(tmp_path / "net.onnx", nodes, {"x": (FLOAT, ["n", 5, 2])}, {"y": (FLOAT, [5, 1, "n", hidden])}, **stored)
    signature = Signature(inputs=(spec("x", "float32", "n", 5, 2),), outputs=(spec("y", "float32", 5, 1, "n", hidden),))
    with pytest.raises(StageFailed, match=r"free at run time|depend on the data"):
        onnx_litert.ROUTE.convert(tmp_path / "net.onnx", tmp_path / "net.tflite", signature)
    onnx_litert.ROUTE.convert(tmp_path / "net.onnx", tmp_path / "net.tflite", signature.model_copy(update={"outputs": ()}), batch_sizes=(3,))
    given = {"x": RANDOM.normal(size=(3, 5, 2)).astype(np.float32)}
    found = interpreter.Interpreter(str(tmp_path / "net.tflite")).get_signature_runner("batch_3")(**given)["y"]
    np.testing.assert_allclose(found, reference(tmp_path / "net.onnx", given)[0], rtol=1e-4, atol=1e-5)


def test_a_refusal_names_the_layer_of_the_pytorch_model(tmp_path):
    nodes = [helper.make_node("Relu", ["x"], ["r"], name="node_relu"), helper.make_node("Unique", ["r"], ["y"], name="node_unique")]
    save(tmp_path / "net.onnx", nodes, {"x": (FLOAT, [2, 3])}, {"y": (FLOAT, [6])})
    model = onnx.load(str(tmp_path / "net.onnx"))
    entry = model.graph.node[1].metadata_props.add()
    entry.key, entry.value = "pkg.torch.onnx.name_scopes", "['', 'block', 'block.1', 'unique']"
    onnx.save(model, str(tmp_path / "net.onnx"))
    signature = Signature(inputs=(spec("x", "float32", 2, 3),), outputs=(spec("y", "float32", 6),))
    (obstacle,) = onnx_litert.ROUTE.preflight(tmp_path / "net.onnx", signature)
    assert obstacle.layer == "block.1"
    with pytest.raises(StageFailed, match=r"Unique \(node_unique, layer block.1, of float32 \[2 x 3\], opset 11\)"):
        onnx_litert.ROUTE.convert(tmp_path / "net.onnx", tmp_path / "net.tflite", signature)


@pytest.mark.parametrize(("start", "end", "step"), [(0, 2, 1), (1, -1, 1), (-2, 2**40, 1), (0, 2**31 - 1, 2), (5, 9, 1), (0, 2**63 - 1, 1)])
@pytest.mark.parametrize("rows", [1, 2, 5])
def test_parts_of_a_free_batch(tmp_path, start, end, step, rows):
    nodes = [helper.make_node("Slice", ["x", "a", "b", "axes", "c"], ["s"]), helper.make_node("Neg", ["s"], ["y"])]
    bounds = {"a": np.array([start]), "b": np.array([end]), "axes": np.array([0]), "c": np.array([step])}
    save(tmp_path / "net.onnx", nodes, {"x": (FLOAT, ["n", 3])}, {"y": (FLOAT, ["m", 3])}, **bounds)
    signature = Signature(inputs=(spec("x", "float32", "n", 3),), outputs=(spec("y", "float32", "m", 3),))
    onnx_litert.ROUTE.convert(tmp_path / "net.onnx", tmp_path / "net.tflite", signature)
    given = {"x": RANDOM.normal(size=(rows, 3)).astype(np.float32)}
    (wanted,) = reference(tmp_path / "net.onnx", given)
    made = interpreter.Interpreter(str(tmp_path / "net.tflite"), num_threads=1)
    made.resize_tensor_input(made.get_input_details()[0]["index"], [rows, 3])
    made.allocate_tensors()
    made.set_tensor(made.get_input_details()[0]["index"], given["x"])
    made.invoke()
    np.testing.assert_array_equal(made.get_tensor(made.get_output_details()[0]["index"]), wanted)
