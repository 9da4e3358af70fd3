"""Figures with their uncertainty: what is measured about a model file. Frozen; no I/O happens here."""

from __future__ import annotations

import re

from pydantic import Field

from toolkit.artifact import Frozen
from toolkit.metrics import scale


class Metric(Frozen):
    """A metric measured on samples, with its 95 % interval.

    Attributes:
        name: For example ``top1_accuracy``; see :data:`toolkit.metrics.METRICS`.
        value: The measured value, on the metric's own scale.
        low: Lower end of the interval.
        high: Upper end of the interval.
        n: Number of samples.
        method: How the interval was computed: ``Wilson``, ``DeLong``, ``BCa bootstrap``, ``logit with jackknife
            error``, ``Wilson with threshold error``, ``normal with bounded bias``.
    """

    name: str
    value: float
    low: float
    high: float
    n: int
    method: str = "Wilson"

    def __str__(self) -> str:
        return f"{show_name(self.name)} {show_metric(self)}"


class Change(Frozen):
    """Candidate minus reference on the same samples, with its paired 95 % interval.

    For a metric of which more is better, negative is a loss; for an error, positive is.

    Attributes:
        metric: The metric that changed.
        value: Difference of the two metrics.
        low: Lower end of the interval.
        high: Upper end of the interval.
        n: Number of samples that both saw.
        lost: Samples that only the reference got right; ``None`` where a sample is not simply right or wrong.
        gained: Samples that only the candidate got right; ``None`` likewise.
        p_value: Of no change at all (exact McNemar test); ``None`` where a sample is not simply right or wrong.
        informative: Whether the reference does better than guessing on these samples. If not, nothing can be lost on them.
        method: How the interval was computed: ``Newcombe``, ``DeLong``, ``BCa bootstrap``, ``jackknife with
            skewness``, ``Newcombe with threshold error``, ``normal with bounded bias``.
    """

    metric: str = "top1_accuracy"
    value: float
    low: float
    high: float
    n: int
    lost: int | None = None
    gained: int | None = None
    p_value: float | None = None
    informative: bool = True
    method: str = "Newcombe"

    def __str__(self) -> str:
        counts = "" if self.lost is None else f", {self.lost} lost, {self.gained} gained"
        return f"{show_change(self)} n={self.n:,}{counts}"


class ClassChange(Frozen):
    """What happened to the samples of one class.

    Attributes:
        name: The class.
        n: Samples of that class.
        reference: Share of them that the reference got right; ``None`` without a reference.
        candidate: Share of them that the candidate got right.
        low: Lower end of the change's paired 95 % interval; ``None`` without a reference.
        high: Upper end of the change's interval.
        lost: Samples that only the reference got right.
        gained: Samples that only the candidate got right.
        p_value: Exact McNemar test, adjusted for the number of classes (Holm); ``None`` without a reference.
    """

    name: str
    n: int
    reference: float | None = None
    candidate: float
    low: float | None = None
    high: float | None = None
    lost: int = 0
    gained: int = 0
    p_value: float | None = None


class Flip(Frozen):
    """A sample that candidate and reference label differently.

    Attributes:
        sample: Its index in the evaluation split.
        label: The right class.
        reference: The reference's choice.
        candidate: The candidate's choice.
    """

    sample: int
    label: int
    reference: int
    candidate: int


class Flips(Frozen):
    """Label flips between reference and candidate; lost samples come first.

    Attributes:
        count: How many there are.
        n: Number of samples that both saw.
        listed: The first of them; all are in the stage's ``flips.json``.
    """

    count: int
    n: int
    listed: tuple[Flip, ...] = ()


