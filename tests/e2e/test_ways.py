"""Where no route leads straight to a format, several do: each in a process of its own, each held against the source."""

import numpy as np
import pytest

import toolkit
from tests import models
from toolkit import plugins
from toolkit.errors import InputRejected
from toolkit.store import Store


def test_an_onnx_file_reaches_executorch_by_way_of_pytorch(tmp_path):
    for module in ("onnx", "torch", "executorch", "onnxruntime"):
        pytest.importorskip(module)
    file = models.tiny_onnx(tmp_path / "tiny.onnx")
    x = models.samples(16)
    made = toolkit.export(file, {"x": x}, format="pte", output=tmp_path / "tiny.pte", store=Store(tmp_path / "cache"))
    assert made.manifest.made_by == "torch_executorch" and made.manifest.evidence["via"] == ["onnx_torch"]
    assert made.manifest.evidence["checks"]["parity"]["outputs"]["logits"]["sqnr_db"] > 100
    session = plugins.runtime_for("pte").open(made.path, threads=1)
    found = np.concatenate([session.run({"x": x[row : row + 1]})["logits"] for row in range(len(x))])
    np.testing.assert_allclose(found, models.reference(x), atol=1e-5)


def test_one_tflite_file_takes_every_batch_size_that_was_asked_for(tmp_path):
    torch = pytest.importorskip("torch")
    for module in ("litert_torch", "ai_edge_litert"):
        pytest.importorskip(module)
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).eval()
    x = models.samples(8)
    made = toolkit.export(network, {"x": x}, format="tflite", output=tmp_path / "m.tflite", batch_sizes=(1, 4), store=Store(tmp_path / "cache"))
    assert made.manifest.evidence["checks"]["parity"]["batch_sizes"] == [1, 4]
    expected = network(torch.from_numpy(x)).detach().numpy()
    runtime = plugins.get("runtimes", "litert")
    for batch in (1, 4):
        session = runtime.open_batch(made.path, threads=1, batch=batch)
        assert session.signature.inputs[0].shape == (batch, 4)
        np.testing.assert_allclose(session.run({"x": x[:batch]})["output_0"], expected[:batch], atol=1e-5)
        with pytest.raises(InputRejected, match="expected x"):
            session.run({"x": x[:3]})
    with pytest.raises(InputRejected, match=r"has no signature 'batch_2'; found batch_4, serving_default"):
        runtime.open_batch(made.path, threads=1, batch=2)
