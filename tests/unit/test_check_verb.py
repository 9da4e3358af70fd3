"""What ``edgekit check`` and ``edgekit baseline`` hand to the API, and what they refuse. Nothing is measured here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import toolkit
from tests.reports import sample_report
from toolkit.cli import baseline as baseline_verb
from toolkit.cli.check import check
from toolkit.cli.run import run
from toolkit.config import BASELINE_FILE, make_budgets
from toolkit.errors import ConfigError, SetupError
from toolkit.limits import MetricBudget
from toolkit.pipeline.baseline import Updated
from toolkit.pipeline.fingerprint import OUTPUT_MARK, fingerprint_project
from toolkit.pipeline.run import Run

PROJECT = """
schema = 1
name = "digits"
task = "image-classification"
targets = ["desktop-ort"]
[data]
factory = "digits:load"
[model]
factory = "digits:build"
"""


@pytest.fixture
def project(tmp_path):
    (tmp_path / "edgekit.toml").write_text(PROJECT)
    return tmp_path


@pytest.fixture
def asked(monkeypatch):
    """What the API was asked for, by argument."""
    seen: dict[str, object] = {}

    def answer(*words: object, **options: object) -> object:
        seen.update(options, words=words)
        return sample_report()

    monkeypatch.setattr(toolkit, "check_project", answer, raising=False)
    monkeypatch.setattr(toolkit, "check", answer, raising=False)
    monkeypatch.setattr(
        toolkit, "run", lambda *words, **options: Run(report=answer(*words, **options), artifacts=(), folder=Path("out")), raising=False
    )
    monkeypatch.setattr(toolkit, "plan", lambda _: "", raising=False)
    return seen


def test_a_project_is_held_against_its_committed_baseline_by_default(project, asked, capsys):
    check(project)
    assert asked["baseline"] is None
    (project / BASELINE_FILE).write_text("{}")
    check(project)
    assert asked["baseline"] == project / BASELINE_FILE
    check(project / "edgekit.toml")
    assert asked["baseline"] == project / BASELINE_FILE
    check(project, no_baseline=True)
    assert asked["baseline"] is None
    check(project, baseline=Path("other.json"))
    assert asked["baseline"] == Path("other.json")


def test_a_run_finds_the_same_baseline_as_a_check(project, asked, capsys):
    committed = project / BASELINE_FILE
    for there, options, found in (
        (False, {}, None),
        (True, {}, committed),
        (True, {"no_baseline": True}, None),
        (True, {"baseline": Path("other.json")}, Path("other.json")),
    ):
        if there:
            committed.write_text("{}")
        assert run(project, **options) == 5
        assert asked["baseline"] == found
    with pytest.raises(ConfigError, match="exclude each other"):
        run(project, baseline=Path("b.json"), no_baseline=True)


def test_a_committed_link_to_nowhere_is_not_overlooked(project, asked):
    (project / BASELINE_FILE).symlink_to("gone.json")
    check(project)
    assert asked["baseline"] == project / BASELINE_FILE


def test_a_place_that_cannot_take_reports_is_told_before_anything_is_measured(project, asked):
    (project / "file").write_text("")
    for place in ("file", "file/reports", "file/reports/of/today"):
        with pytest.raises(SetupError, match="is a file, not a folder") as caught:
            check(project, output=project / place)
        assert caught.value.where == str(project / "file")
    assert not asked


def test_reports_that_lie_in_a_project_are_no_part_of_it(project, asked, capsys):
    """Otherwise the second of two equal runs would compute everything anew."""
    before = fingerprint_project(project)
    check(project, output=project / "edgekit-out")
    assert fingerprint_project(project) == before


def test_reports_beside_other_files_hide_nothing(project, asked, capsys):
    (project / "src").mkdir()
    (project / "src" / "digits.py").write_text("")
    check(project, output=project / "src")
    assert "src/digits.py" in fingerprint_project(project)["files"]


def test_a_model_file_is_held_against_the_baseline_that_is_given(project, asked, capsys):
    (project / BASELINE_FILE).write_text("{}")
    check(project / "m.onnx", data=Path("d.npz"), target="desktop-ort", min_accuracy="95%")
    assert asked["baseline"] is None
    check(project / "m.onnx", data=Path("d.npz"), target="desktop-ort", baseline=Path("b.json"))
    assert (asked["baseline"], asked["budgets"]) == (Path("b.json"), make_budgets({}))


def test_budgets_of_the_command_line_reach_the_api(asked, capsys):
    options = {"max_latency_ratio": 0.8, "max_peak_memory_mb": 20.0, "reference": Path("float.onnx")}
    limits = ["roc_auc:min=0.9", "roc_auc:max_drop=1pp", " macro_f1 : max_drop = 0.02 "]
    check(Path("m.onnx"), data=Path("d.npz"), target="desktop-ort", metric=limits, **options)
    budgets = asked["budgets"]
    assert (budgets.max_latency_ratio, budgets.max_peak_memory_mb) == (0.8, 20.0)
    assert budgets.metrics == {"roc_auc": MetricBudget(min=0.9, max_drop=0.01), "macro_f1": MetricBudget(max_drop=0.02)}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"metric": ["roc_auc"]}, "is not NAME:KEY=VALUE"),
        ({"metric": ["roc_auc:min"]}, "is not NAME:KEY=VALUE"),
        ({"metric": ["roc_auc:min=0.9", "roc_auc:min=0.8"]}, "gives roc_auc:min twice"),
        ({"metric": ["roc_auc:min=high"]}, "write a fraction"),
        ({"metric": ["roc_auc:least=0.9"]}, "unknown key 'metrics.roc_auc.least'"),
        ({"metric": ["rocauc:min=0.9"]}, "unknown metric"),
        ({"max_latency_ratio": 105.0}, "could never fail"),
        ({"baseline": Path("b.json"), "no_baseline": True}, "exclude each other"),
    ],
)
def test_what_decides_nothing_is_refused(options, says, asked):
    with pytest.raises(ConfigError, match=says):
        check(Path("m.onnx"), data=Path("d.npz"), target="desktop-ort", **options)
    assert not asked


@pytest.mark.parametrize(
    "options",
    [{"max_drop": "1pp"}, {"max_size_ratio": 0.3}, {"max_latency_ratio": 0.9}, {"metric": ["roc_auc:max_drop=1pp"]}],
    ids=lambda o: next(iter(o)),
)
def test_a_budget_against_a_reference_needs_one(options, asked, tmp_path, monkeypatch):
    monkeypatch.setattr(toolkit, "inspect", lambda _: None, raising=False)
    with pytest.raises(ConfigError, match="needs --reference"):
        check(tmp_path / "m.onnx", data=Path("d.npz"), target="desktop-ort", **options)
    assert not asked


def test_a_metrics_limit_goes_with_a_model_file(project, asked):
    with pytest.raises(ConfigError, match="budgets go with a model file"):
        check(project, metric=["roc_auc:min=0.9"])


def test_reports_of_every_kind_are_written_where_asked(project, asked, tmp_path, capsys):
    assert check(project, output=tmp_path / "out") == 5  # the sample has a failed stage
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"report.md", "report.html", "report.json", "report.sarif", "junit.xml", OUTPUT_MARK}
    assert json.loads((tmp_path / "out" / "report.sarif").read_text())["version"] == "2.1.0"


@pytest.mark.parametrize(
    ("updated", "code", "lines"),
    [
        (Updated(file="b.json"), 0, ["b.json: nothing changed"]),
        (Updated(file="b.json", changes=("a: size",), kept=("a: slow is looser",)), 0, ["a: size", "kept: a: slow is looser", "b.json: commit it"]),
        (Updated(file="b.json", refused=("a fails",)), 1, ["refused: a fails", "b.json: nothing changed"]),
    ],
)
def test_an_update_says_what_it_did(project, monkeypatch, capsys, updated, code, lines):
    monkeypatch.setattr(toolkit, "update_baseline", lambda *_, **__: updated, raising=False)
    assert baseline_verb.baseline(baseline_verb.Action.update, project) == code
    assert capsys.readouterr().out.splitlines() == lines


def test_show_lists_what_is_recorded(project, capsys):
    with pytest.raises(ConfigError, match="there is no baseline here"):
        baseline_verb.baseline(baseline_verb.Action.show, project)
    metrics = {"top1_accuracy": {"value": 0.95, "low": 0.93, "high": 0.97, "n": 400}}
    timed = {"p50": 0.8, "p90": 1.25, "ratio_to_float": 0.61, "ratio_low": 0.6, "ratio_high": 0.62}
    entry = {"artifact": "d.int8.onnx", "target": "phone", "size_bytes": 29_672, "metrics": metrics, "latency_ms": timed}
    (project / BASELINE_FILE).write_text(json.dumps({"schema": 1, "rows": [entry]}))
    assert baseline_verb.baseline(baseline_verb.Action.show, project) == 0
    shown = capsys.readouterr().out
    for text in ("d.int8.onnx", "phone", "top-1 accuracy 95.00% [93.00%, 97.00%] n=400", "29.7 KB", "0.610", "1.250", "metric 0.5pp"):
        assert text in shown
