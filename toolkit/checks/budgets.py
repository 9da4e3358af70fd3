"""Holds evidence against budgets: every limit that is set becomes one finding with a verdict and a reason.

An interval that lies wholly on one side of its limit decides; one that straddles it is *inconclusive*, and the reason says
how many samples would decide if the measured value stayed as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from toolkit.checks import latency as latency_checks
from toolkit.checks.samples import forecast, samples_for_agreement, samples_for_change, samples_for_perfect_rate, samples_for_rate, samples_for_value
from toolkit.checks.verdicts import Judgement, by_interval, conclude, exactly, missing
from toolkit.evidence import Finding, Verdict, worst
from toolkit.figures import Change, Latency, Memory, Metric, show_difference, show_name, show_size, show_value
from toolkit.limits import WITH_TWIN, Budgets, MetricBudget
from toolkit.metrics import loss, scale
from toolkit.stats.proportions import proportion_interval
from toolkit.suspects import Slower

_GUESSING = "the reference does no better than guessing on these samples, so that no loss could show; check labels and samples"


@dataclass(frozen=True)
class Evidence:
    """What was measured about one artifact on one target; an absent figure was not.

    Attributes:
        metrics: Every metric with its interval, the primary one first.
        changes: Their paired changes against the float source.
        latency: Latency at batch size 1.
        memory: Memory of a fresh process.
        size_bytes: Size of the model file.
        float_size_bytes: Size of its float twin in the same format.
        slower: What it is that makes the file slower than its float twin; ``None`` where it was not measured to be.
        own_twin: Whether the file is its own float twin, so that no ratio to one is asked.
    """

    metrics: Sequence[Metric] = ()
    changes: Sequence[Change] = ()
    latency: Latency | None = None
    memory: Memory | None = None
    size_bytes: int | None = None
    float_size_bytes: int | None = None
    slower: Slower | None = None
    own_twin: bool = False

    @property
    def primary(self) -> str:
        """Name of the primary metric."""
        first = next(iter(self.metrics), None)
        return first.name if first else next((change.metric for change in self.changes), "top1_accuracy")

    def metric(self, name: str) -> Metric | None:
        """Returns a metric by name."""
        return next((metric for metric in self.metrics if metric.name == name), None)

    def change(self, name: str) -> Change | None:
        """Returns a metric's change by its name."""
        return next((change for change in self.changes if change.metric == name), None)


def judge(budgets: Budgets, evidence: Evidence) -> tuple[Finding, ...]:
    """Holds the evidence about one artifact against every budget that is set.

    Args:
        budgets: The limits; an absent one is not checked.
        evidence: What was measured.

    Returns:
        One finding per budget, in the order in which :class:`~toolkit.limits.Budgets` lists them, those of single metrics
        under names such as ``metrics.roc_auc.min``. A budget whose evidence is missing is inconclusive.
    """
    return tuple(Finding(budget=name, verdict=verdict, reason=reason) for name, (verdict, reason) in _judgements(budgets, evidence))


def row_verdict(findings: Sequence[Finding]) -> tuple[Verdict, str]:
    """Combines findings into the verdict of a row: the worst one, with the reason of the first finding that bad."""
    if not findings:
        return Verdict.PASS, "no budget is set, so nothing was asked"
    verdict = worst(finding.verdict for finding in findings)
    if verdict is not Verdict.PASS:
        return verdict, next(finding.reason for finding in findings if finding.verdict is verdict)
    return verdict, f"{len(findings)} budgets hold" if len(findings) > 1 else "1 budget holds"


def _judgements(budgets: Budgets, evidence: Evidence) -> Iterator[tuple[str, Judgement]]:
    for name, check in CHECKS.items():
        limit = getattr(budgets, name)
        if limit is not None and not (evidence.own_twin and name in WITH_TWIN):
            yield name, check(limit, evidence)
    for name, limits in budgets.metrics.items():
        for key in MetricBudget.model_fields:
            limit = getattr(limits, key)
            if limit is not None:
                checked = at_limit(limit, name, evidence.metric(name)) if key in ("min", "max") else _lost(limit, name, evidence)
                yield f"metrics.{name}.{key}", checked


def at_limit(limit: float, name: str, metric: Metric | None) -> Judgement:
    """Holds a metric's interval against a lowest value, or against a highest one where less is better."""
    higher = scale(name).better == "higher"
    asked = f"{'at least' if higher else 'at most'} {show_value(name, limit)} asked"
    if metric is None:
        return missing(show_name(name), asked)
    interval = f"[{show_value(name, metric.low)}, {show_value(name, metric.high)}]"
    facts = f"{show_name(name)} {show_value(name, metric.value)} {interval} on {metric.n:,} samples; {asked}"
    if not higher:
        verdict = by_interval(holds=metric.high <= limit, misses=metric.low > limit)
        samples = samples_for_value(-metric.value, -metric.high, -metric.low, metric.n, -limit)
        return conclude(verdict, facts, forecast(samples, towards_pass=metric.value < limit, n=metric.n))
    verdict = by_interval(holds=metric.low >= limit, misses=metric.high < limit)
    if metric.method != "Wilson":
        samples, least = samples_for_value(metric.value, metric.low, metric.high, metric.n, limit), 0
    else:
        samples, least = samples_for_rate(metric.value, limit), samples_for_perfect_rate(limit)
    return conclude(verdict, facts, forecast(samples, towards_pass=metric.value > limit, n=metric.n, least=least))


