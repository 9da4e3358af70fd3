import io
import itertools
import json as plain_json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from rich.console import Console

from tests.reports import FAIL, INCONCLUSIVE, PASS, sample_report
from tests.reports import row as row_of
from toolkit.evidence import Finding, Report, StageRecord
from toolkit.report import chart, html, json, junit, markdown, text, wording

SCHEMA = Path(__file__).parents[2] / "docs" / "schemas" / "report-2.schema.json"
HOSTILE = "<script>alert(1)</script>|`'\"&\x1b[31m\x00\x08\udc80\u202e@everyone.float32.tflite"
EMPTY = Report(schema=2, project="nothing", verdict=PASS, rows=())


def hostile_report() -> Report:
    """Puts the hostile text wherever a report carries text from outside."""
    document = sample_report().model_dump(by_alias=True)
    row = document["rows"][1]
    for field in ("artifact", "format", "scheme", "runtime", "target", "stand_in", "reason"):
        row[field] = HOSTILE
    row["metric"]["name"] = row["latency_ms"]["stand_in"] = row["findings"][0]["budget"] = row["findings"][0]["reason"] = HOSTILE
    document["project"] = HOSTILE
    document["source"]["runtime"] = HOSTILE
    document["stages"] += (
        StageRecord(step=HOSTILE, status="failed", key=HOSTILE, error=dict.fromkeys(("code", "message", "where", "hint"), HOSTILE)),
    )
    document["stages"][1]["attempts"][1].update(route=HOSTILE, reason=HOSTILE, hint=HOSTILE)
    document["environment"] = {HOSTILE: {HOSTILE: HOSTILE, "list": [HOSTILE]}}
    return Report.model_validate(document)


def shown(report: Report, width: int) -> str:
    out = io.StringIO()
    text.render(report, Console(file=out, width=width))
    return out.getvalue()


def test_json_round_trip():
    report = sample_report()
    assert json.parse(json.render(report)) == report
    assert json.parse(json.render(EMPTY)) == EMPTY


def test_json_has_the_promised_names():
    document = plain_json.loads(json.render(sample_report()))
    row = document["rows"][1]
    assert document["schema"] == 2
    assert document["verdict"] == "fail"
    assert {"artifact", "format", "scheme", "runtime", "target", "size_bytes", "cached", "verdict", "reason"} <= row.keys()
    assert {"name", "value", "low", "high", "n"} <= row["metric"].keys()
    assert {"value", "low", "high"} <= row["change"].keys()
    assert {"p50", "p90"} <= row["latency_ms"].keys()


def test_published_schema_is_the_current_one_and_fits():
    published = plain_json.loads(SCHEMA.read_text(encoding="utf-8"))
    assert published == json.schema(), "regenerate docs/schemas/report-2.schema.json from toolkit.report.json.schema()"
    jsonschema.Draft202012Validator.check_schema(published)
    validator = jsonschema.Draft202012Validator(published)
    for report in (sample_report(), EMPTY):
        validator.validate(plain_json.loads(json.render(report)))


@pytest.mark.parametrize("damage", [{"schema": 1}, {"schema": None}, {"verdict": "maybe"}, {"rows": [{}]}, {"extra": 1}])
def test_schema_and_parser_refuse_the_same_damage(damage):
    document = {
        key: value for key, value in (plain_json.loads(json.render(sample_report())) | damage).items() if key != "schema" or value is not None
    }
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, json.schema())
    if "schema" in document:
        with pytest.raises(ValidationError):
            json.parse(plain_json.dumps(document))


@pytest.mark.parametrize("make", [sample_report, hostile_report, lambda: EMPTY])
def test_junit_parses_and_its_counts_are_those_of_the_report(make):
    report = make()
    root = ElementTree.fromstring(junit.render(report).encode("utf-8"))
    assert root.tag == "testsuites"
    verdicts = [finding.verdict for row in report.rows for finding in row.findings] + [row.verdict for row in report.rows if not row.findings]
    statuses = [stage.status for stage in report.stages]
    assert int(root.get("tests")) == len(verdicts) + len(statuses) == len(root.findall("testsuite/testcase"))
    assert int(root.get("failures")) == verdicts.count(FAIL) == len(root.findall(".//failure"))
    assert int(root.get("skipped")) == verdicts.count(INCONCLUSIVE) + statuses.count("skipped") == len(root.findall(".//skipped[@message]"))
    assert int(root.get("errors")) == statuses.count("failed") == len(root.findall(".//error[@type]"))
    assert float(root.get("time")) == pytest.approx(sum(stage.seconds for stage in report.stages), abs=0.01)
    for total in ("tests", "failures", "errors", "skipped"):
        assert int(root.get(total)) == sum(int(suite.get(total)) for suite in root)
    names = [(case.get("classname"), case.get("name")) for case in root.iter("testcase")]
    assert len(set(names)) == len(names)


