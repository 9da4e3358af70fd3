"""Frozen measurements and verdicts: the vocabulary that measuring, checking and reporting share. No I/O happens here."""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import StrEnum
from typing import Any, Literal

from pydantic import Field

from toolkit import display
from toolkit.artifact import Frozen


class Verdict(StrEnum):
    """What the evidence says. *Inconclusive* is neither a pass nor a failure: more samples or less noise would decide."""

    PASS = "pass"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """Combines verdicts: one failure fails, else one doubt is a doubt, else it passes. Nothing judged is no pass."""
    seen = set(verdicts)
    if Verdict.FAIL in seen:
        return Verdict.FAIL
    return Verdict.PASS if seen == {Verdict.PASS} else Verdict.INCONCLUSIVE


class Metric(Frozen):
    """A rate measured on samples, with its 95 % interval.

    Attributes:
        name: For example ``top1_accuracy``.
        value: The measured value, 0..1.
        low: Lower end of the interval.
        high: Upper end of the interval.
        n: Number of samples.
    """

    name: str
    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{show_name(self.name)} {show_metric(self)}"


class Change(Frozen):
    """Candidate minus reference on the same samples, with its paired 95 % interval. Negative is a loss.

    Attributes:
        value: Difference of the two metrics, -1..1.
        low: Lower end of the interval.
        high: Upper end of the interval.
        n: Number of samples that both saw.
        lost: Samples that only the reference got right.
        gained: Samples that only the candidate got right.
    """

    value: float
    low: float
    high: float
    n: int
    lost: int
    gained: int

    def __str__(self) -> str:
        return f"{show_change(self)} n={self.n}, {self.lost} lost, {self.gained} gained"


class Latency(Frozen):
    """Time of one inference at batch size 1, in milliseconds, with 95 % intervals of the quantiles.

    Attributes:
        p50: Median.
        p90: 90th percentile.
        p50_low: Lower end of the median's interval.
        p50_high: Upper end of the median's interval.
        p90_low: Lower end of the 90th percentile's interval.
        p90_high: Upper end of the 90th percentile's interval.
        n: Number of timed inferences.
        ratio_to_float: Median over the float model's median, interleaved in the same run; ``None`` without one.
        ratio_low: Lower end of the ratio's interval.
        ratio_high: Upper end of the ratio's interval.
        stand_in: What the figure was measured on, when that is not the target itself.
    """

    p50: float
    p90: float
    p50_low: float
    p50_high: float
    p90_low: float
    p90_high: float
    n: int
    ratio_to_float: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    stand_in: str = "host cpu"

    def __str__(self) -> str:
        ratio = f", {show_ratio(self)} of the baseline" if self.ratio_to_float is not None else ""
        return f"p50 {show_p50(self)}, p90 {show_p90(self)}, n={self.n}{ratio}"


class Evaluation(Frozen):
    """How right one artifact is on one runtime.

    Attributes:
        artifact: Name of the model file.
        runtime: The runtime that executed it.
        target: The target whose threads and memory cap were used.
        metric: The metric with its interval.
        change: Paired change against the reference; ``None`` when there was no reference.
        stand_in: What executed it, when that is not the target itself.
        cached: Whether the predictions came from the store.
    """

    artifact: str
    runtime: str
    target: str
    metric: Metric
    change: Change | None = None
    stand_in: str = "host cpu"
    cached: bool = False

    def _repr_html_(self) -> str:
        facts = {"runtime": self.runtime, "target": f"{self.target} ({self.stand_in})", show_name(self.metric.name): show_metric(self.metric)}
        if self.change:
            facts["change"] = show_change(self.change)
        return display.facts_html(self.artifact, facts)


class Benchmark(Frozen):
    """How fast one artifact is on one runtime.

    Attributes:
        artifact: Name of the model file.
        runtime: The runtime that executed it.
        target: The target whose threads were used.
        latency_ms: Quantiles of one inference at batch size 1.
    """

    artifact: str
    runtime: str
    target: str
    latency_ms: Latency

    def _repr_html_(self) -> str:
        latency = self.latency_ms
        facts = {"runtime": self.runtime, "target": f"{self.target} ({latency.stand_in})", **latency_facts(latency)}
        return display.facts_html(self.artifact, facts)


class Finding(Frozen):
    """One budget held against the evidence.

    Attributes:
        budget: The budget's key, for example ``max_drop``.
        verdict: What the evidence says about it.
        reason: One sentence with measured value, interval, limit and sample count.
    """

    budget: str
    verdict: Verdict
    reason: str


