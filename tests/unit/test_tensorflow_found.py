"""SavedModels as they are found: with variables and a free batch, which the routes keep free; and the same bytes from another process."""

import hashlib
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")

from toolkit import plugins, savedmodels  # noqa: E402
from toolkit.artifact import Signature, TensorSpec  # noqa: E402
from toolkit.errors import InputRejected  # noqa: E402

RUNTIME = plugins.get("runtimes", "tensorflow")
ROUTES = ("savedmodel_onnx", "savedmodel_litert", "savedmodel_openvino", "savedmodel_frozen_openvino")
RNG = np.random.default_rng(0)


def variable(*shape):
    return tf.Variable(RNG.normal(size=shape).astype(np.float32))


class Net(tf.Module):
    """A convolution, a loop over steps and a sum; every size but the batch is fixed."""

    def __init__(self):
        super().__init__()
        self.kernel, self.step, self.head = variable(3, 4, 5), variable(5, 5), variable(5, 3)

    def __call__(self, sequence):
        seen = tf.nn.relu(tf.nn.conv1d(sequence, self.kernel, 1, "SAME"))
        return {"scores": tf.tanh(tf.reduce_mean(seen, 1) @ self.step) @ self.head}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """A folder as ``tf.saved_model.save`` writes it, whose batch is free."""
    net = Net()
    serve = tf.function(net.__call__, input_signature=[tf.TensorSpec((None, 6, 4), tf.float32, "sequence")])
    folder = tmp_path_factory.mktemp("found") / "model.savedmodel"
    tf.saved_model.save(net, str(folder), signatures=serve)
    return folder


def signature(batch):
    inputs = TensorSpec(name="sequence", dtype="float32", shape=(batch, 6, 4))
    return Signature(inputs=(inputs,), outputs=(TensorSpec(name="scores", dtype="float32", shape=(batch, 3)),))


@pytest.mark.parametrize("name", ROUTES)
def test_a_free_batch_stays_free_and_is_right_at_three_sizes(name, found, tmp_path):
    route = plugins.get("routes", name)
    if plugins.missing_modules(route):
        pytest.skip(f"{name} needs {', '.join(plugins.missing_modules(route))}")
    assert "dynamic" in route.options
    out = tmp_path / f"model.{route.format}"
    route.convert(found, out, signature("batch"))
    session, reference = plugins.runtime_for(route.format).open(out, threads=1), RUNTIME.open(found, threads=1)
    assert isinstance(session.signature.inputs[0].shape[0], str)
    if route.format == "onnx":
        assert session.signature.inputs[0].shape[0] == session.signature.outputs[0].shape[0] == "batch"
    for batch in (1, 2, 5):
        x = {"sequence": RNG.normal(size=(batch, 6, 4)).astype(np.float32)}
        np.testing.assert_allclose(session.run(x)["scores"], reference.run(x)["scores"], rtol=1e-4, atol=1e-5)


def test_a_frozen_folder_is_read_without_a_session_and_means_the_same(found, tmp_path, monkeypatch):
    frozen = savedmodels.pinned(savedmodels.load(found), signature(1))
    savedmodels.write(frozen, tmp_path / "frozen.savedmodel")
    monkeypatch.setattr(savedmodels, "_from_session", lambda *_: pytest.fail("a session was started"))
    again = savedmodels.load(tmp_path / "frozen.savedmodel")
    assert (again.graph, again.inputs, again.outputs) == (frozen.graph, frozen.inputs, frozen.outputs)


def test_a_frozen_folder_that_names_a_tensor_which_it_lacks_is_refused(found, tmp_path):
    frozen = savedmodels.pinned(savedmodels.load(found), signature(1))
    savedmodels.write(frozen, tmp_path / "frozen.savedmodel")
    file = tmp_path / "frozen.savedmodel" / savedmodels.GRAPH_FILE
    place = frozen.outputs["scores"].encode()
    file.write_bytes(file.read_bytes().replace(place, b"X" + place[1:]))
    with pytest.raises(InputRejected):
        savedmodels.load(tmp_path / "frozen.savedmodel")


CODE = """
import sys
from pathlib import Path
from toolkit import plugins
from toolkit.artifact import Signature
folder, out = Path(sys.argv[1]), Path(sys.argv[2])
for name, source in (("savedmodel_onnx", "lstm.savedmodel"), ("tflite_onnx", "lstm.tflite")):
    signature = Signature.model_validate_json((folder / "signature.json").read_text())
    plugins.get("routes", name).convert(folder / source, out / f"{name}.onnx", signature)
"""


def test_another_process_writes_the_same_onnx(tmp_path):
    """Of a recurrent layer, whose loop tf2onnx writes in an order of its own each time, and names after the file that it read."""
    for module in ("keras", "tf2onnx", "onnx"):
        if find_spec(module) is None:
            pytest.skip(f"needs {module}")
    import keras

    if keras.backend.backend() != "tensorflow":
        pytest.skip("Keras runs on another backend in this process")
    layer = keras.layers.LSTM(6, return_sequences=True)
    layer(np.zeros((1, 7, 4), np.float32))
    function = tf.function(lambda x: layer(x, training=False)).get_concrete_function(tf.TensorSpec((1, 7, 4), tf.float32, "x"))
    frozen = savedmodels.freeze(function, ["x"], ["states"])
    first, second = (tmp_path / name for name in ("first", "second"))
    for folder in (first, second):
        folder.mkdir()
    savedmodels.write(frozen, first / "lstm.savedmodel")
    (first / "signature.json").write_text(savedmodels.signature_of(frozen).model_dump_json(), encoding="utf-8")
    plugins.get("routes", "savedmodel_litert").convert(first / "lstm.savedmodel", first / "lstm.tflite", savedmodels.signature_of(frozen))
    digests = []
    for seed, out in ((1, first), (2, second)):
        environment = {**os.environ, "PYTHONHASHSEED": str(seed), "TF_CPP_MIN_LOG_LEVEL": "3"}
        subprocess.run(
            [sys.executable, "-c", CODE, str(first), str(out)], check=True, env=environment, capture_output=True, cwd=Path(__file__).parents[2]
        )
        digests.append({file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(out.glob("*.onnx"))})
    assert len(digests[0]) == 2 and digests[0] == digests[1]
