"""``python -m benchmarks.onnx_cases``: all cases, or those of some operators; onnx2tf beside ours where its environment is named."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from importlib.metadata import version
from pathlib import Path

from benchmarks.onnx_cases import onnx2tf, ours, report
from benchmarks.onnx_cases.cases import Case, cases, left_out
from benchmarks.onnx_cases.pool import forked
from benchmarks.onnx_cases.report import BROKEN, LEAST_SHARE, Row
from benchmarks.onnx_cases.rule import inexpressible

LIMIT_S = 60.0


def main() -> int:
    """Runs the cases and says what did not pass; returns 1 where something is wrong, fails or crashes, or too little passes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.onnx_cases", description="ONNX's own cases on LiteRT.")
    parser.add_argument("kinds", nargs="*", help="operators; all by default")
    parser.add_argument("--jobs", type=int, default=1, help="cases at a time")
    parser.add_argument("--brief", action="store_true", help="only the counts")
    parser.add_argument("--onnx2tf", type=Path, metavar="PYTHON", help="the Python of an environment with onnx2tf, which gets the same cases")
    asked = parser.parse_args()
    found = list(cases(set(asked.kinds) or None))
    rows = {case.name: Row(case.name, case.kind, inexpressible(case)) for case in found}
    expressible = [case for case in found if not rows[case.name].inexpressible]
    _ours(expressible, rows, asked.jobs, brief=asked.brief)
    versions = {name: version(name) for name in ("onnx", "ai-edge-litert")}
    if asked.onnx2tf:
        versions |= _theirs(expressible, rows, asked.onnx2tf, asked.jobs, brief=asked.brief)
    made = list(rows.values())
    if not asked.kinds:
        report.write(made, left_out(), versions)
    told = report.figures(made)
    print(told)
    broken = any(told["ours"].get(outcome) for outcome in BROKEN)
    return 1 if broken or (not asked.kinds and told["share"] < LEAST_SHARE) else 0


def _ours(expressible: list[Case], rows: dict[str, Row], jobs: int, *, brief: bool) -> None:
    ours.load()
    for case, (outcome, reason) in forked(ours.run, expressible, jobs, LIMIT_S):
        rows[case.name].outcome, rows[case.name].reason = outcome, reason
        if outcome != "passed" and not brief:
            print(f"{case.name}: {outcome}: {reason}", flush=True)


def _theirs(expressible: list[Case], rows: dict[str, Row], python: Path, jobs: int, *, brief: bool) -> dict[str, str]:
    """Adds what onnx2tf makes of the cases, and returns its versions."""
    counts: Counter[str] = Counter()
    for name, (outcome, reason) in onnx2tf.run(expressible, python, jobs, LIMIT_S):
        rows[name].onnx2tf, rows[name].onnx2tf_reason = outcome, reason
        counts[outcome] += 1
        if outcome != "passed" and not brief:
            print(f"onnx2tf: {name}: {outcome}: {reason}", flush=True)
    return onnx2tf.versions(python)


if __name__ == "__main__":
    sys.exit(main())
