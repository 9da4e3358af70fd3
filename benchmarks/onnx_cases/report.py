"""The report: for machines as JSON, for people as Markdown."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.figures import ROOT

RESULTS = ROOT / "benchmarks" / "results"
LEAST_SHARE = 0.9
BROKEN = ("wrong", "failed", "crashed")


@dataclass
class Row:
    """What became of one case.

    Attributes:
        name: The case's name.
        kind: Its operator.
        inexpressible: Why no TFLite file can express it; empty where one can.
        outcome: What our compiler made of it: ``passed``, ``refused``, ``wrong``, ``failed`` or ``crashed``; empty where it was not asked.
        reason: Why it did not pass.
        onnx2tf: The same of onnx2tf.
        onnx2tf_reason: Why it did not pass there.
    """

    name: str
    kind: str
    inexpressible: str = ""
    outcome: str = ""
    reason: str = ""
    onnx2tf: str = ""
    onnx2tf_reason: str = ""


def share(rows: Sequence[Row]) -> float:
    """Returns the share of the expressible cases that pass."""
    expressible = [row for row in rows if not row.inexpressible]
    return sum(row.outcome == "passed" for row in expressible) / max(1, len(expressible))


def write(rows: Sequence[Row], left_out: Mapping[str, int], versions: Mapping[str, str], folder: Path = RESULTS) -> None:
    """Writes ``onnx_cases.json`` and ``onnx_cases.md``."""
    content = {"versions": dict(versions), "left_out": dict(left_out), **figures(rows), "cases": [asdict(row) for row in rows]}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "onnx_cases.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    (folder / "onnx_cases.md").write_text(markdown(rows, left_out, versions), encoding="utf-8")


def figures(rows: Sequence[Row]) -> dict[str, Any]:
    """Returns the counts that the report is about."""
    expressible = [row for row in rows if not row.inexpressible]
    found: dict[str, Any] = {
        "total": len(rows),
        "expressible": len(expressible),
        "inexpressible": dict(Counter(row.inexpressible for row in rows if row.inexpressible).most_common()),
        "ours": dict(Counter(row.outcome for row in expressible).most_common()),
        "share": round(share(rows), 4),
    }
    if any(row.onnx2tf for row in expressible):
        found["onnx2tf"] = dict(Counter(row.onnx2tf for row in expressible).most_common())
        found["onnx2tf_share"] = round(sum(row.onnx2tf == "passed" for row in expressible) / len(expressible), 4)
    return found


def markdown(rows: Sequence[Row], left_out: Mapping[str, int], versions: Mapping[str, str]) -> str:
    """The counts, what cannot be expressed and why, and every expressible case that did not pass."""
    found = figures(rows)
    tools = ", ".join(f"{name} {version}" for name, version in versions.items())
    lines = [
        "# ONNX's own cases of single operators", "",
        f"With {tools}. The rule of what TFLite can express is the text at the top of `benchmarks/onnx_cases/rule.py`.", "",
        f"- {found['total']} cases of operator set 13 and newer, the definitions of operators (`_expanded`) included;",
        *(f"- left out: {count} cases: {what};" for what, count in left_out.items()),
        f"- {found['total'] - found['expressible']} that TFLite cannot express, {found['expressible']} that it can.", "",
        "| of the expressible cases | passed | refused | wrong | failed | crashed | share |", "|---|---|---|---|---|---|---|",
        _line("ours", found["ours"], found["share"]),
    ]  # fmt: skip
    if "onnx2tf" in found:
        lines.append(_line("onnx2tf", found["onnx2tf"], found["onnx2tf_share"]))
    lines += ["", "| TFLite cannot express a case that | cases |", "|---|---|"]
    lines += [f"| {reason} | {count} |" for reason, count in found["inexpressible"].items()]
    return "\n".join([*lines, "", "Expressible cases that did not pass here:", "", *_others(rows), ""])


def _line(name: str, counts: Mapping[str, int], part: float) -> str:
    columns = [str(counts.get(outcome, 0)) for outcome in ("passed", "refused", *BROKEN)]
    return f"| {name} | {' | '.join(columns)} | {part:.1%} |"


def _others(rows: Sequence[Row]) -> list[str]:
    """One line for each operator and reason, with the cases that it holds for."""
    grouped: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for row in rows:
        if not row.inexpressible and row.outcome and row.outcome != "passed":
            grouped[row.kind, row.outcome, row.reason.removeprefix("cannot convert the graph: ")].append(row.name)
    return [f"- {kind}: {outcome}: {reason} ({', '.join(names)})" for (kind, outcome, reason), names in grouped.items()] or ["none"]
