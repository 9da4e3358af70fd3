"""TensorFlow: what a captured program holds, and that every way out of it computes what the live model does."""

import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")
if find_spec("keras") is None:  # importing it would fix its backend for the whole process
    pytest.skip("needs keras", allow_module_level=True)

from toolkit import modelfile, plugins, savedmodels  # noqa: E402
from toolkit.artifact import Signature, TensorSpec  # noqa: E402
from toolkit.errors import InputRejected, StageFailed  # noqa: E402

SOURCE = plugins.get("sources", "tensorflow")
RUNTIME = plugins.get("runtimes", "tensorflow")
DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "mlperf_tiny"
ROUTES = ["savedmodel_litert", "savedmodel_onnx"]
N = 3


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=(N, *shape)).astype(np.float32)


def variable(*shape, seed=1):
    return tf.Variable(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


class Cnn(tf.Module):
    """Two inputs, two named outputs, weights in variables; channels last."""

    def __init__(self):
        super().__init__()
        self.kernel, self.weights = variable(3, 3, 2, 4), variable(67, 5)

    def __call__(self, picture, extra):
        seen = tf.nn.max_pool2d(tf.nn.relu6(tf.nn.conv2d(picture, self.kernel, 1, "SAME")), 2, 2, "VALID")
        logits = tf.concat([tf.reshape(seen, (1, -1)), extra], 1) @ self.weights
        return {"logits": logits, "best": tf.argmax(logits, 1)}


def cnn():
    return Cnn(), {"picture": noise(8, 8, 2), "extra": noise(3)}


def recurrent():
    import keras

    layer = keras.layers.LSTM(6, return_sequences=True)
    layer(np.zeros((1, 7, 4), np.float32))
    return tf.function(lambda sequence: layer(sequence, training=False)), {"sequence": noise(7, 4)}


def gelu():
    return tf.function(lambda x: tf.nn.gelu(3 * x)), {"x": noise(9)}


def gelu_approximate():
    return tf.function(lambda x: tf.nn.gelu(3 * x, approximate=True)), {"x": noise(9)}


def resized():
    return tf.function(lambda x: tf.image.resize(x, (13, 10), "bilinear")), {"x": noise(5, 5, 2)}


def enlarged():
    kernel = variable(3, 3, 2, 4)
    return tf.function(lambda x: tf.nn.conv2d_transpose(x, kernel, (1, 16, 16, 2), 2, "SAME")), {"x": noise(8, 8, 4)}


def tokens():
    table = variable(20, 6)
    ids = {name: np.random.default_rng(seed).integers(0, high, (N, 5)) for seed, (name, high) in enumerate({"input_ids": 20, "mask": 2}.items())}

    @tf.function
    def encode(input_ids, mask):
        known = tf.gather(table, input_ids) * tf.cast(mask, tf.float32)[..., None]
        return {"pooled": tf.reduce_sum(known, 1) / (1 + tf.reduce_sum(tf.cast(mask, tf.float32), 1, keepdims=True))}

    return encode, ids


def captured_constant():
    shift = tf.constant(np.arange(4, dtype=np.float32))  # LAB: such a one became an input of the model
    return tf.function(lambda x: x * shift + 1), {"x": noise(4)}


MODELS = [cnn, recurrent, gelu, gelu_approximate, resized, enlarged, tokens, captured_constant]


def specs(columns):
    return tuple(TensorSpec(name=name, dtype=str(column.dtype), shape=(1, *column.shape[1:])) for name, column in columns.items())


def sqnr_db(found, expected):
    error = float(np.sum((found.astype(np.float64) - expected) ** 2))
    return np.inf if error == 0 else 10 * np.log10(float(np.sum(expected.astype(np.float64) ** 2)) / error)


def check_file(path, format, inputs, expected, least_db=100):
    session = plugins.runtime_for(format).open(path, threads=1)
    assert {spec.name for spec in session.signature.inputs} == set(inputs)
    for spec in session.signature.outputs:
        assert spec.shape == (1, *expected[spec.name].shape[1:]), spec.name
    dtypes = {spec.name: spec.dtype for spec in session.signature.inputs}
    rows = [session.run({name: column[row : row + 1].astype(dtypes[name]) for name, column in inputs.items()}) for row in range(N)]
    for name, column in expected.items():
        assert sqnr_db(np.concatenate([row[name] for row in rows]), column) > least_db, name


def converted(name, program, inputs, expected, folder, **options):
    route = plugins.get("routes", name)
    if plugins.missing_modules(route):
        pytest.skip(f"{name} needs {', '.join(plugins.missing_modules(route))}")
    out = folder / f"model.{route.format}"
    route.convert(program, out, Signature(inputs=specs(inputs), outputs=specs(expected)), **options)
    return out


@pytest.mark.parametrize("build", MODELS, ids=lambda build: build.__name__)
def test_every_route_computes_what_the_live_model_does(build, tmp_path):
    model, inputs = build()
    expected = SOURCE.capture(model, inputs, tmp_path / "model.savedmodel")
    row = {name: tf.constant(column[1:2]) for name, column in inputs.items()}
    live = model(**row)
    for name, value in (live if isinstance(live, dict) else {"output_0": live}).items():
        np.testing.assert_array_equal(expected[name][1:2], value)
    check_file(tmp_path / "model.savedmodel", "savedmodel", inputs, expected)
    for name in ROUTES:
        check_file(converted(name, tmp_path / "model.savedmodel", inputs, expected, tmp_path), plugins.get("routes", name).format, inputs, expected)
    between = tmp_path / "model.tflite"
    session = plugins.runtime_for("tflite").open(between, threads=1)
    plugins.get("routes", "tflite_onnx").convert(between, tmp_path / "second.onnx", session.signature)
    check_file(tmp_path / "second.onnx", "onnx", inputs, expected)


@pytest.mark.parametrize("build", [cnn, recurrent, captured_constant], ids=lambda build: build.__name__)
def test_the_same_model_gives_the_same_bytes(build, tmp_path):
    model, inputs = build()
    for place in ("a", "b"):
        expected = SOURCE.capture(model, inputs, tmp_path / place / "model.savedmodel")
    assert modelfile.sha256(tmp_path / "a" / "model.savedmodel") == modelfile.sha256(tmp_path / "b" / "model.savedmodel")
    for name in ROUTES:
        files = [converted(name, tmp_path / place / "model.savedmodel", inputs, expected, tmp_path / place).read_bytes() for place in ("a", "b")]
        assert files[0] == files[1], name


def test_the_operator_set_is_the_one_asked_for(tmp_path):
    onnx = pytest.importorskip("onnx")
    model, inputs = cnn()
    expected = SOURCE.capture(model, inputs, tmp_path / "model.savedmodel")
    out = converted("savedmodel_onnx", tmp_path / "model.savedmodel", inputs, expected, tmp_path, opset=13)
    assert [entry.version for entry in onnx.load(out).opset_import if not entry.domain] == [13]
    check_file(out, "onnx", inputs, expected)
    with pytest.raises(StageFailed, match="9 to 18, found 99"):
        converted("savedmodel_onnx", tmp_path / "model.savedmodel", inputs, expected, tmp_path, opset=99)


def test_folders_of_tensorflow_are_read_with_their_free_batch_and_pinned_for_conversion(tmp_path):
    """As ``tf.saved_model.save`` and Keras write them: variables beside the graph, the batch free, also in loops."""
    import keras

    layer = keras.layers.LSTM(6, return_sequences=True)
    layer(np.zeros((1, 7, 4), np.float32))
    module = tf.Module()
    module.layer = layer
    serve = tf.function(lambda sequence: {"states": layer(sequence, training=False)}, [tf.TensorSpec((None, 7, 4), tf.float32, "sequence")])
    tf.saved_model.save(module, str(tmp_path / "given"), signatures=serve)
    inputs, session = {"sequence": noise(7, 4)}, RUNTIME.open(tmp_path / "given", threads=1)
    assert session.signature.inputs[0].shape == ("d0", 7, 4)
    expected = session.run(inputs)
    np.testing.assert_allclose(expected["states"], layer(inputs["sequence"]).numpy(), atol=1e-6)
    for name in ROUTES:
        check_file(converted(name, tmp_path / "given", inputs, expected, tmp_path), plugins.get("routes", name).format, inputs, expected)


def test_names_choose_and_rename_outputs(tmp_path):
    model, inputs = cnn()
    assert list(SOURCE.capture(model, inputs, tmp_path / "a", outputs=("best",))) == ["best"]
    assert list(SOURCE.capture(model, inputs, tmp_path / "b", outputs=("x", "y"))) == ["x", "y"]
    assert [spec.name for spec in RUNTIME.open(tmp_path / "b", threads=1).signature.outputs] == ["x", "y"]
    with pytest.raises(InputRejected, match="'best' of the names"):
        SOURCE.capture(model, inputs, tmp_path / "c", outputs=("best", "other"))
    with pytest.raises(InputRejected, match="inputs are named"):
        SOURCE.capture(model, {"extra": inputs["extra"], "photo": inputs["picture"]}, tmp_path / "d")


def test_concrete_functions_and_positional_arguments_are_taken(tmp_path):
    function = tf.function(lambda x: (x + 1, x - 1)).get_concrete_function(tf.TensorSpec((None, 4), tf.float32, "x"))
    assert SOURCE.accepts(function)
    x = noise(4)
    found = SOURCE.capture(function, {"x": x}, tmp_path / "a")
    np.testing.assert_array_equal(found["output_1"], x - 1)
    found = SOURCE.capture(tf.function(lambda first, second: first - second), {"left": x, "right": 2 * x}, tmp_path / "b")
    np.testing.assert_array_equal(found["output_0"], -x)


def test_what_is_not_a_function_of_its_inputs_is_refused_by_name(tmp_path):
    counter = tf.Variable(0.0)

    @tf.function
    def counts(x):
        counter.assign_add(0.0)
        return x + counter

    table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(tf.constant([0, 1]), tf.constant([5, 6])), -1)
    dice = tf.function(lambda x: x + tf.random.uniform((1, 4)))
    for model, words in (
        (counts, "writes to a variable"),
        (tf.function(lambda x: table.lookup(tf.cast(x, tf.int32))), "table"),
        (dice, "runs twice"),
    ):
        with pytest.raises(InputRejected, match=words):
            SOURCE.capture(model, {"x": noise(4)}, tmp_path / "model.savedmodel")