class Latency(Frozen):
    """Time of one inference at batch size 1, in milliseconds, with 95 % intervals of the quantiles.

    The intervals allow for timings of the same round being alike; see :func:`toolkit.stats.resampling.block_quantile_interval`.

    Attributes:
        p50: Median.
        p90: 90th percentile.
        p99: 99th percentile.
        p50_low: Lower end of the median's interval.
        p50_high: Upper end of the median's interval.
        p90_low: Lower end of the 90th percentile's interval.
        p90_high: Upper end of the 90th percentile's interval.
        p99_low: Lower end of the 99th percentile's interval.
        p99_high: Upper end of the 99th percentile's interval.
        n: Number of timed inferences.
        rounds: Number of rounds they were taken in.
        ratio_to_float: Median over the baseline's median, interleaved in the same run; ``None`` without a baseline.
        ratio_low: Lower end of the ratio's interval.
        ratio_high: Upper end of the ratio's interval.
        noise: How far the same model, loaded twice and timed in turns, differed from itself (A/A), as a share; it is the
            larger end of that ratio's interval. ``None`` when no A/A run was made.
        max_noise: Above this noise no latency verdict is given.
        steady: Whether warming up reached a steady state before the timing began.
        neighbours: CPUs that other processes kept busy meanwhile, on average; ``None`` where the system does not tell.
        stand_in: What the figure was measured on, when that is not the target itself.
    """

    p50: float
    p90: float
    p99: float | None = None
    p50_low: float
    p50_high: float
    p90_low: float
    p90_high: float
    p99_low: float | None = None
    p99_high: float | None = None
    n: int
    rounds: int | None = None
    ratio_to_float: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    noise: float | None = None
    max_noise: float | None = None
    steady: bool = True
    neighbours: float | None = None
    stand_in: str = "host cpu"

    def __str__(self) -> str:
        ratio = f", {show_ratio(self)} of the baseline" if self.ratio_to_float is not None else ""
        return f"p50 {show_p50(self)}, p90 {show_p90(self)}, n={self.n:,}{ratio}"


class ColdStart(Frozen):
    """From a model file to its first answer, in fresh processes with the runtime imported. Medians with their range.

    Attributes:
        load_ms: Time to load the model.
        load_low: Fastest of them.
        load_high: Slowest of them.
        first_ms: Time of the first inference.
        first_low: Fastest of them.
        first_high: Slowest of them.
        n: Number of fresh processes.
    """

    load_ms: float
    load_low: float
    load_high: float
    first_ms: float
    first_low: float
    first_high: float
    n: int


class Memory(Frozen):
    """Memory of a fresh process that loads a model and runs it, on top of the interpreter with the runtime imported.

    Attributes:
        peak_bytes: Private writable memory at its peak, as a cap counts it; the median of the processes.
        resident_bytes: Growth of the resident set at its peak, mapped model file included.
        arena_bytes: Smallest arena that holds all tensors that live at the same time (greedy by size, Pisarchyk and Lee
            2020); ``None`` where the file does not tell its tensors' sizes.
        weight_bytes: Stored weights.
        cap_bytes: The target's memory cap; ``None`` for none.
        cap: ``enforced``, ``exceeded`` (then the peak is that of a process without the cap), ``not enforced here`` or ``none``.
        n: Number of fresh processes.
    """

    peak_bytes: int
    resident_bytes: int
    arena_bytes: int | None = None
    weight_bytes: int
    cap_bytes: int | None = None
    cap: str = "none"
    n: int


class Roofline(Frozen):
    """The time that this CPU needs at least for a model's arithmetic and memory traffic (Williams et al. 2009).

    Attributes:
        macs: Multiply-accumulates of one inference.
        moved_bytes: Weights, inputs and outputs of every operator that multiplies: what must move once. The others may be fused.
        peak_gmacs: Measured arithmetic peak, in 10^9 multiply-accumulates a second, by element type.
        bandwidth_gbs: Measured read bandwidth, in 10^9 bytes a second: of the weights at the model's working set, of the rest in the
            nearest cache.
        floor_ms: The larger of arithmetic and memory time.
        bound: Which of the two it is.
        reached: Floor over the measured median: 1 is as fast as this CPU can be.
    """

    macs: int
    moved_bytes: int
    peak_gmacs: dict[str, float]
    bandwidth_gbs: float
    floor_ms: float
    bound: str
    reached: float


class CurvePoint(Frozen):
    """Throughput at one batch size and thread count.

    Attributes:
        batch: Samples of one inference.
        threads: Threads of one inference.
        p50_ms: Median time of one inference.
        samples_per_second: Batch size over the median.
        low: Lower end of its 95 % interval.
        high: Upper end of its 95 % interval.
        n: Number of timed inferences.
    """

    batch: int
    threads: int
    p50_ms: float
    samples_per_second: float
    low: float
    high: float
    n: int


class OperatorTime(Frozen):
    """Time spent in one operator of a model.

    Attributes:
        name: The operator's name as the runtime reports it; fused operators keep the name the runtime gave them.
        operator: Its kind, in the format's own words.
        kernel: What executed it, for example a delegate's kernel; empty where the runtime does not say.
        layer: The user's layer it belongs to, for example ``features.3.conv.0``; empty where nothing tells.
        p50_ms: Median of its time in one inference.
        p90_ms: 90th percentile.
        share: Share of all operators' time.
        n: Number of profiled inferences.
    """

    name: str
    operator: str
    kernel: str = ""
    layer: str = ""
    p50_ms: float
    p90_ms: float
    share: float
    n: int


