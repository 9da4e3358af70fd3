"""Parity: each kind of difference must be found, and what is equal must pass."""

import json
import shutil

import numpy as np
import pytest

from tests import models
from toolkit.artifact import Signature, TensorSpec
from toolkit.errors import InputRejected, ParityFailed
from toolkit.job import Job
from toolkit.measure import parity
from toolkit.stats.signal import sqnr_db

N = 7


class Runtime:
    """A runtime plugin whose models compute with NumPy."""

    name, modules = "numpy", ()

    def __init__(self, compute, inputs, outputs):
        self.compute = compute
        self.signature = Signature(inputs=tuple(inputs), outputs=tuple(outputs))

    def open(self, model, *, threads):
        return self

    def run(self, inputs):
        for spec in self.signature.inputs:
            assert inputs[spec.name].dtype.name == spec.dtype
        return self.compute(**inputs)


def spec(name, dtype="float32", shape=(1, 4)):
    return TensorSpec(name=name, dtype=dtype, shape=shape)


@pytest.fixture
def check(tmp_path, monkeypatch):
    """Runs the stage on given expected columns with a NumPy function as the converted model."""

    def run(compute, given, expected, min_sqnr_db=40.0, inputs=None, outputs=None):
        for side, columns in (("inputs", given), ("outputs", expected)):
            (tmp_path / side).mkdir()
            for name, column in columns.items():
                np.save(tmp_path / side / f"{name}.npy", column)
        runtime = Runtime(compute, inputs or [spec("x")], outputs or [spec(name) for name in expected])
        monkeypatch.setattr("toolkit.plugins.get", lambda group, name: runtime)
        options = {"runtime": "numpy", "min_sqnr_db": min_sqnr_db, "name": "tiny.onnx"}
        return parity.run(Job({"model": tmp_path / "m", "expected": tmp_path}, options, tmp_path))

    return run


def test_an_equal_model_passes_with_a_finite_figure(check):
    x = models.samples(N)
    facts = check(lambda x: {"y": x * 2}, {"x": x}, {"y": x * 2})
    assert facts == {"n": N, "outputs": {"y": {"sqnr_db": 200.0, "max_abs": 0.0, "top1_agreement": 1.0}}, "casts": {}, "informative": True}
    json.dumps(facts, allow_nan=False)


def test_the_figures_are_those_of_numpy(check):
    x, noise = models.samples(N), np.random.default_rng(1).normal(size=(N, 4)).astype(np.float32) * 0.01
    table = {row.tobytes(): row + more for row, more in zip(x, noise, strict=True)}
    facts = check(lambda x: {"y": table[x.tobytes()][None]}, {"x": x}, {"y": x}, min_sqnr_db=20)
    found = facts["outputs"]["y"]
    assert found["sqnr_db"] == pytest.approx(sqnr_db(x, x + noise), abs=1e-4)
    assert found["max_abs"] == pytest.approx(np.abs(noise).max(), abs=1e-6)
    assert found["top1_agreement"] == np.mean(x.argmax(1) == (x + noise).argmax(1))


def test_a_wrong_value_is_named_with_place_and_size(check):
    x = models.samples(N)
    wrong = x.copy()
    wrong[5, 2] += 3
    table = {row.tobytes(): other for row, other in zip(x, wrong, strict=True)}
    with pytest.raises(ParityFailed) as caught:
        check(lambda x: {"y": table[x.tobytes()][None]}, {"x": x}, {"y": x})
    message = str(caught.value)
    db = sqnr_db(x, wrong)
    for part in (
        "tiny.onnx",
        "'y'",
        f"{db:.1f} dB",
        "40.0 dB",
        "difference| 3 ",
        "sample 5",
        "element (2,)",
        f"expected {x[5, 2]:.6g}",
        f"found {wrong[5, 2]:.6g}",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("compute", "outputs", "words"),
    [
        (lambda x: {"y": x.reshape(1, 2, 2)}, None, r"shape \[2, 2\] per sample, expected \[4\]"),
        (lambda x: {"y": x.astype(np.int32)}, None, "element type int32, expected float32"),
        (lambda x: {"y": x * np.nan}, None, "nan in sample 0"),
        (lambda x: {"y": x * np.inf}, None, "inf in sample 0"),
        (lambda x: {"z": x}, [spec("z")], "lacks the source's output 'y'; found 'z'"),
        (lambda x: {"y": x, "z": x}, [spec("y"), spec("z")], "has an output 'z'"),
    ],
)
def test_what_is_not_comparable_is_a_failure(check, compute, outputs, words):
    x = models.samples(N)
    with pytest.raises(ParityFailed, match=words):
        check(compute, {"x": x}, {"y": x}, outputs=outputs)


