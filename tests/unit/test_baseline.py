"""The committed baseline: what is held against it, what an update may change, and how the file looks."""

from __future__ import annotations

import json
import os
import tracemalloc
import zlib
from base64 import b64encode

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from tests.reports import latency, row
from toolkit.checks import baseline as check
from toolkit.checks.baseline import Baseline, Entry, Tolerances
from toolkit.errors import ConfigError
from toolkit.evidence import Finding, Report, Row, Verdict
from toolkit.figures import Latency, Memory, Metric
from toolkit.pipeline import baseline as baselines
from toolkit.stats.proportions import proportion_interval

PASS, FAIL, INCONCLUSIVE = Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE
ARTIFACT, TARGET = "digits.static_wi8_ai8.onnx", "host-onnx"
PLACE = (ARTIFACT, TARGET)
HERE = {"cpu": "Cortex-X1", "versions": {"onnxruntime": "1.22.0", "numpy": "2.0.0"}}
N = 2000


def answers(right: int, n: int = N, first_wrong: int = 0) -> np.ndarray:
    """``right`` of ``n``; the wrong ones are in a row, from ``first_wrong`` on."""
    outcomes = np.ones(n, bool)
    outcomes[(first_wrong + np.arange(n - right)) % n] = False
    return outcomes


def top1(outcomes: np.ndarray) -> Metric:
    k, n = int(outcomes.sum()), len(outcomes)
    low, high = proportion_interval(k, n)
    return Metric(name="top1_accuracy", value=k / n, low=low, high=high, n=n)


def timed(ratio: float | None = 0.6, p90: float = 4.0, **more: object) -> Latency:
    sides = {} if ratio is None else {"ratio_low": ratio * 0.99, "ratio_high": ratio * 1.01}
    return latency(p90 * 0.8, p90, ratio).model_copy(update={"noise": 0.01, "max_noise": 0.1, **sides, **more})


def measured(outcomes: np.ndarray | None = None, **given: object) -> Row:
    outcomes = answers(1900) if outcomes is None else outcomes
    facts = {
        "metric": top1(outcomes),
        "metrics": (top1(outcomes),),
        "samples_digest": "aa",
        "size_bytes": 100_000,
        "latency_ms": timed(),
        "memory": Memory(peak_bytes=5_000_000, resident_bytes=1, weight_bytes=1, n=3),
    }
    return row(ARTIFACT, TARGET, (), **(facts | given))


def report(*rows: Row, **environment: object) -> Report:
    return Report(schema=2, project="digits", verdict=PASS, rows=rows, environment={**HERE, **environment})


def committed(tmp_path, found: Row | None = None, outcomes: np.ndarray | None = None) -> Baseline:
    """What an update records of a row."""
    outcomes = answers(1900) if outcomes is None else outcomes
    path = tmp_path / "committed.json"
    path.unlink(missing_ok=True)
    baselines.update(path, report(found or measured(outcomes)), {PLACE: outcomes})
    return baselines.load(path)


def findings(base: Baseline, found: Row, outcomes: np.ndarray | None = None, **environment: object) -> dict[str, Finding]:
    held = baselines.hold(report(found, **environment), {} if outcomes is None else {PLACE: outcomes}, base)
    return {finding.budget.removeprefix("baseline."): finding for finding in held.rows[0].findings}


# Held against it.


def test_a_row_like_its_baseline_passes(tmp_path):
    held = baselines.hold(report(measured()), {PLACE: answers(1900)}, committed(tmp_path))
    assert held.verdict is held.rows[0].verdict is PASS
    names = [finding.budget for finding in held.rows[0].findings]
    assert names == ["baseline.top1_accuracy", "baseline.size_bytes", "baseline.latency_ratio", "baseline.latency_p90_ms", "baseline.peak_memory"]
    assert held.rows[0].reason == "5 budgets hold"