def test_an_operator_without_a_kernel_is_named_with_its_layer_and_a_hint(tmp_path):
    class Odd(tf.Module):
        @tf.Module.with_name_scope
        def __call__(self, x):
            return tf.image.resize(x, (7, 7), "bicubic")

    inputs = {"x": noise(4, 4, 1)}
    expected = SOURCE.capture(Odd(name="enlarge"), inputs, tmp_path / "model.savedmodel")
    route = plugins.get("routes", "savedmodel_litert")
    obstacles = route.preflight(tmp_path / "model.savedmodel", Signature(inputs=specs(inputs), outputs=specs(expected)))
    assert [(one.operator, one.layer) for one in obstacles] == [("ResizeBicubic", "enlarge/resize")]
    assert "bilinear" in obstacles[0].hint
    with pytest.raises(StageFailed, match=r"ResizeBicubic \(enlarge/resize\) has no TFLite kernel"):
        converted("savedmodel_litert", tmp_path / "model.savedmodel", inputs, expected, tmp_path)


def test_onnx_names_what_has_no_counterpart(tmp_path):
    inputs = {"x": noise(4, 4)}
    expected = SOURCE.capture(tf.function(lambda x: tf.linalg.cholesky(tf.matmul(x, x, transpose_b=True) + 9 * tf.eye(4))), inputs, tmp_path / "m")
    with pytest.raises(StageFailed, match="Cholesky"):
        converted("savedmodel_onnx", tmp_path / "m", inputs, expected, tmp_path)


