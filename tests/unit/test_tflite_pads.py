"""Borders of the lowest number around a maximum: they take no range of their own, and become zeros where those do the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from toolkit.convert.tfl.graph import Graph
from toolkit.convert.tfl.write import Entry, to_bytes
from toolkit.dataset import Dataset
from toolkit.quantization import tflite_file, tflite_pads
from toolkit.stats.signal import sqnr_db

pytest.importorskip("ai_edge_litert.interpreter")

RELU, NONE = 1, 0
LOWEST = (-np.inf, float(np.finfo(np.float32).min))


def network(path: Path, *, activation: int, border: float) -> Path:
    """A convolution, a border and a maximum of 3 x 3, and a convolution, as ResNet begins."""
    draw = np.random.default_rng(3)
    graph = Graph("main")
    conv = {"strideH": 1, "strideW": 1, "dilationHFactor": 1, "dilationWFactor": 1, "padding": 0}

    def weights(*shape: int) -> Any:
        return graph.constant((draw.standard_normal(shape) * 0.5).astype(np.float32))

    x = graph.input("image", (1, 8, 8, 3), np.float32)
    first = graph.add("CONV_2D", [x, weights(8, 3, 3, 3), weights(8)], (1, 8, 8, 8), fusedActivationFunction=activation, **conv)
    pads = graph.constant(np.array([[0, 0], [1, 1], [1, 1], [0, 0]], np.int32))
    padded = graph.add("PADV2", [first, pads, graph.constant(np.array(border, np.float32))], (1, 10, 10, 8))
    pool = {"filterWidth": 3, "filterHeight": 3, "strideW": 1, "strideH": 1, "padding": 1}
    pooled = graph.add("MAX_POOL_2D", [padded], (1, 8, 8, 8), **pool)
    last = graph.add("CONV_2D", [pooled, weights(4, 3, 3, 8), weights(4)], (1, 8, 8, 4), fusedActivationFunction=NONE, **conv)
    graph.outputs = [last]
    path.write_bytes(to_bytes([Entry("main", graph, {"image": x}, {"scores": last})]))
    return path


def run(model: Path, images: np.ndarray) -> np.ndarray:
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(str(model)).get_signature_runner()
    return np.concatenate([runner(image=image[None])["scores"] for image in images])


def kinds(model: Path) -> list[str]:
    content = tflite_file.read(model)
    names = tflite_file.kinds(content)
    return [names[one.opcodeIndex] for one in content.subgraphs[0].operators]


@pytest.mark.parametrize("border", LOWEST)
@pytest.mark.parametrize("activation", [RELU, NONE])
def test_static_int8_is_near_the_float_model(tmp_path: Path, activation: int, border: float) -> None:
    pytest.importorskip("ai_edge_quantizer")
    from toolkit.quantization.litert import LiteRTQuantizer

    images = np.random.default_rng(0).standard_normal((32, 8, 8, 3)).astype(np.float32)
    model, out = network(tmp_path / "float.tflite", activation=activation, border=border), tmp_path / "int8.tflite"
    LiteRTQuantizer().quantize(model, out, scheme="static_wi8_ai8", calibration=Dataset({"image": images}, None), options={})
    assert sqnr_db(run(model, images), run(out, images)) > 25
    assert ("PADV2" in kinds(out)) == (activation == NONE)


def test_zeros_compute_the_same(tmp_path: Path) -> None:
    model = network(tmp_path / "float.tflite", activation=RELU, border=-np.inf)
    images = np.random.default_rng(1).standard_normal((4, 8, 8, 3)).astype(np.float32)
    padded = tflite_pads.with_zeros(model, tmp_path / "padded.tflite")
    assert "PAD" in kinds(padded) and "PADV2" not in kinds(padded)
    np.testing.assert_array_equal(run(padded, images), run(model, images))


@pytest.mark.parametrize(("activation", "border"), [(NONE, -np.inf), (RELU, -1.0)])
def test_other_borders_stay(tmp_path: Path, activation: int, border: float) -> None:
    model = network(tmp_path / "float.tflite", activation=activation, border=border)
    assert tflite_pads.with_zeros(model, tmp_path / "padded.tflite") == model
