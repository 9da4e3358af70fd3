"""``python -m benchmarks.coverage``: the whole table, or the cells that are asked for."""

from __future__ import annotations

import argparse
import sys

from benchmarks.__main__ import status, table
from benchmarks.coverage import FORMATS, run
from benchmarks.coverage.models import models
from benchmarks.coverage.table import summary


def main() -> int:
    """Runs some cells and returns 1 when a bar is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage", description="What converts, how close, how fast.")
    parser.add_argument("--model", action="append", default=[], help="a model of the table; all by default")
    parser.add_argument("--format", action="append", default=[], choices=FORMATS, help="a format; all by default")
    asked = parser.parse_args()
    unknown = set(asked.model) - set(models())
    if unknown:
        parser.error(f"unknown model: {', '.join(sorted(unknown))}; known: {', '.join(models())}")
    found = summary(run(asked.model or list(models()), tuple(asked.format or FORMATS)))
    print(table(found))
    return status(found)


if __name__ == "__main__":
    sys.exit(main())
