"""A committed baseline, and evidence held against it.

Accuracy is compared on the same samples where they are the same ones, outcome by outcome; latency by the ratio to the float
twin, which travels between machines better than milliseconds do.
"""

from __future__ import annotations

import base64
import binascii
import math
import zlib
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, Field, model_validator

from toolkit.artifact import Frozen
from toolkit.checks import latency as latency_checks
from toolkit.checks.budgets import not_inferior
from toolkit.checks.verdicts import Judgement, by_interval, conclude, exactly, missing
from toolkit.evidence import Finding, Row, Verdict
from toolkit.figures import Change, Latency, Metric, show_name, show_size, show_value
from toolkit.limits import Count, Number, Positive, read_fraction
from toolkit.metrics import scale
from toolkit.stats.proportions import independent_difference_interval, mcnemar_p, paired_difference_interval

UPDATE = "run: edgekit baseline update"
TOP1 = "top1_accuracy"
HEAP_STEP = 128 * 1024
"""By so many bytes glibc's heap grows at once (M_TOP_PAD, mallopt(3)); two runs of one file were seen to differ by exactly that."""
HEAP_NOISE = 3 * HEAP_STEP
"""Two runs of one file differed by up to 319,488 bytes on a busy machine, where a look each millisecond can miss a peak."""
OTHER_SAMPLES = "other samples than the baseline's"


def _share(value: str | float) -> str | float:
    """Checks a tolerance and keeps it as it is written: people wrote it, and an update must not rewrite it."""
    if isinstance(value, bool) or not 0 <= read_fraction(value) < 1:
        raise ValueError('write a share from 0 to below 1, such as "5%" or 0.05')
    return value


def _margin(value: str | float) -> str | float:
    if read_fraction(_share(value)) == 0:
        raise ValueError('no number of samples shows that nothing at all was lost; write a margin such as "0.5pp"')
    return value


Share = Annotated[str | float, AfterValidator(_share)]
Margin = Annotated[str | float, AfterValidator(_margin)]


class Tolerances(Frozen):
    """How much worse than the baseline is still no regression. People edit them; an update never does.

    Attributes:
        metric: Loss of a metric: of a rate in percentage points, of any other as a share of the baseline's value.
        metrics: Losses of single metrics by name. One that is named here is recorded beside the primary metric.
        size: Growth of the model file, as a share.
        latency_ratio: Growth of the ratio to the float twin, as a share.
        latency_p90: Growth of the 90th percentile, as a share; only judged on the CPU that it was recorded on.
        peak_memory: Growth of the peak memory, as a share.
    """

    metric: Margin = "0.5pp"
    metrics: dict[str, Margin] = Field(default_factory=dict)
    size: Share = "1%"
    latency_ratio: Share = "15%"
    latency_p90: Share = "25%"
    peak_memory: Share = "10%"

    def but(self, own: Tolerances | None) -> Tolerances:
        """Returns these tolerances, with a row's own where it has some."""
        return self if own is None else self.model_copy(update={name: getattr(own, name) for name in own.model_fields_set})

    def margin(self, name: str, value: float) -> float:
        """Returns the largest loss of a metric, on its own scale."""
        share = float(read_fraction(self.metrics.get(name, self.metric)))
        return share if scale(name).rate else share * abs(value)

    def grown(self, kind: str, value: float) -> float:
        """Returns the largest allowed figure."""
        return value * (1 + self.share(kind))

    def share(self, kind: str) -> float:
        """Returns a tolerance as a fraction."""
        return float(read_fraction(getattr(self, kind)))


class RecordedMetric(Frozen):
    """A metric as it was recorded: value, 95 % interval, number of samples."""

    value: Number
    low: Number
    high: Number
    n: Count