@pytest.mark.parametrize(
    ("compute", "found", "expected"),
    [
        (lambda x: x[:0], r"\[0, 4\]", 1),
        (lambda x: np.concatenate([x, x]), r"\[2, 4\]", 1),
        (lambda x: x.ravel(), r"\[4\]", 1),
        (lambda x: np.float32(x.sum()), r"\[\]", 1),
    ],
)
def test_another_number_of_rows_is_a_failure(check, compute, found, expected):
    x = models.samples(N)
    with pytest.raises(ParityFailed, match=rf"output 'y' has shape {found} for the batch from sample 0 on, expected {expected} rows"):
        check(lambda x: {"y": compute(x)}, {"x": x}, {"y": x})


def test_rows_missing_from_a_larger_batch_are_a_failure(check):
    x = models.samples(N)
    with pytest.raises(ParityFailed, match=r"has shape \[3, 4\] for the batch from sample 0 on, expected 4 rows"):
        check(lambda x: {"y": x[:3]}, {"x": x}, {"y": x}, inputs=[spec("x", shape=(4, 4))])


def test_padding_rows_are_not_compared(check):
    x = models.samples(N)
    assert check(lambda x: {"y": x}, {"x": x}, {"y": x}, inputs=[spec("x", shape=(4, 4))])["n"] == N


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ([spec("other")], "lacks the source's input 'x'"),
        ([spec("x"), spec("other")], "has an input 'other'"),
        ([spec("x", shape=(1, 5))], "does not take the source's inputs"),
        ([spec("x", dtype="int32")], "does not take the source's inputs"),
    ],
)
def test_other_inputs_are_a_failure(check, inputs, words):
    x = models.samples(N)
    with pytest.raises(ParityFailed, match=words):
        check(lambda **given: given, {"x": x}, {"y": x}, inputs=inputs)


def test_integers_are_narrowed_where_no_value_changes(check):
    tokens = np.arange(4 * N).reshape(N, 4)
    facts = check(lambda x: {"y": x * 0.5}, {"x": tokens}, {"y": tokens * 0.5}, inputs=[spec("x", "int32")])
    assert facts["casts"] == {"x": "int64 -> int32"}


def test_integers_that_would_change_are_a_failure(check):
    tokens = np.arange(4 * N).reshape(N, 4) + 2**31
    with pytest.raises(ParityFailed):
        check(lambda x: {"y": x * 0.5}, {"x": tokens}, {"y": tokens * 0.5}, inputs=[spec("x", "int32")])


def test_equal_infinities_of_a_mask_pass(check):
    x = np.abs(models.samples(N))
    mask = np.array([0, -np.inf, 0, 0], np.float32)
    facts = check(lambda x: {"y": x + mask}, {"x": x}, {"y": x + mask})
    assert facts["outputs"]["y"]["sqnr_db"] == 200.0


def test_a_source_that_is_not_a_number_is_no_measure(check):
    x = models.samples(N)
    expected = x.copy()
    expected[2, 1] = np.nan
    with pytest.raises(ParityFailed, match=r"sample 2, element \(1,\), expected nan"):
        check(lambda x: {"y": x}, {"x": x}, {"y": expected})


@pytest.mark.parametrize("expected", [np.ones((N, 4), np.float32), np.tile(np.arange(4, dtype=np.float32), (N, 1))])
def test_outputs_that_no_sample_changes_cannot_be_judged(check, expected):
    with pytest.raises(ParityFailed, match="constant outputs"):
        check(lambda x: {"y": expected[:1]}, {"x": models.samples(N)}, {"y": expected})


def test_one_sample_is_judged_by_what_varies_within_it(check):
    x = models.samples(1)
    assert check(lambda x: {"y": x}, {"x": x}, {"y": x})["informative"] is True


