"""The report for a pull-request comment: GitHub's Markdown, short on top, details folded away."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from toolkit.evidence import Report, StageRecord, Verdict, table_header, table_row
from toolkit.report import wording

MARKS = {Verdict.PASS: "✅ pass", Verdict.FAIL: "❌ **fail**", Verdict.INCONCLUSIVE: "❔ inconclusive"}


def render(report: Report) -> str:
    """Writes the report as Markdown."""
    parts = [
        f"### {_prose(report.project)}: {MARKS[report.verdict]}",
        f"{wording.counts(report)}; {_prose(wording.source_line(report))}.",
        _prose(wording.training_line(report)),
        _prose(wording.source_notes(report)),
        _rows(report),
        _problems(report),
        _made(report),
        _slower(report),
        *(_failure(stage) for stage in wording.failed(report)),
        _prose(wording.skipped_line(report)),
        _findings(report),
        _evidence(report),
        _routes(report),
        _stages(report),
        _prose(wording.stand_in_note(report)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _rows(report: Report) -> str:
    body = []
    for row in report.rows:
        artifact, *cells, _ = table_row(row)
        body.append([_code(artifact), *map(_prose, cells), MARKS[row.verdict]])
    return _table(table_header(report.rows), body)


def _problems(report: Report) -> str:
    """Lists whatever does not pass, one bullet a finding."""
    found = [(row, finding) for row in report.rows for finding in wording.problems(row)]
    return "\n".join(f"- {MARKS[finding.verdict]} {_code(row.artifact)} on {_prose(row.target)}: {_prose(finding.reason)}" for row, finding in found)


def _made(report: Report) -> str:
    """Lists what was chosen or repaired, one bullet each."""
    return "\n".join(f"- {_code(row.artifact)} on {_prose(row.target)}: {_prose(wording.made_line(row))}" for row in report.rows if row.made)


def _slower(report: Report) -> str:
    """Lists the rows that are slower than their float twins, one bullet each."""
    lines = [(row, wording.slower_line(row)) for row in report.rows]
    return "\n".join(f"- ⚠️ **slower** {_code(row.artifact)} on {_prose(row.target)}: {_prose(line)}" for row, line in lines if line)


def _failure(stage: StageRecord) -> str:
    """Shows an error as a code block, since frameworks write anything into their messages."""
    text = wording.printable("\n".join(wording.error_lines(stage)), lines=True)
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"**Stage {_code(stage.step)} failed** after {stage.seconds:.1f} s\n\n{fence}text\n{text}\n{fence}"


def _findings(report: Report) -> str:
    body = [
        [_code(row.artifact), _prose(row.target), _code(finding.budget), MARKS[finding.verdict], _prose(finding.reason)]
        for row in report.rows
        for finding in row.findings
    ]
    return _folded(f"Every budget ({len(body)})", _table(("artifact", "target", "budget", "verdict", "reason"), body)) if body else ""


def _evidence(report: Report) -> str:
    body = [
        [_code(row.artifact), _prose(row.target), _prose(name), _prose(figure)] for row in report.rows for name, figure in wording.evidence_of(row)
    ]
    return _folded(f"Evidence ({len(body)} figures)", _table(("artifact", "target", "figure", "measured"), body)) if body else ""


def _routes(report: Report) -> str:
    body = [
        [_code(stage.step), _code(attempt.route), _prose(wording.attempt_line(attempt)), "-" if attempt.seconds is None else f"{attempt.seconds:.2f}"]
        for stage, attempt in wording.attempts_of(report)
    ]
    return _folded(f"Routes ({len(body)})", _table(("conversion", "route", "what became of it", "seconds"), body)) if body else ""


def _stages(report: Report) -> str:
    body = [[_code(stage.step), stage.status, f"{stage.seconds:.2f}", _code(stage.key[:12]) if stage.key else "-"] for stage in report.stages]
    return _folded(f"Stages ({len(body)})", _table(("stage", "status", "seconds", "key"), body)) if body else ""


def _folded(summary: str, text: str) -> str:
    return f"<details><summary>{summary}</summary>\n\n{text}\n\n</details>"


def _table(header: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _code(text: str) -> str:
    """Quotes a name; inside a code span only the back tick and the table's bar mean anything."""
    return "`" + wording.printable(text).replace("`", "'").replace("|", "\\|") + "`"


def _prose(text: str) -> str:
    """Escapes what Markdown or HTML would read as markup, and keeps an @ from calling anybody."""
    plain = re.sub(r"([\\`*_\[\]|~#])", r"\\\1", wording.printable(text))
    return plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("@", "@\N{ZERO WIDTH SPACE}")
