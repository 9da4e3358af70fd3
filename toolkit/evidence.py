"""Verdicts and the records that carry them: the vocabulary that measuring, checking and reporting share. No I/O happens here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any, Literal

from pydantic import Field

from toolkit import display
from toolkit.artifact import Frozen
from toolkit.figures import (
    Change,
    ClassChange,
    ColdStart,
    CurvePoint,
    Flips,
    Latency,
    Memory,
    Metric,
    OperatorTime,
    Roofline,
    Variant,
    latency_facts,
    show_change,
    show_latency,
    show_metric,
    show_name,
    show_size,
)
from toolkit.suspects import Slower


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


class Evaluation(Frozen):
    """How right one artifact is on one runtime.

    Attributes:
        artifact: Name of the model file.
        runtime: The runtime that executed it.
        target: The target whose threads and memory cap were used.
        metric: The primary metric with its interval.
        change: Its paired change against the reference; ``None`` when there was no reference.
        metrics: Every metric that was measured, the primary one first.
        changes: Their paired changes against the reference.
        classes: What happened to each class, the largest loss first; empty for tasks without classes.
        flips: Samples that reference and candidate label differently; ``None`` without a reference.
        samples_digest: Digest of the samples, by which a baseline knows them again.
        left_out: Why a metric of the task was not measured, by name.
        stand_in: What executed it, when that is not the target itself.
        cached: Whether the predictions came from the store.
    """

    artifact: str
    runtime: str
    target: str
    metric: Metric
    change: Change | None = None
    metrics: tuple[Metric, ...] = ()
    changes: tuple[Change, ...] = ()
    classes: tuple[ClassChange, ...] = ()
    flips: Flips | None = None
    samples_digest: str = ""
    left_out: dict[str, str] = Field(default_factory=dict)
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
        cold: Load time and first inference in fresh processes; ``None`` when not measured.
        memory: Memory of a fresh process; ``None`` when not measured.
        roofline: The floor of this model on this CPU; ``None`` when its operators cannot be counted.
        curve: Throughput by batch size and thread count; empty when not asked for.
        slower: What makes it slower than its float twin; ``None`` where it was not measured to be.
        notes: What was asked for and could not be measured, and why not to rely on what was.
    """

    artifact: str
    runtime: str
    target: str
    latency_ms: Latency
    cold: ColdStart | None = None
    memory: Memory | None = None
    roofline: Roofline | None = None
    curve: tuple[CurvePoint, ...] = ()
    slower: Slower | None = None
    notes: tuple[str, ...] = ()

    def _repr_html_(self) -> str:
        latency = self.latency_ms
        facts = {"runtime": self.runtime, "target": f"{self.target} ({latency.stand_in})", **latency_facts(latency)}
        return display.facts_html(self.artifact, facts)


class Profile(Frozen):
    """Where the time of one inference goes, operator by operator.

    Attributes:
        artifact: Name of the model file.
        runtime: The runtime that executed it.
        target: The target whose threads were used.
        operators: In the order of execution.
        total_ms: Median over inferences of the sum of all operators' times.
        latency_ms: Median of the same inferences without profiling, measured in turns with them.
        n: Number of profiled inferences.
        stand_in: What executed it, when that is not the target itself.
        note: Why not to rely on the milliseconds, for example when their sum is more than a tenth away from the latency; empty
            when nothing speaks against them.
    """

    artifact: str
    runtime: str
    target: str
    operators: tuple[OperatorTime, ...]
    total_ms: float
    latency_ms: float
    n: int
    stand_in: str = "host cpu"
    note: str = ""

    def _repr_html_(self) -> str:
        rows = [(one.layer or "-", one.name, one.operator, one.kernel or "-", f"{one.p50_ms:.4f}", f"{one.share:.1%}") for one in self.operators]
        return display.table_html(self.artifact, ("layer", "name", "operator", "kernel", "p50 ms", "share"), rows)


class Envelope(Frozen):
    """How far one model file's outputs move when only the way of executing it changes.

    Attributes:
        artifact: Name of the model file.
        runtime: The runtime that executed it.
        target: The target whose settings are the default way.
        variants: Every other way that was tried, and those that could not be.
        flips: Samples that any of them labels differently.
        max_abs: Largest difference of any of them, by output name.
        n: Number of samples.
    """

    artifact: str
    runtime: str
    target: str
    variants: tuple[Variant, ...]
    flips: int
    max_abs: dict[str, float]
    n: int

    def _repr_html_(self) -> str:
        rows = [(one.name, str(one.flips), ", ".join(f"{name} {gap:.3g}" for name, gap in one.max_abs.items()), one.note) for one in self.variants]
        return display.table_html(self.artifact, ("variant", "flips", "max |difference|", "note"), rows)


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
        metric: The primary metric with interval; ``None`` when it could not be measured.
        change: Its paired change against the float source.
        metrics: Every metric that was measured, the primary one first.
        changes: Their paired changes against the float source.
        classes: What happened to each class, the largest loss first.
        flips: Samples that float source and artifact label differently.
        samples_digest: Digest of the evaluation samples, by which a baseline knows them again.
        latency_ms: Latency at batch size 1.
        cold: Load time and first inference in fresh processes.
        memory: Memory of a fresh process.
        roofline: The floor of this model on this CPU.
        made: How the file came about where something was chosen or repaired, a sentence each.
        slower: What makes it slower than its float twin; ``None`` where it was not measured to be.
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
    metrics: tuple[Metric, ...] = ()
    changes: tuple[Change, ...] = ()
    classes: tuple[ClassChange, ...] = ()
    flips: Flips | None = None
    samples_digest: str = ""
    latency_ms: Latency | None = None
    cold: ColdStart | None = None
    memory: Memory | None = None
    roofline: Roofline | None = None
    made: tuple[str, ...] = ()
    slower: Slower | None = None
    cached: bool = False
    verdict: Verdict
    reason: str
    findings: tuple[Finding, ...] = ()