def not_inferior(margin: float, change: Change, rate: float | None, basis: str = "") -> Judgement:
    """Non-inferiority: it passes when even the interval's worst end loses no more than the margin.

    Args:
        margin: Largest allowed loss.
        change: The change with its interval.
        rate: The metric's own value, for what a perfect result would need; ``None`` when unknown.
        basis: What it was measured on, and against what; the number of samples by default.
    """
    lost = loss(change.metric, change.value)
    least, most = sorted((loss(change.metric, change.low), loss(change.metric, change.high)))
    facts = f"{_moved(change)} {basis or f'on {change.n:,} samples'}; allowed {show_margin(change.metric, margin)}"
    verdict = by_interval(holds=most <= margin, misses=least > margin)
    if not change.informative and verdict is not Verdict.FAIL:
        return conclude(Verdict.INCONCLUSIVE, facts, _GUESSING)
    samples = _samples_for_margin(margin, change, rate)
    needed = samples_for_agreement(margin, 1.0 if rate is None else rate) if change.lost is not None and verdict is Verdict.INCONCLUSIVE else 0
    best = "a model that agrees on every one"
    return conclude(verdict, facts, forecast(samples, towards_pass=lost < margin, n=change.n, least=needed, best=best))


def _samples_for_margin(margin: float, change: Change, rate: float | None) -> int | None:
    """Counts the samples that would decide, from the four counts of the samples where they are known."""
    lost, gained, n = change.lost, change.gained, change.n
    if change.method == "Newcombe" and rate is not None and lost is not None and gained is not None and round(change.value * n) == gained - lost:
        right = round(rate * n)
        return samples_for_change(right - gained, lost, gained, n - right - lost, margin)
    if not change.value and math.isclose(change.high, proportion_interval(0, n)[1], rel_tol=1e-6):
        return samples_for_agreement(margin)  # no sample differs: the interval is that of no change in n
    value = loss(change.metric, change.value)
    least, most = sorted((loss(change.metric, change.low), loss(change.metric, change.high)))
    return samples_for_value(-value, -most, -least, n, -margin)


def show_margin(name: str, margin: float) -> str:
    """Formats an allowed loss in the metric's unit."""
    return f"{margin * 100:.2f} pp" if scale(name).rate else f"{margin:.4g}"


def _moved(change: Change) -> str:
    """``top-1 accuracy fell by 0.44 pp [-1.02, +0.11]``."""
    amount = show_difference(change.metric, abs(change.value)).removeprefix("+") + (" pp" if scale(change.metric).rate else "")
    moved = f"{'fell' if change.value < 0 else 'rose'} by {amount}" if change.value else "did not change"
    return f"{show_name(change.metric)} {moved} [{show_difference(change.metric, change.low)}, {show_difference(change.metric, change.high)}]"


def _lost(margin: float, name: str, evidence: Evidence) -> Judgement:
    change, metric = evidence.change(name), evidence.metric(name)
    if change is None:
        return missing(f"change of {show_name(name)} against the float source", f"allowed {show_margin(name, margin)}")
    return not_inferior(margin, change, metric.value if metric else None)


def _max_size_bytes(limit: int, evidence: Evidence) -> Judgement:
    if evidence.size_bytes is None:
        return missing("size", f"allowed {limit:,} bytes")
    facts = f"the file has {evidence.size_bytes:,} bytes ({show_size(evidence.size_bytes)}); allowed {limit:,}"
    return conclude(exactly(evidence.size_bytes <= limit), facts)


def _max_size_ratio(limit: float, evidence: Evidence) -> Judgement:
    if evidence.size_bytes is None:
        return missing("size", f"allowed {limit:.3f} of the float twin")
    if not evidence.float_size_bytes:
        return missing("size of the float twin", f"allowed {limit:.3f} of it; add float32 to schemes")
    ratio = evidence.size_bytes / evidence.float_size_bytes
    sizes = f"{evidence.size_bytes:,} of {evidence.float_size_bytes:,} bytes"
    return conclude(exactly(ratio <= limit), f"the file is {ratio:.3f} of its float twin ({sizes}); allowed {limit:.3f}")


def _max_peak_memory_mb(limit: float, evidence: Evidence) -> Judgement:
    memory = evidence.memory
    if memory is None:
        return missing("memory", f"allowed {limit:.2f} MB")
    facts = f"peak memory {memory.peak_bytes / 1e6:.2f} MB, median of {memory.n} fresh process{'' if memory.n == 1 else 'es'}; allowed {limit:.2f} MB"
    return conclude(exactly(memory.peak_bytes <= limit * 1e6), facts)


CHECKS: dict[str, Callable[..., Judgement]] = {
    "min_accuracy": lambda limit, evidence: at_limit(limit, "top1_accuracy", evidence.metric("top1_accuracy")),
    "max_drop": lambda limit, evidence: _lost(limit, evidence.primary, evidence),
    "max_size_bytes": _max_size_bytes,
    "max_size_ratio": _max_size_ratio,
    "max_latency_p90_ms": lambda limit, evidence: latency_checks.max_p90(limit, evidence.latency),
    "max_latency_ratio": lambda limit, evidence: latency_checks.max_ratio(limit, evidence.latency, evidence.slower),
    "min_speedup": lambda limit, evidence: latency_checks.min_speedup(limit, evidence.latency, evidence.slower),
    "max_peak_memory_mb": _max_peak_memory_mb,
}
