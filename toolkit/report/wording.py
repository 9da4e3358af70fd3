"""What every form of the report says in the same words: headline, source, notes, and the findings worth showing."""

from __future__ import annotations

from collections import Counter

from toolkit.evidence import Attempt, Finding, Report, Row, StageRecord, Verdict, worst
from toolkit.figures import (
    ClassChange,
    ColdStart,
    CurvePoint,
    Flips,
    Memory,
    Roofline,
    show_change,
    show_metric,
    show_name,
    show_noise,
    show_p50,
    show_p90,
    show_p99,
    show_ratio,
    show_size,
)
from toolkit.suspects import RESPONSIBLE, show_slower

WHOLE_ROW = "row"
# Said in the tables alone: that a framework is absent, or a route was not needed, is no fault of any route.
_UNREMARKABLE = ("missing-extra", "not-needed")


def counts(report: Report) -> str:
    """Counts the rows by verdict: ``4 rows: 2 pass, 1 fail, 1 inconclusive``."""
    seen = Counter(row.verdict for row in report.rows)
    parts = ", ".join(f"{seen[verdict]} {verdict}" for verdict in Verdict if seen[verdict])
    total = f"{len(report.rows)} row{'' if len(report.rows) == 1 else 's'}"
    return f"{total}: {parts}" if parts else total


def source_line(report: Report) -> str:
    """Says how right the float source is, which every change is measured against; or why there is none."""
    source = report.source
    if source is None:
        return _no_source(report)
    where = f"{source.runtime} ({source.stand_in})" if source.stand_in else source.runtime
    return f"float source: {show_name(source.metric.name)} {show_metric(source.metric)} on {where}"


def training_line(report: Report) -> str:
    """Says how the float model was trained; empty where the project does not train it."""
    found = report.training
    if found is None:
        return ""
    chosen = f"epoch {found.best_epoch} of {found.epochs}, right on {found.validation_accuracy:.1%} of {found.n} held-out training samples"
    speed = pace(found.samples_per_second, found.cpu_samples_per_second)
    return f"trained on {found.device} ({found.why}): {chosen}{f'; {speed}' if speed else ''}"


def pace(samples_per_second: float | None, cpu_samples_per_second: float | None = None) -> str:
    """Says how fast a model was trained, and how fast the CPU would be; empty where that is not known."""
    if not samples_per_second:
        return ""
    beside = f"; the CPU of this machine: {cpu_samples_per_second:,.3g}" if cpu_samples_per_second else ""
    times = f", {samples_per_second / cpu_samples_per_second:,.1f} x faster" if cpu_samples_per_second else ""
    return f"{samples_per_second:,.0f} samples/s{times}{beside}"


def source_notes(report: Report) -> str:
    """Says what is worth knowing of the source model; empty when nothing is."""
    return f"Of the source model: {'; '.join(report.notes)}." if report.notes else ""


def _no_source(report: Report) -> str:
    if any(stage.step in ("evaluate:source", "evaluate:reference") for stage in report.stages):
        return "float source: accuracy was not measured"
    if any(finding.budget.startswith("golden") for row in report.rows for finding in row.findings):
        return "outputs are held against a golden; no labels are needed"
    return "there is no float source to compare with"


def stand_in_note(report: Report) -> str:
    """Says what the latency figures are not; empty when all of them are the target's own."""
    stand_ins = sorted({row.latency_ms.stand_in for row in report.rows if row.latency_ms and row.latency_ms.stand_in})
    if not stand_ins:
        return ""
    return f"Latency is measured at batch size 1 on a stand-in ({', '.join(stand_ins)}); it is not the device's."


def evidence_of(row: Row) -> tuple[tuple[str, str], ...]:
    """Lists everything that was measured of a row, as name and figure with its uncertainty."""
    changes = {change.metric: change for change in row.changes}
    found: list[tuple[str, str]] = []
    for metric in row.metrics:
        moved = f"; change {show_change(changes[metric.name])}" if metric.name in changes else ""
        found.append((show_name(metric.name), f"{show_metric(metric)}, {metric.method}{moved}"))
    if row.flips:
        found.append(("label flips", flips_line(row.flips)))
    if lost := [one for one in row.classes if one.lost > one.gained]:
        found.append(("classes that lost most", "; ".join(map(class_line, lost[:3]))))
    if timed := row.latency_ms:
        found += [("p50", show_p50(timed)), ("p90", show_p90(timed)), ("p99", show_p99(timed))]
        found += [("median / float twin", show_ratio(timed))] if timed.ratio_to_float is not None else []
        found += [("noise (A/A)", show_noise(timed))] if timed.noise is not None else []
    if row.slower:
        found.append(("slower than float", show_slower(row.slower)))
    if row.roofline:
        found.append(("roofline", roofline_line(row.roofline)))
    if row.cold:
        found.append(("cold start", cold_line(row.cold)))
    if row.memory:
        found.append(("memory", memory_line(row.memory)))
    return tuple(found)


def made_line(row: Row) -> str:
    """Says how a file came about, where something was chosen or repaired."""
    return "; ".join(row.made)


def slower_line(row: Row) -> str:
    """Says how much slower than its float twin a row is, and which operators are responsible, unless a finding does; empty where it is not."""
    named = any(f"; {RESPONSIBLE}: " in finding.reason for finding in row.findings)
    return show_slower(row.slower, why=not named) if row.slower else ""