def test_few_samples_are_enough_to_see_that_nothing_changed(tmp_path):
    """No count of 20 holds half a point; but the same outcomes on the same samples are no change at all."""
    outcomes = answers(18, 20)
    found = measured(outcomes)
    base = committed(tmp_path, found, outcomes)
    assert findings(base, found, outcomes)["top1_accuracy"].verdict is PASS
    moved = findings(base, measured(answers(18, 20, 5)), answers(18, 20, 5))["top1_accuracy"]
    assert moved.verdict is INCONCLUSIVE
    assert "(2 lost, 2 gained, McNemar p = 1)" in moved.reason


@pytest.mark.parametrize(("right", "verdict"), [(1900, PASS), (1899, PASS), (1888, INCONCLUSIVE), (1880, FAIL)])
def test_accuracy_is_paired_on_the_same_samples(tmp_path, right, verdict):
    outcomes = answers(right)
    finding = findings(committed(tmp_path), measured(outcomes), outcomes)["top1_accuracy"]
    assert finding.verdict is verdict
    assert right == 1900 or f"on the same {N:,} samples ({1900 - right} lost, 0 gained, McNemar p = " in finding.reason


def test_the_test_of_no_change_is_mcnemars(tmp_path):
    before, now = answers(1900), answers(1880, first_wrong=40)
    finding = findings(committed(tmp_path), measured(now), now)["top1_accuracy"]
    lost, gained = int((before & ~now).sum()), int((~before & now).sum())
    expected = binomtest(lost, lost + gained).pvalue
    assert f"({lost} lost, {gained} gained, McNemar p = {expected:.2g})" in finding.reason


def test_other_samples_are_compared_by_both_intervals(tmp_path):
    base = committed(tmp_path)
    worse = findings(base, measured(answers(1700), samples_digest="bb"), answers(1700))["top1_accuracy"]
    assert worse.verdict is FAIL
    # By hand: the halves of both Wilson intervals that point downwards, squared and added.
    (low_a, _), (_, high_b) = proportion_interval(1700, N), proportion_interval(1900, N)
    down = ((0.85 - low_a) ** 2 + (high_b - 0.95) ** 2) ** 0.5
    assert f"fell by 10.00 pp [{(-0.1 - down) * 100:+.2f}, " in worse.reason
    assert "2,000 samples now and 2,000 then" in worse.reason
    same = findings(base, measured(answers(1900), samples_digest="bb"), answers(1900))["top1_accuracy"]
    assert same.verdict is INCONCLUSIVE
    assert same.reason.endswith("they are other samples than the baseline's: run: edgekit baseline update")


@pytest.mark.parametrize("digest", ["aa", "bb"])
def test_a_metric_without_outcomes_is_unchanged_only_on_the_same_samples(tmp_path, digest):
    auc = Metric(name="roc_auc", value=0.9312345, low=0.92, high=0.94, n=500, method="DeLong")
    base = committed(tmp_path, measured(metric=auc, metrics=(auc,)))
    assert findings(base, measured(metric=auc, metrics=(auc,), samples_digest=digest))["roc_auc"].verdict is (
        PASS if digest == "aa" else INCONCLUSIVE
    )
    worse = auc.model_copy(update={"value": 0.89, "low": 0.88, "high": 0.90})
    assert findings(base, measured(metric=worse, metrics=(worse,), samples_digest=digest))["roc_auc"].verdict is FAIL


def test_an_interval_that_does_not_hold_its_value_is_no_crash(tmp_path):
    auc = Metric(name="macro_f1", value=0.95, low=0.90, high=0.94, n=500, method="BCa bootstrap")
    base = committed(tmp_path, measured(metric=auc, metrics=(auc,)))
    lower = auc.model_copy(update={"value": 0.93})
    assert findings(base, measured(metric=lower, metrics=(lower,)))["macro_f1"].verdict is INCONCLUSIVE


def test_a_metric_that_is_no_rate_is_tolerated_by_its_share(tmp_path):
    def at(value: float) -> Row:
        found = Metric(name="perplexity", value=value, low=value - 0.01, high=value + 0.01, n=500, method="BCa bootstrap")
        return measured(metric=found, metrics=(found,))

    base = committed(tmp_path, at(20.0))
    assert Tolerances().margin("perplexity", 20.0) == pytest.approx(0.1)
    assert [findings(base, at(value))["perplexity"].verdict for value in (19.0, 20.05, 20.1, 20.3)] == [PASS, PASS, INCONCLUSIVE, FAIL]


