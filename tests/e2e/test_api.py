"""The Python API on live models: what notebooks and scripts do, rightly and wrongly."""

from __future__ import annotations

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

import toolkit  # noqa: E402
from toolkit import errors, modelfile  # noqa: E402

ENGINES = [("onnx", "onnxruntime", "desktop-ort"), ("tflite", "ai_edge_litert", "desktop-litert")]


class TwoHeads(torch.nn.Module):
    """Its second output, in the order of names the first, is no class score: a runtime that sorts must not be believed."""

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Conv2d(1, 8, 3)
        self.logits = torch.nn.Linear(288, 10)
        self.aux = torch.nn.Linear(288, 10)

    def forward(self, image):
        features = torch.relu(self.body(image)).flatten(1)
        return {"logits": self.logits(features), "aux": self.aux(features)}


@pytest.fixture(scope="module")
def live():
    torch.manual_seed(0)
    return TwoHeads().eval()


@pytest.fixture(scope="module")
def images():
    noise = np.random.default_rng(0).random((400, 1, 8, 8), dtype=np.float32)
    return noise * np.linspace(0.5, 1, 8, dtype=np.float32)  # brighter to the right: plain noise is refused


@pytest.fixture(scope="module")
def held_out(live, images):
    with torch.no_grad():
        label = live(torch.from_numpy(images[100:]))["logits"].argmax(1).numpy()
    return {"image": images[100:], "label": label}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("api")


@pytest.fixture(scope="module", params=ENGINES, ids=[format for format, _, _ in ENGINES])
def made(request, live, images, folder):
    """Float and int8 of the same live model, and the target that runs them."""
    format, module, target = request.param
    pytest.importorskip(module)
    store = toolkit.Store(folder / "cache")
    samples = {"image": torch.from_numpy(images[:32])}
    exported = toolkit.export(live, samples, format=format, name="two", output=folder / f"two.float32.{format}", store=store)
    calibration = {"image": images[:100]}
    small = toolkit.quantize(exported, calibration=calibration, output=folder / f"two.int8.{format}", store=store)
    return exported, small, target, store


def test_a_live_model_becomes_a_checked_int8_file(made, held_out):
    exported, small, target, store = made
    found = toolkit.evaluate(exported, held_out, target=target, store=store)
    assert found.metric.value == 1.0, "the labels are the float model's own"
    found = toolkit.evaluate(small, held_out, target=target, reference=exported, store=store)
    assert found.metric.n == 300
    assert found.metric.value > 0.9
    assert found.change.lost - found.change.gained == round(300 * (1 - found.metric.value))
    assert small.size_bytes < exported.size_bytes
    assert exported.manifest.sha256 == small.manifest.parent_sha256


def test_the_scored_output_can_be_named_and_must_exist(made, held_out):
    exported, _, target, store = made
    aux = toolkit.evaluate(exported, held_out, target=target, output="aux", store=store)
    assert aux.metric.value < 0.9
    with pytest.raises(errors.InputRejected, match="no output 'scores'"):
        toolkit.evaluate(exported, held_out, target=target, output="scores", store=store)


def test_a_file_without_history_does_not_guess_which_output_is_meant(made, held_out, tmp_path):
    exported, _, target, store = made
    bare = tmp_path / exported.path.name
    bare.write_bytes(exported.path.read_bytes())
    with pytest.raises(errors.InputRejected, match="could be the class scores"):
        toolkit.evaluate(bare, held_out, target=target, store=store)


def test_check_judges_and_a_second_call_is_cached(made, held_out):
    exported, small, target, store = made
    budgets = {"max_drop": "10pp", "max_size_ratio": 0.9, "max_latency_p90_ms": 1000.0}
    report = toolkit.check(small, held_out, target=target, reference=exported, budgets=budgets, seconds=0.2, store=store)
    assert report.verdict == "pass"
    assert {finding.budget for finding in report.rows[0].findings} == set(budgets)
    assert report.rows[0].latency_ms.ratio_to_float > 0
    again = toolkit.check(small, held_out, target=target, reference=exported, budgets=budgets, seconds=0.2, store=store)
    assert again.rows[0].cached
    json.loads(again.model_dump_json(by_alias=True))


def test_results_show_in_a_notebook(made, held_out):
    exported, small, target, store = made
    results = [
        exported,
        toolkit.evaluate(small, held_out, target=target, store=store),
        toolkit.benchmark(small, target=target, baseline=exported, seconds=0.1, store=store),
        toolkit.inspect(small, store=store),
        toolkit.check(small, held_out, target=target, seconds=0.1, store=store),
        toolkit.doctor(),
    ]
    for result in results:
        html = result._repr_html_()
        assert html.startswith("<table>")
        assert html.count("<tr>") == html.count("</tr>") >= 2
    with pytest.raises(Exception, match="frozen"):
        exported.path = "elsewhere"


def wrong(name, kind, says):
    return pytest.param(name, kind, says, id=name)