class RecordedLatency(Frozen):
    """A latency as it was recorded.

    Attributes:
        ratio_to_float: Median over the float twin's; ``None`` for the float twin itself.
        ratio_low: Lower end of its 95 % interval.
        ratio_high: Upper end of its 95 % interval.
        p50: Median in milliseconds.
        p90: 90th percentile in milliseconds.
        cpu: The CPU it was measured on.
        versions: Versions of the runtime's distributions.
    """

    ratio_to_float: Positive | None = None
    ratio_low: Positive | None = None
    ratio_high: Positive | None = None
    p50: Positive
    p90: Positive
    cpu: str = ""
    versions: dict[str, str] = Field(default_factory=dict)


class Entry(Frozen):
    """What is recorded about one artifact on one target.

    Attributes:
        artifact: File name of the model.
        target: The target's name.
        size_bytes: Size of the model file.
        metrics: Metrics by name.
        samples_digest: Digest of the samples they were measured on.
        outcomes: For each of them, whether the model was right: packed bits, compressed, as base64. Empty where a sample is not
            simply right or wrong.
        latency_ms: Latency at batch size 1.
        peak_bytes: Peak memory of a fresh process.
        tolerances: The tolerances of this row, as far as they differ from the file's.
    """

    artifact: str
    target: str
    size_bytes: Count | None = None
    metrics: dict[str, RecordedMetric] = Field(default_factory=dict)
    samples_digest: str = ""
    outcomes: str = ""
    latency_ms: RecordedLatency | None = None
    peak_bytes: Count | None = None
    tolerances: Tolerances | None = None

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Entry:
        for name, one in self.metrics.items():
            kind = scale(name)
            span = kind.high - kind.low  # an interval may reach over the scale's end, but not by a whole scale
            if not kind.low <= one.value <= kind.high or not kind.low - span <= one.low <= one.high <= kind.high + span:
                raise ValueError(f"{name} is outside its scale, {kind.low:g} to {kind.high:g}, or its interval is upside down")
        right = self.right()
        if right is not None and not is_mean_of(self.metrics[TOP1].value, right):
            said = f"{TOP1} is {show_value(TOP1, self.metrics[TOP1].value)}, and its outcomes say {show_value(TOP1, float(right.mean()))}"
            raise ValueError(f"{said}; whoever edits the value takes the outcomes away too")
        return self

    def right(self) -> np.ndarray | None:
        """Returns whether the model was right, ``[n] bool``; ``None`` when that is not recorded."""
        top1 = self.metrics.get(TOP1)
        return unpack(self.outcomes, top1.n) if self.outcomes and top1 else None


class Baseline(Frozen):
    """The committed file, ``edgekit-baseline.json``.

    Attributes:
        schema_version: Version of this layout; ``schema`` in JSON.
        tolerances: How much worse is still no regression, for all rows.
        rows: One per artifact and target.
    """

    schema_version: Literal[1] = Field(default=1, alias="schema")
    tolerances: Tolerances = Tolerances()
    rows: tuple[Entry, ...] = ()

    @model_validator(mode="after")
    def _each_once(self) -> Baseline:
        if len(self.by_place()) < len(self.rows):
            raise ValueError("the same artifact and target appear twice")
        return self

    def by_place(self) -> dict[tuple[str, str], Entry]:
        """Returns the entries by artifact and target."""
        return {(entry.artifact, entry.target): entry for entry in self.rows}


def judge(entry: Entry, row: Row, outcomes: np.ndarray | None, tolerances: Tolerances, environment: Mapping[str, Any]) -> tuple[Finding, ...]:
    """Holds a row against its entry.

    Args:
        entry: What is recorded.
        row: What was measured now.
        outcomes: Whether the model is right on each sample now, ``[n] bool``; ``None`` where that is not known.
        tolerances: How much worse is no regression.
        environment: Of this run; its CPU decides whether milliseconds can be compared.

    Returns:
        Findings named ``baseline.`` and the figure; an inconclusive one named ``baseline`` where nothing can be compared.
    """
    judged = list(_judgements(entry, row, outcomes, tolerances.but(entry.tolerances), str(environment.get("cpu", ""))))
    if not judged:
        reason = f"nothing that the baseline records of {entry.artifact} on {entry.target} can be compared here; {UPDATE}"
        return (Finding(budget="baseline", verdict=Verdict.INCONCLUSIVE, reason=reason),)
    return tuple(Finding(budget=f"baseline.{name}", verdict=verdict, reason=reason) for name, (verdict, reason) in judged)


