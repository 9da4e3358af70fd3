"""Holds evidence against budgets: every limit that is set becomes one finding with a verdict and a reason.

An interval that lies wholly on one side of its limit decides; one that straddles it is *inconclusive*, and the reason says
how many samples would decide if the measured value stayed as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from toolkit.config import Budgets
from toolkit.evidence import Change, Finding, Latency, Metric, Verdict, show_name, show_size, worst

TAIL = 0.025  # beyond either end of a 95 % interval
Z95 = NormalDist().inv_cdf(1 - TAIL)
# The largest of n times is above the 90th percentile with probability 1 - 0.9**n; with fewer, no time bounds it from above.
P90_RUNS = math.ceil(math.log(TAIL) / math.log(0.9))
FLOAT_SCHEME = "float32"


def judge(
    budgets: Budgets,
    *,
    size_bytes: int | None,
    float_size_bytes: int | None,
    metric: Metric | None,
    change: Change | None,
    latency: Latency | None,
    scheme: str,
) -> tuple[Finding, ...]:
    """Holds the evidence about one artifact against every budget that is set.

    Args:
        budgets: The limits; an absent one is not checked.
        size_bytes: Size of the model file.
        float_size_bytes: Size of its float twin in the same format; ``None`` without one.
        metric: Accuracy with interval.
        change: Paired change against the float source.
        latency: Latency at batch size 1.
        scheme: The artifact's scheme; ``max_size_ratio`` does not apply to ``float32``.

    Returns:
        One finding per budget, in the order in which :class:`~toolkit.config.Budgets` lists them. A budget whose evidence is
        missing is inconclusive.
    """
    evidence = _Evidence(size_bytes, float_size_bytes, metric, change, latency)
    findings = []
    for budget, check in CHECKS.items():
        limit = getattr(budgets, budget)
        if limit is None or (budget == "max_size_ratio" and scheme == FLOAT_SCHEME):
            continue
        verdict, reason = check(limit, evidence)
        findings.append(Finding(budget=budget, verdict=verdict, reason=reason))
    return tuple(findings)


def row_verdict(findings: Sequence[Finding]) -> tuple[Verdict, str]:
    """Combines findings into the verdict of a row: the worst one, with the reason of the first finding that bad."""
    if not findings:
        return Verdict.PASS, "no budget is set, so nothing was asked"
    verdict = worst(finding.verdict for finding in findings)
    if verdict is not Verdict.PASS:
        return verdict, next(finding.reason for finding in findings if finding.verdict is verdict)
    return verdict, f"{len(findings)} budgets hold" if len(findings) > 1 else "1 budget holds"


@dataclass(frozen=True)
class _Evidence:
    size_bytes: int | None
    float_size_bytes: int | None
    metric: Metric | None
    change: Change | None
    latency: Latency | None


_Judgement = tuple[Verdict, str]


def _min_accuracy(limit: float, evidence: _Evidence) -> _Judgement:
    metric = evidence.metric
    if metric is None:
        return _missing("accuracy", f"at least {limit:.2%} asked")
    facts = f"{show_name(metric.name)} {metric.value:.2%} [{metric.low:.2%}, {metric.high:.2%}] on {metric.n:,} samples; at least {limit:.2%} asked"
    verdict = _verdict(holds=metric.low >= limit, misses=metric.high < limit)
    return verdict, facts + _ending(verdict, samples_for_rate(metric.value, limit), towards_pass=metric.value > limit)


def _max_drop(limit: float, evidence: _Evidence) -> _Judgement:
    """Non-inferiority: it passes when even the interval's worst end loses no more than the margin."""
    change = evidence.change
    if change is None:
        return _missing("change against the float source", f"allowed {limit * 100:.2f} pp")
    moved = f"{'fell' if change.value < 0 else 'rose'} by {abs(change.value) * 100:.2f} pp" if change.value else "did not change"
    interval = f"[{change.low * 100:+.2f}, {change.high * 100:+.2f}]"
    facts = f"accuracy {moved} {interval} on {change.n:,} samples; allowed {limit * 100:.2f} pp"
    verdict = _verdict(holds=change.low >= -limit, misses=change.high < -limit)
    return verdict, facts + _ending(verdict, samples_for_drop(change, limit), towards_pass=change.value > -limit)


def _max_size_bytes(limit: int, evidence: _Evidence) -> _Judgement:
    if evidence.size_bytes is None:
        return _missing("size", f"allowed {limit:,} bytes")
    verdict = _exact(evidence.size_bytes <= limit)
    return verdict, f"the file has {evidence.size_bytes:,} bytes ({show_size(evidence.size_bytes)}); allowed {limit:,}" + _ending(verdict)


