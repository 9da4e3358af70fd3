"""SARIF 2.1.0: held against the standard's own rules for the objects that are written, and against what code scanning asks."""

from __future__ import annotations

import json

import jsonschema
import pytest

from tests.reports import FAIL, INCONCLUSIVE, PASS, row, sample_report
from toolkit.errors import ConfigError, StageCrashed
from toolkit.evidence import Finding, Report, StageRecord
from toolkit.limits import Budgets
from toolkit.report import sarif


def table(required: str, /, **properties: object) -> dict:
    """An object of the standard: it has these properties and no others, apart from a property bag."""
    return {
        "type": "object",
        "properties": {name: kind if isinstance(kind, dict) else {"type": kind} for name, kind in properties.items()}
        | {"properties": {"type": "object"}},
        "required": required.split(),
        "additionalProperties": False,
    }


def many(items: dict, *, unique: bool = False, least: int = 0) -> dict:
    return {"type": "array", "items": items, "uniqueItems": unique, "minItems": least}


# The properties of the standard (sections 3.13 to 3.52) that Edgekit writes, and their constraints.
MESSAGE = table("text", text="string", markdown="string")
URI = {"type": "string", "format": "uri-reference", "minLength": 1}
REGION = table("startLine", startLine={"type": "integer", "minimum": 1})
PHYSICAL = table("artifactLocation", artifactLocation=table("uri", uri=URI, uriBaseId="string"), region=REGION)
LOGICAL = table("", name="string", fullyQualifiedName="string", kind="string")
LOCATION = table("", physicalLocation=PHYSICAL, logicalLocations=many(LOGICAL, unique=True))
LEVEL = {"enum": ["none", "note", "warning", "error"]}
RESULT = table(
    "message",
    ruleId="string",
    ruleIndex={"type": "integer", "minimum": -1},
    level=LEVEL,
    kind={"enum": ["notApplicable", "pass", "fail", "review", "open", "informational"]},
    message=MESSAGE,
    locations=many(LOCATION),
    partialFingerprints={"type": "object", "additionalProperties": {"type": "string"}},
)
RULE = table(
    "id",
    id="string",
    name="string",
    shortDescription=MESSAGE,
    fullDescription=MESSAGE,
    help=MESSAGE,
    defaultConfiguration=table("", level=LEVEL),
)
DRIVER = table("name", name={"type": "string", "minLength": 1}, version="string", rules=many(RULE, unique=True))
NOTIFICATION = table("message", message=MESSAGE, level=LEVEL)
INVOCATION = table("executionSuccessful", executionSuccessful="boolean", exitCode="integer", toolExecutionNotifications=many(NOTIFICATION))
RUN = table(
    "tool",
    tool=table("driver", driver=DRIVER),
    automationDetails=table("", id="string"),
    columnKind={"enum": ["utf16CodeUnits", "unicodeCodePoints"]},
    invocations=many(INVOCATION),
    results=many(RESULT),
)
LOG = table("version runs", **{"$schema": {"type": "string", "format": "uri"}, "version": {"enum": ["2.1.0"]}, "runs": many(RUN)})


def read(report: Report, **options: str) -> dict:
    log = json.loads(sarif.render(report, **options))
    jsonschema.validate(log, LOG, format_checker=jsonschema.FormatChecker())
    return log["runs"][0]


def finding(budget: str, verdict: object, reason: str = "why") -> Finding:
    return Finding(budget=budget, verdict=verdict, reason=reason)


def report(*findings: Finding, artifact: str = "a.int8.onnx", **given: object) -> Report:
    facts = {"schema": 2, "project": "digits", "verdict": FAIL, "rows": (row(artifact, "phone", findings),)}
    return Report.model_validate(facts | given)


