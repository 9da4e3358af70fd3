"""Calibration of ONNX files: ours, ONNX Runtime's and NNCF's, beside plain inference of the same samples."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.dataset import Dataset

Rival = Callable[[], Any]
FEWER = {"onnxruntime.entropy": 16, "onnxruntime.percentile": 16}
"""Peers that keep all activations of all samples in memory, and how many samples of a MobileNetV2 fit into 2 GB."""


def rivals(model: Path, samples: Dataset, *, peers: bool) -> dict[str, Rival]:
    """What takes turns on one model: ``plain`` inference, ``min_max`` and ``histograms`` of ours, and the peers.

    Args:
        model: The float ``.onnx`` file.
        samples: Samples by input.
        peers: The peers as well.
    """
    from toolkit.quantization.observe import observe

    found: dict[str, Rival] = {
        "plain": _plain(model, samples),
        "min_max": lambda: observe(model, samples),
        "histograms": lambda: observe(model, samples, histograms=True),
    }
    if peers:
        found |= {f"onnxruntime.{mode.lower()}": _peer(model, samples, mode) for mode in ("MinMax", "Entropy", "Percentile")}
        found["nncf"] = _nncf(model, samples)
    return found


def exact(model: Path, samples: Dataset) -> bool:
    """Whether our smallest and largest values are those of all tensors kept in memory, zero included as every range does."""
    from toolkit.quantization.observe import fetch, observe

    ours = observe(model, samples)
    whole = fetch(model, samples, tuple(ours.tensors), rows=len(samples))
    return all(ours.range(name, "min_max") == (min(0, values.min()), max(0, values.max())) for name, values in whole.items())


def _plain(model: Path, samples: Dataset) -> Rival:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])

    def run() -> None:
        for feed in _feeds(samples):
            session.run(None, feed)

    return run


def _feeds(samples: Dataset) -> Iterator[dict[str, np.ndarray]]:
    for row in range(len(samples)):
        yield {name: np.ascontiguousarray(column[row : row + 1]) for name, column in samples.columns.items()}


def _peer(model: Path, samples: Dataset, mode: str) -> Rival:
    def run() -> None:
        from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator

        with tempfile.TemporaryDirectory() as folder:
            augmented = str(Path(folder) / "augmented.onnx")
            made = create_calibrator(str(model), None, augmented, getattr(CalibrationMethod, mode))
            made.collect_data(_reader(samples))
            made.compute_data()

    return run


def _reader(samples: Dataset) -> Any:
    from onnxruntime.quantization.calibrate import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._feeds = _feeds(samples)

        def get_next(self) -> Any:
            return next(self._feeds, None)

    return Reader()


def _nncf(model: Path, samples: Dataset) -> Rival:
    def run() -> None:
        import nncf
        import onnx

        nncf.quantize(onnx.load(str(model)), nncf.Dataset(list(_feeds(samples))), subset_size=len(samples))

    return run