@pytest.mark.parametrize(("size", "verdict"), [(90_000, PASS), (101_000, PASS), (101_001, FAIL)])
def test_size_is_exact(tmp_path, size, verdict):
    assert findings(committed(tmp_path), measured(size_bytes=size), answers(1900))["size_bytes"].verdict is verdict


@pytest.mark.parametrize(("peak", "verdict"), [(4_000_000, PASS), (5_500_000, PASS), (5_500_001, FAIL)])
def test_peak_memory_is_exact(tmp_path, peak, verdict):
    found = measured(memory=Memory(peak_bytes=peak, resident_bytes=1, weight_bytes=1, n=3))
    assert findings(committed(tmp_path), found, answers(1900))["peak_memory"].verdict is verdict


@pytest.mark.parametrize(("peak", "verdict"), [(536_576, PASS), (536_577, INCONCLUSIVE), (798_720, INCONCLUSIVE), (798_721, FAIL)])
def test_one_step_of_the_heap_is_no_regression(tmp_path, peak, verdict):
    """405,504 and 536,576 bytes were measured of one file in two runs: 128 KiB, by which glibc extends a heap."""
    small, now = (Memory(peak_bytes=size, resident_bytes=1, weight_bytes=1, n=3) for size in (405_504, peak))
    base = committed(tmp_path, measured(memory=small))
    assert findings(base, measured(memory=now), answers(1900))["peak_memory"].verdict is verdict


def test_the_recorded_ratio_has_an_interval_too(tmp_path):
    """0.72 [0.7128, 0.7272] is above 0.69 = 1.15 * 0.6, and not by more than 0.6 [0.55, 0.65] leaves open."""
    now = measured(latency_ms=timed(0.72))
    exact, wide = (
        committed(tmp_path, measured(latency_ms=timed(0.6, ratio_low=low, ratio_high=high))) for low, high in ((0.6, 0.6001), (0.55, 0.65))
    )
    assert findings(exact, now, answers(1900))["latency_ratio"].verdict is FAIL
    assert findings(wide, now, answers(1900))["latency_ratio"].verdict is INCONCLUSIVE


@pytest.mark.parametrize(("ratio", "verdict"), [(0.5, PASS), (0.6, PASS), (0.69, INCONCLUSIVE), (0.72, FAIL)])
def test_latency_is_the_ratio_to_the_float_twin(tmp_path, ratio, verdict):
    assert findings(committed(tmp_path), measured(latency_ms=timed(ratio)), answers(1900))["latency_ratio"].verdict is verdict


@pytest.mark.parametrize(("p90", "verdict"), [(1.0, PASS), (4.0, PASS), (5.1, INCONCLUSIVE), (6.0, FAIL)])
def test_milliseconds_are_compared_on_the_same_cpu_only(tmp_path, p90, verdict):
    base, found = committed(tmp_path), measured(latency_ms=timed(p90=p90))
    assert findings(base, found, answers(1900))["latency_p90_ms"].verdict is verdict
    elsewhere = findings(base, found, answers(1900), cpu="another")
    assert "latency_p90_ms" not in elsewhere
    assert elsewhere["latency_ratio"].verdict is PASS
    assert elsewhere["latency_ratio"].reason.endswith("milliseconds are not compared, as the baseline's are of another CPU (Cortex-X1)")


def test_a_noisy_machine_gives_no_verdict_about_latency(tmp_path):
    found = findings(committed(tmp_path), measured(latency_ms=timed(2.0, 40.0, noise=0.2)), answers(1900))
    assert found["latency_ratio"].verdict is found["latency_p90_ms"].verdict is INCONCLUSIVE


def test_what_was_not_measured_now_is_inconclusive(tmp_path):
    found = findings(committed(tmp_path), measured(metric=None, metrics=(), size_bytes=None, latency_ms=None, memory=None))
    assert {finding.verdict for finding in found.values()} == {INCONCLUSIVE}
    assert all("was not measured" in finding.reason for finding in found.values())


