"""The report as one HTML file for people: no network, no scripts, everything escaped."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from toolkit.evidence import Attempt, Finding, Report, Row, StageRecord, Verdict, table_header
from toolkit.figures import show_change, show_latency, show_metric, show_name, show_size
from toolkit.report import chart, wording
from toolkit.report.style import CSS

# Even a mistake in escaping could load or run nothing.
POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def render(report: Report) -> str:
    """Writes the report as a self-contained HTML document."""
    sections = (
        _head(report),
        _table(report),
        _charts(report),
        _findings(report),
        _evidence(report),
        _routes(report),
        _stages(report),
        _environment(report.environment),
    )
    title = _text(f"{report.project}: {report.verdict}")
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>\n{CSS}\n</style>\n</head>\n<body>\n<main>\n{''.join(sections)}"
        f"<footer>Edgekit report, schema {report.schema_version}. Intervals are 95 %.</footer>\n</main>\n</body>\n</html>\n"
    )


def _head(report: Report) -> str:
    notes, trained = wording.source_notes(report), wording.training_line(report)
    return (
        f"<header><h1>{_text(report.project)} {_badge(report.verdict)}</h1>"
        f"<p>{_text(wording.counts(report))}</p><p class='soft'>{_text(wording.source_line(report))}</p>"
        f"{f'<p class=soft>{_text(trained)}</p>' if trained else ''}"
        f"{f'<p class=soft>{_text(notes)}</p>' if notes else ''}</header>\n"
    )


def _table(report: Report) -> str:
    header = "".join(f"<th{_class(name)}>{_text(name)}</th>" for name in table_header(report.rows))
    body = "".join(f"<tr>{_row(row)}</tr>\n" for row in report.rows)
    slower = [f"{wording.place(row)}: {line}" for row in report.rows if (line := wording.slower_line(row))]
    slower = [f"{wording.place(row)}: {wording.made_line(row)}" for row in report.rows if row.made] + slower
    noted = "".join(f"<p class='note'>{_text(note)}</p>" for note in (*slower, wording.stand_in_note(report)) if note)
    return _section("Artifacts", f"<div class='scroll'><table><thead><tr>{header}</tr></thead><tbody>\n{body}</tbody></table></div>{noted}")


def _row(row: Row) -> str:
    """Formats a row like every other table does, with intervals and stand-ins on a second line."""
    kept = f"{row.scheme}, cached" if row.cached else row.scheme
    cells = [
        f"<td class='name'>{_text(row.artifact)}{_under(kept)}</td>",
        f"<td>{_text(row.runtime)}</td>",
        f"<td class='keep'>{_text(row.target)}{_under(row.stand_in)}</td>",
        f"<td class='number'>{show_size(row.size_bytes)}</td>",
        f"<td class='keep'>{_accuracy(row)}</td>",
        f"<td class='keep'>{_change(row)}</td>",
        f"<td class='number'>{_latency(row)}</td>",
        f"<td>{_badge(row.verdict)}</td>",
    ]
    return "".join(cells)


def _accuracy(row: Row) -> str:
    metric = row.metric
    if metric is None:
        return "-"
    value, _, interval = show_metric(metric).partition(" [")
    return f"{_text(value)}{_under(f'[{interval}')}"


def _change(row: Row) -> str:
    if row.change is None:
        return "-"
    value, _, interval = show_change(row.change).partition(" [")
    return f"{_text(value)}{_under(f'[{interval}')}"


def _latency(row: Row) -> str:
    timed = row.latency_ms
    if timed is None:
        return "-"
    ratio = "" if timed.ratio_to_float is None else f"{timed.ratio_to_float:.2f} x float"
    return f"{show_latency(timed)}{_under(ratio)}"


def _charts(report: Report) -> str:
    measured, latency = chart.metric(report), chart.latency(report)
    source = " Dashed line and band: the float source." if report.source else ""
    figures = []
    if measured:
        figures.append(
            _section(_metric_name(report), f"<figure>{measured}<figcaption>Dot and whiskers: value with 95 % interval.{source}</figcaption></figure>")
        )
    if latency:
        where = wording.stand_in_note(report)
        caption = f"Bar: median (p50). Whisker: 90th percentile (p90). {_text(where)}"
        figures.append(_section("Latency", f"<figure>{latency}<figcaption>{caption}</figcaption></figure>"))
    return f"<div class='two'>\n{''.join(figures)}</div>\n" if figures else ""


def _metric_name(report: Report) -> str:
    name = show_name(next(row.metric.name for row in report.rows if row.metric))
    return _text(name[:1].upper() + name[1:])


def _findings(report: Report) -> str:
    if not report.rows:
        return ""
    return _section("Budgets", "".join(map(_row_findings, report.rows)))


def _row_findings(row: Row) -> str:
    """Lists a row's findings; what does not pass is open from the start."""
    is_open = "" if row.verdict is Verdict.PASS else " open"
    lines = "".join(map(_finding, wording.findings_of(row)))
    summary = f"{_badge(row.verdict)}<strong class='any'>{_text(row.artifact)}</strong> on {_text(row.target)}"
    return f"<details{is_open}><summary>{summary}</summary><table><tbody>{lines}</tbody></table></details>\n"