def against(entry: Entry, name: str, found: Metric, samples_digest: str, outcomes: np.ndarray | None, margin: float) -> Judgement:
    """Holds a metric against the recorded one: paired on the same samples, else by both intervals."""
    recorded = entry.metrics[name]
    same = bool(samples_digest) and samples_digest == entry.samples_digest
    before = entry.right() if same and name == TOP1 else None
    if before is not None and outcomes is not None and len(outcomes) == len(before):
        return _paired(before, np.asarray(outcomes, dtype=bool), margin)
    if same and found.value == recorded.value:
        return conclude(Verdict.PASS, f"{show_name(name)} is {show_value(name, found.value)} on the baseline's {found.n:,} samples, as it was")
    value, low, high = independent_difference_interval(_whole(found), _whole(recorded))
    change = Change(metric=name, value=value, low=low, high=high, n=min(found.n, recorded.n), method="squared and added")
    basis = f"against the baseline, {found.n:,} samples now and {recorded.n:,} then"
    verdict, reason = not_inferior(margin, change, None, basis)
    return verdict, reason if same or verdict is not Verdict.INCONCLUSIVE else f"{reason}; they are {OTHER_SAMPLES}: {UPDATE}"


def is_mean_of(value: float, outcomes: np.ndarray) -> bool:
    """Whether a recorded rate is that of the recorded outcomes, ``[n] bool``."""
    return abs(value - float(np.mean(outcomes))) < 1e-9


def pack(outcomes: np.ndarray) -> str:
    """Writes ``[n] bool`` as text."""
    return base64.b64encode(zlib.compress(np.packbits(np.asarray(outcomes, dtype=bool)).tobytes(), 9)).decode("ascii")


