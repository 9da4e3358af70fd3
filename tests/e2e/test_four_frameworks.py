"""The same network in PyTorch, Keras, TensorFlow and JAX gives the same predictions through ONNX and through TFLite from each."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from toolkit import plugins

ROOT = Path(__file__).resolve().parents[2]
DIGITS = 500
NEEDED = {
    "torch": ("torch", "litert_torch"),
    "keras": ("keras", "tf2onnx"),
    "tensorflow": ("tensorflow", "tf2onnx"),
    "jax": ("jax", "litert_converter"),
}


def features(images, kernel, bias):
    """What the convolution, the ReLU and the pooling compute, in NumPy: ``[n x 128]``."""
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    seen = np.maximum(np.einsum("nhwij,ijc->nhwc", windows, kernel[:, :, 0]) + bias, 0)
    return seen.reshape(len(images), 4, 2, 4, 2, 8).max(axis=(2, 4)).reshape(len(images), 128)


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """Random filters and a dense layer that is fitted to them: ``(folder, digits, scores, labels)``."""
    sklearn_datasets = pytest.importorskip("sklearn.datasets")
    from sklearn.linear_model import LogisticRegression

    folder = tmp_path_factory.mktemp("network")
    images, label = sklearn_datasets.load_digits(return_X_y=True)
    images = (images.reshape(-1, 8, 8) / 16).astype(np.float32)
    generator = np.random.default_rng(0)
    kernel, bias = generator.normal(size=(3, 3, 1, 8)).astype(np.float32), generator.normal(size=8).astype(np.float32) / 4
    seen = features(images, kernel, bias)
    fitted = LogisticRegression(max_iter=300).fit(seen[DIGITS:], label[DIGITS:])
    dense, offset = fitted.coef_.T.astype(np.float32), fitted.intercept_.astype(np.float32)
    np.savez(folder / "weights.npz", kernel=kernel, bias=bias, dense=dense, offset=offset)
    np.save(folder / "digits.npy", images[:DIGITS])
    return folder, images[:DIGITS], seen[:DIGITS] @ dense + offset, label[:DIGITS]


@pytest.mark.parametrize("framework", NEEDED)
def test_the_same_network_gives_the_same_predictions(network, framework):
    for module in ("onnxruntime", "ai_edge_litert", *NEEDED[framework]):
        if find_spec(module) is None:  # not imported: frameworks do not live together in one process
            pytest.skip(f"{module} is not installed")
    folder, images, expected, label = network
    script = Path(__file__).with_name("same_network.py")
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run([sys.executable, str(script), framework, str(folder)], env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (expected.argmax(1) == label).mean() > 0.9, "the network must have learned something"
    given = images[:, None] if framework == "torch" else images[..., None]
    for format in ("onnx", "tflite"):
        session = plugins.runtime_for(format).open(folder / f"{framework}.{format}", threads=1)
        assert [spec.name for spec in session.signature.inputs] == ["image"]
        assert [spec.name for spec in session.signature.outputs] == ["scores"]
        found = np.concatenate([session.run({"image": given[row : row + 1]})["scores"] for row in range(DIGITS)])
        np.testing.assert_allclose(found, expected, atol=2e-4)
        np.testing.assert_array_equal(found.argmax(1), expected.argmax(1))
