"""Accuracy against scores and counts computed here with NumPy. What the metrics are worth is in test_tasks.py."""

import json
import subprocess
import sys

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import average_precision_score

from tests import models
from toolkit import dataset
from toolkit.artifact import Signature, TensorSpec
from toolkit.dataset import Dataset
from toolkit.errors import ConfigError, InputRejected, StageFailed, StageOutOfMemory
from toolkit.figures import Metric
from toolkit.job import Job
from toolkit.measure import accuracy
from toolkit.measure.memory import memory_cap
from toolkit.measure.tasks import prepare
from toolkit.measure.tasks.interface import Answer, Question
from toolkit.stats.proportions import paired_difference_interval, proportion_interval

N = 101


class Recorded:
    """A session that computes with NumPy and remembers the batch sizes it was given."""

    def __init__(self, compute, batch, dtype="float32"):
        self.signature = Signature(
            inputs=(TensorSpec(name="x", dtype=dtype, shape=(batch, 4)),), outputs=(TensorSpec(name="logits", dtype="float32", shape=(batch, 3)),)
        )
        self.compute, self.seen = compute, []

    def run(self, inputs):
        assert inputs["x"].dtype.name == self.signature.inputs[0].dtype
        self.seen.append(len(inputs["x"]))
        return {"logits": self.compute(inputs["x"])}


class Several:
    """A session of many outputs, given as ``name: (declared shape, function)`` in the order in which the runtime lists them."""

    def __init__(self, outputs):
        specs = tuple(TensorSpec(name=name, dtype="float32", shape=shape) for name, (shape, _) in outputs.items())
        self.signature = Signature(inputs=(TensorSpec(name="x", dtype="float32", shape=(1, 4)),), outputs=specs)
        self.outputs = outputs

    def run(self, inputs):
        return {name: compute(inputs["x"]) for name, (_, compute) in self.outputs.items()}


AUX = ((1, 3), lambda x: -models.reference(x))
LOGITS = ((1, 3), models.reference)
MAP = ((1, 2, 2), lambda x: x.reshape(-1, 2, 2))


def job(folder, model, data, **extra):
    inputs = {"model": model, "data": data, **{name: path for name, path in extra.items() if name == "reference"}}
    options = {"runtime": "onnxruntime", "threads": 1, "memory_bytes": None, "task": "image-classification", "classes": 3}
    options.update({name: value for name, value in extra.items() if name != "reference"})
    folder.mkdir(exist_ok=True)
    return Job(inputs, options, folder)


@pytest.fixture
def data(tmp_path):
    """Samples whose labels are right for the tiny model, but for every fifth."""
    x = models.samples(N)
    label = models.reference(x).argmax(axis=1)
    label[::5] = (label[::5] + 1) % 3
    Dataset({"x": x}, label).write(tmp_path / "data")
    return tmp_path / "data"


def test_run_counts_right_answers_and_writes_the_scores(tmp_path, data):
    pytest.importorskip("onnxruntime")
    facts = accuracy.run(job(tmp_path / "out", models.tiny_onnx(tmp_path / "m.onnx"), data))
    right = N - len(range(0, N, 5))
    low, high = proportion_interval(right, N)
    assert facts["metric"] == {"name": "top1_accuracy", "value": right / N, "low": low, "high": high, "n": N, "method": "Wilson"}
    assert (facts["change"], facts["agreement"], facts["n"], facts["memory_cap"]) == (None, None, N, "none")
    assert facts["metrics"][0] == facts["metric"]
    assert [metric["name"] for metric in facts["metrics"]] == ["top1_accuracy", "macro_f1", "roc_auc", "expected_calibration_error"]
    assert (facts["changes"], facts["flips"]) == ([], None) and not (tmp_path / "out" / "flips.json").exists()
    outcomes = np.load(tmp_path / "out" / "outcomes.npy")
    assert outcomes.dtype == np.uint8 and outcomes.shape == (N,)
    np.testing.assert_array_equal(outcomes, np.arange(N) % 5 != 0)
    scores = np.load(tmp_path / "out" / "scores.npy")
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, models.reference(models.samples(N)), atol=1e-6)