class Variant(Frozen):
    """One other way to execute the same model file, compared with the default one.

    Attributes:
        name: For example ``threads=2``, ``optimization=disabled``, ``without XNNPACK``, ``cpu=Haswell``.
        flips: Samples whose label differs.
        max_abs: Largest difference of any output, by output name.
        sqnr_db: Signal over difference of the worst output, in dB; 200 is bit-identical.
        note: Why it could not be measured (then ``max_abs`` is empty), or on how many samples it was.
    """

    name: str
    flips: int = 0
    max_abs: dict[str, float] = Field(default_factory=dict)
    sqnr_db: float = 200.0
    note: str = ""


def show_size(size_bytes: int | None) -> str:
    """Formats a size in KB or MB (powers of ten)."""
    if size_bytes is None:
        return "-"
    return f"{size_bytes / 1e6:.2f} MB" if size_bytes >= 1e6 else f"{size_bytes / 1e3:.1f} KB"


def show_name(name: str) -> str:
    """Spells a metric's name for people: ``top1_accuracy`` is top-1 accuracy."""
    spelled = re.sub(r"^top(?=\d)", "top-", name).replace("_", " ")
    return re.sub(r"\b(roc auc|iou)\b", lambda match: {"roc auc": "ROC-AUC", "iou": "IoU"}[match[0]], spelled)


def show_value(name: str, value: float) -> str:
    """Formats a metric's value: a rate as a percentage, any other with four digits."""
    return f"{value:.2%}" if scale(name).rate else f"{value:.4g}"


def show_difference(name: str, value: float) -> str:
    """Formats a difference of two values of a metric, without unit: percentage points for a rate."""
    return f"{value * 100:+.2f}" if scale(name).rate else f"{value:+.4g}"


def show_metric(metric: Metric) -> str:
    """Formats a metric with interval and sample count."""
    value, low, high = (show_value(metric.name, number) for number in (metric.value, metric.low, metric.high))
    return f"{value} [{low}, {high}] n={metric.n:,}"


def show_change(change: Change) -> str:
    """Formats a change with its interval, that of a rate in percentage points."""
    value, low, high = (show_difference(change.metric, number) for number in (change.value, change.low, change.high))
    return f"{value}{' pp' if scale(change.metric).rate else ''} [{low}, {high}]"


def show_latency(latency: Latency) -> str:
    """Formats median and 90th percentile."""
    return f"{latency.p50:.3f} / {latency.p90:.3f}"


def show_p50(latency: Latency) -> str:
    """Formats the median with unit and interval."""
    return f"{latency.p50:.4f} ms [{latency.p50_low:.4f}, {latency.p50_high:.4f}]"


def show_p90(latency: Latency) -> str:
    """Formats the 90th percentile with unit and interval."""
    return f"{latency.p90:.4f} ms [{latency.p90_low:.4f}, {latency.p90_high:.4f}]"


def show_p99(latency: Latency) -> str:
    """Formats the 99th percentile with unit and interval."""
    if latency.p99 is None or latency.p99_low is None or latency.p99_high is None:
        return "-"
    return f"{latency.p99:.4f} ms [{latency.p99_low:.4f}, {latency.p99_high:.4f}]"


def show_ratio(latency: Latency) -> str:
    """Formats the ratio of the medians, with its interval where there is one."""
    if latency.ratio_to_float is None:
        return "-"
    interval = f" [{latency.ratio_low:.2f}, {latency.ratio_high:.2f}]" if latency.ratio_low is not None and latency.ratio_high is not None else ""
    return f"{latency.ratio_to_float:.2f}{interval}"


def show_noise(latency: Latency) -> str:
    """Formats what the A/A run says about the machine."""
    if latency.noise is None:
        return "-"
    return f"{latency.noise:.1%}" + (f" (at most {latency.max_noise:.1%} allowed)" if latency.max_noise is not None else "")


def latency_facts(latency: Latency) -> dict[str, str]:
    """Names every figure of a latency, for a list of facts."""
    facts = {"p50": show_p50(latency), "p90": show_p90(latency), "p99": show_p99(latency), "inferences": f"{latency.n:,}"}
    facts |= {"median / baseline": show_ratio(latency)} if latency.ratio_to_float is not None else {}
    return facts | ({"noise (A/A)": show_noise(latency)} if latency.noise is not None else {})
