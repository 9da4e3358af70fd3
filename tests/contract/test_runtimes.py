"""What every runtime plugin must do, ours and anybody's.

A plugin of another format takes part when it has ``contract_example(folder) -> Path``, which writes a small model that
takes any float inputs. Damaged files are opened in a process of their own: a crash must fail one test, not end them all.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests import folders, models
from toolkit import plugins
from toolkit.errors import InputRejected

ROOT = Path(__file__).resolve().parents[2]
BUILDERS = {"onnx": models.tiny_onnx, "tflite": models.tiny_tflite, "pt2": models.tiny_pt2, "openvino": folders.tiny_openvino}
BUILDERS |= {"ort": models.tiny_ort, "pte": models.tiny_pte}
OPEN = """
import sys
from pathlib import Path
from toolkit import plugins
from toolkit.errors import InputRejected
runtime = plugins.get("runtimes", sys.argv[1])
for path in sys.argv[2:]:
    try:
        runtime.open(Path(path), threads=1)
    except InputRejected as error:
        assert error.message and error.hint, "an error needs a message and a hint"
    else:
        sys.exit(f"opened {path}")
"""

pytestmark = pytest.mark.parametrize("runtime", plugins.discover("runtimes").values(), ids=plugins.discover("runtimes"))


@pytest.fixture
def model(runtime, tmp_path):
    """A small model of the runtime's first format."""
    if plugins.missing_modules(runtime):
        pytest.skip(f"{runtime.name} needs {', '.join(plugins.missing_modules(runtime))}")
    if hasattr(runtime, "contract_example"):
        return runtime.contract_example(tmp_path)
    if runtime.formats[0] not in BUILDERS:
        pytest.skip(f"no small {runtime.formats[0]} model; the plugin may bring one as contract_example(folder)")
    return BUILDERS[runtime.formats[0]](tmp_path / f"tiny.{runtime.formats[0]}")


@pytest.fixture
def session(runtime, model):
    return runtime.open(model, threads=1)


def feed(session, seed=0):
    random = np.random.default_rng(seed)
    shapes = {spec.name: [size if isinstance(size, int) else 1 for size in spec.shape] for spec in session.signature.inputs}
    return {spec.name: random.normal(size=shapes[spec.name]).astype(spec.dtype) for spec in session.signature.inputs}


def test_formats_are_bare_suffixes(runtime):
    assert runtime.formats
    assert not any("." in name or name != name.lower() for name in runtime.formats), "a format is a file suffix without its dot, in small letters"


def test_outputs_have_the_declared_names_types_and_shapes(session):
    assert session.signature.inputs and session.signature.outputs
    found = session.run(feed(session))
    assert list(found) == [spec.name for spec in session.signature.outputs]
    for spec in session.signature.outputs:
        assert found[spec.name].dtype.name == spec.dtype
        assert len(found[spec.name].shape) == len(spec.shape)
        assert all(isinstance(want, str) or want == size for want, size in zip(spec.shape, found[spec.name].shape, strict=True))


def test_equal_inputs_give_equal_outputs_and_a_later_run_leaves_earlier_outputs_alone(session):
    first = session.run(feed(session))
    kept = {name: array.copy() for name, array in first.items()}
    other = session.run(feed(session, seed=1))
    again = session.run(feed(session))
    for name in kept:
        np.testing.assert_array_equal(first[name], kept[name])
        np.testing.assert_array_equal(again[name], kept[name])
    assert any((other[name] != kept[name]).any() for name in kept), "the outputs must depend on the inputs"


def test_many_batches_by_one_call_are_the_same_as_one_by_one(session):
    if not hasattr(session, "run_all"):
        pytest.skip("this runtime's sessions have no run_all")
    feeds = [feed(session, seed) for seed in range(4)]
    batches = {name: np.stack([one[name] for one in feeds]) for name in feeds[0]}
    for output in [spec.name for spec in session.signature.outputs]:
        expected = np.stack([session.run(one)[output] for one in feeds])
        found = np.full_like(expected, 7)
        session.run_all(batches, output, found)
        np.testing.assert_array_equal(found, expected)
    with pytest.raises(InputRejected):
        session.run_all({name: rows[..., None] for name, rows in batches.items()}, output, found)


def test_inputs_are_not_written_to(session):
    given = feed(session)
    before = {name: array.copy() for name, array in given.items()}
    for array in given.values():
        array.flags.writeable = False
    session.run(given)
    for name, array in given.items():
        np.testing.assert_array_equal(array, before[name])


def test_slices_of_a_column_and_views_in_another_order_of_axes_are_fed_right(session):
    given = feed(session)
    expected = session.run(given)
    scattered = {name: np.asfortranarray(np.repeat(array, 2, axis=-1))[..., ::2] for name, array in given.items()}
    for name, array in session.run(scattered).items():
        np.testing.assert_array_equal(array, expected[name])


@pytest.mark.parametrize("change", ["renamed", "missing", "extra", "another type", "another rank"])
def test_inputs_that_do_not_fit_are_refused_by_name(session, change):
    given = feed(session)
    name = session.signature.inputs[0].name
    kept = session.run(given)
    wrong = {
        "renamed": {"no such input" if key == name else key: array for key, array in given.items()},
        "missing": {key: array for key, array in given.items() if key != name},
        "extra": {**given, "no such input": given[name]},
        "another type": {**given, name: given[name].astype(np.float64 if given[name].dtype != np.float64 else np.float32)},
        "another rank": {**given, name: given[name][None]},
    }[change]
    with pytest.raises(InputRejected) as caught:
        session.run(wrong)
    assert name in caught.value.message + caught.value.hint
    for output, array in session.run(given).items():
        np.testing.assert_array_equal(array, kept[output])


def test_damaged_files_are_refused_without_a_crash(runtime, model, tmp_path):
    damaged = folders.damaged_copies(model, tmp_path)
    done = subprocess.run([sys.executable, "-c", OPEN, runtime.name, *map(str, damaged)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"exit {done.returncode}: {done.stderr[-2000:]}"


def test_the_tiny_models_compute_what_numpy_computes(runtime, session):
    if hasattr(runtime, "contract_example"):
        pytest.skip("the plugin brings its own model")
    x = models.samples(1, seed=2)
    np.testing.assert_allclose(session.run({"x": x})["logits"], models.reference(x), atol=1e-6)