def test_run_compares_with_the_reference_sample_by_sample(tmp_path, data):
    pytest.importorskip("onnxruntime")
    other = models.WEIGHTS + np.random.default_rng(3).normal(size=(4, 3)).astype(np.float32)
    reference = tmp_path / "reference"
    (reference / "facts.json").write_text(json.dumps(accuracy.run(job(reference, models.tiny_onnx(tmp_path / "a.onnx"), data))))
    facts = accuracy.run(job(tmp_path / "out", models.tiny_onnx(tmp_path / "b.onnx", weights=other), data, reference=reference))
    label = np.load(data / "label.npy")
    before = models.reference(models.samples(N)).argmax(axis=1)
    now = np.tanh(models.samples(N) @ other + models.BIAS).argmax(axis=1)
    table = [sum((before == label) == old and (now == label) == new for before, now, label in zip(before, now, label, strict=True)) for old, new in
             ((True, True), (True, False), (False, True), (False, False))]  # fmt: skip
    value, low, high = paired_difference_interval(*table)
    assert min(table[1:3]) > 0, "the example must have losses and gains"
    p_value = binomtest(table[1], table[1] + table[2]).pvalue
    assert facts["change"] == {
        "metric": "top1_accuracy", "value": value, "low": low, "high": high, "n": N, "lost": table[1], "gained": table[2],
        "p_value": pytest.approx(p_value), "informative": True, "method": "Newcombe",
    }  # fmt: skip
    assert facts["changes"][0] == facts["change"]
    assert [change["metric"] for change in facts["changes"]] == [metric["name"] for metric in facts["metrics"]]
    assert facts["agreement"] == pytest.approx(np.mean(before == now))
    flipped = json.loads((tmp_path / "out" / "flips.json").read_text())
    assert {flip["sample"] for flip in flipped} == set(np.flatnonzero(before != now).tolist())
    assert (facts["flips"]["count"], facts["flips"]["n"], facts["flips"]["listed"]) == (len(flipped), N, flipped[:20])
    assert [(flip["reference"] == flip["label"]) for flip in flipped[: table[1] + 1]] == [True] * table[1] + [False]
    assert sum(one["lost"] for one in facts["classes"]) == table[1] and sum(one["n"] for one in facts["classes"]) == N


@pytest.mark.parametrize(("batch", "sizes"), [(1, {1}), (4, {4}), ("n", {32})])
def test_predict_feeds_the_models_own_batch_size_and_drops_the_padding(batch, sizes):
    session = Recorded(models.reference, batch)
    x = models.samples(N)
    np.testing.assert_array_equal(accuracy.predict(session, Dataset({"x": x})), models.reference(x))
    assert set(session.seen) == sizes


def test_predict_streams_blocks_of_any_number(monkeypatch):
    monkeypatch.setattr("toolkit.measure.feed.BLOCK_ROWS", 10)
    x, progress = models.samples(N), []
    scores = accuracy.predict(Recorded(models.reference, 4), Dataset({"x": x}), lambda done, total: progress.append((done, total)))
    np.testing.assert_array_equal(scores, models.reference(x))
    assert progress[0] == (8, N) and progress[-1] == (N, N)


def test_predict_narrows_integers_that_keep_their_value():
    tokens = np.arange(12, dtype=np.int64).reshape(3, 4)
    session = Recorded(lambda x: x[:, :3] * 2, 1, "int32")
    np.testing.assert_array_equal(accuracy.predict(session, Dataset({"x": tokens})), tokens[:, :3] * 2)
    with pytest.raises(InputRejected):
        accuracy.predict(session, Dataset({"x": tokens + 2**40}))


@pytest.mark.parametrize(
    ("columns", "words"),
    [({"y": models.samples(3)}, "'y'"), ({"x": models.samples(3).astype(np.float64)}, "float64"), ({"x": np.zeros((3, 5), np.float32)}, "5")],
)
def test_predict_refuses_columns_that_do_not_fit(columns, words):
    with pytest.raises(InputRejected, match=words):
        accuracy.predict(Recorded(models.reference, 1), Dataset(columns))


def test_predict_names_the_sample_that_is_not_finite_by_its_number_in_all_blocks(monkeypatch):
    monkeypatch.setattr("toolkit.measure.feed.BLOCK_ROWS", 10)
    x = models.samples(N)
    x[37, 2] = np.inf
    with pytest.raises(InputRejected, match=r"sample 37$"):
        accuracy.predict(Recorded(models.reference, 4), Dataset({"x": x}))


