"""``python -m benchmarks.compiler``: the whole table, or the models that are asked for."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.__main__ import status, table
from benchmarks.compiler import run
from benchmarks.compiler.models import models
from benchmarks.compiler.table import RESULTS, read, summary

LIMIT_S = 900.0


def main() -> int:
    """Runs some models and returns 1 when a bar is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compiler", description="PyTorch to TFLite: ours beside onnx2tf and litert_torch.")
    parser.add_argument("--model", action="append", default=[], help="a model of the table; all by default")
    parser.add_argument("--onnx2tf", type=Path, metavar="PYTHON", help="the Python of an environment with onnx2tf, which gets the same files")
    parser.add_argument("--limit", type=float, default=LIMIT_S, metavar="SECONDS", help="for each conversion (%(default)s)")
    parser.add_argument("--resume", action="store_true", help="keep the models that the table has with all sides that are asked for")
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="FOLDER", help="where the table is written (%(default)s)")
    asked = parser.parse_args()
    unknown = set(asked.model) - set(models())
    if unknown:
        parser.error(f"unknown model: {', '.join(sorted(unknown))}; known: {', '.join(models())}")
    known = read(asked.output) if asked.resume else []
    done = {row.model for row in known if asked.onnx2tf is None or "onnx2tf" in row.sides}
    names = [name for name in asked.model or list(models()) if name not in done]
    found = summary(run(names, asked.limit, asked.onnx2tf, known, asked.output))
    print(table(found))
    return status(found)


if __name__ == "__main__":
    sys.exit(main())
