"""The report for code scanning: SARIF 2.1.0 (OASIS standard, https://docs.oasis-open.org/sarif/sarif/v2.1.0/).

Every finding that does not pass is a result: a missed budget an error, an undecided one a warning. A stage that failed is a
notification of the invocation, as it says something about the run and nothing about a model.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any
from urllib.parse import quote

from toolkit.errors import EXIT_CHECK_FAILED, EXIT_PASS, from_dict
from toolkit.evidence import Finding, Report, Row, Verdict
from toolkit.plugins import distribution_version
from toolkit.report import wording

VERSION = "2.1.0"
SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_LEVELS = {Verdict.FAIL: "error", Verdict.INCONCLUSIVE: "warning"}
_INCONCLUSIVE = "A warning is an inconclusive verdict: the interval straddles the limit, and the message says what would decide."
# By the beginning of a budget's name: what it means, and what to do.
_RULES = {
    "min_accuracy": ("Top-1 accuracy reaches its lowest value", "Train longer, choose another scheme, or evaluate on more samples."),
    "max_drop": (
        "The primary metric loses no more than allowed against the float source",
        "Calibrate with more representative samples, or leave sensitive layers in float.",
    ),
    "max_size_bytes": ("The model file is not larger than allowed", "Choose a smaller scheme or a smaller model."),
    "max_size_ratio": ("The model file is small enough against its float twin", "Choose a smaller scheme."),
    "max_latency_p90_ms": ("The 90th percentile of one inference is low enough", "Look where the time goes with: edgekit profile."),
    "max_latency_ratio": ("The median time is low enough against the float twin's", "Look where the time goes with: edgekit profile."),
    "min_speedup": (
        "The median time is far enough below the float twin's",
        "Choose a scheme that the runtime has fast kernels for; the message names the operators.",
    ),
    "max_peak_memory_mb": ("The peak memory of a fresh process is low enough", "Choose a smaller model or scheme."),
    "metrics.": ("A metric is within its limits", "Look at the classes that lost in the report, or evaluate on more samples."),
    "baseline": (
        "Nothing is worse than the committed baseline",
        "Mend what became worse; if it is meant to be so, loosen edgekit-baseline.json by hand.",
    ),
    wording.WHOLE_ROW: ("The artifact was made and measured", "Mend what the failed stage says."),
}


def render(report: Report, *, location: str = "edgekit.toml") -> str:
    """Writes the report as a SARIF log.

    Args:
        report: The report.
        location: The file that results are shown at, relative to the repository's root.
    """
    found = [(row, finding) for row in report.rows for finding in wording.problems(row)]
    rules = list(dict.fromkeys(finding.budget for _, finding in found))
    run = {
        "tool": {"driver": {"name": "Edgekit", "version": distribution_version("edgekit"), "rules": [_rule(name) for name in rules]}},
        "automationDetails": {"id": f"edgekit/{wording.printable(report.project)}/"},
        "columnKind": "unicodeCodePoints",
        "invocations": [_invocation(report)],
        "results": [_result(row, finding, rules.index(finding.budget), location) for row, finding in found],
    }
    return json.dumps({"$schema": SCHEMA, "version": VERSION, "runs": [run]}, indent=2, allow_nan=False) + "\n"


def _rule(name: str) -> dict[str, Any]:
    short, remedy = next((texts for start, texts in _RULES.items() if name.startswith(start)), (name, ""))
    full = f"{short} ({name}). {_INCONCLUSIVE}"
    return {
        "id": wording.printable(name),
        "name": "".join(part.capitalize() for part in name.replace(".", "_").split("_")),
        "shortDescription": {"text": short},
        "fullDescription": {"text": full},
        "help": {"text": f"{full}\n\n{remedy}", "markdown": f"{short} (`{wording.printable(name)}`).\n\n{_INCONCLUSIVE}\n\n{remedy}"},
        "defaultConfiguration": {"level": "error"},
    }


def _result(row: Row, finding: Finding, rule: int, location: str) -> dict[str, Any]:
    artifact, target = wording.printable(row.artifact), wording.printable(row.target)
    return {
        "ruleId": wording.printable(finding.budget),
        "ruleIndex": rule,
        "level": _LEVELS[finding.verdict],
        "message": {"text": wording.printable(f"{wording.place(row)}: {finding.reason}")},
        "locations": [
            {
                "physicalLocation": {"artifactLocation": {"uri": _relative(location)}, "region": {"startLine": 1}},
                "logicalLocations": [{"name": artifact, "fullyQualifiedName": f"{target}/{artifact}", "kind": "resource"}],
            }
        ],
        "partialFingerprints": _fingerprints(row, finding),
        "properties": {"verdict": str(finding.verdict), "artifact": artifact, "target": target, "runtime": wording.printable(row.runtime)},
    }


def _fingerprints(row: Row, finding: Finding) -> dict[str, str]:
    """The same finding of the next run is the same alert, whatever its figures are then.

    All results stand at one line, so that the hash of it, which GitHub would compute, does not tell them apart.
    """
    identity = hashlib.sha256("\0".join((row.artifact, row.target, finding.budget)).encode("utf-8", "replace")).hexdigest()
    return {"edgekitFinding/v1": identity, "primaryLocationLineHash": f"{identity[:16]}:1"}


def _invocation(report: Report) -> dict[str, Any]:
    failed = wording.failed(report)
    notes = [
        {"level": "error", "message": {"text": wording.printable(f"{stage.step}: " + "; ".join(wording.error_lines(stage)))}} for stage in failed
    ]
    errors = [stage.error for stage in failed if stage.error]
    code = from_dict(errors[0]).exit_code if errors else EXIT_CHECK_FAILED if report.verdict is Verdict.FAIL else EXIT_PASS
    return {"executionSuccessful": not failed, "exitCode": code, "toolExecutionNotifications": notes}


def _relative(location: str) -> str:
    """A URI reference without scheme or leading slash, as code scanning resolves it against the repository's root."""
    return quote(location.replace("\\", "/").lstrip("/")) or "edgekit.toml"
