"""What a runtime that has variants must do: open each of them, as the same model executed in another way."""

import numpy as np
import pytest

from tests import models
from toolkit import plugins
from toolkit.errors import ConfigError, InputRejected

BUILDERS = {"onnx": models.tiny_onnx, "tflite": models.tiny_tflite, "pt2": models.tiny_pt2}
RUNTIMES = {name: runtime for name, runtime in plugins.discover("runtimes").items() if hasattr(runtime, "variants")}
CASES = [(runtime, variant) for runtime in RUNTIMES.values() for variant in runtime.variants]


@pytest.fixture
def model(runtime, tmp_path):
    for module in runtime.modules:
        pytest.importorskip(module)
    if hasattr(runtime, "contract_example"):
        return runtime.contract_example(tmp_path)
    if runtime.formats[0] not in BUILDERS:
        pytest.skip(f"no small {runtime.formats[0]} model; the plugin may bring one as contract_example(folder)")
    return BUILDERS[runtime.formats[0]](tmp_path / f"tiny.{runtime.formats[0]}")


@pytest.mark.parametrize("runtime", RUNTIMES.values(), ids=RUNTIMES)
def test_variants_have_names_of_their_own(runtime):
    assert runtime.variants and all(isinstance(name, str) and name.strip() == name != "" for name in runtime.variants)
    assert len(set(runtime.variants)) == len(runtime.variants)
    assert not any(name == "repeat" or name.startswith(("threads=", "cpu=")) for name in runtime.variants), "these are the stage's own"


@pytest.mark.parametrize(("runtime", "variant"), CASES, ids=[f"{runtime.name}, {variant}" for runtime, variant in CASES])
def test_a_variant_is_the_same_model(runtime, variant, model):
    default, other = runtime.open(model, threads=1), runtime.open_variant(model, threads=1, variant=variant)
    assert other.signature == default.signature
    random = np.random.default_rng(0)
    shapes = {spec: [size if isinstance(size, int) else 1 for size in spec.shape] for spec in default.signature.inputs}
    given = {spec.name: random.normal(size=shape).astype(spec.dtype) for spec, shape in shapes.items()}
    expected = default.run(given)
    for name, array in other.run(given).items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-4, atol=1e-5)
    for name, array in default.run(given).items():
        np.testing.assert_array_equal(array, expected[name])


@pytest.mark.parametrize("runtime", RUNTIMES.values(), ids=RUNTIMES)
def test_an_unknown_variant_is_refused_by_name(runtime, model):
    with pytest.raises(ConfigError, match="'no such variant'") as caught:
        runtime.open_variant(model, threads=1, variant="no such variant")
    assert all(variant in caught.value.hint for variant in runtime.variants)


@pytest.mark.parametrize(("runtime", "variant"), CASES, ids=[f"{runtime.name}, {variant}" for runtime, variant in CASES])
def test_a_variant_refuses_what_the_default_refuses(runtime, variant, model):
    model.write_bytes(model.read_bytes()[:40])
    with pytest.raises(InputRejected):
        runtime.open_variant(model, threads=1, variant=variant)


def test_onnx_runtime_optimises_as_the_variant_says(tmp_path):
    """Asked of the session itself."""
    ort = pytest.importorskip("onnxruntime")
    runtime, model = RUNTIMES["onnxruntime"], models.tiny_onnx(tmp_path / "tiny.onnx")
    levels = {variant: _session(runtime.open_variant(model, threads=1, variant=variant)) for variant in runtime.variants}
    assert {variant: session.get_session_options().graph_optimization_level for variant, session in levels.items()} == {
        "optimization=disabled": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
        "optimization=basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
        "optimization=extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    }
    default = _session(runtime.open(model, threads=1)).get_session_options()
    assert default.graph_optimization_level == ort.SessionOptions().graph_optimization_level == ort.GraphOptimizationLevel.ORT_ENABLE_ALL


def _session(opened):
    return opened._run.__self__


def test_litert_delegates_by_default_alone(tmp_path):
    """Asked of the interpreter itself: XNNPACK replaces the operators that it executes by one called DELEGATE."""
    pytest.importorskip("ai_edge_litert")
    runtime, model = RUNTIMES["litert"], models.tiny_tflite(tmp_path / "tiny.tflite")
    assert "DELEGATE" in _operators(runtime.open(model, threads=1))
    for variant in runtime.variants:
        assert _operators(runtime.open_variant(model, threads=1, variant=variant)) == ["FULLY_CONNECTED", "TANH"]


def _operators(session):
    return [operator["op_name"] for operator in session._interpreter._get_ops_details()]
