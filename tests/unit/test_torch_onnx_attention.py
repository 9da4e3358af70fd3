"""Swin on its way to ONNX: behind its attention PyTorch notes a view, which is none any longer once the exporter has split the attention."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
for module in ("onnx", "onnxscript", "onnxruntime", "onnxslim"):
    pytest.importorskip(module)

from toolkit import plugins  # noqa: E402
from toolkit.artifact import Signature, TensorSpec  # noqa: E402
from toolkit.convert.torch_onnx import ROUTE  # noqa: E402

X = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)


class Scores(torch.nn.Module):
    def __init__(self):
        super().__init__()
        config = transformers.SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[2, 4], window_size=4, num_labels=5)
        self.model = transformers.SwinForImageClassification(config)

    def forward(self, pixels):
        return self.model(pixels).logits


def specs(name, column):
    return (TensorSpec(name=name, dtype=str(column.dtype), shape=(1, *column.shape[1:])),)


def test_a_view_behind_attention_is_converted(tmp_path):
    torch.manual_seed(0)
    expected = plugins.get("sources", "torch").capture(Scores().eval(), {"pixels": X}, tmp_path / "m.pt2", outputs=("scores",))["scores"]
    ROUTE.convert(tmp_path / "m.pt2", tmp_path / "m.onnx", Signature(inputs=specs("pixels", X), outputs=specs("scores", expected)))
    session = plugins.runtime_for("onnx").open(tmp_path / "m.onnx", threads=1)
    found = np.concatenate([session.run({"pixels": X[row : row + 1]})["scores"] for row in range(len(X))])
    np.testing.assert_allclose(found, expected, atol=1e-5)