def test_junit_names_cases_by_target_artifact_and_budget():
    root = ElementTree.fromstring(junit.render(sample_report()))
    case = root.find(".//testcase[@name='digits.static_wi8_ai8.onnx:max_drop']")
    assert case.get("classname") == "host-onnx"
    assert case.find("failure").get("message").startswith("accuracy fell by 3.00 pp")


class Page(HTMLParser):
    """Collects tags and checks that they nest."""

    VOID = ("meta", "link", "img", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def page(report: Report) -> Page:
    parsed = Page()
    parsed.feed(html.render(report))
    parsed.close()
    assert parsed.open == []
    return parsed


@pytest.mark.parametrize("make", [sample_report, hostile_report, lambda: EMPTY])
def test_html_is_well_nested_and_loads_nothing(make):
    report = make()
    parsed = page(report)
    assert not {"script", "link", "img", "iframe", "object", "base"} & set(parsed.tags)
    assert not [name for name, _ in parsed.attributes if name in ("src", "href", "srcset", "action") or name.startswith("on")]
    written = html.render(report)
    assert not re.search(r"https?://|url\(|@import", written)
    written.encode("utf-8")


def test_html_escapes_whatever_it_is_given():
    written = html.render(hostile_report())
    assert "<script" not in written
    assert "&lt;script&gt;" in written
    assert "\x1b" not in written
    # The tags of a hostile report are those of a harmless one with one more failed stage.
    assert set(page(hostile_report()).tags) == set(page(sample_report()).tags)


def test_html_draws_each_measured_row_where_its_value_is():
    written = html.render(sample_report())
    assert written.count("class='dot'") == 3
    assert written.count("class='bar'") == 3
    assert "accuracy, %" in written
    assert "latency of one inference, ms" in written
    dots = [float(x) for x in re.findall(r"class='dot' cx='([\d.]+)'", written)]
    # 96 %, 95.56 % and 93 % on one linear axis.
    assert (dots[0] - dots[1]) / (dots[0] - dots[2]) == pytest.approx(0.44 / 3, abs=0.01)


@given(low=st.floats(0, 1000), span=st.floats(0, 1000))
def test_axis_ticks_are_few_even_and_enclose_the_range(low, span):
    ticks = chart._ticks(low, low + span)
    steps = [after - before for before, after in itertools.pairwise(ticks)]
    assert 1 <= len(steps) <= 7
    assert steps == pytest.approx([steps[0]] * len(steps), rel=1e-6)
    slack = 1e-6 * steps[0] + 1e-9
    assert ticks[0] <= low + slack
    assert ticks[-1] >= low + span - slack


def cells(line: str) -> int:
    return len(re.findall(r"(?<!\\)\|", line)) - 1


@pytest.mark.parametrize("make", [sample_report, hostile_report])
def test_markdown_tables_have_equal_columns_and_no_markup_from_outside(make):
    written = markdown.render(make())
    tables = re.findall(r"(?:^\|.*\n?)+", written, flags=re.MULTILINE)
    assert len(tables) == 5
    assert [len({cells(line) for line in table.strip().split("\n")}) for table in tables] == [1, 1, 1, 1, 1]
    assert cells(tables[0].split("\n")[0]) == 8
    prose = re.sub(r"^(`{3,})text\n.*?\n\1$|(?<!\\)`[^`\n]*`", "", written, flags=re.MULTILINE | re.DOTALL)
    assert "<script" not in prose
    assert "@everyone" not in prose


def test_markdown_fence_is_longer_than_any_in_the_message():
    stage = StageRecord(step="convert:onnx", status="failed", error={"message": "```\n# not a heading\n```", "where": "", "hint": ""})
    written = markdown.render(Report(schema=2, project="p", verdict=FAIL, rows=(), stages=(stage,)))
    assert "````text\n```\n# not a heading\n```\n````" in written


@pytest.mark.parametrize("width", [40, 60, 80, 100, 140, 200])
def test_text_keeps_verdicts_and_width(width):
    lines = shown(sample_report(), width).split("\n")
    assert max(map(len, lines)) <= width
    header = next(index for index, line in enumerate(lines) if "verdict" in line)
    column = lines[header].index("verdict")
    below = [line[column:].strip() for line in lines[header + 2 :]]
    assert [word for word in below if word in ("pass", "fail", "inconclusive")] == [row.verdict for row in sample_report().rows]


@pytest.mark.parametrize("width", [80, 100, 140, 200])
def test_text_drops_no_figure(width):
    flat = "".join(shown(sample_report(), width).split())
    for figure in ("95.56%", "[94.01%,96.72%]", "n=900", "-0.44pp", "[-1.02,+0.11]", "29.7KB", "0.102", "android-mid-litert"):
        assert figure in flat, figure


def test_text_explains_what_does_not_pass():
    written = shown(sample_report(), 200)
    for row in sample_report().rows:
        assert (f"{row.verdict}: {row.artifact} on {row.target}" in written) == (row.verdict is not PASS)
    assert "max_drop: accuracy fell by 3.00 pp" in written
    assert "stage quantize:onnx:dynamic_wi8 failed after 1.5 s" in written
    assert "hint: look into the stage's log" in written
    assert "stand-in (host cpu); it is not the device's" in written


def test_text_without_a_terminal_has_no_control_characters():
    assert "\x1b" not in shown(sample_report(), 100)
    written = shown(hostile_report(), 100)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", written)
    written.encode("utf-8")


def test_text_fits_an_ascii_terminal():
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii")
    text.render(sample_report(), Console(file=out, width=100))
    out.flush()
    assert b"inconclusive" in raw.getvalue()


@pytest.mark.parametrize("form", [json.render, junit.render, markdown.render, html.render])
def test_rendering_is_deterministic(form):
    assert form(sample_report()) == form(sample_report())


@pytest.mark.parametrize(
    ("steps", "budgets", "says"),
    [
        (("evaluate:source", "evaluate:a"), (), "float source: accuracy was not measured"),
        (("evaluate:reference", "evaluate"), (), "float source: accuracy was not measured"),
        (("evaluate", "benchmark"), ("min_accuracy",), "there is no float source to compare with"),
        (("envelope",), ("golden", "golden:logits"), "outputs are held against a golden; no labels are needed"),
    ],
)
def test_a_report_without_a_source_says_why(steps, budgets, says):
    one = row_of("m.onnx", "desktop-ort", tuple(Finding(budget=name, verdict=PASS, reason="") for name in budgets))
    report = Report(schema=2, project="m", verdict=PASS, rows=(one,), stages=tuple(StageRecord(step=step, status="done") for step in steps))
    assert wording.source_line(report) == says
    assert says in markdown.render(report) and says in html.render(report) and says in shown(report, 200)


def test_every_form_says_which_route_was_taken_and_why_another_fell():
    report = sample_report()
    reason = "output 'logits' differs: SQNR 12.0 dB"
    assert "convert:onnx took torch_onnx; torch_jit_onnx failed: output 'logits' differs: SQNR 12.0 dB" in shown(report, 200)
    assert "nothing_here" not in shown(report, 200), "an absent framework is no fault of a route"
    page, table = html.render(report), markdown.render(report)
    assert "<h2>Routes</h2>" in page and "output &#x27;logits&#x27; differs: SQNR 12.0 dB (hint: look)" in page and "nothing_here" in page
    assert f"failed: {reason} (hint: look) | 3.50 |" in table and "| `torch_onnx` | taken | 4.20 |" in table
    assert json.parse(json.render(report)).stages[1].attempts[1].reason == reason
    without = report.model_copy(update={"stages": report.stages[:1]})
    assert "Routes" not in html.render(without) + markdown.render(without)
