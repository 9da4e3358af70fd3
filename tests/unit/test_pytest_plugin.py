"""The pytest plugin, in test runs of its own. What a check measures is given here; tests/e2e/test_ci_fixture.py measures for real."""

import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from types import SimpleNamespace

import pytest

import toolkit
from tests.reports import accuracy, latency, row
from tests.unit.test_startup import FRAMEWORKS, imported_by
from toolkit.errors import InputRejected
from toolkit.evidence import Finding, Report, Verdict
from toolkit.figures import Change

pytest_plugins = ["pytester"]

ROOT = Path(__file__).resolve().parents[2]
MODEL = "digits.static_wi8_ai8.tflite"
LOST = "top-1 accuracy fell by 5.20 pp [-6.41, -4.12] on 1,797 samples; allowed 1.00 pp: missed"
UNSURE = "top-1 accuracy fell by 0.44 pp [-1.02, +0.11] on 1,797 samples; allowed 1.00 pp: undecided, about 1,930 samples would decide at this rate"
HOLDS = "top-1 accuracy did not change [-0.21, +0.21] on 1,797 samples; allowed 1.00 pp: holds"
REASONS = {Verdict.FAIL: LOST, Verdict.INCONCLUSIVE: UNSURE, Verdict.PASS: HOLDS}
CHECK = """
def test_phone(edgekit):
    edgekit.check("digits.static_wi8_ai8.tflite", target="android-midrange-litert", data="eval.npz", max_drop="1pp")
"""


def report(*verdicts):
    rows = [
        row(
            MODEL,
            "android-midrange-litert",
            (Finding(budget="max_drop", verdict=verdict, reason=REASONS[verdict]),),
            metric=accuracy(0.905, 0.8906, 0.9177, n=1797),
            change=Change(value=-0.052, low=-0.0641, high=-0.0412, n=1797),
            latency_ms=latency(0.083, 0.102),
        )
        for verdict in verdicts
    ]
    return Report(schema=2, project="digits", verdict=max(verdicts, key=["pass", "inconclusive", "fail"].index), rows=tuple(rows))


@pytest.fixture
def place(pytester, monkeypatch):
    """A project with a quantized model, its float twin and samples; ``place.says`` is what checks find, ``place.asked`` what was asked."""
    asked = []
    box = SimpleNamespace(asked=asked, says=[Verdict.PASS], path=pytester.path)

    def check(model, data, **options):
        asked.append({"model": model, "data": data, **options})
        verdict = box.says[min(len(asked), len(box.says)) - 1]
        if isinstance(verdict, Exception):
            raise verdict
        return report(verdict)

    def check_project(project, **options):
        asked.append({"project": project, **options})
        return report(*box.says)

    def check_golden(model, golden, **options):
        asked.append({"model": model, "golden": golden, **options})
        return report(*box.says)

    # Set without looking at what is there, which would import the pipeline.
    for function in (check, check_project, check_golden):
        monkeypatch.setitem(vars(toolkit), function.__name__, function)
    for name in (MODEL, "digits.float32.tflite", "eval.npz"):
        (pytester.path / name).write_bytes(b"")

    def run(code=CHECK, *arguments, ini="", plugin="toolkit.pytest_plugin"):
        pytester.makepyfile(code)
        pytester.makeini(f"[pytest]\n{ini}")
        return pytester.runpytest_inprocess("-p", "no:cacheprovider", "-p", plugin, *arguments)

    # The other plugins that happen to be installed would cost each run a second.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")

    box.run = run
    return box


def test_a_pass_is_a_pass_and_gives_its_evidence(place):
    code = CHECK.replace("    edgekit", "    row = edgekit") + "    assert row.metric.n == 1797 and row.verdict == 'pass'\n"
    done = place.run(code)
    done.assert_outcomes(passed=1)
    done.stdout.fnmatch_lines(
        [
            "*= edgekit =*",
            f"pass *{MODEL} on android-midrange-litert (host cpu): top-1 accuracy 90.50% [[]89.06%, 91.77%] n=1,797*change -5.20 pp*n=1,797*",
        ]
    )


