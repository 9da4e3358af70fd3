"""``python -m benchmarks.onnx_cases``: all cases, or those of some operators."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter, defaultdict

from benchmarks.figures import ROOT
from benchmarks.onnx_cases.cases import cases, run


def main() -> int:
    """Runs the cases and says what did not pass; returns 1 where something is wrong, fails or crashes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.onnx_cases", description="ONNX's own cases on LiteRT.")
    parser.add_argument("kinds", nargs="*", help="operators; all by default")
    parser.add_argument("--brief", action="store_true", help="only the counts by operator")
    asked = parser.parse_args()
    by_kind: dict[str, Counter[str]] = defaultdict(Counter)
    rows = []
    for case in cases(set(asked.kinds) or None):
        outcome, reason = run(case)
        by_kind[case.kind][outcome] += 1
        rows.append({"name": case.name, "kind": case.kind, "outcome": outcome, "reason": reason})
        if outcome != "passed" and not asked.brief:
            print(f"{case.name}: {outcome}: {reason}", flush=True)
    for kind, counts in sorted(by_kind.items()):
        if asked.brief or asked.kinds:
            print(kind, dict(counts))
    total = Counter(row["outcome"] for row in rows)
    print(dict(total), f"{total['passed'] / max(1, len(rows)):.3f} of {len(rows)}")
    if not asked.kinds:
        (ROOT / "benchmarks" / "results" / "onnx_cases.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 1 if total["wrong"] + total["failed"] + total["crashed"] else 0


if __name__ == "__main__":
    sys.exit(main())