def test_one_constant_sample_cannot_be_judged(check):
    with pytest.raises(ParityFailed, match="constant outputs"):
        check(lambda x: {"y": np.ones_like(x)}, {"x": models.samples(1)}, {"y": np.ones((1, 4), np.float32)})


def test_an_output_may_be_called_label(check):
    x = models.samples(N)
    assert "label" in check(lambda x: {"label": x}, {"x": x}, {"label": x})["outputs"]


def test_damaged_expectations_are_rejected(check, tmp_path):
    x = models.samples(N)
    with pytest.raises(InputRejected, match="expected 7 rows"):
        check(lambda x: {"y": x}, {"x": x}, {"y": x[:3]})
    (tmp_path / "outputs" / "y.npy").write_bytes(b"junk")
    with pytest.raises(InputRejected, match="not a readable"):
        parity.run(Job({"model": tmp_path / "m", "expected": tmp_path}, {"runtime": "numpy", "min_sqnr_db": 40.0, "name": ""}, tmp_path))


@pytest.mark.parametrize(("runtime", "build"), [("onnxruntime", models.tiny_onnx), ("litert", models.tiny_tflite)])
def test_real_runtimes_agree_with_numpy(tmp_path, runtime, build):
    pytest.importorskip({"onnxruntime": "onnxruntime", "litert": "ai_edge_litert"}[runtime])
    for side, name, column in (("inputs", "x", models.samples(N)), ("outputs", "logits", models.reference(models.samples(N)))):
        (tmp_path / side).mkdir()
        np.save(tmp_path / side / f"{name}.npy", column)
    options = {"runtime": runtime, "min_sqnr_db": 100.0, "name": "tiny"}
    facts = parity.run(Job({"model": build(tmp_path / "m"), "expected": tmp_path}, options, tmp_path))
    assert facts["outputs"]["logits"]["max_abs"] < 1e-6


def test_a_layout_with_channels_last_is_fed_that_way(check_with):
    images = np.random.default_rng(0).normal(size=(N, 3, 4, 5)).astype(np.float32)
    inputs = [spec("x", shape=(1, 4, 5, 3))]
    facts = check_with({"layout": "channels_last"}, lambda x: {"y": x[:, 1, 2]}, {"x": images}, {"y": images[:, :, 1, 2]}, inputs=inputs)
    assert facts["outputs"]["y"]["sqnr_db"] == 200.0
    with pytest.raises(ParityFailed, match="does not take the source's inputs"):
        check_with({}, lambda x: {"y": x[:, 1, 2]}, {"x": images}, {"y": images[:, :, 1, 2]}, inputs=inputs)


def test_every_batch_size_of_a_file_is_compared(check_with):
    x = models.samples(N)
    batches = []

    def compute(x):
        batches.append(len(x))
        return {"y": x * (3 if len(x) == 4 else 2)}

    assert check_with({"batch_sizes": [1, 2]}, compute, {"x": x}, {"y": x * 2})["batch_sizes"] == [1, 2]
    assert set(batches) == {1, 2}
    with pytest.raises(ParityFailed, match="differs") as caught:
        check_with({"batch_sizes": [1, 2, 4]}, compute, {"x": x}, {"y": x * 2})
    assert "batch size 4" in caught.value.where


@pytest.fixture
def check_with(check, tmp_path, monkeypatch):
    """Like ``check``, with further options, and a runtime that has a signature for every batch size."""

    def run(more, compute, given, expected, **kinds):
        for side in ("inputs", "outputs"):
            shutil.rmtree(tmp_path / side, ignore_errors=True)
        plain = parity.run

        def batch_runtime(self, model, *, threads, batch):
            sized = [one.model_copy(update={"shape": (batch, *one.shape[1:])}) for one in self.signature.inputs]
            return Runtime(self.compute, sized, self.signature.outputs)

        monkeypatch.setattr(Runtime, "open_batch", batch_runtime, raising=False)
        with monkeypatch.context() as patch:
            patch.setattr(parity, "run", lambda job: plain(Job(job.inputs, {**job.options, **more}, job.out)))
            return check(compute, given, expected, **kinds)

    return run
