"""Every installed reader, ours or a plugin's: it reports the file it was given, and refuses a damaged one without a crash.

A reader of another format takes part when it has ``contract_example(folder) -> Path``.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests import folders, models, saved_models
from toolkit import modelfile, plugins

ROOT = Path(__file__).resolve().parents[2]
BUILDERS = {"onnx": models.tiny_onnx, "tflite": models.tiny_tflite, "pt2": models.tiny_pt2, "openvino": folders.tiny_openvino}
BUILDERS |= {"ort": models.tiny_ort, "pte": models.tiny_pte, "savedmodel": saved_models.tiny_savedmodel}
READ = """
import sys
from pathlib import Path
from toolkit import plugins
from toolkit.errors import InputRejected
reader = plugins.get("readers", sys.argv[1])
for path in sys.argv[2:]:
    try:
        reader.read(Path(path))
    except InputRejected as error:
        assert error.message and error.hint, "an error needs a message and a hint"
    else:
        sys.exit(f"read {path}")
"""

pytestmark = pytest.mark.parametrize("reader", plugins.discover("readers").values(), ids=plugins.discover("readers"))


@pytest.fixture
def model(reader, tmp_path):
    """A small model of the reader's format."""
    if plugins.missing_modules(reader):
        pytest.skip(f"{reader.name} needs {', '.join(plugins.missing_modules(reader))}")
    if hasattr(reader, "contract_example"):
        return reader.contract_example(tmp_path)
    if reader.format not in BUILDERS:
        pytest.skip(f"no small {reader.format} model; the plugin may bring one as contract_example(folder)")
    return BUILDERS[reader.format](tmp_path / f"tiny.{reader.format}")


def test_it_reports_the_file_that_it_was_given(reader, model):
    before, size_bytes = modelfile.sha256(model), modelfile.size_bytes(model)
    contents = reader.read(model)
    assert (contents.format, contents.size_bytes, contents.sha256) == (reader.format, size_bytes, before)
    assert contents.operators and contents.weight_bytes and contents.signature.inputs and contents.signature.outputs
    assert sum(contents.weight_bytes.values()) <= size_bytes
    assert modelfile.sha256(model) == before
    assert reader.read(model) == contents


def test_it_agrees_with_the_runtime_about_the_signature(reader, model):
    runtime = plugins.runtime_for(reader.format)
    if plugins.missing_modules(runtime):
        pytest.skip(f"{runtime.name} needs {', '.join(plugins.missing_modules(runtime))}")
    assert reader.read(model).signature == runtime.open(model, threads=1).signature


def test_the_tiny_models_have_one_layer_of_float_weights(reader, model):
    if hasattr(reader, "contract_example"):
        pytest.skip("the plugin brings its own model")
    (layer,) = reader.read(model).layers
    assert (layer.weight_dtype, layer.activation_dtype, layer.weight_bytes) == ("float32", "float32", np.float32(models.WEIGHTS).nbytes)


def test_damaged_files_are_refused_without_a_crash(reader, model, tmp_path):
    damaged = folders.damaged_copies(model, tmp_path)
    done = subprocess.run([sys.executable, "-c", READ, reader.name, *map(str, damaged)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"exit {done.returncode}: {done.stderr[-2000:]}"
