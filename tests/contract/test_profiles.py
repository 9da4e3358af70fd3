"""What a runtime that has a profiler must do: compute the same as without it, and tell every operator of every inference."""

import numpy as np
import pytest

from tests import models
from toolkit import plugins
from toolkit.errors import InputRejected

BUILDERS = {"onnx": models.tiny_onnx, "tflite": models.tiny_tflite, "pt2": models.tiny_pt2}
RUNTIMES = {name: runtime for name, runtime in plugins.discover("runtimes").items() if hasattr(runtime, "open_profiled")}

pytestmark = pytest.mark.parametrize("runtime", RUNTIMES.values(), ids=RUNTIMES)


@pytest.fixture
def model(runtime, tmp_path):
    for module in runtime.modules:
        pytest.importorskip(module)
    if hasattr(runtime, "contract_example"):
        return runtime.contract_example(tmp_path)
    if runtime.formats[0] not in BUILDERS:
        pytest.skip(f"no small {runtime.formats[0]} model; the plugin may bring one as contract_example(folder)")
    return BUILDERS[runtime.formats[0]](tmp_path / f"tiny.{runtime.formats[0]}")


def feed(session, seed):
    random = np.random.default_rng(seed)
    shapes = {spec: [size if isinstance(size, int) else 1 for size in spec.shape] for spec in session.signature.inputs}
    return {spec.name: random.normal(size=shape).astype(spec.dtype) for spec, shape in shapes.items()}


def test_a_recorded_inference_computes_what_an_unrecorded_one_does(runtime, model):
    plain, recorded = runtime.open(model, threads=1), runtime.open_profiled(model, threads=1)
    assert recorded.signature == plain.signature
    for seed in range(3):
        expected, found = plain.run(feed(plain, seed)), recorded.run(feed(plain, seed))
        assert list(found) == list(expected)
        for name, array in expected.items():
            assert found[name].dtype == array.dtype
            np.testing.assert_array_equal(found[name], array)


def test_every_inference_tells_the_same_operators_with_times(runtime, model):
    recorded = runtime.open_profiled(model, threads=1)
    for seed in range(4):
        recorded.run(feed(recorded, seed))
    runs = recorded.events()
    assert len(runs) == 4
    assert runs[0]
    for events in runs:
        assert [(one.name, one.operator, one.kernel, one.nodes) for one in events] == [
            (one.name, one.operator, one.kernel, one.nodes) for one in runs[0]
        ]
        assert all(one.ms >= 0 and one.name and one.operator for one in events)


def test_operators_name_the_nodes_of_the_file(runtime, model):
    reader = plugins.find_reader(model.suffix.removeprefix("."))
    if reader is None or not reader.read(model).nodes:
        pytest.skip("nothing reads the nodes of this format")
    recorded = runtime.open_profiled(model, threads=1)
    recorded.run(feed(recorded, 0))
    nodes = reader.read(model).nodes
    known = {name for node in nodes for name in (node.name, *node.outputs)}
    named = [name for event in recorded.events()[0] for name in event.nodes]
    assert named
    assert set(named) <= known


def test_inputs_that_do_not_fit_and_damaged_files_are_refused(runtime, model, tmp_path):
    recorded = runtime.open_profiled(model, threads=1)
    with pytest.raises(InputRejected):
        recorded.run({"no such input": np.zeros(3, np.float32)})
    damaged = tmp_path / f"damaged{model.suffix}"
    damaged.write_bytes(model.read_bytes()[: len(model.read_bytes()) // 2])
    for path in (damaged, tmp_path / f"missing{model.suffix}"):
        with pytest.raises(InputRejected):
            runtime.open_profiled(path, threads=1)
