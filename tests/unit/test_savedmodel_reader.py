"""The reader of SavedModels: what it finds is held against TensorFlow's own reading of the same folders."""

import numpy as np
import pytest

from tests import models, saved_models
from tests.saved_models import entry, field, node, number, pair
from toolkit import savedmodel_operators
from toolkit.audit.savedmodel import READER
from toolkit.errors import InputRejected


def test_a_folder_is_read_without_tensorflow(tmp_path):
    contents = READER.read(saved_models.tiny_savedmodel(tmp_path / "tiny.savedmodel", batch=-1))
    assert [str(spec) for spec in (*contents.signature.inputs, *contents.signature.outputs)] == ["x [d0 x 4] float32", "logits [d0 x 3] float32"]
    assert contents.operators == {"MatMul": 1, "BiasAdd": 1, "Tanh": 1}
    assert contents.weight_bytes == {"float32": models.WEIGHTS.nbytes + models.BIAS.nbytes}
    assert contents.details == {"tensorflow": "2.19.0", "layout": "graph alone", "signature": "serving_default"}


def test_a_circle_of_calls_is_damage(tmp_path):
    calls = [entry("f", field(10, field(1, name))) for name in (b"one", b"two")]
    functions = b"".join(
        field(
            1,
            field(1, field(1, name) + field(3, field(1, b"y")))
            + field(3, node("c", "PartitionedCall", (), call)[2:])
            + field(4, pair("y", b"c:0:0")),
        )
        for name, call in ((b"one", calls[1]), (b"two", calls[0]))
    )
    graph = node("tanh2", "PartitionedCall", ("input",), calls[0]) + field(2, functions)
    path = saved_models.tiny_savedmodel(tmp_path / "tiny.savedmodel", extra=graph)
    (path / "saved_model.pb").write_bytes((path / "saved_model.pb").read_bytes().replace(b"tanh:0", b"tanh2:"))
    with pytest.raises(InputRejected, match=r"circle|deep"):
        READER.read(path)


@pytest.mark.parametrize("kind", ["SaveV2", "RestoreV2", "ReadFile", "PyFunc"])
def test_what_an_output_waits_for_may_not_touch_files(tmp_path, kind):
    path = saved_models.tiny_savedmodel(tmp_path / "tiny.savedmodel", extra=node("evil", kind, ()) + node("tanh2", "Identity", ("tanh", "^evil")))
    file = path / "saved_model.pb"
    file.write_bytes(file.read_bytes().replace(b"tanh:0", b"tanh2:"))
    with pytest.raises(InputRejected, match=rf"{kind} \(evil\)"):
        savedmodel_operators.refuse_unsafe(file)
    assert READER.read(path).details["runs_code_or_opens_files"] == f"{kind} (evil)"  # looking at it is safe, and says so


def test_names_that_two_nodes_share_hide_nothing(tmp_path):
    twice = node("tanh", "PyFunc", ())
    path = saved_models.tiny_savedmodel(tmp_path / "tiny.savedmodel", extra=twice)
    with pytest.raises(InputRejected, match="share one name"):
        savedmodel_operators.refuse_unsafe(path / "saved_model.pb")


def test_a_graph_in_two_parts_is_one_graph(tmp_path):
    path = saved_models.tiny_savedmodel(tmp_path / "tiny.savedmodel")
    meta = field(1, field(4, b"serve")) + field(2, node("evil", "PyFunc", ())) + field(2, b"")
    (path / "saved_model.pb").write_bytes(number(1, 1) + field(2, meta))
    with pytest.raises(InputRejected, match="PyFunc"):
        savedmodel_operators.refuse_unsafe(path / "saved_model.pb")


def test_flipped_bytes_never_escape_the_reader(tmp_path):
    file = saved_models.tiny_savedmodel(tmp_path / "tiny.savedmodel") / "saved_model.pb"
    data, random = file.read_bytes(), np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(data)
        damaged[int(random.integers(len(data)))] ^= int(random.integers(1, 256))
        file.write_bytes(bytes(damaged))
        try:
            READER.read(file.parent)
        except InputRejected as error:
            assert error.hint


# Against TensorFlow


@pytest.fixture
def tf():
    return pytest.importorskip("tensorflow")


def frozen_operators(folder):
    """How often each operator stands in the graph that TensorFlow itself makes of a folder."""
    from toolkit import savedmodel_graphs, savedmodels

    found = {}
    for one in savedmodel_graphs.nodes(savedmodels.load(folder).graph):
        found[one.op] = found.get(one.op, 0) + 1
    return {name: count for name, count in found.items() if name not in ("Const", "Placeholder", "Identity", "NoOp")}


def save(tf, folder, function, **attributes):
    module = tf.Module()
    for name, value in attributes.items():
        setattr(module, name, value)
    tf.saved_model.save(module, str(folder), signatures=function)
    return folder


def noise(*shape):
    return np.random.default_rng(3).normal(size=shape).astype(np.float32)


