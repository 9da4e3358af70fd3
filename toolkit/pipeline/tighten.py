"""The ratchet: a recorded figure is replaced by a better one, and never by a worse one.

A figure with noise counts as better only where its interval says so. Taking the luckiest of many measurements would tighten the
baseline to what no honest rerun holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from toolkit.checks.baseline import OTHER_SAMPLES, TOP1, Entry, RecordedLatency, RecordedMetric, Tolerances, is_mean_of, pack
from toolkit.evidence import Row
from toolkit.figures import Latency, Metric, show_name, show_size, show_value
from toolkit.metrics import loss

# Allocators differ from run to run by a few pages; less than this is no difference.
_MEMORY_NOISE = 0.01
_BY_HAND = "edit the file by hand to loosen"


@dataclass
class Revision:
    """An entry, and what was changed in it or kept.

    Attributes:
        entry: The entry as it should be.
        changes: What was recorded or tightened.
        kept: What was measured looser, and stays.
    """

    entry: Entry
    changes: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)

    def take(self, what: str, **figures: Any) -> None:
        """Replaces figures."""
        self.entry = self.entry.model_copy(update=figures)
        self.changes.append(f"{self.place}: {what}")

    def keep(self, what: str) -> None:
        """Notes that a looser figure was not taken."""
        self.kept.append(f"{self.place}: {what} is looser; {_BY_HAND}")

    @property
    def place(self) -> str:
        """Names the row."""
        return f"{self.entry.artifact} on {self.entry.target}"


def revise(entry: Entry | None, row: Row, outcomes: np.ndarray | None, tolerances: Tolerances, setting: Mapping[str, Any]) -> Revision:
    """Tightens one entry with one row; a row that is new makes an entry.

    Args:
        entry: What is recorded; ``None`` for a new row.
        row: What was measured.
        outcomes: Whether the model was right on each sample, ``[n] bool``; ``None`` where that is not known.
        tolerances: The file's tolerances.
        setting: ``cpu`` and ``versions`` of the measurement.
    """
    revision = Revision(entry or Entry(artifact=row.artifact, target=row.target))
    if entry is None:
        revision.changes.append(f"{row.artifact} on {row.target}: recorded")
    own = tolerances.but(revision.entry.tolerances)
    _metrics(revision, row, outcomes, own)
    _size(revision, row.size_bytes)
    if row.latency_ms is not None:
        _latency(revision, row.latency_ms, own, setting)
    if row.memory is not None:
        _memory(revision, row.memory.peak_bytes)
    if entry is None:
        revision.changes = revision.changes[:1]
    return revision


def _metrics(revision: Revision, row: Row, outcomes: np.ndarray | None, tolerances: Tolerances) -> None:
    """The primary metric, and those that the tolerances name."""
    found = {metric.name: metric for metric in (row.metrics or ((row.metric,) if row.metric else ()))}
    wanted = [name for index, name in enumerate(found) if index == 0 or name in tolerances.metrics or name in revision.entry.metrics]
    if revision.entry.metrics and revision.entry.samples_digest != row.samples_digest:
        _other_samples(revision, row, {name: found[name] for name in wanted}, outcomes)
        return
    for name in wanted:
        before, now = revision.entry.metrics.get(name), found[name]
        if before is not None and loss(name, now.value - before.value) > 0:
            revision.keep(f"{show_name(name)} {show_value(name, now.value)} (recorded: {show_value(name, before.value)})")
        elif before is None or now.value != before.value:
            was = f" from {show_value(name, before.value)}" if before else ""
            _record(revision, f"{show_name(name)}{was} to {show_value(name, now.value)}", row, {name: now}, outcomes)


def _other_samples(revision: Revision, row: Row, found: Mapping[str, Metric], outcomes: np.ndarray | None) -> None:
    """Other samples give other values, and they are taken where none is worse.

    Taking what chance could explain would let a row sink step by step, from samples to samples, without anybody deciding it.
    """
    entry = revision.entry
    worse = [name for name, one in entry.metrics.items() if name not in found or loss(name, found[name].value - one.value) > 0]
    if worse:
        now = show_value(worse[0], found[worse[0]].value) if worse[0] in found else "not measured"
        what = f"{show_name(worse[0])} is {now} on {OTHER_SAMPLES} (recorded: {show_value(worse[0], entry.metrics[worse[0]].value)})"
        revision.kept.append(f"{revision.place}: {what}; to take it, remove the row's metrics, samples_digest and outcomes by hand")
    else:
        said = ", ".join(
            f"{show_name(name)} from {show_value(name, one.value)} to {show_value(name, found[name].value)}" for name, one in entry.metrics.items()
        )
        revision.entry = entry.model_copy(update={"metrics": {}, "outcomes": ""})
        _record(revision, f"{said} on {OTHER_SAMPLES}", row, found, outcomes)


def _record(revision: Revision, what: str, row: Row, found: Mapping[str, Metric], outcomes: np.ndarray | None) -> None:
    recorded = {name: RecordedMetric(value=one.value, low=one.low, high=one.high, n=one.n) for name, one in found.items()}
    right = revision.entry.outcomes
    if TOP1 in found:
        known = outcomes is not None and len(outcomes) == found[TOP1].n and is_mean_of(found[TOP1].value, outcomes)
        right = pack(outcomes) if outcomes is not None and known else ""
    revision.take(what, metrics={**revision.entry.metrics, **recorded}, samples_digest=row.samples_digest, outcomes=right)


def _size(revision: Revision, found: int | None) -> None:
    before = revision.entry.size_bytes
    if found is None or found == before:
        return
    if before is not None and found > before:
        revision.keep(f"a size of {found:,} bytes (recorded: {before:,})")
    else:
        revision.take(f"size from {before:,} to {found:,} bytes" if before else f"size {found:,} bytes", size_bytes=found)


def _memory(revision: Revision, found: int) -> None:
    before = revision.entry.peak_bytes
    if before is None or found < before * (1 - _MEMORY_NOISE):
        was = f" from {show_size(before)}" if before else ""
        revision.take(f"peak memory{was} to {show_size(found)}", peak_bytes=found)
    elif found > before * (1 + _MEMORY_NOISE):
        revision.keep(f"a peak memory of {show_size(found)} (recorded: {show_size(before)})")


def _latency(revision: Revision, found: Latency, tolerances: Tolerances, setting: Mapping[str, Any]) -> None:
    """The ratio to the float twin leads; milliseconds follow it, or stand alone where there is no ratio."""
    if not _trusted(found):
        return
    before = revision.entry.latency_ms
    if before is None:
        revision.take(f"latency p90 {found.p90:.3f} ms", latency_ms=_recorded(found, setting))
    elif _has_ratio(found):
        _ratio(revision, found, before, setting)
    elif before.ratio_to_float is None and before.cpu == setting["cpu"]:
        _milliseconds(revision, found, before, tolerances, setting)


def _ratio(revision: Revision, found: Latency, before: RecordedLatency, setting: Mapping[str, Any]) -> None:
    low, high, value = found.ratio_low or 0.0, found.ratio_high or 0.0, found.ratio_to_float or 0.0
    recorded = before.ratio_to_float
    if recorded is None or high < recorded:
        was = f" from {recorded:.3f}" if recorded else ""
        revision.take(f"median over the float twin's{was} to {value:.3f}", latency_ms=_recorded(found, setting))
    elif low > recorded:
        revision.keep(f"a median of {value:.3f} of the float twin's (recorded: {recorded:.3f})")


def _milliseconds(revision: Revision, found: Latency, before: RecordedLatency, tolerances: Tolerances, setting: Mapping[str, Any]) -> None:
    """One machine's clock moves from day to day, so that only more than the tolerance is a difference."""
    slack = tolerances.share("latency_p90")
    if found.p90_high < before.p90 * (1 - slack):
        revision.take(f"latency p90 from {before.p90:.3f} to {found.p90:.3f} ms", latency_ms=_recorded(found, setting))
    elif found.p90_low > before.p90 * (1 + slack):
        revision.keep(f"a p90 of {found.p90:.3f} ms (recorded: {before.p90:.3f} ms)")


def _trusted(found: Latency) -> bool:
    """A measurement that could give no verdict sets no record either."""
    return found.steady and (found.noise is None or found.max_noise is None or found.noise <= found.max_noise)


def _has_ratio(found: Latency) -> bool:
    """The float twin is 1 time itself, without any uncertainty, which is nothing to hold anybody to."""
    return found.ratio_low is not None and found.ratio_high is not None and found.ratio_low < found.ratio_high


def _recorded(found: Latency, setting: Mapping[str, Any]) -> RecordedLatency:
    """Four digits are more than a latency has."""
    names = ("ratio_to_float", "ratio_low", "ratio_high", "p50", "p90") if _has_ratio(found) else ("p50", "p90")
    figures = {name: float(f"{value:.4g}") for name in names if (value := getattr(found, name)) is not None}
    return RecordedLatency(**figures, cpu=setting["cpu"], versions=setting["versions"])