def flips_line(flips: Flips) -> str:
    """Says how many labels differ from the reference's, and which samples to look at first."""
    share = f"{flips.count:,} of {flips.n:,} samples ({flips.count / flips.n:.2%})"
    if not flips.listed:
        return share
    first = ", ".join(f"{flip.sample} ({flip.label}: {flip.reference} to {flip.candidate})" for flip in flips.listed[:3])
    return f"{share}; first, as sample (label: reference to candidate): {first}"


def class_line(one: ClassChange) -> str:
    """Says what happened to a class."""
    if one.reference is None or one.low is None or one.high is None:
        return f"{one.name} {one.candidate:.2%} right, n={one.n}"
    change, p_value = (one.candidate - one.reference) * 100, "" if one.p_value is None else f", adjusted p={one.p_value:.2g}"
    return f"{one.name} {change:+.2f} pp [{one.low * 100:+.2f}, {one.high * 100:+.2f}] n={one.n}{p_value}"


def cold_line(cold: ColdStart) -> str:
    """Says how long the way from a file to its first answer is."""
    load = f"load {cold.load_ms:.1f} ms [{cold.load_low:.1f} to {cold.load_high:.1f}]"
    return f"{load}, first inference {cold.first_ms:.2f} ms [{cold.first_low:.2f} to {cold.first_high:.2f}], {cold.n} fresh processes"


def memory_line(memory: Memory) -> str:
    """Says how much memory a model takes on top of the interpreter."""
    arena = "" if memory.arena_bytes is None else f", smallest arena {show_size(memory.arena_bytes)}"
    cap = "" if memory.cap_bytes is None else f", cap {show_size(memory.cap_bytes)} {memory.cap}"
    weights = f"weights {show_size(memory.weight_bytes)}"
    return (
        f"peak {show_size(memory.peak_bytes)} private, {show_size(memory.resident_bytes)} resident; {weights}{arena}{cap}; {memory.n} fresh processes"
    )


def roofline_line(roofline: Roofline) -> str:
    """Says how much faster this CPU could be at best."""
    floor = f"floor {roofline.floor_ms:.4f} ms ({roofline.bound} bound, {roofline.macs / 1e6:,.1f} M multiply-accumulates)"
    return f"{roofline.reached:.0%} of it reached; {floor}"


def point_line(point: CurvePoint) -> str:
    """Says what throughput a batch size and thread count give."""
    rate = f"{point.samples_per_second:,.0f} samples/s [{point.low:,.0f}, {point.high:,.0f}]"
    return f"{rate}, p50 {point.p50_ms:.4f} ms, n={point.n}"


def findings_of(row: Row) -> tuple[Finding, ...]:
    """Returns a row's findings, with one for the row itself where they alone do not explain its verdict."""
    if row.findings and worst(finding.verdict for finding in row.findings) is row.verdict:
        return row.findings
    return (*row.findings, Finding(budget=WHOLE_ROW, verdict=row.verdict, reason=row.reason))


def problems(row: Row) -> tuple[Finding, ...]:
    """Returns what does not pass, the worst first."""
    order = (Verdict.FAIL, Verdict.INCONCLUSIVE)
    return tuple(finding for verdict in order for finding in findings_of(row) if finding.verdict is verdict)


def place(row: Row) -> str:
    """Names a row: which file on which target."""
    return f"{row.artifact} on {row.target}"


def failed(report: Report) -> tuple[StageRecord, ...]:
    """Returns the stages that failed themselves."""
    return tuple(stage for stage in report.stages if stage.status == "failed")


def skipped_line(report: Report) -> str:
    """Names the stages that never ran because something they need failed; empty when there are none."""
    steps = [stage.step for stage in report.stages if stage.status == "skipped"]
    return f"skipped, as something they need failed: {', '.join(steps)}" if steps else ""


def attempts_of(report: Report) -> tuple[tuple[StageRecord, Attempt], ...]:
    """Lists every route that was looked at, with the conversion it was looked at for."""
    return tuple((stage, attempt) for stage in report.stages for attempt in stage.attempts)


def attempt_line(attempt: Attempt) -> str:
    """Says what became of a route, and why."""
    told = f"{attempt.outcome}: {attempt.reason}" if attempt.reason else attempt.outcome
    return told if attempt.outcome == "taken" or not attempt.hint else f"{told} (hint: {attempt.hint})"


def route_lines(report: Report) -> tuple[str, ...]:
    """Says which route was taken where another one fell before it; a stage that failed says so itself."""
    lines = []
    for stage in report.stages:
        fallen = [one for one in stage.attempts if one.outcome != "taken" and one.code not in _UNREMARKABLE]
        if fallen and stage.status != "failed":
            taken = ", ".join(one.route for one in stage.attempts if one.outcome == "taken")
            lines.append(f"{stage.step} took {taken}; " + "; ".join(f"{one.route} {one.outcome}: {one.reason}" for one in fallen))
    return tuple(lines)


def error_lines(stage: StageRecord) -> tuple[str, ...]:
    """Spells out a failed stage's error: message with its place, then the hint."""
    error = stage.error or {}
    message = error.get("message") or "failed without a message"
    where = error.get("where") if error.get("where") != stage.step else None
    hint = error.get("hint")
    return (f"{where}: {message}" if where else message, *([f"hint: {hint}"] if hint else []))


def printable(text: str, *, lines: bool = False) -> str:
    """Replaces what could steer a terminal or break a document: control characters, bidi overrides, lone surrogates.

    Args:
        text: Text from a model file, a framework or a file name.
        lines: Whether line ends stay; otherwise they become spaces.
    """
    flat = text.replace("\t", " ") if lines else " ".join(text.split())
    return "".join(c if c.isprintable() or (lines and c == "\n") else "\N{REPLACEMENT CHARACTER}" for c in flat)