def test_variables_behind_calls_of_functions_are_found(tf, tmp_path):
    kernel, head, unused = tf.Variable(noise(3, 3, 1, 4)), tf.Variable(noise(64, 3)), tf.Variable(noise(1000))

    @tf.function
    def stem(x):
        return tf.nn.relu(tf.nn.conv2d(x, kernel, 1, "SAME"))

    @tf.function(input_signature=[tf.TensorSpec((None, 4, 4, 1), tf.float32, "picture")])
    def serve(picture):
        hidden = tf.reshape(stem(picture), (-1, 64))
        return {"scores": tf.nn.softmax(hidden @ head), "hidden": hidden}

    folder = save(tf, tmp_path / "model", {"serving_default": serve, "other": serve}, kernel=kernel, head=head, unused=unused, stem=stem)
    contents = READER.read(folder)
    operators = {name: count for name, count in contents.operators.items() if name != "NoOp"}
    assert operators == frozen_operators(folder)
    assert {(layer.operator, layer.weight_dtype, layer.weight_bytes) for layer in contents.layers} == {
        ("Conv2D", "float32", 3 * 3 * 4 * 4),
        ("MatMul", "float32", 64 * 3 * 4),
    }
    assert contents.weight_bytes["float32"] == 3 * 3 * 4 * 4 + 64 * 3 * 4
    assert contents.details["variables"].startswith("2 of 912 bytes; the files of variables have ")
    assert contents.details["other_signatures"].startswith("other: picture [d0 x 4 x 4 x 1] float32 -> hidden")
    from toolkit.runtimes.tensorflow import RUNTIME

    assert contents.signature == RUNTIME.open(folder, threads=1).signature


def test_the_body_of_a_loop_counts(tf, tmp_path):
    weights = tf.Variable(noise(4, 4))

    @tf.function(input_signature=[tf.TensorSpec((1, 4), tf.float32, "x")])
    def serve(x):
        step = tf.while_loop(lambda i, state: i < 3, lambda i, state: (i + 1, tf.tanh(state @ weights)), (0, x))
        return {"y": step[1]}

    contents = READER.read(save(tf, tmp_path / "model", serve, weights=weights))
    assert (contents.operators["StatelessWhile" if "StatelessWhile" in contents.operators else "While"], contents.operators["Tanh"]) == (1, 1)
    assert [(layer.operator, layer.weight_bytes) for layer in contents.layers] == [("MatMul", 64)]


def test_a_graph_of_tensorflow_1_is_read(tf, tmp_path):
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, (None, 4), "x")
        weights = v1.get_variable("weights", initializer=noise(4, 3), use_resource=False)
        y = tf.nn.softmax(x @ weights)
        session.run(v1.global_variables_initializer())
        v1.saved_model.simple_save(session, str(tmp_path / "model"), {"x": x}, {"y": y})
    contents = READER.read(tmp_path / "model")
    assert contents.operators == {"MatMul": 1, "Softmax": 1} and contents.weight_bytes == {"float32": 48}
    assert [layer.weight_dtype for layer in contents.layers] == ["float32"] and contents.details["layout"] == "graph alone"
    savedmodel_operators.refuse_unsafe(tmp_path / "model" / "saved_model.pb")  # it restores its variables, as it may


def test_a_truncated_checkpoint_is_damage(tf, tmp_path):
    weights = tf.Variable(noise(4, 4))
    serve = tf.function(lambda x: {"y": x @ weights}, [tf.TensorSpec((1, 4), tf.float32, "x")])
    folder = save(tf, tmp_path / "model", serve, weights=weights)
    (data,) = (folder / "variables").glob("variables.data-*")
    data.write_bytes(data.read_bytes()[:10])
    with pytest.raises(InputRejected, match="its variables take 64 bytes, the files of variables have 10"):
        READER.read(folder)


class Evil:
    """Objects whose initializer runs when a folder is loaded."""

    @staticmethod
    def build(tf, path):
        class Resource(tf.saved_model.experimental.TrackableResource):
            def _create_resource(self):
                return tf.raw_ops.VarHandleOp(dtype=tf.float32, shape=())

            def _initialize(self):
                tf.raw_ops.SaveV2(prefix=str(path), tensor_names=["x"], shape_and_slices=[""], tensors=[tf.constant(1.0)])

        return Resource()


def test_an_initializer_that_writes_files_is_refused_unloaded(tf, tmp_path):
    from toolkit import savedmodels

    module = tf.Module()
    module.evil = Evil.build(tf, tmp_path / "written")
    module.serve = tf.function(lambda x: {"y": x + 1}, [tf.TensorSpec((1, 2), tf.float32, "x")])
    tf.saved_model.save(module, str(tmp_path / "model"), signatures=module.serve)
    for file in tmp_path.glob("written*"):
        file.unlink()
    with pytest.raises(InputRejected, match="SaveV2"):
        savedmodels.load(tmp_path / "model")
    assert not list(tmp_path.glob("written*"))


def test_a_graph_whose_restoring_saves_is_refused(tf, tmp_path):
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, (1, 4), "x")
        weights = v1.get_variable("weights", initializer=noise(4, 3), use_resource=False)
        session.run(v1.global_variables_initializer())
        saver = v1.train.Saver()
        save_op = tf.raw_ops.SaveV2(prefix=str(tmp_path / "written"), tensor_names=["x"], shape_and_slices=[""], tensors=[tf.constant(1.0)])
        session.graph.get_operation_by_name("save/restore_all")._add_control_input(save_op)
        builder = v1.saved_model.Builder(str(tmp_path / "model"))
        signature = v1.saved_model.predict_signature_def({"x": x}, {"y": x @ weights})
        builder.add_meta_graph_and_variables(session, ["serve"], {"serving_default": signature}, saver=saver)
        builder.save()
    with pytest.raises(InputRejected, match="SaveV2"):
        savedmodel_operators.refuse_unsafe(tmp_path / "model" / "saved_model.pb")
