"""``python -m benchmarks.coverage``: the whole table, or the cells that are asked for."""

from __future__ import annotations

import argparse
import sys

from benchmarks.__main__ import status, table
from benchmarks.coverage import FORMATS, run
from benchmarks.coverage.models import models
from benchmarks.coverage.table import read, summary


def main() -> int:
    """Runs some cells and returns 1 when a bar is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage", description="What converts, how close, how fast.")
    parser.add_argument("--model", action="append", default=[], help="a model of the table; all by default")
    parser.add_argument("--format", action="append", default=[], choices=FORMATS, help="a format; all by default")
    parser.add_argument("--jobs", type=int, default=2, help="conversions at a time; latencies are measured alone")
    parser.add_argument("--resume", action="store_true", help="keep the cells that results/coverage.json has")
    asked = parser.parse_args()
    unknown = set(asked.model) - set(models())
    if unknown:
        parser.error(f"unknown model: {', '.join(sorted(unknown))}; known: {', '.join(models())}")
    known = read() if asked.resume else []
    done = {cell.model for cell in known}
    names = [name for name in asked.model or list(models()) if name not in done]
    found = summary(run(names, tuple(asked.format or FORMATS), asked.jobs, known))
    print(table(found))
    return status(found)


if __name__ == "__main__":
    sys.exit(main())
