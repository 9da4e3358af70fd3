"""Quantization-aware training on a network that plain int8 ruins: what comes back, in both formats."""

from __future__ import annotations

import copy

import numpy as np
import pytest

import toolkit

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def digits():
    datasets = pytest.importorskip("sklearn.datasets")
    found = datasets.load_digits()
    image, first = np.unique((found.images / 16).astype(np.float32)[:, None], axis=0, return_index=True)
    order = np.random.default_rng(0).permutation(len(image))
    rows = {"train": order[:900], "eval": order[900:]}
    return {name: {"image": image[chosen], "label": found.target[first][chosen]} for name, chosen in rows.items()}


def build():
    torch = pytest.importorskip("torch")
    nn = torch.nn

    def separable(before, after):
        depthwise = nn.Conv2d(before, before, 3, padding=1, groups=before, bias=False)
        return [depthwise, nn.BatchNorm2d(before), nn.ReLU(), nn.Conv2d(before, after, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]

    first = [nn.Conv2d(1, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU()]
    return nn.Sequential(*first, *separable(24, 32), *separable(32, 48), nn.MaxPool2d(2), *separable(48, 64), nn.Flatten(), nn.Linear(1024, 10))


def rescaled(model, spread: float):
    """Returns a network that computes the same, whose channels differ in size by up to ``2 ** (2 * spread)``, as those of real checkpoints do."""
    torch = pytest.importorskip("torch")
    model, generator = copy.deepcopy(model), np.random.default_rng(1)
    layers = list(model)
    for norm, after in zip(layers, layers[2:], strict=False):
        if isinstance(norm, torch.nn.BatchNorm2d) and isinstance(after, torch.nn.Conv2d):
            factor = torch.from_numpy(2.0 ** generator.uniform(-spread, spread, norm.num_features)).float()
            with torch.no_grad():
                norm.weight *= factor
                norm.bias *= factor
                after.weight /= factor[:, None, None, None] if after.groups > 1 else factor[None, :, None, None]
    return model.eval()


def accuracies(model, digits, folder) -> dict[str, float]:
    """Accuracy of the float model and of its int8 files on the held-out digits."""
    folder.mkdir()
    store, found = toolkit.Store(folder / "store"), {}
    for format, target in (("onnx", "desktop-ort"), ("tflite", "desktop-litert")):
        plain = toolkit.export(model.eval(), {"image": digits["eval"]["image"][:64]}, format=format, output=folder / f"float.{format}", store=store)
        calibration = {"image": digits["train"]["image"][:200]}
        small = toolkit.quantize(plain, scheme="static_wi8_ai8", calibration=calibration, output=folder / f"int8.{format}", store=store)
        for name, artifact in (("float", plain), (format, small)):
            found[name] = toolkit.evaluate(artifact, digits["eval"], target=target, store=store).metric.value
    return found


def test_half_of_what_int8_loses_comes_back(digits, tmp_path):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    model = toolkit.finetune(build(), digits["train"], epochs=15, learning_rate=5e-3, threads=1).model
    start = rescaled(model, 6.0)
    plain = accuracies(copy.deepcopy(start), digits, tmp_path / "plain")
    assert all(plain["float"] - plain[format] >= 0.02 for format in ("onnx", "tflite")), plain
    further = {"epochs": 6, "learning_rate": 5e-4, "threads": 1}
    longer = accuracies(toolkit.finetune(copy.deepcopy(start), digits["train"], **further).model, digits, tmp_path / "longer")
    trained = accuracies(toolkit.finetune(copy.deepcopy(start), digits["train"], strategy="qat", **further).model, digits, tmp_path / "qat")
    print({"plain": plain, "longer": longer, "qat": trained, "n": len(digits["eval"]["label"])})
    for format in ("onnx", "tflite"):
        lost = plain["float"] - plain[format]
        assert trained[format] - plain[format] >= 0.5 * lost
        assert trained[format] > longer[format], "it is the rounding that helps, and not the training alone"


PROJECT = """
schema = 1
name = "bad"
task = "image-classification"
targets = ["desktop-ort", "desktop-litert"]

[data]
train = "train.npz"
eval = "eval.npz"

[model]
factory = "network:build"
weights = "start.safetensors"

[finetune]
strategy = "head"
epochs = 24
learning_rate = 5e-3
threads = 1

[quantize]
rungs = ["qat"]

[budgets]
max_drop = "1pp"
"""

NETWORK = """
from torch import nn

def build():
    def separable(before, after):
        depthwise = nn.Conv2d(before, before, 3, padding=1, groups=before, bias=False)
        return [depthwise, nn.BatchNorm2d(before), nn.ReLU(), nn.Conv2d(before, after, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]

    first = [nn.Conv2d(1, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU()]
    body = [*separable(24, 32), *separable(32, 48), nn.MaxPool2d(2), *separable(48, 64)]
    return nn.Sequential(*first, *body, nn.Flatten(), nn.Linear(1024, 10)).eval()
"""


def test_the_last_rung_trains_where_nothing_else_may_be_tried(digits, tmp_path):
    torch = pytest.importorskip("torch")
    safetensors = pytest.importorskip("safetensors.torch")
    torch.manual_seed(0)
    start = rescaled(toolkit.finetune(build(), digits["train"], epochs=15, learning_rate=5e-3, threads=1).model, 6.0)
    project = tmp_path / "project"
    project.mkdir()
    safetensors.save_file(start.state_dict(), project / "start.safetensors")
    for name, columns in digits.items():
        np.savez(project / f"{name}.npz", **columns)
    (project / "edgekit.toml").write_text(PROJECT)
    (project / "network.py").write_text(NETWORK)
    run = toolkit.run(project, store=toolkit.Store(tmp_path / "store"))
    int8 = [row for row in run.report.rows if row.scheme == "static_wi8_ai8"]
    assert len(int8) == 2
    for row, artifact in zip(int8, [one for one in run.artifacts if one.scheme == "static_wi8_ai8"], strict=True):
        ladder = artifact.manifest.evidence["ladder"]
        assert [one["rung"] for one in ladder["rungs"]] == ["default", "qat"]
        assert ladder["taken"] == ["qat"]
        before, after = (one["drop"][0] for one in ladder["rungs"])
        assert after < before / 2
        assert row.change.value < 0
        assert "repaired by qat" in row.made[0]