def test_a_row_that_is_new_is_inconclusive_and_one_that_vanished_fails(tmp_path):
    base = committed(tmp_path)
    other = row("digits.float32.onnx", TARGET, (), size_bytes=1)
    held = baselines.hold(report(other), {}, base)
    assert held.verdict is FAIL
    new, gone = held.rows
    assert (new.verdict, new.reason) == (INCONCLUSIVE, "digits.float32.onnx on host-onnx is not in the baseline; run: edgekit baseline update")
    assert (gone.artifact, gone.scheme, gone.format, gone.verdict) == (ARTIFACT, "static_wi8_ai8", "onnx", FAIL)
    assert gone.reason.startswith(f"the baseline has {ARTIFACT} on {TARGET}, which this run did not make")
    alone = baselines.hold(report(other), {}, base, whole=False)
    assert [one.artifact for one in alone.rows] == ["digits.float32.onnx"]


def test_a_row_whose_stage_failed_stays_as_it_is(tmp_path):
    broken = row(ARTIFACT, TARGET, (), verdict=FAIL, reason="stage-failed: no")
    held = baselines.hold(report(broken), {}, committed(tmp_path))
    assert held.rows == (broken,)


def test_the_worst_of_budgets_and_baseline_is_the_verdict(tmp_path):
    missed = Finding(budget="max_drop", verdict=FAIL, reason="missed")
    found = measured().model_copy(update={"findings": (missed,), "verdict": FAIL, "reason": "missed"})
    held = baselines.hold(report(found), {PLACE: answers(1900)}, committed(tmp_path)).rows[0]
    assert (held.verdict, held.reason, len(held.findings)) == (FAIL, "missed", 6)


# The ratchet.


def again(tmp_path, found: Row, outcomes: np.ndarray | None = None, **environment: object):
    """Updates a baseline of the standard row with another row; returns what is said, and the entry."""
    path = tmp_path / "b.json"
    baselines.update(path, report(measured()), {PLACE: answers(1900)})
    said = baselines.update(path, report(found, **environment), {} if outcomes is None else {PLACE: outcomes})
    return said, baselines.load(path).rows[0]


def test_an_update_with_the_same_measurement_changes_nothing(tmp_path):
    path = tmp_path / "b.json"
    baselines.update(path, report(measured()), {PLACE: answers(1900)})
    before = path.stat().st_mtime_ns, path.read_bytes()
    said = baselines.update(path, report(measured()), {PLACE: answers(1900)})
    assert (said.changes, said.kept, said.refused) == ((), (), ())
    assert (path.stat().st_mtime_ns, path.read_bytes()) == before


def test_what_is_better_is_taken(tmp_path):
    better = measured(
        answers(1910),
        size_bytes=90_000,
        latency_ms=timed(0.5, 3.0),
        memory=Memory(peak_bytes=4_000_000, resident_bytes=1, weight_bytes=1, n=3),
    )
    said, entry = again(tmp_path, better, answers(1910))
    assert (len(said.changes), said.kept) == (4, ())
    assert entry.metrics["top1_accuracy"].value == 0.955
    assert (entry.size_bytes, entry.peak_bytes, entry.latency_ms.ratio_to_float, entry.latency_ms.p90) == (90_000, 4_000_000, 0.5, 3.0)
    assert np.array_equal(entry.right(), answers(1910))
    assert f"{ARTIFACT} on {TARGET}: top-1 accuracy from 95.00% to 95.50%" in said.changes


def test_what_is_worse_is_kept_and_said(tmp_path):
    worse = measured(
        answers(1890),
        size_bytes=110_000,
        latency_ms=timed(0.8, 9.0),
        memory=Memory(peak_bytes=6_000_000, resident_bytes=1, weight_bytes=1, n=3),
    )
    said, entry = again(tmp_path, worse, answers(1890))
    assert (said.changes, len(said.kept)) == ((), 4)
    assert all(line.endswith("is looser; edit the file by hand to loosen") for line in said.kept)
    assert entry == committed(tmp_path).rows[0]