class Attempt(Frozen):
    """One route that leads to a format, and what became of it.

    Attributes:
        route: Its name.
        outcome: ``taken``; ``failed`` when it was tried; ``passed over`` when it was not.
        code: Why, for scripts: an error's code, ``unsupported-operator`` of a preflight, ``option``, ``not-needed`` where another one
            was taken before, or empty when it was taken.
        reason: Why, for people; empty when it was taken.
        hint: What to do about it; may be empty.
        seconds: How long it took, its checks included; ``None`` when it was not tried or came from the store.
    """

    route: str
    outcome: Literal["taken", "failed", "passed over"]
    code: str = ""
    reason: str = ""
    hint: str = ""
    seconds: float | None = None


class StageRecord(Frozen):
    """What happened to one step of the plan.

    Attributes:
        step: Identifier of the step, for example ``convert:onnx``.
        status: ``done``, ``cached``, ``failed``, ``skipped`` (something it needs failed) or ``unneeded`` (nothing called for it).
        key: Full SHA-256 of the step's canonical inputs; empty when it was never reached or is never cached.
        seconds: Wall time spent now.
        error: The error of a failed step: ``code``, ``message``, ``where``, ``hint``.
        attempts: For a conversion, every route that leads to the format and what became of it, in the order of trust.
    """

    step: str
    status: Literal["done", "cached", "failed", "skipped", "unneeded"]
    key: str = ""
    seconds: float = 0.0
    error: dict[str, str] | None = None
    attempts: tuple[Attempt, ...] = ()


class Training(Frozen):
    """How the float model came by its weights, where the project trains it.

    Attributes:
        device: What it was trained on: ``cpu``, ``cuda`` or ``mps``.
        why: Why that was taken.
        epochs: Epochs that were asked for.
        best_epoch: The one whose weights were kept.
        validation_accuracy: Share of right answers after it, 0..1, on rows that the training split held out to choose the epoch.
        n: How many rows that were.
        samples_per_second: How fast it was trained; ``None`` where it is not known.
        cpu_samples_per_second: How fast this machine's CPU trains the same, where it was trained on a GPU.
    """

    device: str
    why: str
    epochs: int
    best_epoch: int
    validation_accuracy: float
    n: int
    samples_per_second: float | None = None
    cpu_samples_per_second: float | None = None

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Training:
        """Takes what counts from a training stage's facts."""
        accuracy = facts["validation_accuracy"]
        known = {name: facts[name] for name in cls.model_fields if name in facts and name != "validation_accuracy"}
        return cls(**known, validation_accuracy=accuracy["value"], n=accuracy["n"])


class Report(Frozen):
    """The whole outcome of a run, as written to ``report.json``.

    Attributes:
        schema_version: Version of this layout; ``schema`` in JSON.
        project: Name of the project.
        verdict: The worst verdict of all rows.
        source: How right the float source is, on the same samples.
        training: How it was trained, where the project trains it.
        notes: What is worth knowing of the source model, a sentence each.
        rows: One per artifact and target.
        stages: What happened to each step.
        environment: CPU, system and versions that the figures were taken with.
    """

    schema_version: Literal[2] = Field(default=2, alias="schema")
    project: str
    verdict: Verdict
    source: Evaluation | None = None
    training: Training | None = None
    notes: tuple[str, ...] = ()
    rows: tuple[Row, ...]
    stages: tuple[StageRecord, ...] = ()
    environment: dict[str, Any] = Field(default_factory=dict)

    def _repr_html_(self) -> str:
        rows = [(*table_row(row), "" if row.verdict is Verdict.PASS else row.reason) for row in self.rows]
        return display.table_html(f"{self.project}: {self.verdict}", (*table_header(self.rows), "reason"), rows)


def table_header(rows: Iterable[Row]) -> tuple[str, ...]:
    """Names the columns of :func:`table_row`; the metric's is called after what was measured."""
    names = {row.metric.name for row in rows if row.metric}
    metric = show_name(names.pop()) if len(names) == 1 else "metric"
    return ("artifact", "runtime", "target", "size", f"{metric} [95 %]", "change [95 %]", "p50 / p90 ms", "verdict")


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