def _finding(finding: Finding) -> str:
    budget = f"<td class='budget'><code>{_text(finding.budget)}</code></td>"
    return f"<tr>{budget}<td class='judged'>{_badge(finding.verdict)}</td><td class='any'>{_text(finding.reason)}</td></tr>"


def _evidence(report: Report) -> str:
    """Everything that was measured, row by row, for whoever wants to know more than the verdict."""
    found = [(row, wording.evidence_of(row)) for row in report.rows]
    return _section("Evidence", "".join(_row_evidence(row, lines) for row, lines in found if lines)) if any(lines for _, lines in found) else ""


def _row_evidence(row: Row, lines: Iterable[tuple[str, str]]) -> str:
    body = "".join(f"<tr><td class='budget soft'>{_text(name)}</td><td class='any'>{_text(figure)}</td></tr>" for name, figure in lines)
    summary = f"<strong class='any'>{_text(row.artifact)}</strong> on {_text(row.target)}"
    return f"<details><summary>{summary}</summary><table><tbody>{body}</tbody></table></details>\n"


def _routes(report: Report) -> str:
    """Which route made each format, and why the others did not."""
    body = "".join(_attempt(stage, attempt) for stage, attempt in wording.attempts_of(report))
    header = "<th>conversion</th><th>route</th><th>what became of it</th><th class='number'>seconds</th>"
    table = f"<div class='scroll'><table><thead><tr>{header}</tr></thead><tbody>\n{body}</tbody></table></div>"
    return _section("Routes", table) if body else ""


def _attempt(stage: StageRecord, attempt: Attempt) -> str:
    seconds = "-" if attempt.seconds is None else f"{attempt.seconds:.2f}"
    told = _text(wording.attempt_line(attempt))
    return f"<tr><td>{_text(stage.step)}</td><td>{_text(attempt.route)}</td><td class='any'>{told}</td><td class='number'>{seconds}</td></tr>\n"


def _stages(report: Report) -> str:
    if not report.stages:
        return ""
    longest = max(stage.seconds for stage in report.stages) or 1.0
    header = "<th>stage</th><th>status</th><th class='number'>seconds</th><th>share of the longest</th><th>key</th>"
    body = "".join(_stage(stage, stage.seconds / longest) for stage in report.stages)
    return _section("Stages", f"<div class='scroll'><table><thead><tr>{header}</tr></thead><tbody>\n{body}</tbody></table></div>")


def _stage(stage: StageRecord, share: float) -> str:
    meter = f"<span class='meter' style='width:{share:.1%}'></span>" if stage.seconds else ""
    key = f"<code title='{_text(stage.key)}'>{_text(stage.key[:12])}</code>" if stage.key else "<span class='soft'>-</span>"
    line = (
        f"<tr><td class='any'>{_text(stage.step)}</td><td><span class='badge {stage.status}'>{stage.status}</span></td>"
        f"<td class='number'>{stage.seconds:.2f}</td><td class='track'>{meter}</td><td>{key}</td></tr>\n"
    )
    if stage.status != "failed":
        return line
    message = "\n".join(wording.error_lines(stage))
    return f"{line}<tr><td colspan='5'><pre>{escape(wording.printable(message, lines=True))}</pre></td></tr>\n"


def _environment(environment: Mapping[str, Any]) -> str:
    body = "".join(f"<tr><td class='keep soft'>{_text(name)}</td><td class='any'>{_text(value)}</td></tr>\n" for name, value in _flat(environment))
    return _section("Environment", f"<table><tbody>\n{body}</tbody></table>") if body else ""


def _flat(facts: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    """Lays nested facts out as dotted names."""
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value, default=str)


def _section(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>{body}</section>\n"


def _badge(verdict: Verdict) -> str:
    return f"<span class='badge {verdict}'>{verdict}</span>"


def _under(text: str) -> str:
    return f"<span class='under'>{_text(text)}</span>" if text else ""


def _class(column: str) -> str:
    return " class='number'" if column in ("size", "p50 / p90 ms") else ""


def _text(text: str) -> str:
    return escape(wording.printable(text), quote=True)