def test_a_fail_is_one_message_with_model_target_metric_interval_samples_and_limit(place):
    place.says = [Verdict.FAIL]
    done = place.run()
    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines(
        [f"fail: {MODEL} on android-midrange-litert (host cpu)", f"  max_drop fail: {LOST}", "  measured: top-1 accuracy 90.50% *"]
    )
    shown = done.stdout.str()
    assert "Traceback" not in shown and "pytest_plugin.py" not in shown and "def test_phone" not in shown


def test_inconclusive_skips_with_the_number_that_would_decide(place):
    place.says = [Verdict.INCONCLUSIVE]
    done = place.run(CHECK, "-rs")
    done.assert_outcomes(skipped=1)
    done.stdout.fnmatch_lines(
        ["inconclusive *", f"SKIPPED *: inconclusive: {MODEL} on android-midrange-litert (host cpu): {UNSURE.replace('[', '[[]')}"]
    )


@pytest.mark.parametrize(("option", "ini"), [("--edgekit-strict", ""), ("-v", "edgekit_strict = true")])
def test_strict_makes_a_failure_of_inconclusive(place, option, ini):
    place.says = [Verdict.INCONCLUSIVE]
    done = place.run(CHECK, option, ini=ini)
    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines([f"inconclusive: {MODEL}*", f"  max_drop inconclusive: {UNSURE}"])


def test_a_doubt_does_not_hide_what_the_test_finds_later(place):
    """Skipping on the spot would have left the second check out."""
    place.says = [Verdict.INCONCLUSIVE, Verdict.FAIL]
    done = place.run(CHECK + CHECK.splitlines()[-1])
    done.assert_outcomes(failed=1)
    assert len(place.asked) == 2
    place.run(CHECK + "    raise ValueError('of the test')").assert_outcomes(failed=1)


def test_a_mistake_is_told_as_on_the_command_line(place):
    place.says = [InputRejected("keeps its weights in another file", where="m.onnx", hint="save it as one file")]
    done = place.run()
    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines(["edgekit: m.onnx: keeps its weights in another file", "  -> save it as one file"])
    assert not any(word in done.stdout.str() for word in ("Traceback", "pytest_plugin.py", "During handling", "InputRejected"))


def test_a_bug_keeps_its_traceback(place):
    place.says = [ZeroDivisionError("ours")]
    done = place.run()
    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines(["*ZeroDivisionError: ours*"])


def test_paths_start_at_the_test_file_and_then_at_rootdir(place):
    folder = place.path / "tests"
    folder.mkdir()
    (folder / "eval.npz").write_bytes(b"")
    (folder / "test_deep.py").write_text(CHECK)
    done = place.run("", "tests/test_deep.py")
    done.assert_outcomes(passed=1)
    assert place.asked == [
        {
            "model": place.path / MODEL,
            "data": folder / "eval.npz",
            "target": "android-midrange-litert",
            "reference": place.path / "digits.float32.tflite",
            "budgets": {"max_drop": "1pp"},
        }
    ]
    (folder / "test_deep.py").write_text(CHECK.replace("eval.npz", "none.npz"))
    done = place.run("", "tests/test_deep.py")
    done.stdout.fnmatch_lines(["edgekit: none.npz: does not exist", f"  -> looked in {folder} and {place.path}"])


@pytest.mark.parametrize(
    ("call", "message", "hint"),
    [
        ('data="eval.npz", max_drop="1pp"', "no target", "set edgekit_target ="),
        ('target="desktop-ort", max_drop="1pp"', "no held-out samples", "set edgekit_data = eval.npz in pytest.ini"),
        ('target="desktop-ort", data="eval.npz"', "there is no budget", "give at least one"),
        ('target="desktop-ort", data="eval.npz", max_dropp="1pp"', "unknown key 'max_dropp'", "did you mean 'max_drop'"),
        ('target="desktop-orte", data="eval.npz", max_drop="1pp"', "unknown target 'desktop-orte'", "did you mean 'desktop-ort'"),
        ('target="./none.toml", data="eval.npz", max_drop="1pp"', "none.toml: does not exist", "looked in"),
        ('target="desktop-ort", data="eval.npz", max_drop=1', "1 would allow any loss", "see docs"),
    ],
)
def test_what_is_missing_is_said_with_the_place_to_set_it(place, call, message, hint):
    done = place.run(f"def test_phone(edgekit):\n    edgekit.check({MODEL!r}, {call})\n")
    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines([f"edgekit: *{message}*", f"  -> *{hint}*"], consecutive=True)
    assert not place.asked and "During handling" not in done.stdout.str()