def unpack(text: str, n: int) -> np.ndarray:
    """Reads what :func:`pack` wrote of ``n`` outcomes; no more memory is taken than they need.

    Raises:
        ValueError: It is damaged, or has not as many.
    """
    size = -(-n // 8)
    try:
        packed = zlib.decompressobj().decompress(base64.b64decode(text, validate=True), size + 1)
    except (binascii.Error, zlib.error) as error:
        raise ValueError(f"the outcomes are damaged: {error}; {UPDATE}") from error
    if len(packed) != size:
        raise ValueError(f"the outcomes are not those of {n:,} samples; {UPDATE}")
    return np.unpackbits(np.frombuffer(packed, np.uint8), count=n).astype(bool)


def _judgements(entry: Entry, row: Row, outcomes: np.ndarray | None, tolerances: Tolerances, cpu: str) -> Iterator[tuple[str, Judgement]]:
    found = {metric.name: metric for metric in (row.metrics or ((row.metric,) if row.metric else ()))}
    for name, recorded in entry.metrics.items():
        asked = f"{show_value(name, recorded.value)} in the baseline"
        margin = tolerances.margin(name, recorded.value)
        known = name in found
        yield name, against(entry, name, found[name], row.samples_digest, outcomes, margin) if known else missing(show_name(name), asked)
    if entry.size_bytes is not None:
        yield "size_bytes", _size(entry.size_bytes, row.size_bytes, tolerances)
    if entry.latency_ms is not None:
        yield from _latency(entry.latency_ms, row.latency_ms, tolerances, cpu)
    if entry.peak_bytes is not None:
        yield "peak_memory", _peak(entry.peak_bytes, row.memory.peak_bytes if row.memory else None, tolerances)


def _paired(before: np.ndarray, now: np.ndarray, margin: float) -> Judgement:
    """McNemar's four counts; the interval is Newcombe's."""
    n = len(now)
    both, lost, gained = (int(np.count_nonzero(cell)) for cell in (before & now, before & ~now, ~before & now))
    if not lost and not gained:
        return conclude(Verdict.PASS, f"top-1 accuracy did not change: all {n:,} samples have the outcome that they have in the baseline")
    value, low, high = paired_difference_interval(both, lost, gained, n - both - lost - gained)
    p_value = mcnemar_p(lost, gained)
    change = Change(metric=TOP1, value=value, low=low, high=high, n=n, lost=lost, gained=gained, p_value=p_value)
    basis = f"against the baseline on the same {n:,} samples ({lost} lost, {gained} gained, McNemar p = {p_value:.2g})"
    return not_inferior(margin, change, float(np.mean(now)), basis)


def _size(recorded: int, found: int | None, tolerances: Tolerances) -> Judgement:
    if found is None:
        return missing("size", f"{recorded:,} bytes in the baseline")
    allowed = int(tolerances.grown("size", recorded))
    facts = f"the file has {found:,} bytes ({found / recorded - 1:+.2%}), {recorded:,} in the baseline; allowed {allowed:,}"
    return conclude(exactly(found <= allowed), facts)


def _peak(recorded: int, found: int | None, tolerances: Tolerances) -> Judgement:
    if found is None:
        return missing("memory", f"{show_size(recorded)} in the baseline")
    allowed = max(int(tolerances.grown("peak_memory", recorded)), recorded + HEAP_STEP)
    facts = f"peak memory {show_size(found)} ({found / recorded - 1:+.1%}), {show_size(recorded)} in the baseline; allowed {show_size(allowed)}"
    verdict = by_interval(holds=found <= allowed, misses=found > recorded + HEAP_NOISE)
    return conclude(verdict, facts, f"runs of one file differ by up to {show_size(HEAP_NOISE)} on a busy machine: measure on a quieter one")


def _latency(recorded: RecordedLatency, found: Latency | None, tolerances: Tolerances, cpu: str) -> Iterator[tuple[str, Judgement]]:
    same_cpu = bool(cpu) and cpu == recorded.cpu
    if recorded.ratio_to_float is not None:
        verdict, reason = _ratio(recorded, recorded.ratio_to_float, found, tolerances)
        elsewhere = f"; milliseconds are not compared, as the baseline's are of another CPU ({recorded.cpu or 'unknown'})"
        yield "latency_ratio", (verdict, reason if same_cpu else reason + elsewhere)
    if same_cpu:
        yield "latency_p90_ms", _p90(recorded.p90, found, tolerances)


def _ratio(recorded: RecordedLatency, before: float, found: Latency | None, tolerances: Tolerances) -> Judgement:
    """Both ratios have an interval; on a logarithmic scale their half-widths are squared and added."""
    limit = tolerances.grown("latency_ratio", before)
    if found is None or found.ratio_to_float is None or found.ratio_low is None or found.ratio_high is None:
        return latency_checks.max_ratio(limit, found)
    value = found.ratio_to_float
    down = math.hypot(math.log(value / min(found.ratio_low, value)), math.log(max(recorded.ratio_high or before, before) / before))
    up = math.hypot(math.log(max(found.ratio_high, value) / value), math.log(before / min(recorded.ratio_low or before, before)))
    facts = f"{latency_checks.ratio_facts(found)}, {before:.3f} in the baseline; allowed {limit:.3f}"
    return latency_checks.decide(found, (value, value * math.exp(-down), value * math.exp(up)), limit, facts)


def _p90(recorded: float, found: Latency | None, tolerances: Tolerances) -> Judgement:
    verdict, reason = latency_checks.max_p90(tolerances.grown("latency_p90", recorded), found)
    return verdict, f"{reason} (baseline {recorded:.3f} ms on the same CPU)"


def _whole(figure: Metric | RecordedMetric) -> tuple[float, float, float]:
    """Value and interval; a bootstrap's interval need not hold its value."""
    return figure.value, min(figure.low, figure.value), max(figure.high, figure.value)