figures = st.fixed_dictionaries(
    {
        "right": st.integers(1850, 1950),
        "size": st.integers(90_000, 110_000),
        "ratio": st.floats(0.5, 0.7),
        "p90": st.floats(2, 8),
        "peak": st.integers(4_000_000, 6_000_000),
        "digest": st.sampled_from(["aa", "aa", "bb"]),
    }
)


@settings(max_examples=40, deadline=None)
@given(runs=st.lists(figures, min_size=2, max_size=6))
def test_no_order_of_runs_ever_loosens_anything(tmp_path_factory, runs):
    path = tmp_path_factory.mktemp("ratchet") / "b.json"
    previous = None
    for run in runs:
        outcomes = answers(run["right"])
        found = measured(
            outcomes,
            size_bytes=run["size"],
            samples_digest=run["digest"],
            latency_ms=timed(run["ratio"], run["p90"]),
            memory=Memory(peak_bytes=run["peak"], resident_bytes=1, weight_bytes=1, n=3),
        )
        baselines.update(path, report(found), {PLACE: outcomes})
        entry = baselines.load(path).rows[0]
        if previous:
            assert entry.size_bytes <= previous.size_bytes
            assert entry.peak_bytes <= previous.peak_bytes
            assert entry.latency_ms.ratio_to_float <= previous.latency_ms.ratio_to_float
            assert entry.metrics["top1_accuracy"].value >= previous.metrics["top1_accuracy"].value
        assert entry.right().mean() == pytest.approx(entry.metrics["top1_accuracy"].value)
        previous = entry


def test_a_lucky_measurement_within_its_interval_is_not_taken(tmp_path):
    """Otherwise the baseline would become the luckiest of all runs, which no honest rerun holds."""
    said, entry = again(tmp_path, measured(latency_ms=timed(0.597)), answers(1900))
    assert (said.changes, entry.latency_ms.ratio_to_float) == ((), 0.6)
    said, entry = again(tmp_path, measured(latency_ms=timed(0.5, noise=0.3)), answers(1900))
    assert (said.changes, entry.latency_ms.ratio_to_float) == ((), 0.6)


def test_the_float_twin_is_not_held_to_being_as_fast_as_itself(tmp_path):
    """A benchmark says 1, from 1 to 1, of the baseline itself."""
    twin = measured(latency_ms=timed(1.0, ratio_low=1.0, ratio_high=1.0))
    base = committed(tmp_path, twin)
    assert base.rows[0].latency_ms.ratio_to_float is None
    assert "latency_ratio" not in findings(base, twin, answers(1900))
    assert findings(base, twin, answers(1900))["latency_p90_ms"].verdict is PASS


def test_the_float_twins_milliseconds_move_only_beyond_the_tolerance_and_on_the_same_cpu(tmp_path):
    def p90_after(p90: float, cpu: str = HERE["cpu"]) -> float:
        path = tmp_path / "b.json"
        path.unlink(missing_ok=True)
        baselines.update(path, report(measured(latency_ms=timed(None, 4.0))), {})
        baselines.update(path, report(measured(latency_ms=timed(None, p90)), cpu=cpu), {})
        return baselines.load(path).rows[0].latency_ms.p90

    assert [p90_after(3.2), p90_after(2.0), p90_after(2.0, "another"), p90_after(9.0)] == [4.0, 2.0, 4.0, 4.0]


@pytest.mark.parametrize(("right", "taken"), [(1900, True), (1950, True), (1899, False), (1700, False)])
def test_values_on_other_samples_are_taken_unless_they_are_lower(tmp_path, right, taken):
    """What chance could explain is lower all the same: taken again and again, it would let a row sink without anybody deciding it."""
    said, entry = again(tmp_path, measured(answers(right), samples_digest="bb"), answers(right))
    assert (entry.samples_digest == "bb") is taken
    assert np.array_equal(entry.right(), answers(right) if taken else answers(1900))
    assert bool(said.kept) is not taken
    if taken:
        assert f"top-1 accuracy from 95.00% to {right / N:.2%} on other samples than the baseline's" in said.changes[0]
    else:
        assert said.kept[0].endswith("to take it, remove the row's metrics, samples_digest and outcomes by hand")