class Row(Frozen):
    """One artifact on one target.

    Attributes:
        artifact: File name of the model.
        format: ``onnx``, ``tflite`` and so on.
        scheme: ``float32``, ``static_wi8_ai8`` and so on.
        runtime: The runtime that executed it.
        target: The target's name.
        stand_in: What executed it, when that is not the target itself.
        size_bytes: Size of the model file; ``None`` when there is no file.
        metric: Accuracy with interval; ``None`` when it could not be measured.
        change: Paired change against the float source.
        latency_ms: Latency at batch size 1.
        cached: Whether every deterministic stage behind this row came from the store.
        verdict: The worst of the findings, or *fail* when a stage failed.
        reason: One sentence that explains the verdict.
        findings: Each budget with its own verdict.
    """

    artifact: str
    format: str
    scheme: str
    runtime: str
    target: str
    stand_in: str
    size_bytes: int | None = None
    metric: Metric | None = None
    change: Change | None = None
    latency_ms: Latency | None = None
    cached: bool = False
    verdict: Verdict
    reason: str
    findings: tuple[Finding, ...] = ()


class StageRecord(Frozen):
    """What happened to one step of the plan.

    Attributes:
        step: Identifier of the step, for example ``convert:onnx``.
        status: ``done``, ``cached``, ``failed`` or ``skipped`` (something it needs failed).
        key: Full SHA-256 of the step's canonical inputs; empty when it was never reached or is never cached.
        seconds: Wall time spent now.
        error: The error of a failed step: ``code``, ``message``, ``where``, ``hint``.
    """

    step: str
    status: Literal["done", "cached", "failed", "skipped"]
    key: str = ""
    seconds: float = 0.0
    error: dict[str, str] | None = None


class Report(Frozen):
    """The whole outcome of a run, as written to ``report.json``.

    Attributes:
        schema_version: Version of this layout; ``schema`` in JSON.
        project: Name of the project.
        verdict: The worst verdict of all rows.
        source: How right the float source is, on the same samples.
        rows: One per artifact and target.
        stages: What happened to each step.
        environment: CPU, system and versions that the figures were taken with.
    """

    schema_version: Literal[1] = Field(default=1, alias="schema")
    project: str
    verdict: Verdict
    source: Evaluation | None = None
    rows: tuple[Row, ...]
    stages: tuple[StageRecord, ...] = ()
    environment: dict[str, Any] = Field(default_factory=dict)

    def _repr_html_(self) -> str:
        rows = [(*table_row(row), "" if row.verdict is Verdict.PASS else row.reason) for row in self.rows]
        return display.table_html(f"{self.project}: {self.verdict}", (*TABLE_HEADER, "reason"), rows)


TABLE_HEADER = ("artifact", "runtime", "target", "size", "accuracy [95 %]", "change [95 %]", "p50 / p90 ms", "verdict")


def table_row(row: Row) -> tuple[str, ...]:
    """Formats a row for every table that people read, so that they all say the same."""
    return (
        f"{row.artifact}",
        row.runtime,
        f"{row.target} ({row.stand_in})" if row.stand_in else row.target,
        show_size(row.size_bytes),
        show_metric(row.metric) if row.metric else "-",
        show_change(row.change) if row.change else "-",
        show_latency(row.latency_ms) if row.latency_ms else "-",
        str(row.verdict),
    )


def show_size(size_bytes: int | None) -> str:
    """Formats a size in KB or MB (powers of ten)."""
    if size_bytes is None:
        return "-"
    return f"{size_bytes / 1e6:.2f} MB" if size_bytes >= 1e6 else f"{size_bytes / 1e3:.1f} KB"


def show_name(name: str) -> str:
    """Spells a metric's name for people: ``top1_accuracy`` is top-1 accuracy."""
    return re.sub(r"^top(?=\d)", "top-", name).replace("_", " ")


def show_metric(metric: Metric) -> str:
    """Formats a rate as a percentage with interval and sample count."""
    return f"{metric.value:.2%} [{metric.low:.2%}, {metric.high:.2%}] n={metric.n}"


def show_change(change: Change) -> str:
    """Formats a change in percentage points with its interval."""
    return f"{change.value * 100:+.2f} pp [{change.low * 100:+.2f}, {change.high * 100:+.2f}]"


def show_latency(latency: Latency) -> str:
    """Formats median and 90th percentile."""
    return f"{latency.p50:.3f} / {latency.p90:.3f}"


def show_p50(latency: Latency) -> str:
    """Formats the median with unit and interval."""
    return f"{latency.p50:.4f} ms [{latency.p50_low:.4f}, {latency.p50_high:.4f}]"


def show_p90(latency: Latency) -> str:
    """Formats the 90th percentile with unit and interval."""
    return f"{latency.p90:.4f} ms [{latency.p90_low:.4f}, {latency.p90_high:.4f}]"


def show_ratio(latency: Latency) -> str:
    """Formats the ratio of the medians, with its interval where there is one."""
    if latency.ratio_to_float is None:
        return "-"
    interval = f" [{latency.ratio_low:.2f}, {latency.ratio_high:.2f}]" if latency.ratio_low is not None and latency.ratio_high is not None else ""
    return f"{latency.ratio_to_float:.2f}{interval}"


def latency_facts(latency: Latency) -> dict[str, str]:
    """Names every figure of a latency, for a list of facts."""
    facts = {"p50": show_p50(latency), "p90": show_p90(latency), "inferences": f"{latency.n:,}"}
    return facts if latency.ratio_to_float is None else {**facts, "median / baseline": show_ratio(latency)}