def test_defaults_come_from_the_ini_file(place):
    (place.path / "float.onnx").write_bytes(b"")
    ini = "edgekit_data = eval.npz\nedgekit_reference = float.onnx\nedgekit_target = desktop-litert\nedgekit_task = text-classification"
    place.run(f"def test_phone(edgekit):\n    edgekit.check({MODEL!r}, min_accuracy=0.9)\n", ini=ini).assert_outcomes(passed=1)
    assert place.asked[0] == {
        "model": place.path / MODEL,
        "data": place.path / "eval.npz",
        "target": "desktop-litert",
        "reference": place.path / "float.onnx",
        "task": "text-classification",
        "budgets": {"min_accuracy": 0.9},
    }


@pytest.mark.parametrize(
    ("budget", "twin"),
    [
        ('max_drop="1pp"', True),
        ("max_size_ratio=0.35", True),
        ("max_latency_ratio=1.05", True),
        ('metrics={"macro_f1": {"max_drop": "1pp"}}', True),
        ('metrics={"expected_calibration_error": {"max_rise": "1pp"}}', True),
        ('metrics={"macro_f1": {"min": 0.9}}', False),
        ("max_size_bytes=1000", False),
        ("min_accuracy=0.9", False),
    ],
)
def test_the_float_twin_is_found_when_a_budget_needs_it(place, budget, twin):
    code = f'def test_phone(edgekit):\n    edgekit.check("{MODEL}", target="desktop-litert", data="eval.npz", {budget})\n'
    place.run(code).assert_outcomes(passed=1)
    assert place.asked[0]["reference"] == (place.path / "digits.float32.tflite" if twin else None)


@pytest.mark.parametrize(
    ("model", "said"), [(MODEL, "*there is no digits.float32.tflite beside the model*"), ("plain.tflite", "*max_drop compares with a float model*")]
)
def test_a_budget_without_its_reference_is_refused(place, model, said):
    (place.path / "digits.float32.tflite").unlink()
    (place.path / "plain.tflite").write_bytes(b"")
    done = place.run(CHECK.replace(MODEL, model))
    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines([said, "  -> pass reference=*set edgekit_reference =*"])
    assert not place.asked


def test_everything_else_is_handed_on(place):
    (place.path / "baseline.json").write_bytes(b"")
    (place.path / "phone.toml").write_text('schema = 1\nruntime = "litert"\n')  # without budgets: the baseline alone is enough
    options = 'output="logits", classes=["cat", "dog"], primary="roc_auc", positive="dog", seconds=0.2, baseline="baseline.json"'
    place.run(CHECK.replace('max_drop="1pp"', options).replace("android-midrange-litert", "phone.toml")).assert_outcomes(passed=1)
    asked = {name: place.asked[0][name] for name in ("target", "output", "classes", "metrics", "seconds", "baseline", "budgets")}
    assert asked == {
        "target": str(place.path / "phone.toml"),
        "output": "logits",
        "classes": ["cat", "dog"],
        "metrics": {"primary": "roc_auc", "positive": "dog"},
        "seconds": 0.2,
        "baseline": place.path / "baseline.json",
        "budgets": {},
    }


def test_a_project_is_checked_row_by_row(place):
    place.says = [Verdict.PASS, Verdict.FAIL]
    (place.path / "edgekit.toml").write_bytes(b"")
    done = place.run("def test_project(edgekit):\n    edgekit.check_project(jobs=1)\n")
    done.assert_outcomes(failed=1)
    assert place.asked == [{"project": place.path, "baseline": None, "jobs": 1, "store": None}]
    done.stdout.fnmatch_lines([f"fail: {MODEL}*", "*= edgekit =*", "pass *", "fail *"])


