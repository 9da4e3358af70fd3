"""ONNX files that pass the cheap checks and still lie: external data, functions, cycles, names, sizes."""

import numpy as np
import pytest

from toolkit import intake, plugins
from toolkit.errors import InputRejected


def onnx_bytes():
    pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    weight = numpy_helper.from_array(np.arange(64, dtype=np.int8).reshape(8, 8), "w")
    scale = helper.make_tensor("s", TensorProto.FLOAT, [], [0.1])
    nodes = [helper.make_node("DequantizeLinear", ["w", "s"], ["d"]), helper.make_node("MatMul", ["x", "d"], ["y"], name="dense")]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 8]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [weight, scale])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], producer_name="test").SerializeToString()


def write(folder, name, data):
    path = folder / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    "location", ["../secret", "/etc/passwd", "a/../../secret", "..\\secret", "C:\\secret", "\\\\host\\share", "link/secret", "", "\0"]
)
def test_onnx_external_data_stays_in_its_folder(tmp_path, location):
    model = external_model(location)
    (tmp_path / "secret").write_bytes(b"x" * 400)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path)
    path = write(folder, "m.onnx", model)
    with pytest.raises(InputRejected, match=r"outside the model's folder|leads out of|not a usable path"):
        plugins.reader("onnx").read(path)


def external_model(location, **entries):
    onnx = pytest.importorskip("onnx")
    model = onnx.ModelProto.FromString(onnx_bytes())
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=value)
    return model.SerializeToString()


@pytest.mark.parametrize("entries", [{"offset": "1"}, {"length": "65"}, {"offset": "-1"}, {"length": "-1"}, {"offset": "x"}, {"length": "9" * 5000}])
def test_onnx_external_data_must_be_long_enough(tmp_path, entries):
    (tmp_path / "w.data").write_bytes(b"x" * 64)
    assert plugins.reader("onnx").read(write(tmp_path, "good.onnx", external_model("w.data", length="64"))).weight_bytes["int8"] == 64
    with pytest.raises(InputRejected):
        plugins.reader("onnx").read(write(tmp_path, "m.onnx", external_model("w.data", **{"length": "64", **entries})))


def test_onnx_external_data_must_exist(tmp_path):
    with pytest.raises(InputRejected, match="is missing"):
        plugins.reader("onnx").read(write(tmp_path, "m.onnx", external_model("w.data")))


def test_onnx_graph_without_outputs(tmp_path):
    path = write(tmp_path, "m.onnx", b"\x3a\x00\x42\x00")
    assert intake.check_model(path) == "onnx"
    with pytest.raises(InputRejected, match="no outputs"):
        plugins.reader("onnx").read(path)


def test_onnx_name_that_is_not_text(tmp_path):
    with pytest.raises(InputRejected, match=r"the name b'd\\xffnse' is not UTF-8 text"):
        plugins.reader("onnx").read(write(tmp_path, "m.onnx", onnx_bytes().replace(b"dense", b"d\xffnse")))


def test_onnx_functions_that_call_themselves_end(tmp_path):
    onnx = pytest.importorskip("onnx")
    model = onnx.ModelProto.FromString(onnx_bytes())
    call = onnx.helper.make_node("F", ["a"], ["b"], domain="own")
    model.functions.append(onnx.helper.make_function("own", "F", ["a"], ["b"], [call], []))
    model.graph.node.append(onnx.helper.make_node("F", ["y"], ["z"], domain="own"))
    with pytest.raises(InputRejected, match="call each other"):
        plugins.reader("onnx").read(write(tmp_path, "m.onnx", model.SerializeToString()))


def test_onnx_cycles_end(tmp_path):
    onnx = pytest.importorskip("onnx")
    model = onnx.ModelProto.FromString(onnx_bytes())
    model.graph.node.append(onnx.helper.make_node("Identity", ["loop"], ["loop"]))
    model.graph.node[1].input[0] = "loop"
    with pytest.raises(InputRejected, match="fed by itself"):
        plugins.reader("onnx").read(write(tmp_path, "m.onnx", model.SerializeToString()))


def test_onnx_tensor_that_is_shorter_than_its_shape(tmp_path):
    onnx = pytest.importorskip("onnx")
    model = onnx.ModelProto.FromString(onnx_bytes())
    model.graph.initializer[0].dims[0] = 9
    with pytest.raises(InputRejected, match=r"tensor 'w' holds 64 bytes, which do not fit \[9, 8\] int8"):
        plugins.reader("onnx").read(write(tmp_path, "m.onnx", model.SerializeToString()))