def test_predict_names_the_sample_whose_score_is_not_a_number():
    x = models.samples(N)
    x[37, 0] = 100

    def compute(batch):
        return np.where(batch[:, :1] == 100, np.nan, models.reference(batch))

    with pytest.raises(StageFailed, match=r"sample 37$"):
        accuracy.predict(Recorded(compute, 4), Dataset({"x": x}))


def test_predict_refuses_an_output_that_is_not_scores():
    with pytest.raises(InputRejected, match="expected \\[1 x classes\\]"):
        accuracy.predict(Recorded(lambda x: x.reshape(1, 2, 2), 1), Dataset({"x": models.samples(3)}))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"classes": 2}, InputRejected, "gives 3 scores per sample, expected 2"),
        ({"classes": 4}, InputRejected, "gives 3 scores per sample, expected 4"),
        ({"classes": ["cat", "dog"]}, InputRejected, "gives 3 scores per sample, expected 2"),
        ({"output": "aux"}, InputRejected, r"no output 'aux'; found logits \[1 x 3\] float32"),
        ({"task": "dancing"}, ConfigError, "dancing"),
    ],
)
def test_run_refuses_wrong_options(tmp_path, data, change, error, words):
    pytest.importorskip("onnxruntime")
    with pytest.raises(error, match=words):
        accuracy.run(job(tmp_path / "out", models.tiny_onnx(tmp_path / "m.onnx"), data, **change))


def test_run_refuses_labels_that_the_model_has_no_score_for(tmp_path, data):
    pytest.importorskip("onnxruntime")
    label = np.load(data / "label.npy")
    label[17] = 3
    np.save(data / "label.npy", label)
    with pytest.raises(InputRejected, match="label 3 of sample 17 is beyond the 3 classes"):
        accuracy.run(job(tmp_path / "out", models.tiny_onnx(tmp_path / "m.onnx"), data, classes=None))


def test_run_refuses_data_without_labels_and_another_reference(tmp_path, data):
    pytest.importorskip("onnxruntime")
    model = models.tiny_onnx(tmp_path / "m.onnx")
    Dataset({"x": models.samples(3)}).write(tmp_path / "bare")
    with pytest.raises(InputRejected, match="no column 'label'"):
        accuracy.run(job(tmp_path / "out", model, tmp_path / "bare"))
    np.save(data.parent / "scores.npy", np.zeros((5, 3), np.float32))
    with pytest.raises(InputRejected, match=r"\[5, 3\], expected \[101, 3\]"):
        accuracy.run(job(tmp_path / "out", model, data, reference=data.parent))


def test_run_refuses_a_reference_that_was_measured_on_other_samples(tmp_path, data):
    pytest.importorskip("onnxruntime")
    model, reference = models.tiny_onnx(tmp_path / "m.onnx"), tmp_path / "reference"
    facts = accuracy.run(job(reference, model, data))
    (reference / "facts.json").write_text(json.dumps(facts))
    assert accuracy.run(job(tmp_path / "out", model, data, reference=reference))["change"]["value"] == 0
    (reference / "facts.json").write_text(json.dumps({**facts, "samples_digest": "other"}))
    with pytest.raises(InputRejected, match="measured on other samples"):
        accuracy.run(job(tmp_path / "out", model, data, reference=reference))
    for nothing_said in (json.dumps({key: value for key, value in facts.items() if key != "samples_digest"}), None):
        (reference / "facts.json").unlink() if nothing_said is None else (reference / "facts.json").write_text(nothing_said)
        with pytest.raises(InputRejected, match="does not say on which samples"):
            accuracy.run(job(tmp_path / "out", model, data, reference=reference))


def test_run_measures_what_the_project_asks_for(tmp_path, data):
    pytest.importorskip("onnxruntime")
    wanted = {"primary": "average_precision", "positive": "dog", "specificity": 0.8}
    options = {"classes": ["cat", "dog", "bird"], "metrics": wanted}
    facts = accuracy.run(job(tmp_path / "out", models.tiny_onnx(tmp_path / "m.onnx"), data, **options))
    assert facts["metric"] == facts["metrics"][0] and facts["metric"]["name"] == "average_precision"
    scores, label = models.reference(models.samples(N)).astype(np.float64), np.load(data / "label.npy")
    chance = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    assert facts["metric"]["value"] == pytest.approx(average_precision_score(label == 1, chance[:, 1]), abs=1e-6)
    assert {one["name"] for one in facts["classes"]} == {"cat", "dog", "bird"}
    within = [one["value"] for one in facts["metrics"] if one["name"] == "sensitivity_at_specificity"]
    assert within == [max(np.mean(chance[label == 1, 1] >= t) for t in chance[:, 1] if np.mean(chance[label != 1, 1] < t) >= 0.8)]