def test_the_schema_above_refuses_what_the_standard_refuses():
    log = json.loads(sarif.render(sample_report()))
    log["runs"][0]["results"][0]["severity"] = "high"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(log, LOG)
    del log["runs"][0]["results"][0]["severity"], log["runs"][0]["results"][0]["message"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(log, LOG)


def test_every_finding_that_does_not_pass_is_one_result():
    sample = sample_report()
    run = read(sample)
    expected = [
        ("max_drop", "warning", "digits.static_wi8_ai8.tflite", "android-mid-litert"),
        ("max_drop", "error", "digits.static_wi8_ai8.onnx", "host-onnx"),
        ("row", "error", "digits.dynamic_wi8.onnx", "host-onnx"),
    ]
    found = [(one["ruleId"], one["level"], one["properties"]["artifact"], one["properties"]["target"]) for one in run["results"]]
    assert found == expected
    rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    assert len(set(rules)) == len(rules)
    assert all(rules[one["ruleIndex"]] == one["ruleId"] for one in run["results"])


def test_a_message_names_model_target_metric_samples_and_interval():
    text = read(sample_report())["results"][1]["message"]["text"]
    said = "accuracy fell by 3.00 pp [-4.31, -1.80] on 900 samples; allowed 1.00 pp: missed"
    assert text == f"digits.static_wi8_ai8.onnx on host-onnx: {said}"


def test_a_passing_report_has_no_results():
    run = read(report(finding("max_drop", PASS), verdict=PASS))
    assert (run["results"], run["tool"]["driver"]["rules"]) == ([], [])
    assert run["invocations"] == [{"executionSuccessful": True, "exitCode": 0, "toolExecutionNotifications": []}]


@pytest.mark.parametrize(("verdict", "code"), [(PASS, 0), (INCONCLUSIVE, 0), (FAIL, 1)])
def test_a_missed_budget_is_a_successful_run_with_its_exit_code(verdict, code):
    invocation = read(report(verdict=verdict))["invocations"][0]
    assert (invocation["executionSuccessful"], invocation["exitCode"]) == (True, code)


def test_a_failed_stage_is_a_notification_and_its_error_the_exit_code():
    errors = [StageCrashed("died by SIGSEGV", where="convert:onnx", hint="see the log"), ConfigError("no")]
    stages = tuple(StageRecord(step=f"step{index}", status="failed", error=error.to_dict()) for index, error in enumerate(errors))
    invocation = read(report(stages=stages))["invocations"][0]
    assert (invocation["executionSuccessful"], invocation["exitCode"]) == (False, StageCrashed.exit_code)
    assert [note["message"]["text"] for note in invocation["toolExecutionNotifications"]] == [
        "step0: convert:onnx: died by SIGSEGV; hint: see the log",
        "step1: no",
    ]


def test_fingerprints_follow_the_finding_and_not_its_figures():
    def prints(artifact: str, budget: str, reason: str) -> dict:
        return read(report(finding(budget, FAIL, reason), artifact=artifact))["results"][0]["partialFingerprints"]

    first = prints("a.int8.onnx", "max_drop", "fell by 3 pp")
    assert first == prints("a.int8.onnx", "max_drop", "fell by 4 pp")
    others = [prints("b.int8.onnx", "max_drop", "x"), prints("a.int8.onnx", "min_accuracy", "x")]
    keys = [one["primaryLocationLineHash"] for one in (first, *others)]
    assert len(set(keys)) == 3


@pytest.mark.parametrize(
    ("location", "uri"),
    [
        ("edgekit.toml", "edgekit.toml"),
        ("models/my phone/edgekit.toml", "models/my%20phone/edgekit.toml"),
        ("models\\edgekit.toml", "models/edgekit.toml"),
        ("/models/edgekit.toml", "models/edgekit.toml"),
        ("", "edgekit.toml"),
    ],
)
def test_code_scanning_needs_a_relative_place(location, uri):
    place = read(report(finding("max_drop", FAIL)), location=location)["results"][0]["locations"][0]["physicalLocation"]
    assert place == {"artifactLocation": {"uri": uri}, "region": {"startLine": 1}}


def test_every_budget_has_a_rule_that_explains_it():
    budgets = [name for name in Budgets.model_fields if name != "metrics"]
    names = [*budgets, "metrics.roc_auc.min", "baseline.top1_accuracy", "baseline.size_bytes", "baseline", "row"]
    rules = {rule["id"]: rule for rule in read(report(*(finding(name, FAIL) for name in names)))["tool"]["driver"]["rules"]}
    assert list(rules) == names
    for name, rule in rules.items():
        # Code scanning asks for all three, see its documentation of SARIF support.
        assert rule["shortDescription"]["text"] != name
        assert rule["fullDescription"]["text"].startswith(rule["shortDescription"]["text"])
        assert len(rule["help"]["text"]) > len(rule["fullDescription"]["text"]) + 10
    assert rules["metrics.roc_auc.min"]["name"] == "MetricsRocAucMin"


def test_names_from_files_cannot_steer_a_reader():
    run = read(report(finding("max_drop", FAIL, "evil\x1b[31m\u202e"), artifact="a.int8.onnx\n## x"))
    text = json.dumps(run, ensure_ascii=False)
    assert not {"\x1b", "\u202e"} & set(text)
    assert "\\n##" not in text
