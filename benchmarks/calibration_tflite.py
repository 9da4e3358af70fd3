"""Calibration of TFLite files: ours and ai-edge-quantizer's, beside plain inference of the same samples."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.dataset import Dataset

Rival = Callable[[], Any]


def rivals(model: Path, samples: Dataset, *, peers: bool) -> dict[str, Rival]:
    """What takes turns on one model: ``plain`` inference, ``min_max`` and ``histograms`` of ours, and the peer's two modes.

    Args:
        model: The float ``.tflite`` file.
        samples: Samples by input.
        peers: The peer as well.
    """
    from toolkit.quantization.observe import observe

    found: dict[str, Rival] = {
        "plain": _plain(model, samples),
        "min_max": lambda: observe(model, samples),
        "histograms": lambda: observe(model, samples, histograms=True),
    }
    if peers:
        found |= {f"ai_edge_quantizer.{mode.lower()}": _peer(model, samples, mode) for mode in ("PROFILER_BASED", "PRESERVE_ALL_TENSORS")}
    return found


def exact(model: Path, samples: Dataset) -> bool:
    """Whether our smallest and largest values are those of all tensors kept in memory, zero included as every range does."""
    from ai_edge_litert.interpreter import Interpreter

    from toolkit.quantization.observe import observe

    warnings.filterwarnings("ignore", message="Warning: Enabling `experimental_preserve_all_tensors`")
    session = Interpreter(str(model), num_threads=1, experimental_preserve_all_tensors=True)
    session.allocate_tensors()
    places = {one["name"]: one["index"] for one in session.get_tensor_details()}
    ours = observe(model, samples)
    ends = dict.fromkeys(ours.tensors, (0.0, 0.0))
    for feed in _feeds(session, samples):
        _run(session, feed)
        for name, (low, high) in ends.items():
            values = session.get_tensor(places[name])
            ends[name] = min(low, float(values.min())), max(high, float(values.max()))
    return ends == {name: ours.range(name, "min_max") for name in ends}


def _plain(model: Path, samples: Dataset) -> Rival:
    from ai_edge_litert.interpreter import Interpreter

    session = Interpreter(str(model), num_threads=1)
    session.allocate_tensors()

    def run() -> None:
        for feed in _feeds(session, samples):
            _run(session, feed)

    return run


def _feeds(session: Any, samples: Dataset) -> list[dict[int, np.ndarray]]:
    runner = session.get_signature_runner()
    details = {name: (one["index"], one["dtype"]) for name, one in runner.get_input_details().items()}
    return [
        {index: np.ascontiguousarray(samples.columns[name][row : row + 1], dtype) for name, (index, dtype) in details.items()}
        for row in range(len(samples))
    ]


def _run(session: Any, feed: dict[int, np.ndarray]) -> None:
    for index, array in feed.items():
        session.set_tensor(index, array)
    session.invoke()


def _peer(model: Path, samples: Dataset, mode: str) -> Rival:
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import calibrator, recipe, recipe_manager
    from ai_edge_quantizer.utils import qsv_utils

    runner = Interpreter(str(model)).get_signature_runner()
    dtypes = {name: one["dtype"] for name, one in runner.get_input_details().items()}
    rows = [
        {name: np.ascontiguousarray(samples.columns[name][row : row + 1], dtype) for name, dtype in dtypes.items()} for row in range(len(samples))
    ]
    manager = recipe_manager.RecipeManager()
    manager.load_quantization_recipe(recipe.static_wi8_ai8())

    def run() -> None:
        chosen = getattr(calibrator.CalibrationMode, f"CALIBRATION_{mode}")
        made = calibrator.Calibrator(str(model), num_threads=1, mode=chosen, qsv_update_func=qsv_utils.min_max_update)
        made.calibrate({None: rows}, manager)  # type: ignore[dict-item]  # the only signature

    return run
