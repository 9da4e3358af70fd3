"""The arithmetic of the benchmarks, and that the script by hand does what Edgekit does."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks import __main__ as runner
from benchmarks import raw_digits, run
from benchmarks.figures import Cost, Figure, Samples, differences, ratios, timed, turns
from toolkit.dataset import hold_out
from toolkit.finetuning import recipe
from toolkit.samples.calibration import choose


@pytest.mark.parametrize(
    ("samples", "limits", "value", "bar", "holds"),
    [
        ([3.0, 1.0, 2.0], {}, 2.0, None, None),
        ([3.0, 1.0, 2.0], {"at_most": 2.0}, 2.0, "<= 2", True),
        ([4.0, 1.0], {"at_most": 2.0}, 2.5, "<= 2", False),
        ([0.9, 0.95, 0.8], {"at_least": 0.9}, 0.9, ">= 0.9", True),
        ([0.89], {"at_least": 0.9}, 0.89, ">= 0.9", False),
        ([0.95], {"at_least": 0.9, "at_most": 1.1}, 0.95, "0.9..1.1", True),
        ([0.85], {"at_least": 0.9, "at_most": 1.1}, 0.85, "0.9..1.1", False),
        ([1.15], {"at_least": 0.9, "at_most": 1.1}, 1.15, "0.9..1.1", False),
    ],
)
def test_a_figure_is_the_median_held_against_its_bar(samples, limits, value, bar, holds):
    document = Figure("f", "x", samples, "w", **limits).to_dict()
    assert document == {"name": "f", "value": value, "unit": "x", "bar": bar, "holds": holds, "samples": samples, "what": "w"}


def test_a_missed_bar_fails_the_run_and_is_named(capsys):
    fine, missed, free = Figure("fine", "s", [1], "", at_most=2), Figure("slow", "s", [3], "", at_most=2), Figure("free", "s", [9], "")
    assert runner.status([fine, free]) == 0
    assert runner.status([fine, missed]) == 1
    assert "slow is 3 s, the bar is <= 2" in capsys.readouterr().err
    assert [line.split()[0] for line in runner.table([fine, missed]).splitlines()] == ["fine", "slow"]


def test_the_runner_writes_every_figure_and_refuses_unknown_names(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.startup.measure", lambda rounds: [Figure("startup.help", "s", [0.5] * rounds, "", at_most=0.25)])
    out = tmp_path / "new" / "results.json"
    assert runner.main(["startup", "--repeat", "2", "--output", str(out)]) == 1
    document = json.loads(out.read_text())
    assert document["figures"][0]["samples"] == [0.5, 0.5]
    assert document["environment"]["python"]
    with pytest.raises(SystemExit):
        runner.main(["starup"])


def test_rivals_take_turns_and_are_compared_round_by_round():
    assert "".join(turns("abc", 3)) == "abccbaabc"
    assert ratios([2.0, 9.0], [1.0, 3.0]) == [2.0, 3.0]
    assert differences([2.0, 9.0], [1.0, 3.0]) == [1.0, 6.0]
    samples = Samples()
    samples.add("a", Cost(1.0, 2.0))
    samples.add("a", Cost(3.0, 4.0))
    assert (samples.seconds("a"), samples.cpu_seconds("a")) == ([1.0, 3.0], [2.0, 4.0])


def test_a_command_that_fails_is_not_timed(tmp_path):
    with pytest.raises(RuntimeError, match=r"ended with 1.*no figure without work"):
        timed(["sh", "-c", "echo no figure without work; exit 1"], tmp_path / "log.txt")


def test_different_work_is_not_compared(tmp_path):
    stage = tmp_path / "cache" / "stages" / "ab" / "abcd" / "out"
    stage.mkdir(parents=True)
    (tmp_path / "out").mkdir()
    (stage / "training.json").write_text(json.dumps({"n_train": 65, "epochs": [{}, {}]}))  # three batches of 32 an epoch
    (tmp_path / "out" / "report.json").write_text(json.dumps({"rows": [{"metric": {"value": 0.5}}, {"metric": {"value": 0.25}}]}))
    accuracy = {"float.onnx@1": 0.25, "int8.onnx@1": 0.5}
    run.check_same_work({"steps": 6, "accuracy": accuracy}, tmp_path)
    for other in ({"steps": 5, "accuracy": accuracy}, {"steps": 6, "accuracy": {**accuracy, "int8.onnx@1": 0.75}}):
        with pytest.raises(RuntimeError, match="not the same work"):
            run.check_same_work(other, tmp_path)


def test_the_script_by_hand_takes_the_same_rows_and_rates():
    label = np.random.default_rng(1).integers(0, 10, 897)
    for mine, theirs in zip(raw_digits.hold_out(label), hold_out(label, raw_digits.SEED), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    rows = choose(len(label), label, raw_digits.CALIBRATION_SAMPLES, raw_digits.SEED)
    np.testing.assert_array_equal(raw_digits.stratified(label, raw_digits.CALIBRATION_SAMPLES), rows)
    assert [raw_digits.schedule(step, 520) for step in range(520)] == [recipe.schedule(step, 520, raw_digits.WARMUP) for step in range(520)]