def test_resizing_by_area_is_not_written_as_another_way_to_resize(tmp_path):
    inputs = {"x": noise(4, 4, 1)}
    expected = SOURCE.capture(tf.function(lambda x: tf.image.resize(x, (3, 3), "area")), inputs, tmp_path / "m")
    with pytest.raises(StageFailed, match="ResizeArea"):
        converted("savedmodel_onnx", tmp_path / "m", inputs, expected, tmp_path)


def test_folders_without_a_signature_are_refused(tmp_path):
    tf.saved_model.save(tf.Module(), str(tmp_path / "empty"))
    with pytest.raises(InputRejected, match="has no signature"):
        RUNTIME.open(tmp_path / "empty", threads=1)
    one, other = (tf.function(lambda x, step=step: {"y": x + step}, [tf.TensorSpec((1, 2))]) for step in (1, 2))
    module = tf.Module()
    tf.saved_model.save(module, str(tmp_path / "two"), signatures={"one": one, "other": other})
    with pytest.raises(InputRejected, match="one, other"):
        RUNTIME.open(tmp_path / "two", threads=1)
    tf.saved_model.save(module, str(tmp_path / "named"), signatures={"one": one})
    np.testing.assert_array_equal(RUNTIME.open(tmp_path / "named", threads=1).run({"x": np.zeros((1, 2), np.float32)})["y"], [[1, 1]])


