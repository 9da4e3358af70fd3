"""AdaRound against rounding to the nearest, on files of both formats."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

from tests.networks import IMAGE, digits, mobile, run, sqnr_db
from toolkit.dataset import Dataset
from toolkit.quantization.adaround import round_weights
from toolkit.quantization.network import open_network


def nearest(network, layer, bits):
    """A layer's weights, each at the nearest point of its output's grid."""
    weight, steps = network.array(layer.weight), 2 ** (bits - 1) - 1
    others = tuple(axis for axis in range(weight.ndim) if axis != layer.output_axis)
    scale = np.abs(weight).max(axis=others, keepdims=True) / steps
    return np.round(weight / scale) * scale, scale


@pytest.mark.parametrize("format", ["onnx", "tflite"])
def test_outputs_are_nearer_than_with_weights_at_the_nearest_points(tmp_path, format):
    data = digits()
    model = mobile(tmp_path, format)
    network, plain = open_network(model), open_network(model)
    for layer in plain.layers:
        plain.store(layer.weight, nearest(plain, layer, 4)[0].astype(np.float32))
    plain.save(tmp_path / f"nearest.{format}")
    seen = []
    samples = Dataset({IMAGE: data["fit"][:64]})
    done = round_weights(network, model, samples, bits=4, iterations=120, progress=lambda done, total, note: seen.append((done, total)))
    assert "layers are rounded for their outputs" in done[0]
    assert seen[-1] == (len(network.layers) - 1, len(network.layers))
    network.save(tmp_path / f"rounded.{format}")
    expected = run(model, data["held_out"])
    before, after = (sqnr_db(expected, run(tmp_path / f"{name}.{format}", data["held_out"])) for name in ("nearest", "rounded"))
    assert after > before + 1


def test_weights_lie_on_the_grid_that_the_quantizer_will_choose(tmp_path):
    model = mobile(tmp_path, "onnx")
    network, before = open_network(model), open_network(model)
    round_weights(network, model, Dataset({IMAGE: digits()["fit"][:32]}), iterations=60)
    changed = [layer for layer in network.layers if not np.array_equal(network.array(layer.weight), before.array(layer.weight))]
    assert changed
    moved = 0
    for layer in changed:
        wanted, scale = nearest(before, layer, 8)
        found = network.array(layer.weight) / scale
        np.testing.assert_allclose(found, np.round(found), atol=1e-3)
        np.testing.assert_allclose(np.abs(network.array(layer.weight)).max(), np.abs(before.array(layer.weight)).max(), rtol=1e-6)
        assert np.abs(network.array(layer.weight) - before.array(layer.weight)).max() <= scale.max() * 1.001
        moved += int((np.abs(network.array(layer.weight) - wanted) > scale / 2).sum())
    assert moved > 0


def test_layers_that_stay_float_are_left_alone(tmp_path):
    model = mobile(tmp_path, "onnx")
    network = open_network(model)
    assert round_weights(network, model, Dataset({IMAGE: digits()["fit"][:8]}), keep_float=[layer.name for layer in network.layers]) == []