def test_a_projects_own_baseline_is_found_as_on_the_command_line(place):
    for name in ("edgekit.toml", "edgekit-baseline.json", "other.json"):
        (place.path / name).write_bytes(b"")
    code = "def test_project(edgekit):\n    edgekit.check_project()\n    edgekit.check_project(baseline='other.json')\n"
    place.run(code).assert_outcomes(passed=1)
    assert [asked["baseline"] for asked in place.asked] == [place.path / "edgekit-baseline.json", place.path / "other.json"]


def test_a_golden_is_checked(place):
    place.says = [Verdict.FAIL]
    (place.path / "golden.npz").write_bytes(b"")
    done = place.run(f"def test_golden(edgekit):\n    edgekit.check_golden({MODEL!r}, 'golden.npz')\n")
    done.assert_outcomes(failed=1)
    assert place.asked == [{"model": place.path / MODEL, "golden": place.path / "golden.npz", "target": None, "store": None}]


def test_nothing_judged_is_no_pass(place, monkeypatch):
    empty = Report(schema=2, project="digits", verdict=Verdict.INCONCLUSIVE, rows=())
    monkeypatch.setitem(vars(toolkit), "check_project", lambda project, **options: empty)
    code = "def test_project(edgekit):\n    edgekit.check_project()\n"
    place.run(code).assert_outcomes(skipped=1)
    place.run(code, "--edgekit-strict").assert_outcomes(failed=1)


def test_junit_carries_verdict_metric_and_interval(place):
    place.run(CHECK, "--junit-xml=out.xml").assert_outcomes(passed=1)
    found = {entry.get("name"): entry.get("value") for entry in ET.parse(place.path / "out.xml").iter("property")}
    assert found["edgekit.verdict"] == "pass"
    assert found["edgekit.metric"] == "top1_accuracy" and float(found["edgekit.value"]) == 0.905
    assert found["edgekit.interval"] == "[0.8906, 0.9177]" and found["edgekit.samples"] == "1797"
    assert found["edgekit.change_interval"] == "[-0.0641, -0.0412]"


def test_the_summary_needs_nothing_but_the_reports(place):
    """A worker of pytest-xdist sends its reports as JSON to the process that prints."""
    (place.path / "conftest.py").write_text(
        "import json, pytest\n"
        "@pytest.hookimpl(wrapper=True)\n"
        "def pytest_runtest_makereport(item):\n"
        "    report = yield\n"
        "    sent = json.loads(json.dumps(item.config.hook.pytest_report_to_serializable(config=item.config, report=report)))\n"
        "    item.user_properties = []\n"
        "    return item.config.hook.pytest_report_from_serializable(config=item.config, data=sent)\n"
    )
    place.says = [Verdict.FAIL]
    done = place.run()
    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines(["*= edgekit =*", f"fail *{MODEL} on android-midrange-litert*"])


def test_runs_without_a_check_look_as_before(place):
    done = place.run("def test_nothing():\n    pass\n")
    done.assert_outcomes(passed=1)
    assert "edgekit" not in done.stdout.str().partition("collected")[2]


def test_it_can_be_left_out(place):
    left_out = place.run(CHECK, plugin="no:edgekit")
    left_out.assert_outcomes(errors=1)
    left_out.stdout.fnmatch_lines(["*fixture 'edgekit' not found*"])
    place.run("def test_nothing():\n    pass\n", plugin="no:edgekit").assert_outcomes(passed=1)


def test_loading_it_imports_nothing_but_pytest():
    found = imported_by("import toolkit.pytest_plugin")
    assert "pytest" in found and not found & (FRAMEWORKS | {"numpy", "pydantic", "typer", "rich"})


def test_the_installed_project_registers_it():
    """Read as pytest reads it, from the entry points."""
    code = "import importlib.metadata as m; print(*(p.value for p in m.entry_points(group='pytest11') if p.name == 'edgekit'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, check=True)
    if not done.stdout.strip():
        pytest.skip("edgekit is not installed, only on the path")
    assert done.stdout.split() == ["toolkit.pytest_plugin"]