class Dense(Recorded):
    """Gives a map of scores for each sample, ``[batch x 3 x 2 x 2]``."""

    def __init__(self, batch):
        super().__init__(lambda x: None, batch)
        specs = (TensorSpec(name="pooled", dtype="float32", shape=(batch, 3)), TensorSpec(name="map", dtype="float32", shape=(batch, 3, 2, 2)))
        self.signature = Signature(inputs=self.signature.inputs, outputs=specs)

    @staticmethod
    def map(x):
        return models.reference(x)[:, :, None, None] * np.array([[1, -1], [0.5, 1]], np.float32)

    def run(self, inputs):
        return {"pooled": models.reference(inputs["x"]), "map": self.map(inputs["x"])}


@pytest.mark.parametrize(("batch", "buffer_bytes"), [(1, 1 << 20), (4, 1 << 20), (4, 500), ("n", 1)])
def test_records_are_the_same_in_whatever_batches_they_come(tmp_path, monkeypatch, batch, buffer_bytes):
    monkeypatch.setattr(accuracy, "BUFFER_BYTES", buffer_bytes)
    monkeypatch.setattr("toolkit.measure.feed.BLOCK_ROWS", 40)
    x, label = models.samples(N), np.random.default_rng(0).integers(0, 3, (N, 2, 2))
    data, progress = Dataset({"x": x}, label), []
    task = prepare(Question("image-segmentation"), data)
    accuracy.record(Dense(batch), data, task, tmp_path / "records.npy", lambda done, total: progress.append((done, total)))
    found, picked = np.load(tmp_path / "records.npy"), Dense.map(x).argmax(axis=1)
    assert progress[-1] == (N, N)
    for one in range(3):
        counts = ((label == one) & (picked == one), label == one, picked == one)
        np.testing.assert_array_equal(found[:, :, one], np.stack([mask.sum(axis=(1, 2)) for mask in counts], axis=1))


def digest(columns, label):
    return accuracy.samples_digest(Dataset(columns, label, "somewhere"))


def test_the_digest_knows_samples_again(tmp_path):
    x, label = models.samples(200), np.arange(200) % 3
    first = digest({"x": x, "y": x[:, :1]}, label)
    Dataset({"y": x[:, :1], "x": np.asfortranarray(x)}, label).write(tmp_path / "data")
    assert accuracy.samples_digest(dataset.load(tmp_path / "data")) == first
    assert len(first) == 64
    changed = x.copy()
    changed[199, 3] += 1
    others = [
        digest({"x": changed, "y": x[:, :1]}, label),
        digest({"x": x, "z": x[:, :1]}, label),
        digest({"x": x.astype(np.float64), "y": x[:, :1]}, label),
        digest({"x": x, "y": x[:, :1]}, np.roll(label, 1)),
        digest({"x": x[:150], "y": x[:150, :1]}, label[:150]),
        digest({"x": x, "y": x[:, :1]}, None),
    ]
    assert len({first, *others}) == 7


