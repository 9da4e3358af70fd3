"""Every model of the table in every runnable format: converted or not, how close, how fast, and by which route.

``python -m benchmarks.coverage`` regenerates ``results/coverage.json`` and ``results/coverage.md``, which takes more than an hour. A part:
``python -m benchmarks.coverage --model torchvision:mobilenet_v2 --format tflite``.
"""

from __future__ import annotations

from benchmarks.coverage.cells import Cell, run_cell
from benchmarks.coverage.models import models
from benchmarks.coverage.table import write

FORMATS = ("onnx", "tflite", "pte", "openvino")


def run(names: list[str], formats: tuple[str, ...]) -> list[Cell]:
    """Runs some cells and writes the table of them."""
    cells = []
    for name in names:
        for format in formats:
            cells.append(run_cell(models()[name], format))
            print(cells[-1].line(), flush=True)
            write(cells)
    return cells
