"""What every form of the report says in the same words: headline, source, notes, and the findings worth showing."""

from __future__ import annotations

from collections import Counter

from toolkit.evidence import Finding, Report, Row, StageRecord, Verdict, show_metric, show_name, worst

WHOLE_ROW = "row"


def counts(report: Report) -> str:
    """Counts the rows by verdict: ``4 rows: 2 pass, 1 fail, 1 inconclusive``."""
    seen = Counter(row.verdict for row in report.rows)
    parts = ", ".join(f"{seen[verdict]} {verdict}" for verdict in Verdict if seen[verdict])
    total = f"{len(report.rows)} row{'' if len(report.rows) == 1 else 's'}"
    return f"{total}: {parts}" if parts else total


def source_line(report: Report) -> str:
    """Says how right the float source is, which every change is measured against."""
    source = report.source
    if source is None:
        return "float source: accuracy was not measured"
    where = f"{source.runtime} ({source.stand_in})" if source.stand_in else source.runtime
    return f"float source: {show_name(source.metric.name)} {show_metric(source.metric)} on {where}"


def stand_in_note(report: Report) -> str:
    """Says what the latency figures are not; empty when all of them are the target's own."""
    stand_ins = sorted({row.latency_ms.stand_in for row in report.rows if row.latency_ms and row.latency_ms.stand_in})
    if not stand_ins:
        return ""
    return f"Latency is measured at batch size 1 on a stand-in ({', '.join(stand_ins)}); it is not the device's."


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