FLAT = """
import sys
from pathlib import Path
import numpy as np
from toolkit import dataset
from toolkit.artifact import Signature, TensorSpec
from toolkit.measure import accuracy
from toolkit.measure.tasks import prepare
from toolkit.measure.tasks.interface import Answer, Question
from toolkit.measure.tasks.summary import standing, summarize

class Picture:
    signature = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=(1, 50_000)),), outputs=(TensorSpec(name="y", dtype="float32", shape=(1, 1000)),)
    )

    def run(self, inputs):
        return {"y": inputs["x"][:, :1000] + 1}

folder, n = Path(sys.argv[1]), int(sys.argv[2])
folder.mkdir()
np.lib.format.open_memmap(folder / "x.npy", "w+", np.float32, (n, 50_000)).flush()  # a sparse file: zeros that take no disk
np.save(folder / "label.npy", np.arange(n) % 1000)
data = dataset.load(folder)
task = prepare(Question("image-classification"), data)
accuracy.record(Picture(), data, task, folder / "scores.out", lambda done, total: None)
accuracy.samples_digest(data)
scores = np.load(folder / "scores.out", mmap_mode="r")
standing(scores, summarize(scores, data.label), 1)
status = Path("/proc/self/status").read_text()
print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_does_not_grow_with_the_number_of_samples(tmp_path):
    """Of 160 MB more of samples and 3.2 MB more of scores, the peak of the resident set sees nothing."""
    peaks_kib = [
        int(subprocess.run([sys.executable, "-c", FLAT, str(tmp_path / str(n)), str(n)], check=True, capture_output=True, text=True).stdout)
        for n in (200, 1000)
    ]
    assert peaks_kib[1] - peaks_kib[0] < 5_000


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_DATA is enforced on Linux only")
def test_memory_cap_stops_an_allocation_and_is_lifted_afterwards():
    import resource

    before = resource.getrlimit(resource.RLIMIT_DATA)
    with pytest.raises(StageOutOfMemory, match="50,000,000"), memory_cap(50_000_000) as state:
        assert state == "enforced"
        np.ones(30_000_000, np.uint8)
        np.ones(80_000_000, np.uint8)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    assert len(np.ones(80_000_000, np.uint8)) == 80_000_000


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_DATA is enforced on Linux only")
@pytest.mark.parametrize(("runtime", "build"), [("onnxruntime", models.wide_onnx), ("litert", models.wide_tflite)])
def test_a_model_that_does_not_fit_the_memory_cap_is_out_of_memory(tmp_path, runtime, build):
    pytest.importorskip({"onnxruntime": "onnxruntime", "litert": "ai_edge_litert"}[runtime])
    Dataset({"x": np.zeros((2, 1), np.float32)}, np.zeros(2, np.int64)).write(tmp_path / "data")
    model = build(tmp_path / "wide", 30_000_000)
    with pytest.raises(StageOutOfMemory, match="memory cap of 40,000,000 bytes"):
        accuracy.run(job(tmp_path / "out", model, tmp_path / "data", runtime=runtime, memory_bytes=40_000_000, classes=1))


@pytest.mark.parametrize("outputs", [{"aux": AUX, "logits": LOGITS}, {"logits": LOGITS, "aux": AUX}])
def test_the_named_output_is_scored_in_whatever_order_a_runtime_lists_them(outputs):
    x = models.samples(5)
    np.testing.assert_array_equal(accuracy.predict(Several(outputs), Dataset({"x": x}), output="logits"), models.reference(x))


@pytest.mark.parametrize("outputs", [{"map": MAP, "logits": LOGITS}, {"logits": LOGITS, "map": MAP}])
def test_without_a_name_the_only_output_of_scores_is_taken(outputs):
    x = models.samples(5)
    np.testing.assert_array_equal(accuracy.predict(Several(outputs), Dataset({"x": x})), models.reference(x))


@pytest.mark.parametrize(("outputs", "count"), [({"aux": AUX, "logits": LOGITS}, "2 of 2"), ({"map": MAP, "other": MAP}, "0 of 2"), ({}, "0 of 0")])
def test_an_output_is_not_guessed(outputs, count):
    with pytest.raises(InputRejected, match=f"{count} outputs could be the class scores, expected one") as caught:
        accuracy.predict(Several(outputs), Dataset({"x": models.samples(5)}))
    assert "output" in caught.value.hint


@pytest.mark.parametrize("classes", [3, ["cat", "dog", "bird"], [], None])
def test_run_accepts_as_many_classes_as_there_are_scores(tmp_path, data, classes):
    pytest.importorskip("onnxruntime")
    facts = accuracy.run(job(tmp_path / "out", models.tiny_onnx(tmp_path / "m.onnx"), data, classes=classes, output="logits"))
    assert facts["n"] == N


def test_integers_of_an_unknown_scale_are_no_probabilities():
    """A uint8 output ranks classes, but softmax over 0..255 would call every answer certain."""
    measured = [(Metric(name=name, value=0.5, low=0.4, high=0.6, n=9), None) for name in ("top1_accuracy", "expected_calibration_error")]
    kept = accuracy._of_integers(Answer(measured), "output 'y' holds quantized uint8", "eval.npz")
    assert [metric.name for metric, _ in kept.measured] == ["top1_accuracy"]
    assert kept.left_out == {"expected_calibration_error": "output 'y' holds quantized uint8"}
    with pytest.raises(InputRejected, match="expected_calibration_error cannot be measured"):
        accuracy._of_integers(Answer(measured[::-1]), "output 'y' holds quantized uint8", "eval.npz")