def test_a_person_takes_lower_values_on_other_samples_by_hand(tmp_path):
    again(tmp_path, measured())
    document = json.loads((tmp_path / "b.json").read_text())
    for name in ("metrics", "samples_digest", "outcomes"):
        del document["rows"][0][name]
    (tmp_path / "b.json").write_text(json.dumps(document))
    baselines.update(tmp_path / "b.json", report(measured(answers(1890), samples_digest="bb")), {PLACE: answers(1890)})
    entry = baselines.load(tmp_path / "b.json").rows[0]
    assert (entry.metrics["top1_accuracy"].value, entry.samples_digest, int(entry.right().sum())) == (0.945, "bb", 1890)


@pytest.mark.parametrize("others", [(), (Metric(name="macro_f1", value=0.99, low=0.98, high=1.0, n=N, method="BCa bootstrap"),)])
def test_a_recorded_metric_that_is_not_measured_on_other_samples_stays(tmp_path, others):
    found = measured(metric=others[0] if others else None, metrics=others, samples_digest="bb")
    said, entry = again(tmp_path, found)
    assert entry == committed(tmp_path).rows[0]
    assert "top-1 accuracy is not measured on other samples" in said.kept[0]


def test_an_entry_that_records_nothing_to_compare_is_no_pass(tmp_path):
    path = tmp_path / "b.json"
    path.write_text(json.dumps({"schema": 1, "rows": [{"artifact": ARTIFACT, "target": TARGET}]}))
    held = baselines.hold(report(measured()), {PLACE: answers(1900)}, baselines.load(path))
    assert held.verdict is INCONCLUSIVE
    assert held.rows[0].reason.startswith("nothing that the baseline records of")


def test_a_link_to_nowhere_is_a_baseline_that_cannot_be_read(tmp_path):
    """It was committed; a gate must not open because it is gone."""
    (tmp_path / "edgekit-baseline.json").symlink_to("gone.json")
    with pytest.raises(ConfigError, match="baseline file does not exist"):
        baselines.load(baselines.find(tmp_path))


def test_one_file_under_a_name_that_the_baseline_does_not_have_is_an_error(tmp_path):
    base = committed(tmp_path)
    baselines.check_recorded(base, ARTIFACT, TARGET, "b.json")
    for artifact, target in (("renamed.onnx", TARGET), (ARTIFACT, "desktop-ort")):
        with pytest.raises(ConfigError, match=f"does not record {artifact} on {target}") as caught:
            baselines.check_recorded(base, artifact, target, "b.json")
        assert f"{ARTIFACT} on {TARGET}" in caught.value.hint


def test_a_failed_row_is_refused_and_a_vanished_one_is_kept(tmp_path):
    path = tmp_path / "b.json"
    failing = row(ARTIFACT, TARGET, (), verdict=FAIL, reason="stage-failed: no")
    said = baselines.update(path, report(failing), {})
    assert said.refused == (f"{ARTIFACT} on {TARGET} fails and is not recorded: stage-failed: no",)
    assert not path.exists()
    baselines.update(path, report(measured()), {PLACE: answers(1900)})
    before = path.read_bytes()
    said = baselines.update(path, report(failing), {})
    assert (len(said.refused), said.kept, path.read_bytes()) == (1, (), before)
    said = baselines.update(path, report(row("digits.float32.onnx", TARGET, (), size_bytes=1)), {})
    assert said.changes == ("digits.float32.onnx on host-onnx: recorded",)
    assert said.kept == (f"{ARTIFACT} on {TARGET}, which this run did not make; remove its row by hand",)
    assert len(baselines.load(path).rows) == 2


