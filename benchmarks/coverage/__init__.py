"""Every model of the table in every runnable format: converted or not, how close, how fast, and by which route.

``python -m benchmarks.coverage`` regenerates ``results/coverage.json`` and ``results/coverage.md``, which takes more than an hour. A part:
``python -m benchmarks.coverage --model torchvision:mobilenet_v2 --format tflite``. ``--resume`` keeps the models that are in the table.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.coverage.cells import Cell, run_model
from benchmarks.coverage.models import models
from benchmarks.coverage.table import write

FORMATS = ("onnx", "tflite", "pte", "openvino")


def run(names: Sequence[str], formats: Sequence[str], jobs: int = 2, known: Sequence[Cell] = ()) -> list[Cell]:
    """Runs some cells and writes the table of them, beside those that are known."""
    cells = list(known)
    for name in names:
        new = run_model(models()[name], formats, jobs)
        cells += new
        write(cells)
        for cell in new:
            print(cell.line(), flush=True)
    return cells
