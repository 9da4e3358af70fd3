"""Whole models from PyTorch through ONNX to TFLite: our compiler beside onnx2tf and litert_torch, in one run.

``python -m benchmarks.compiler`` regenerates ``results/compiler.json`` and ``results/compiler.md``, which takes most of an hour without
onnx2tf, and hours with it: ``--onnx2tf PYTHON`` names the Python of an environment that has it. A part:
``python -m benchmarks.compiler --model torchvision:mobilenet_v2``. ``--resume`` keeps the models that are in the table with all sides
that are asked for. Memory is read as Linux tells it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.compiler.rows import Row, run_model
from benchmarks.compiler.table import RESULTS, write


def run(names: Sequence[str], limit_s: float, onnx2tf: Path | None, known: Sequence[Row] = (), folder: Path = RESULTS) -> list[Row]:
    """Runs some models and writes the table of them, beside those that are known."""
    rows = [row for row in known if row.model not in names]
    for name in names:
        rows.append(run_model(name, limit_s, onnx2tf))
        write(rows, folder)
        print(rows[-1].line(), flush=True)
    return rows
