"""The report for CI servers: JUnit XML, one suite per target and one for the stages.

Inconclusive is written as *skipped*, the only one of JUnit's outcomes that claims neither success nor failure.
"""

from __future__ import annotations

from collections.abc import Iterable
from xml.etree import ElementTree

from toolkit.evidence import Finding, Report, Row, StageRecord, Verdict
from toolkit.report import wording

OUTCOMES = ("failure", "error", "skipped")
# ElementTree would name the locale's encoding instead.
DECLARATION = '<?xml version="1.0" encoding="UTF-8"?>'


def render(report: Report) -> str:
    """Writes the report as a JUnit XML document."""
    root = ElementTree.Element("testsuites", name=wording.printable(report.project))
    for target in dict.fromkeys(row.target for row in report.rows):
        rows = [row for row in report.rows if row.target == target]
        _suite(root, target, (_budget_case(row, finding) for row in rows for finding in wording.findings_of(row)))
    if report.stages:
        _suite(root, "stages", (_stage_case(stage) for stage in report.stages))
    _count(root)
    ElementTree.indent(root)
    return f"{DECLARATION}\n{ElementTree.tostring(root, encoding='unicode')}\n"


def _suite(root: ElementTree.Element, name: str, cases: Iterable[ElementTree.Element]) -> None:
    suite = ElementTree.SubElement(root, "testsuite", name=wording.printable(name))
    suite.extend(cases)
    _count(suite)


def _count(parent: ElementTree.Element) -> None:
    """Writes the totals that JUnit readers look at."""
    cases = list(parent.iter("testcase"))
    failures, errors, skipped = (str(sum(case.find(tag) is not None for case in cases)) for tag in OUTCOMES)
    seconds = sum(float(case.get("time", 0)) for case in cases)
    parent.attrib.update(tests=str(len(cases)), failures=failures, errors=errors, skipped=skipped, time=f"{seconds:.3f}")


def _budget_case(row: Row, finding: Finding) -> ElementTree.Element:
    case = _case(row.target, f"{row.artifact}:{finding.budget}", 0.0)
    reason = wording.printable(finding.reason)
    if finding.verdict is Verdict.FAIL:
        ElementTree.SubElement(case, "failure", type=wording.printable(finding.budget), message=reason).text = wording.printable(
            f"{wording.place(row)}: {finding.reason}"
        )
    elif finding.verdict is Verdict.INCONCLUSIVE:
        ElementTree.SubElement(case, "skipped", message=reason)
    else:
        ElementTree.SubElement(case, "system-out").text = reason
    return case


def _stage_case(stage: StageRecord) -> ElementTree.Element:
    case = _case("stages", stage.step, stage.seconds)
    if stage.status == "failed":
        lines = wording.error_lines(stage)
        code = (stage.error or {}).get("code", "stage")
        error = ElementTree.SubElement(case, "error", type=wording.printable(code), message=wording.printable(lines[0]))
        error.text = wording.printable("\n".join(lines), lines=True)
    elif stage.status == "unneeded":
        ElementTree.SubElement(case, "system-out").text = "nothing called for it"
    elif stage.status == "skipped":
        ElementTree.SubElement(case, "skipped", message="something it needs failed")
    return case


def _case(classname: str, name: str, seconds: float) -> ElementTree.Element:
    return ElementTree.Element("testcase", classname=wording.printable(classname), name=wording.printable(name), time=f"{seconds:.3f}")