@pytest.mark.parametrize(
    ("mistake", "kind", "says"),
    [
        wrong("quantize int8 again", errors.InputRejected, "is static_wi8_ai8 already"),
        wrong("unknown scheme", errors.ConfigError, "unknown scheme 'INT8'"),
        wrong("wrong suffix", errors.ConfigError, "found the suffix '.foo'"),
        wrong("no calibration", errors.ConfigError, "needs calibration samples"),
        wrong("unknown budget", errors.ConfigError, "unknown key 'max_dropp'"),
        wrong("live model to evaluate", errors.ConfigError, "found a live TwoHeads"),
        wrong("unknown task", errors.ConfigError, "unknown task"),
        wrong("NaN", errors.InputRejected, "NaN or Inf in sample 0"),
        wrong("name with a path", errors.ConfigError, "cannot be a model's name"),
        wrong("ragged", errors.InputRejected, "is not an array"),
        wrong("bfloat16", errors.InputRejected, "is not an array"),
        wrong("negative seconds", errors.ConfigError, "positive number"),
        wrong("training mode", errors.InputRejected, "training mode"),
        wrong("no examples", errors.ConfigError, "needs example inputs"),
        wrong("not a model", errors.ConfigError, "cannot capture"),
        wrong("unknown format", errors.ConfigError, "nothing makes 'coreml'"),
        wrong("parity that cannot fail", errors.ConfigError, "expected a number of dB"),
        wrong("changed file", errors.InputRejected, "has changed since this artifact was made"),
    ],
)
def test_mistakes_are_one_clear_error(made, live, images, held_out, mistake, kind, says, tmp_path, monkeypatch):
    exported, small, target, store = made
    monkeypatch.chdir(tmp_path)
    samples = {"image": images[:40]}
    stale = exported.model_copy(update={"manifest": exported.manifest.model_copy(update={"sha256": "0" * 64})})
    calls = {
        "quantize int8 again": lambda: toolkit.quantize(small, calibration=samples, store=store),
        "unknown scheme": lambda: toolkit.quantize(exported, scheme="INT8", calibration=samples, store=store),
        "wrong suffix": lambda: toolkit.quantize(exported, calibration=samples, output="y.foo", store=store),
        "no calibration": lambda: toolkit.quantize(exported, store=store),
        "unknown budget": lambda: toolkit.check(small, held_out, target=target, budgets={"max_dropp": 1}, store=store),
        "live model to evaluate": lambda: toolkit.evaluate(live, held_out, target=target, store=store),
        "unknown task": lambda: toolkit.evaluate(small, held_out, target=target, task="regression", store=store),
        "NaN": lambda: toolkit.export(live, {"image": images * np.nan}, format=exported.format, store=store),
        "name with a path": lambda: toolkit.export(live, samples, format=exported.format, name="../escaped", store=store),
        "ragged": lambda: toolkit.export(live, {"image": [[1], [1, 2]]}, format=exported.format, store=store),
        "bfloat16": lambda: toolkit.export(live, {"image": torch.zeros(2, 1, 8, 8, dtype=torch.bfloat16)}, format=exported.format, store=store),
        "negative seconds": lambda: toolkit.benchmark(small, target=target, seconds=-1, store=store),
        "training mode": lambda: toolkit.export(TwoHeads(), samples, format=exported.format, store=store),
        "no examples": lambda: toolkit.export(live, format=exported.format, store=store),
        "not a model": lambda: toolkit.export(lambda x: x, samples, format=exported.format, store=store),
        "unknown format": lambda: toolkit.export(live, samples, format="coreml", store=store),
        "parity that cannot fail": lambda: toolkit.export(live, samples, format=exported.format, min_sqnr_db=float("nan"), store=store),
        "changed file": lambda: toolkit.evaluate(stale, held_out, target=target, store=store),
    }
    with pytest.raises(kind) as caught:
        calls[mistake]()
    assert says in str(caught.value)
    assert caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_model_with_weights_in_another_file_is_one_thing(tmp_path):
    import onnx
    from onnx import helper, numpy_helper

    weight = numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")
    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 4]) for name in "xy")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [weight])
    path = tmp_path / "m.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, path, save_as_external_data=True, location="m.data", size_threshold=0)
    store = toolkit.Store(tmp_path / "cache")
    assert toolkit.inspect(path, store=store).details["external_data"] == "yes"
    data = {"x": np.eye(4, dtype=np.float32), "label": np.arange(4)}
    assert toolkit.evaluate(path, data, target="desktop-ort", store=store).metric.value == 1.0
    (tmp_path / "m.data").write_bytes(np.roll(np.eye(4, dtype=np.float32), 1, 1).tobytes())
    changed = toolkit.evaluate(path, data, target="desktop-ort", store=store)
    assert (changed.metric.value, changed.cached) == (0.0, False), "nothing in the store stands for other weights"
    made = toolkit.export(path, {"x": data["x"]}, format="ort", output=tmp_path / "m.ort", store=store)
    assert made.manifest.parent_sha256 == modelfile.sha256(path) and made.manifest.evidence["checks"]["parity"]["outputs"]["y"]["sqnr_db"] > 100
    (tmp_path / "m.data").unlink()
    with pytest.raises(errors.InputRejected, match=r"'m\.data' is missing; at least 64 bytes are expected there"):
        toolkit.evaluate(path, data, target="desktop-ort", store=store)


def test_a_quantized_onnx_file_becomes_a_quantized_tflite_file(live, images, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("ai_edge_litert")
    float_file = toolkit.export(live, {"image": images[:8]}, format="onnx", output=tmp_path / "model.onnx")
    quantized = toolkit.quantize(float_file, calibration={"image": images[:100]}, output=tmp_path / "int8.onnx")
    made = toolkit.export(quantized.path, {"image": images[100:164]}, format="tflite", output=tmp_path / "int8.tflite")
    assert made.scheme == "static_wi8_ai8"
    assert toolkit.inspect(made.path).weight_bytes.keys() <= {"int8", "int32"}
    # without its manifest it is what its bytes say
    (tmp_path / "int8.onnx.manifest.json").unlink()
    assert toolkit.export(quantized.path, {"image": images[100:164]}, format="tflite", output=tmp_path / "found.tflite").scheme == "static_wi8_ai8"