def test_tolerances_are_used_as_people_wrote_them_and_never_rewritten(tmp_path):
    path = tmp_path / "b.json"
    baselines.update(path, report(measured()), {PLACE: answers(1900)})
    document = json.loads(path.read_text())
    assert document["tolerances"] == {
        "metric": "0.5pp",
        "metrics": {},
        "size": "1%",
        "latency_ratio": "15%",
        "latency_p90": "25%",
        "peak_memory": "10%",
    }
    document["tolerances"].update(metric=0.02, size="12.50%", metrics={"roc_auc": "2 pp"})
    document["rows"][0]["tolerances"] = {"peak_memory": 0.5}
    path.write_text(json.dumps(document))
    heavy = measured(size_bytes=112_000, memory=Memory(peak_bytes=7_000_000, resident_bytes=1, weight_bytes=1, n=3))
    found = findings(baselines.load(path), heavy, answers(1900))
    assert (found["size_bytes"].verdict, found["peak_memory"].verdict) == (PASS, PASS)
    baselines.update(path, report(measured(size_bytes=90_000)), {PLACE: answers(1900)})
    after = json.loads(path.read_text())
    assert after["tolerances"] == document["tolerances"]
    assert after["rows"][0]["tolerances"] == {"peak_memory": 0.5}


def test_a_metric_that_the_tolerances_name_is_recorded_and_judged(tmp_path):
    auc = Metric(name="roc_auc", value=0.93, low=0.92, high=0.94, n=500, method="DeLong")
    found = measured(metrics=(top1(answers(1900)), auc))
    path = tmp_path / "b.json"
    baselines.update(path, report(found), {PLACE: answers(1900)})
    document = json.loads(path.read_text())
    assert list(document["rows"][0]["metrics"]) == ["top1_accuracy"]
    document["tolerances"]["metrics"] = {"roc_auc": "1pp"}
    path.write_text(json.dumps(document))
    said = baselines.update(path, report(found), {PLACE: answers(1900)})
    assert said.changes == (f"{ARTIFACT} on {TARGET}: ROC-AUC to 93.00%",)
    assert findings(baselines.load(path), found, answers(1900))["roc_auc"].verdict is PASS


# The file.


def test_the_file_has_one_value_a_line_in_a_fixed_order(tmp_path):
    one, other = measured(), measured().model_copy(update={"artifact": "a.float32.onnx"})
    outcomes = {PLACE: answers(1900), ("a.float32.onnx", TARGET): answers(1900)}
    texts = []
    for rows in ((one, other), (other, one)):
        path = tmp_path / f"{len(texts)}.json"
        baselines.update(path, report(*rows), outcomes)
        texts.append(path.read_text())
    assert texts[0] == texts[1]
    assert '"size_bytes": 100000,\n' in texts[0]
    before = texts[0].splitlines()
    baselines.update(tmp_path / "0.json", report(one.model_copy(update={"size_bytes": 90_000}), other), outcomes)
    after = (tmp_path / "0.json").read_text().splitlines()
    assert len(before) == len(after)
    assert [line.strip() for old, line in zip(before, after, strict=True) if old != line] == ['"size_bytes": 90000,']


def test_a_file_that_cannot_be_replaced_stays_whole(tmp_path, monkeypatch):
    path = tmp_path / "b.json"
    baselines.update(path, report(measured()), {PLACE: answers(1900)})
    before = path.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(Exception, match="No space left on device") as caught:
        baselines.update(path, report(measured(size_bytes=90_000)), {PLACE: answers(1900)})
    assert caught.value.exit_code == 4
    assert (path.read_bytes(), [one.name for one in tmp_path.iterdir()]) == (before, ["b.json"])


@given(st.lists(st.booleans(), min_size=1, max_size=300))
def test_outcomes_come_back_as_they_were(outcomes):
    assert check.unpack(check.pack(np.array(outcomes)), len(outcomes)).tolist() == outcomes


def test_ten_thousand_outcomes_take_a_kilobyte():
    rng = np.random.default_rng(0)
    assert len(check.pack(rng.random(10_000) < 0.95)) < 1700


