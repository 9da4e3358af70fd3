"""What is particular to one of our runtimes; what all have in common is in tests/contract."""

import numpy as np
import pytest

from tests import models
from toolkit.errors import InputRejected
from toolkit.runtimes.litert import RUNTIME as LITERT
from toolkit.runtimes.litert import LiteRtSession
from toolkit.runtimes.onnxruntime import RUNTIME as ONNX
from toolkit.runtimes.torch import RUNTIME as TORCH


def test_litert_takes_tensor_names_in_a_file_without_signatures(tmp_path):
    pytest.importorskip("ai_edge_litert")
    session = LITERT.open(models.tiny_tflite(tmp_path / "m.tflite", signature=False), threads=1)
    x = models.samples(1)
    np.testing.assert_allclose(session.run({"x_0": x})["y_0"], models.reference(x), atol=1e-6)


def test_litert_resizes_a_free_batch_and_no_other(tmp_path):
    pytest.importorskip("ai_edge_litert")
    free = LITERT.open(models.tiny_tflite(tmp_path / "free.tflite", batch=-1), threads=1)
    assert free.signature.inputs[0].shape == ("d0", 4)
    for n in (1, 5, 2):
        np.testing.assert_allclose(free.run({"x": models.samples(n)})["logits"], models.reference(models.samples(n)), atol=1e-6)
    fixed = LITERT.open(models.tiny_tflite(tmp_path / "fixed.tflite"), threads=1)
    with pytest.raises(InputRejected, match=r"\[5 x 4\] float32, expected x \[1 x 4\] float32"):
        fixed.run({"x": models.samples(5)})


class Subtraction:
    """What a session uses of an interpreter: tensor 2 is tensor 0 minus tensor 1."""

    def __init__(self):
        self.tensors = {0: np.zeros((1, 3), np.float32), 1: np.zeros((1, 3), np.float32)}

    def set_tensor(self, index, value):
        self.tensors[index] = value.copy()

    def invoke(self):
        self.tensors[2] = self.tensors[0] - self.tensors[1]

    def get_tensor(self, index):
        return self.tensors[index].copy()


def test_litert_feeds_every_input_of_many_batches():
    details = {name: {"index": index, "shape": [1, 3], "dtype": np.float32} for index, name in enumerate(("from", "less", "left"))}
    session = LiteRtSession(Subtraction(), {name: details[name] for name in ("from", "less")}, {"left": details["left"]})
    ours, theirs = np.random.default_rng(0).normal(size=(2, 5, 1, 3)).astype(np.float32)
    found = np.empty((5, 1, 3), np.float32)
    session.run_all({"less": theirs, "from": ours}, "left", found)  # in another order than the model's
    np.testing.assert_array_equal(found, ours - theirs)


def test_litert_resizes_a_free_batch_for_many_at_once(tmp_path):
    pytest.importorskip("ai_edge_litert")
    session = LITERT.open(models.tiny_tflite(tmp_path / "free.tflite", batch=-1), threads=1)
    found = np.empty((3, 5, 3), np.float32)
    session.run_all({"x": models.samples(15).reshape(3, 5, 4)}, "logits", found)
    np.testing.assert_allclose(found.reshape(15, 3), models.reference(models.samples(15)), atol=1e-6)


def test_onnxruntime_runs_a_free_batch(tmp_path):
    pytest.importorskip("onnxruntime")
    session = ONNX.open(models.tiny_onnx(tmp_path / "m.onnx", "n"), threads=1)
    assert session.signature.inputs[0].shape == ("n", 4)
    np.testing.assert_allclose(session.run({"x": models.samples(5)})["logits"], models.reference(models.samples(5)), atol=1e-6)


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


def exported(torch, path, compute, *given, **named):
    class Model(torch.nn.Module):
        def forward(self, a, *, b):
            return compute(a, b)

    torch.export.save(torch.export.export(Model(), given, kwargs=named), path)
    return TORCH.open(path, threads=1)


@pytest.mark.parametrize(
    ("wrap", "names"), [(lambda one, two: (one, two), ["output_0", "output_1"]), (lambda one, two: {"z": two, "y": one}, ["z", "y"])]
)
def test_torch_names_positional_and_keyword_inputs_and_every_kind_of_output(torch, tmp_path, wrap, names):
    session = exported(torch, tmp_path / "m.pt2", lambda a, b: wrap(a - b, a * b), torch.zeros(2, 3), b=torch.zeros(2, 3))
    assert [str(spec) for spec in session.signature.inputs] == ["a [2 x 3] float32", "b [2 x 3] float32"]
    a, b = (np.random.default_rng(seed).normal(size=(2, 3)).astype(np.float32) for seed in (1, 2))
    found = session.run({"b": b, "a": a})
    assert list(found) == names
    values = {"y": a - b, "z": a * b, "output_0": a - b, "output_1": a * b}
    for name in names:
        np.testing.assert_array_equal(found[name], values[name])


def test_torch_calls_a_single_tensor_output_0(torch, tmp_path):
    session = exported(torch, tmp_path / "m.pt2", lambda a, b: a + b, torch.zeros(1, dtype=torch.int64), b=torch.zeros(1, dtype=torch.int64))
    assert session.signature.outputs[0].dtype == "int64"
    assert session.run({"a": np.array([2]), "b": np.array([3])})["output_0"] == [5]


def test_torch_shows_a_free_batch(torch, tmp_path):
    class Model(torch.nn.Module):
        def forward(self, *, x):
            return x * 2

    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(Model(), (), kwargs={"x": torch.zeros(3, 4)}, dynamic_shapes={"x": {0: batch}})
    torch.export.save(program, tmp_path / "m.pt2")
    session = TORCH.open(tmp_path / "m.pt2", threads=1)
    assert isinstance(session.signature.inputs[0].shape[0], str) and session.signature.inputs[0].shape[1] == 4
    np.testing.assert_array_equal(session.run({"x": models.samples(7)})["output_0"], models.samples(7) * 2)
