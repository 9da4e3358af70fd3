"""From the facts of measuring steps to records: accuracies, figures of this machine, and judged rows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.checks import budgets as budget_checks
from toolkit.config import Target
from toolkit.errors import ConfigError, ToolkitError
from toolkit.evidence import Finding, Row, Verdict
from toolkit.figures import Change, ClassChange, ColdStart, CurvePoint, Flips, Latency, Memory, Metric, Roofline
from toolkit.job import Facts
from toolkit.limits import Budgets
from toolkit.measure.affinity import NOT_PINNED

OUTCOMES = "outcomes.npy"
Outcomes = dict[tuple[str, str], np.ndarray]
"""Which samples a row got right, ``[n] uint8``, by artifact and target."""


def accuracy_records(facts: Facts) -> dict[str, Any]:
    """Returns what an evaluation found, as fields of a row or of an evaluation."""
    if not facts:
        return {}
    metrics = tuple(Metric.model_validate(one) for one in facts["metrics"])
    changes = tuple(Change.model_validate(one) for one in facts["changes"])
    return {
        "metric": metrics[0],
        "change": changes[0] if changes else None,
        "metrics": metrics,
        "changes": changes,
        "classes": tuple(ClassChange.model_validate(one) for one in facts["classes"]),
        "flips": Flips.model_validate(facts["flips"]) if facts["flips"] else None,
        "samples_digest": facts["samples_digest"],
    }


def machine_records(artifact: str, timed: Facts, cold: Facts, roofline: Facts, stand_in: str) -> dict[str, Any]:
    """Returns what was measured of an artifact on this machine, as fields of a row or of a benchmark.

    Args:
        artifact: Its name in the steps' facts.
        timed: Facts of the latency step; empty when it failed.
        cold: Facts of the cold start step.
        roofline: Facts of the roofline step.
        stand_in: What executed it.
    """
    found: dict[str, Any] = {}
    if artifact in timed:
        # Targets that execute alike share one measurement, and each has its own words for what stands in for it.
        unpinned = f", {NOT_PINNED}" if str(timed[artifact].get("stand_in", "")).endswith(f", {NOT_PINNED}") else ""
        found["latency_ms"] = Latency.model_validate({**timed[artifact], "stand_in": stand_in + unpinned})
    started = cold.get(artifact) or {}
    if started.get("cold"):
        found["cold"] = ColdStart.model_validate(started["cold"])
    if started.get("memory"):
        found["memory"] = Memory.model_validate(started["memory"])
    floor = roofline.get(artifact)
    if floor and "latency_ms" in found:
        found["roofline"] = Roofline.model_validate({**floor, "reached": floor["floor_ms"] / found["latency_ms"].p50})
    return found


def made_lines(facts: Facts) -> tuple[str, ...]:
    """Says how a quantized file came about: which scheme was chosen, and what the repair ladder did.

    Args:
        facts: Facts of the step that made it.
    """
    lines = []
    if chosen := facts.get("auto"):
        lines.append(f"auto chose {chosen['scheme']}: {chosen['why']}")
    if climbed := facts.get("ladder"):
        first, steps = climbed["rungs"][0], [name for name in climbed["taken"] if name != "default"]
        before = f"{100 * first['drop'][0]:z.1f} points lost, {first['sqnr_db']:.0f} dB" if "drop" in first else f"not made: {first['reason']}"
        after = f"{100 * climbed['drop'][0]:z.1f} points lost, {climbed['sqnr_db']:.0f} dB, n={climbed['n']} search samples"
        if steps:
            lines.append(f"repaired by {', '.join(steps)}: {before} before, {after} after")
        if climbed["asked"] and not climbed["held"]:
            lines.append(f"no repair held {100 * climbed['max_drop']:g} points on the search samples: {after}")
    if kept := facts.get("label", {}).get("kept_float"):
        lines.append(f"{len(kept)} layers are float, as the label says" if len(kept) > 1 else "1 layer is float, as the label says")
    return tuple(lines)


def curve_records(facts: Facts) -> tuple[CurvePoint, ...]:
    """Returns the points of a throughput curve."""
    return tuple(CurvePoint.model_validate(point) for point in facts.get("points", ()))


def benchmark_notes(artifact: str, timed: Facts, cold: Facts, curve: Facts) -> tuple[str, ...]:
    """Returns what a reader must know before relying on a benchmark.

    Args:
        artifact: Its name in the steps' facts.
        timed: Facts of the latency step.
        cold: Facts of the cold start step.
        curve: Facts of the throughput curve; empty without one.
    """
    notes = []
    latency = timed.get(artifact) or {}
    if not latency.get("steady", True):
        notes.append("warming up never reached a steady state")
    noise, allowed = latency.get("noise"), latency.get("max_noise")
    if noise is not None and allowed is not None and noise > allowed:
        notes.append("the machine's own noise is above what is allowed: these times decide nothing")
    started = cold.get(artifact) or {}
    return (*notes, *([str(started["message"])] if started.get("over_cap") else ()), *map(str, curve.get("notes", ())))


def make_row(
    artifact: str,
    format: str,
    scheme: str,
    target: Target,
    limits: Budgets,
    *,
    size_bytes: int | None,
    float_size_bytes: int | None,
    own_twin: bool,
    measured: Mapping[str, Any],
    cached: bool,
    error: ToolkitError | None = None,
) -> Row:
    """Judges one artifact on one target.

    Args:
        artifact: File name of the model.
        format: Its format.
        scheme: Its number format.
        target: The target.
        limits: The budgets, the target's own included.
        size_bytes: Size of the file; ``None`` when there is none.
        float_size_bytes: Size of its float twin.
        own_twin: Whether the file is its own float twin, so that no ratio applies.
        measured: Fields of the row from :func:`accuracy_records` and :func:`machine_records`.
        cached: Whether every deterministic stage behind it came from the store.
        error: What kept a stage behind it from finishing.
    """
    evidence = budget_checks.Evidence(
        own_twin=own_twin,
        size_bytes=size_bytes,
        float_size_bytes=float_size_bytes,
        metrics=measured.get("metrics", ()),
        changes=measured.get("changes", ()),
        latency=measured.get("latency_ms"),
        memory=measured.get("memory"),
        slower=measured.get("slower"),
    )
    findings: tuple[Finding, ...] = () if error else budget_checks.judge(limits, evidence)
    verdict, reason = (Verdict.FAIL, f"{error.code}: {_one_line(error)}") if error else budget_checks.row_verdict(findings)
    return Row(
        artifact=artifact,
        format=format,
        scheme=scheme,
        runtime=target.runtime,
        target=target.name,
        stand_in=target.stand_in,
        size_bytes=size_bytes,
        cached=cached,
        verdict=verdict,
        reason=reason,
        findings=findings,
        **measured,
    )


def _one_line(error: ToolkitError) -> str:
    """A row's reason is a sentence, and an error of several routes has a line for each."""
    first, *rest = (line.strip() for line in str(error).splitlines())
    return f"{first}: {'; '.join(rest)}" if rest else first


def refuse_unmeasured(limits: Budgets, facts: Facts) -> None:
    """A budget on a metric that these samples or settings leave out would never be judged.

    Raises:
        ConfigError: There is one; the message says why it was left out.
    """
    for name, why in facts.get("left_out", {}).items():
        if name in limits.metrics:
            raise ConfigError(f"{name} was not measured: {why}", where=f"budgets.metrics.{name}", hint="mend the reason, or remove the budget")


def read_outcomes(folder: Path | None) -> np.ndarray | None:
    """Reads which samples an evaluation got right; ``None`` where a sample is not simply right or wrong."""
    if folder is None or not (folder / OUTCOMES).is_file():
        return None
    outcomes: np.ndarray = np.load(folder / OUTCOMES, allow_pickle=False)
    return outcomes