def test_a_bomb_takes_no_memory():
    text = b64encode(zlib.compress(bytes(50_000_000), 9)).decode()
    tracemalloc.start()
    with pytest.raises(ValueError, match="not those of 16 samples"):
        check.unpack(text, 16)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def entry(**changes: object) -> dict:
    document = {"artifact": "a.onnx", "target": "t", "metrics": {"top1_accuracy": {"value": 0.9, "low": 0.8, "high": 0.95, "n": 16}}}
    return document | changes


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ("<<<<<<< HEAD\n{}", "is not valid JSON"),
        ("[]", "valid dictionary"),
        ('{"schema": 1, "rows": [{"artifact": "a.onnx", "target": "t", "size_bytes": 1, "size_bytes": 9}]}', "key 'size_bytes' stands there twice"),
        ("[" * 200_000, "is nested too deeply"),
        ('{"schema": 1, "rows": [{"artifact": "a.onnx", "target": "t", "size_bytes": NaN}]}', "valid integer"),
        ({"schema": 1, "rows": [entry(metrics={"top1_accuracy": {"value": float("nan"), "low": 0.8, "high": 0.9, "n": 9}})]}, "finite"),
        ({"schema": 1, "rows": [entry(metrics={"top1_accuracy": {"value": -9.0, "low": 0.8, "high": 0.9, "n": 9}})]}, "outside its scale"),
        ({"schema": 1, "rows": [entry(metrics={"top1_accuracy": {"value": 0.9, "low": -99.0, "high": 0.9, "n": 9}})]}, "outside its scale"),
        ({"schema": 1, "rows": [entry(metrics={"top1_accuracy": {"value": 0.9, "low": 0.9, "high": 0.8, "n": 9}})]}, "upside down"),
        ({"schema": 1, "rows": [entry(outcomes=check.pack(np.ones(16, bool)))]}, "is 90.00%, and its outcomes say 100.00%"),
        ({"schema": 2}, "schema: Input should be 1"),
        ({"schema": 1, "row": []}, "unknown key 'row'"),
        ({"schema": 1, "rows": [entry(sizes=1)]}, "unknown key 'rows.0.sizes'"),
        ({"schema": 1, "rows": [entry(), entry()]}, "the same artifact and target appear twice"),
        ({"schema": 1, "rows": [entry(size_bytes=-1)]}, "greater than 0"),
        ({"schema": 1, "rows": [entry(outcomes="no base64")]}, "the outcomes are damaged"),
        ({"schema": 1, "rows": [entry(outcomes=b64encode(b"no zlib").decode())]}, "the outcomes are damaged"),
        ({"schema": 1, "rows": [entry(outcomes=check.pack(np.ones(17, bool)))]}, "not those of 16 samples"),
        ({"schema": 1, "rows": [entry(outcomes=b64encode(zlib.compress(bytes(50_000_000), 9)).decode())]}, "not those of 16 samples"),
        ({"schema": 1, "tolerances": {"metric": "0pp"}}, "no number of samples shows"),
        ({"schema": 1, "tolerances": {"size": "150%"}}, "write a share from 0 to below 1"),
        ({"schema": 1, "tolerances": {"size": "1 percent"}}, "write a fraction"),
        ({"schema": 1, "tolerances": {"size": -0.1}}, "write a share from 0 to below 1"),
        ({"schema": 1, "tolerances": {"sizes": "1%"}}, "unknown key 'tolerances.sizes'"),
    ],
)
def test_a_damaged_file_is_one_clear_error(tmp_path, document, says):
    path = tmp_path / "b.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    with pytest.raises(ConfigError) as caught:
        baselines.load(path)
    assert caught.value.exit_code == 2
    assert says in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_file_says_what_to_do(tmp_path):
    with pytest.raises(ConfigError, match="there is no baseline here") as caught:
        baselines.load(tmp_path / "b.json")
    assert "edgekit baseline update" in caught.value.hint


def test_entries_are_read_as_they_were_written(tmp_path):
    base = committed(tmp_path)
    assert Baseline.model_validate_json(baselines.render(base)) == base
    assert base.rows[0].latency_ms.versions == {"onnxruntime": "1.22.0"}
    assert isinstance(base.rows[0], Entry)