def test_graphs_that_run_code_or_open_files_are_refused_unloaded(tmp_path, monkeypatch):
    def reads(x):
        return {"y": x + tf.strings.to_number(tf.io.read_file("somewhere"))}

    def calls(x):
        return {"y": tf.numpy_function(lambda value: value, [x], tf.float32)}

    for number, (function, word) in enumerate(((reads, "ReadFile"), (calls, "PyFunc"))):
        folder = tmp_path / str(number)
        tf.saved_model.save(tf.Module(), str(folder), signatures=tf.function(function, [tf.TensorSpec((1, 2))]))
        with monkeypatch.context() as patch:
            patch.setattr(tf.saved_model, "load", lambda *_: pytest.fail("was loaded"))
            with pytest.raises(InputRejected, match=word):
                RUNTIME.open(folder, threads=1)


def test_damaged_folders_are_refused(tmp_path):
    model, inputs = cnn()
    SOURCE.capture(model, inputs, tmp_path / "good")
    data = (tmp_path / "good" / savedmodels.GRAPH_FILE).read_bytes()
    for number, content in enumerate((b"", b"junk" * 500, data[: len(data) // 2], data[:-9], b"\0" * 99)):
        folder = tmp_path / f"bad{number}"
        shutil.copytree(tmp_path / "good", folder)
        (folder / savedmodels.GRAPH_FILE).write_bytes(content)
        with pytest.raises(InputRejected):
            RUNTIME.open(folder, threads=1)


@pytest.mark.slow
def test_the_keyword_model_of_mlperf_tiny_goes_everywhere(tmp_path):
    """Its objects are of an older Keras (``add_slot``), so that only its graph can be loaded; the batch is free."""
    if not DATA.is_dir():
        pytest.skip(f"{DATA} is not there")
    folder = DATA / "kws" / "kws_ref_model"
    graph = tf.Graph()
    inputs = {"input_1": noise(49, 10, 1)}
    with graph.as_default(), tf.compat.v1.Session(graph=graph) as session:
        serving = tf.compat.v1.saved_model.load(session, ["serve"], str(folder)).signature_def["serving_default"]
        live = session.run(serving.outputs["dense"].name, {serving.inputs["input_1"].name: inputs["input_1"]})
    expected = RUNTIME.open(folder, threads=1).run(inputs)
    np.testing.assert_allclose(expected["dense"], live, atol=1e-6)
    for name in ROUTES:
        check_file(converted(name, folder, inputs, expected, tmp_path), plugins.get("routes", name).format, inputs, expected)


@pytest.mark.slow
def test_the_keyword_model_in_tflite_goes_to_onnx(tmp_path):
    """Five of its weights are int8, so that LiteRT rounds what they are multiplied with; ONNX has the weights as float alone."""
    if not DATA.is_dir():
        pytest.skip(f"{DATA} is not there")
    file = DATA / "kws" / "kws_ref_model_float32.tflite"
    session = plugins.runtime_for("tflite").open(file, threads=1)
    inputs = {session.signature.inputs[0].name: noise(49, 10, 1)}
    rows = [session.run({name: column[row : row + 1] for name, column in inputs.items()}) for row in range(N)]
    expected = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    signature = Signature(inputs=specs(inputs), outputs=specs(expected))
    plugins.get("routes", "tflite_onnx").convert(file, tmp_path / "kws.onnx", signature)
    check_file(tmp_path / "kws.onnx", "onnx", inputs, expected, least_db=35)
