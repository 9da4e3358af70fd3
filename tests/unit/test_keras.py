"""Keras models in, every format out, held against Keras' own ``predict``. Each backend of Keras has a process of its own."""

import json
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from tests import keras_cases
from tests.keras_cases import arrays, sqnr_db
from toolkit import modelfile, plugins

# Not by importing them: Keras takes one backend for the whole process.
MISSING = [name for name in ("keras", "tensorflow") if find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}")
ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"
TENSORFLOW = ("keras_litert", "keras_onnx", "keras_openvino", "h5_litert", "h5_onnx")


def run(*arguments, module="tests.keras_cases"):
    command = [sys.executable, *(["-m", module] if module else []), *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("keras")
    routes = [name for name in TENSORFLOW if not plugins.missing_modules(plugins.get("routes", name))]
    run("tensorflow", made, ",".join(routes), ",".join(keras_cases.CASES))
    return made


def check(folder, case, route):
    """The file that a route wrote must have the source's names and compute what Keras predicts."""
    route = plugins.get("routes", route)
    path = folder / f"{case}.{route.name}.{route.format}"
    session = plugins.runtime_for(route.format).open(path, threads=1)
    given, expected = arrays(folder, case, "inputs"), arrays(folder, case, "predicted")
    assert {spec.name for spec in session.signature.inputs} == set(given)
    assert {spec.name for spec in session.signature.outputs} == set(expected)
    dtypes = {spec.name: spec.dtype for spec in session.signature.inputs}
    rows = [session.run({name: column[row : row + 1].astype(dtypes[name]) for name, column in given.items()}) for row in range(keras_cases.N)]
    for name, column in expected.items():
        found = np.concatenate([one[name] for one in rows])
        assert found.dtype == column.dtype and found.shape == column.shape
        assert sqnr_db(column, found) > 90, f"{name}: {sqnr_db(column, found):.1f} dB"
    again = folder / f"{case}.{route.name}.again.{route.format}"
    assert modelfile.sha256(path) == modelfile.sha256(again), "the same model gives the same bytes twice"


@pytest.mark.parametrize("case", keras_cases.CASES)
def test_what_the_source_records_is_what_keras_predicts(folder, case):
    recorded, predicted = arrays(folder, case, "recorded"), arrays(folder, case, "predicted")
    for name, column in predicted.items():
        assert sqnr_db(column, recorded[name]) > 110
        assert np.std(column) > 1e-3, "a constant output would show nothing"


@pytest.mark.parametrize("case", keras_cases.CASES)
@pytest.mark.parametrize("route", [name for name in TENSORFLOW if name.startswith("keras")])
def test_keras_files_convert_with_names_and_values(folder, case, route):
    if plugins.missing_modules(plugins.get("routes", route)):
        pytest.skip(f"{route} needs {plugins.missing_modules(plugins.get('routes', route))}")
    check(folder, case, route)


@pytest.mark.parametrize("case", ["cnn", "two"])
@pytest.mark.parametrize("route", [name for name in TENSORFLOW if name.startswith("h5")])
def test_h5_files_convert_with_names_and_values(folder, case, route):
    if plugins.missing_modules(plugins.get("routes", route)):
        pytest.skip(f"{route} needs {plugins.missing_modules(plugins.get('routes', route))}")
    check(folder, case, route)


def test_names_are_the_models_own(folder):
    assert {case: list(arrays(folder, case, "recorded")) for case in ("cnn", "own_class", "two", "lstm")} == {
        "cnn": ["scores"],
        "own_class": ["scores"],
        "two": ["zulu", "alpha"],
        "lstm": ["logits"],
    }


def test_recurrent_layers_stay_loops_in_tflite(folder):
    contents = plugins.reader("tflite").read(folder / "lstm.keras_litert.tflite")
    operators = {node.operator for node in contents.nodes}
    assert not any(name.startswith("Flex") for name in operators), operators


def test_a_captured_file_tells_nothing_of_when_where_and_how_it_was_trained(folder):
    with zipfile.ZipFile(folder / "cnn.keras") as archive:
        assert {member.date_time for member in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert set(json.loads(archive.read("metadata.json"))) == {"keras_version"}
        assert b"adam" not in archive.read("config.json") and b"crossentropy" not in archive.read("config.json")
    for case in ("cnn", "two", "lstm", "tokens"):
        assert (folder / f"{case}.keras").read_bytes() == (folder / f"{case}.again.keras").read_bytes()


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_a_file_computes_the_same_on_every_backend(folder, backend, tmp_path):
    if plugins.missing_modules(plugins.get("runtimes", backend)):
        pytest.skip(f"needs {backend}")
    code = """
import sys, numpy as np
from pathlib import Path
from tests.keras_cases import arrays, sqnr_db
from toolkit import keras_models, plugins
keras_models.use(sys.argv[1])
folder = Path(sys.argv[2])
for case in ("cnn", "two"):
    session = plugins.get("runtimes", "keras").open(folder / f"{case}.keras", threads=1)
    given, expected = arrays(folder, case, "inputs"), arrays(folder, case, "predicted")
    found = session.run({name: column[:1] for name, column in given.items()})
    for name, column in expected.items():
        assert sqnr_db(column[:1], found[name]) > 100, (case, name)
"""
    run("-c", code, backend, folder, module=None)


def test_jax_needs_no_tensorflow_to_reach_tflite(folder):
    if plugins.missing_modules(plugins.get("routes", "keras_jax_litert")):
        pytest.skip(f"needs {plugins.missing_modules(plugins.get('routes', 'keras_jax_litert'))}")
    run("jax", folder, "keras_jax_litert", "cnn,two,lstm,tokens")
    for case in ("cnn", "two", "lstm", "tokens"):
        check(folder, case, "keras_jax_litert")


TORCH = ("keras_torch_onnx", "keras_torch_executorch", "keras_torch_openvino", "h5_torch_onnx")


@pytest.mark.slow
def test_the_ways_through_pytorch(folder):
    routes = [name for name in TORCH if not plugins.missing_modules(plugins.get("routes", name))]
    assert routes
    run("torch", folder, ",".join(routes), "cnn,two,tokens")
    for case in ("cnn", "two", "tokens"):
        for route in routes:
            if route.startswith("keras") or case in ("cnn", "two"):
                check(folder, case, route)


REFUSED = """
import sys, warnings
from pathlib import Path
import numpy as np, pytest
from toolkit import keras_models, plugins
from toolkit.errors import InputRejected, SetupError, StageFailed
keras = keras_models.use("tensorflow")
layers, out = keras.layers, Path(sys.argv[1]) / "x.keras"
source = plugins.get("sources", "keras")
x = np.ones((2, 4), np.float32)

class Scale(layers.Layer):
    def call(self, value):
        return value * 2

class Random(layers.Layer):
    def call(self, value):
        return value + keras.random.normal((1, 4))

def refused(model, examples, words, outputs=(), kind=InputRejected):
    with pytest.raises(kind, match=words) as caught:
        source.capture(model, examples, out, outputs=outputs)
    assert caught.value.hint

def functional(*inside, inputs=1):
    given = [keras.Input((4,), name=f"given_{place}") for place in range(inputs)]
    value = given[0] if inputs == 1 else layers.Add()(given)
    for one in inside:
        value = one(value)
    return keras.Model(given, value)

refused(functional(Scale(name="twice")), {"given_0": x}, "twice.*Scale.*tf.function|twice.*Scale")
refused(functional(layers.Lambda(lambda v: v * 2)), {"given_0": x}, "Lambda")
refused(functional(Random()), {"given_0": x}, "differs when the same sample runs twice|Random")
dense = functional(layers.Dense(2, name="out"))
refused(dense, {"given_0": x, "more": x}, "takes")
refused(dense, {"given_0": x.astype(np.float64)}, "float64")
refused(dense, {"given_0": x.astype(np.int32)}, "int32")
refused(dense, {"a b": x}, "identifier")
refused(dense, {"given_0": x}, "1 output .*found 2 names", outputs=("a", "b"))
refused(dense, {"given_0": np.ones((2, 5), np.float32)}, "raised|take", kind=(InputRejected, StageFailed))
both = functional(layers.Dense(2), inputs=2)
refused(both, {"given_1": x, "other": x}, "takes")
assert set(source.capture(dense, {"renamed": x}, out, outputs=("y",))) == {"y"}
assert [spec.name for spec in plugins.get("runtimes", "keras").open(out, threads=1).signature.inputs] == ["renamed"]
assert source.accepts(dense) and not source.accepts(np.ones(1)) and not source.accepts(Scale())
with pytest.raises(SetupError, match="tensorflow in this process"):
    keras_models.use("jax")
stateful = keras.Sequential([keras.Input(batch_shape=(1, 3, 4)), layers.LSTM(2, stateful=True)])
examples = {"wave": np.ones((2, 3, 4), np.float32)}
refused(stateful, examples, "differs when the same sample runs twice")
stateful.save(out)
from toolkit.convert import keras_litert
with pytest.raises((StageFailed, InputRejected), match="variable|state"):
    keras_litert.ROUTE.convert(out, out.with_suffix(".tflite"), keras_models.signature(keras_models.load(out)))
assert not out.with_suffix(".tflite").exists()
"""


def test_what_cannot_be_captured_is_named(tmp_path):
    run("-c", REFUSED, tmp_path, module=None)


@pytest.mark.slow
@pytest.mark.parametrize("file", ["backbones/mobilenet_v1_0.25_224_imagenet.h5", "mlperf_tiny/ic/pretrainedResnet.h5"])
def test_real_keras_2_files(file, tmp_path):
    path = DATA / file
    if not path.exists():
        pytest.skip(f"{path} is not here")
    code = """
import json, sys, time, numpy as np
from pathlib import Path
from tests.keras_cases import sqnr_db
from toolkit import plugins
path, out = Path(sys.argv[1]), Path(sys.argv[2])
session = plugins.get("runtimes", "keras").open(path, threads=1)
signature, rng = session.signature, np.random.default_rng(0)
samples = [{spec.name: rng.normal(size=spec.shape).astype(spec.dtype) for spec in signature.inputs} for _ in range(4)]
for name in ("h5_litert", "h5_onnx", "h5_openvino"):
    route = plugins.get("routes", name)
    started = time.perf_counter()
    route.convert(path, out / f"m.{route.format}", signature)
    seconds = time.perf_counter() - started
    other = plugins.runtime_for(route.format).open(out / f"m.{route.format}", threads=1)
    gaps, times = [], []
    for sample in samples:
        expected = session.run(sample)
        started = time.perf_counter()
        found = other.run(sample)
        times.append(time.perf_counter() - started)
        gaps += [sqnr_db(expected[key], found[key]) for key in expected]
        assert all(found[key].argmax() == expected[key].argmax() for key in expected)
    print(f"{name} {min(gaps):.1f} dB {seconds:.1f} s {1e3 * min(times):.2f} ms")
    assert min(gaps) > 90, (name, gaps)
"""
    print(run("-c", code, path, tmp_path, module=None))