def _max_size_ratio(limit: float, evidence: _Evidence) -> _Judgement:
    if evidence.size_bytes is None:
        return _missing("size", f"allowed {limit:.3f} of the float twin")
    if not evidence.float_size_bytes:
        return _missing("size of the float twin", f"allowed {limit:.3f} of it; add float32 to schemes")
    ratio = evidence.size_bytes / evidence.float_size_bytes
    verdict = _exact(ratio <= limit)
    sizes = f"{evidence.size_bytes:,} of {evidence.float_size_bytes:,} bytes"
    return verdict, f"the file is {ratio:.3f} of its float twin ({sizes}); allowed {limit:.3f}" + _ending(verdict)


def _max_latency_p90_ms(limit: float, evidence: _Evidence) -> _Judgement:
    latency = evidence.latency
    if latency is None:
        return _missing("latency", f"allowed {limit:.3f} ms")
    where = f" on {latency.stand_in}" if latency.stand_in else ""
    interval = f"[{latency.p90_low:.3f}, {latency.p90_high:.3f}]"
    facts = f"p90 latency {latency.p90:.3f} ms {interval} over {latency.n:,} runs{where}; allowed {limit:.3f} ms"
    if latency.n < P90_RUNS:
        return Verdict.INCONCLUSIVE, f"{facts}: undecided, a 95 % interval of the p90 needs at least {P90_RUNS} inferences"
    verdict = _verdict(holds=latency.p90_high <= limit, misses=latency.p90_low > limit)
    undecided = ": undecided, a longer measurement or a quieter machine would narrow it"
    return verdict, facts + (undecided if verdict is Verdict.INCONCLUSIVE else _ending(verdict))


CHECKS: dict[str, Callable[..., _Judgement]] = {
    "min_accuracy": _min_accuracy,
    "max_drop": _max_drop,
    "max_size_bytes": _max_size_bytes,
    "max_size_ratio": _max_size_ratio,
    "max_latency_p90_ms": _max_latency_p90_ms,
}


def samples_for_rate(value: float, limit: float) -> int | None:
    """Counts the samples at which the Wilson interval of an unchanged rate leaves its limit.

    The Wilson interval inverts the score test (Wilson 1927, doi:10.1080/01621459.1927.10502953): its end meets ``limit`` where
    ``|value - limit| = z sqrt(limit (1 - limit) / n)``, which solves for ``n``.

    Returns:
        The smallest such count, or ``None`` when the rate sits on the limit and no count decides.
    """
    gap = value - limit
    return None if gap == 0 else _smallest(Z95**2 * limit * (1 - limit) / gap / gap, strict=gap < 0)


def samples_for_drop(change: Change, limit: float) -> int | None:
    """Counts the samples at which the interval of an unchanged difference leaves its margin.

    The width of an interval of paired differences shrinks with the root of the count; the half that points at the margin counts.

    Returns:
        The smallest such count, or ``None`` when the difference sits on the margin and no count decides.
    """
    gap = change.value + limit
    half = change.value - change.low if gap > 0 else change.high - change.value
    return None if gap == 0 else _smallest(change.n * (half / gap) * (half / gap), strict=gap < 0)


def _smallest(bound: float, *, strict: bool) -> int | None:
    """Returns the first whole number at (or, if strict, beyond) a bound; ``None`` when nobody could collect as many."""
    if bound > 1e12:
        return None
    # The nudge keeps rounding errors of the bound from landing one sample short.
    bound *= 1 + 1e-9
    return math.floor(bound) + 1 if strict else max(1, math.ceil(bound))


def about(count: int) -> str:
    """Rounds a count up to three digits, so that the rounded count still decides."""
    step = 10 ** max(0, len(str(count)) - 3)
    return f"{-(-count // step) * step:,}"


def _ending(verdict: Verdict, samples: int | None = None, *, towards_pass: bool = True) -> str:
    if verdict is not Verdict.INCONCLUSIVE:
        return ": holds" if verdict is Verdict.PASS else ": missed"
    if samples is None:
        return ": undecided, and never decided at this rate"
    outcome = "would decide" if towards_pass else "would decide towards fail"
    return f": undecided, about {about(samples)} samples {outcome} at this rate"


def _missing(what: str, asked: str) -> _Judgement:
    return Verdict.INCONCLUSIVE, f"{what} was not measured; {asked}"


def _exact(holds: bool) -> Verdict:
    return Verdict.PASS if holds else Verdict.FAIL


def _verdict(*, holds: bool, misses: bool) -> Verdict:
    if holds:
        return Verdict.PASS
    return Verdict.FAIL if misses else Verdict.INCONCLUSIVE
