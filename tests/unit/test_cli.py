"""The command line as a user meets it: exit codes, what goes to which stream, and what each mistake is told."""

from __future__ import annotations

import inspect
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from rich.console import Console

from tests import models
from tests.reports import latency, sample_report
from toolkit import config
from toolkit.cli import progress
from toolkit.cli.common import TaskName
from toolkit.dataset import load
from toolkit.errors import ConfigError, InputRejected
from toolkit.evidence import Benchmark, StageRecord
from toolkit.figures import Change, Metric
from toolkit.report import wording

ROOT = Path(__file__).parents[2]
HANGING = """
import signal, sys, time
import toolkit.cli.targets
from toolkit.errors import Interrupted
def hang():
    try:
        print('ready', file=sys.stderr, flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        print("cleaning", file=sys.stderr, flush=True)
        time.sleep(1.0)
        print("cleaned", file=sys.stderr, flush=True)
        {then}
import toolkit
toolkit.targets = hang
from toolkit.cli import main
main()
"""


def environment(tmp_path, **more):
    return {name: value for name, value in os.environ.items() if name != "COLUMNS"} | {"EDGEKIT_CACHE": str(tmp_path / "cache")} | more


@pytest.fixture
def edgekit(tmp_path):
    def run(*words, **more):
        command = [sys.executable, "-m", "toolkit", *map(str, words)]
        return subprocess.run(command, cwd=ROOT, env=environment(tmp_path, **more), capture_output=True, text=True, timeout=60)

    return run


@pytest.mark.skipif(os.name != "posix", reason="SIGPIPE is POSIX")
@pytest.mark.parametrize(
    ("words", "broken"),
    [(["targets"], "stdout"), (["targets", "--format", "json"], "stdout"), (["--help"], "stdout"), (["nope"], "stderr"), (["doctor"], "stdout")],
)
def test_a_closed_pipe_is_141_and_quiet(words, broken, tmp_path):
    read, write = os.pipe()
    os.close(read)
    other = "stderr" if broken == "stdout" else "stdout"
    command = [sys.executable, "-m", "toolkit", *words]
    done = subprocess.run(command, cwd=ROOT, env=environment(tmp_path), text=True, timeout=60, **{broken: write, other: subprocess.PIPE})
    os.close(write)
    assert done.returncode == 141
    assert not getattr(done, other)


@pytest.mark.skipif(os.name != "posix", reason="SIGPIPE is POSIX")
def test_a_pipe_that_closes_in_the_middle_of_a_run_ends_it(tmp_path):
    code = """
import toolkit
from toolkit.pipeline.execute import execute
from toolkit.pipeline.steps import Step
from toolkit.cli.common import progress
def steps():
    with progress() as listener:
        execute([Step(f"s{n}", "tests.stages:big", {"n": n}) for n in range(400)], toolkit.Store(), listener=listener)
toolkit.targets = steps
from toolkit.cli import main
main()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, "targets"], cwd=ROOT, env=environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr.readline().endswith(" ...\n")
    process.stderr.close()
    assert process.stdout.read() == ""
    assert process.wait(30) == 141
    process.stdout.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has /dev/full")
@pytest.mark.parametrize("words", [["cache"], ["cache", "--format", "json"]])
def test_a_full_disk_is_no_missed_budget(words, tmp_path):
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "toolkit", *words]
        done = subprocess.run(command, cwd=ROOT, env=environment(tmp_path), stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 4
    assert "the output cannot be written" in done.stderr


@pytest.mark.parametrize("words", [["nope"], ["inspect"], ["inspect", "x", "--bogus"], ["cache", "shwo"]])
@pytest.mark.parametrize("option", [["--format", "json"], ["--format=json"]])
def test_usage_errors_are_json_too(edgekit, words, option):
    done = edgekit(*words, *option)
    assert done.returncode == 2
    error = json.loads(done.stdout)["error"]
    assert error["code"] == "config"
    assert error["hint"].endswith("--help")
    assert "Value error" not in error["message"]
    assert error["message"] in done.stderr


def test_an_unknown_output_format_is_told_in_plain_words(edgekit):
    done = edgekit("targets", "--format", "xml")
    assert (done.returncode, done.stdout) == (2, "")
    assert "Invalid value for '--format': 'xml' is not one of" in done.stderr


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX")
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("then", ["raise", "raise Interrupted('stopped; the rest is kept') from None"])
def test_a_second_interrupt_does_not_stop_the_clean_up(second, then, tmp_path):
    code = HANGING.format(then=then)
    command = [sys.executable, "-c", code, "targets", "--format", "json"]
    process = subprocess.Popen(command, cwd=ROOT, env=environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() == "cleaning\n"
    process.send_signal(second)
    time.sleep(0.05)
    process.send_signal(second)
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert json.loads(stdout)["error"]["code"] == "interrupted"
    assert stderr.startswith("cleaned\nerror: ")
    assert "Traceback" not in stderr


def test_help_fits_80_columns(edgekit):
    done = edgekit("--help", COLUMNS="80")
    verbs = done.stdout.split("Commands:")[1].splitlines()
    assert len(verbs) > 10
    assert not [line for line in verbs if line.endswith("...")]
    options = edgekit("check", "--help", COLUMNS="80").stdout
    assert "--task" in options
    for option, said in (("--max-size-bytes", "Largest model file"), ("--max-latency-p90-ms", "Largest p90")):
        (line,) = [line for line in options.splitlines() if line.strip().startswith(option)]
        assert said in line


def test_tasks_are_those_of_the_configuration():
    assert tuple(task.value for task in TaskName) == get_args(config.Task)


@pytest.mark.parametrize("columns", ["", "100", "0"])
def test_piped_tables_honour_columns_and_end_without_blanks(edgekit, columns):
    lines = edgekit("targets", COLUMNS=columns).stdout.splitlines()
    widest = max(map(len, lines))
    assert widest <= (100 if columns == "100" else 240)
    assert (widest > 100) == (columns != "100")
    lines += edgekit("doctor", COLUMNS=columns).stdout.splitlines()
    lines += edgekit("cache", COLUMNS=columns).stdout.splitlines()
    assert [line for line in lines if line != line.rstrip()] == []


def test_a_check_that_could_not_fail_is_refused(edgekit, tmp_path):
    pytest.importorskip("onnx")
    words = ["check", models.tiny_onnx(tmp_path / "m.onnx"), "--data", tmp_path / "d.npz", "--target"]
    done = edgekit(*words, "desktop-ort")
    assert done.returncode == 2
    assert "give at least one budget, or a target that has some" in done.stderr
    for option in (["--max-drop", "1pp"], ["--max-size-ratio", "0.5"]):
        done = edgekit(*words, "desktop-ort", *option)
        assert done.returncode == 2
        assert f"{option[0]} needs --reference" in done.stderr
    assert edgekit(*words, "raspberry-pi-5-ort").returncode == 3
    assert edgekit(*words, "desktop-ort", "--min-accuracy", "95%").returncode == 3


def test_a_percentage_without_its_sign_is_recognised(edgekit, tmp_path):
    done = edgekit("check", tmp_path / "m.onnx", "--data", "d.npz", "--target", "desktop-ort", "--min-accuracy", "95")
    assert done.returncode == 2
    assert '-> write 0.95 or "95%"' in done.stderr


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("a = 1\nb = [1, 2\n", "the last value is not closed", "a value, quote or bracket is missing"),
        ("a = 1\nb =\n", "at line 2", "mend line 2"),
        ('schema = 1\nname = "a b"\nruntime = "x"', "name: begin with a letter or digit", ""),
        ('schema = 1\nruntime = "x"\nschemes = ["static_wi8_ai"]', "schemes.0: Input should be", "did you mean 'static_wi8_ai8'?"),
        ('schema = 1\nruntime = "x"\n[budgets]\nmin_accuracy = 95', "min_accuracy", 'write 0.95 or "95%"'),
    ],
)
def test_configuration_mistakes_say_what_to_write(text, message, hint):
    with pytest.raises(ConfigError) as caught:
        config.parse(config.Target, text, "t.toml", **({} if "name" in text else {"name": "t"}))
    assert message in caught.value.message
    assert hint in caught.value.hint
    assert "String should match" not in caught.value.message


def test_a_factory_is_asked_for_by_example():
    text = 'schema = 1\nname = "x"\ntask = "image-classification"\ntargets = ["t"]\n[data]\nfactory = "a:b"\n[model]\nfactory = "digits.py"'
    with pytest.raises(ConfigError, match=r"model\.factory: write module:function, for example digits:build, found 'digits\.py'"):
        config.parse(config.Project, text, "p.toml")


@pytest.mark.parametrize(
    ("what", "hint"), [("project file", "edgekit init"), ("target file", "edgekit targets"), ("calibration recipe", "calibration.md")]
)
def test_an_absent_file_gets_the_hint_of_its_kind(what, hint, tmp_path):
    with pytest.raises(ConfigError, match="does not exist") as caught:
        config.read_text(tmp_path / "nope.toml", what)
    assert hint in caught.value.hint
    assert ("init" in caught.value.hint) == (what == "project file")


def test_data_that_is_none_is_told_without_advice_to_run_it(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "npy").mkdir()
    (tmp_path / "npy" / "image.npy").write_text("hello")
    np.savez(tmp_path / "objects.npz", image=np.array([{}, 1], dtype=object))
    np.savez(tmp_path / "scalar.npz", image=np.float32(1))
    said = {}
    for name in ("empty", "text.npz", "npy", "objects.npz", "scalar.npz"):
        with pytest.raises(InputRejected) as caught:
            load(tmp_path / name)
        said[name] = f"{caught.value.message} {caught.value.hint}"
    assert "no .npy files here" in said["empty"]
    assert "Python objects" in said["objects.npz"]
    assert "one row per sample" in said["scalar.npz"]
    assert not [text for text in said.values() if "pickle" in text or "unsafe" in text]


class Clock:
    now = 0.0

    def monotonic(self):
        return self.now


@pytest.fixture
def log(monkeypatch):
    clock, out = Clock(), io.StringIO()
    monkeypatch.setattr(progress, "time", clock)
    return progress.Progress(Console(file=out, width=200), verbose=False), clock, out


def test_a_log_ends_a_step_with_its_last_note(log):
    listener, _, out = log
    with listener:
        listener.planned(["finetune", "benchmark"])
        listener.started("finetune")
        listener.progressed("finetune", 1, 20, "epoch 1/20 loss 2.30")
        listener.progressed("finetune", 20, 20, "epoch 20/20 loss 0.12")
        listener.finished(StageRecord(step="finetune", status="done", seconds=4.1))
        listener.progressed("benchmark", 1, 1, "timing")
        listener.finished(StageRecord(step="benchmark", status="done", seconds=1.0))
    assert out.getvalue().splitlines() == [
        "        finetune ...",
        "[ 1/2] finetune: done in 4.1 s, epoch 20/20 loss 0.12",
        "[ 2/2] benchmark: done in 1.0 s",
    ]


def test_a_long_step_speaks_every_30_seconds(log):
    listener, clock, out = log
    listener.started("finetune")
    for second in range(1, 100):
        clock.now = float(second)
        listener.progressed("finetune", second, 100, f"epoch {second}" if second < 90 else "")
    assert out.getvalue().splitlines()[1:] == ["        finetune: epoch 30", "        finetune: epoch 60", "        finetune: 90/100"]


def test_skipped_steps_are_one_line(log):
    listener, _, out = log
    with listener:
        listener.planned([f"s{n}" for n in range(20)])
        listener.finished(StageRecord(step="data", status="failed", seconds=0.1))
        for n in range(14):
            listener.finished(StageRecord(step=f"s{n}", status="skipped"))
        listener.finished(StageRecord(step="source", status="cached"))
        listener.finished(StageRecord(step="evaluate", status="skipped"))
    assert out.getvalue().splitlines() == [
        "[ 1/20] data: failed in 0.1 s",
        "[15/20] 14 steps skipped: they need data",
        "[16/20] source: cached",
        "[17/20] evaluate: skipped, it needs data",
    ]


def test_figures_are_written_with_names_and_units():
    timed = latency(0.0079, 0.0131, 0.59).model_copy(update={"ratio_low": 0.55, "ratio_high": 0.61})
    assert str(timed) == "p50 0.0079 ms [0.0077, 0.0081], p90 0.0131 ms [0.0126, 0.0138], n=812, 0.59 [0.55, 0.61] of the baseline"
    assert str(latency(0.0079, 0.0131)).endswith("n=812")
    shown = Benchmark(artifact="a.onnx", runtime="onnxruntime", target="t", latency_ms=timed)._repr_html_()
    for part in ("p50", "0.0079 ms [0.0077, 0.0081]", "p90", "0.0131 ms", "median / baseline", "0.59 [0.55, 0.61]"):
        assert part in shown
    assert str(Metric(name="top1_accuracy", value=0.96, low=0.9451, high=0.971, n=900)) == "top-1 accuracy 96.00% [94.51%, 97.10%] n=900"
    change = Change(value=-0.0044, low=-0.0102, high=0.0011, n=900, lost=6, gained=2)
    assert str(change) == "-0.44 pp [-1.02, +0.11] n=900, 6 lost, 2 gained"
    assert wording.source_line(sample_report()).startswith("float source: top-1 accuracy 96.00%")


def test_a_report_in_a_notebook_says_why_rows_do_not_pass():
    shown = sample_report()._repr_html_()
    for row in sample_report().rows:
        assert (row.reason in shown) == (row.verdict != "pass")


def test_inspect_names_only_the_domains_in_use(tmp_path):
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper

    from toolkit import plugins

    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", value[:1], value[1:])
    opsets = [helper.make_opsetid(domain, version) for domain, version in (("", 21), ("com.microsoft", 1), ("ai.onnx.ml", 5))]
    onnx.save(helper.make_model(graph, opset_imports=opsets), tmp_path / "m.onnx")
    assert plugins.reader("onnx").read(tmp_path / "m.onnx").details["opset"] == "21"


def test_free_sizes_are_read_by_input_and_axis():
    from toolkit.cli.export import _free_sizes

    found = _free_sizes(["input_ids:0=batch,1=sequence", "serving:x:0:2= rows", "input_ids:2=more"])
    assert found == {"input_ids": {0: "batch", 1: "sequence", 2: "more"}, "serving:x:0": {2: "rows"}}


@pytest.mark.parametrize("text", ["input_ids", "input_ids:batch", "x:0", "x:0=", "x:-1=batch", ":0=batch", "x:0=a,"])
def test_free_sizes_that_cannot_be_read_say_how_to_write_them(text):
    from toolkit.cli.export import _free_sizes

    with pytest.raises(ConfigError, match="cannot be read") as caught:
        _free_sizes([text])
    assert "input_ids:0=batch<=8,1=sequence" in caught.value.hint


def test_every_option_of_a_conversion_has_a_flag_and_an_argument(edgekit):
    import toolkit

    flags = {"route", "opset", "dynamic", "layout", "batch_sizes", "rewrites", "clean_up"}
    assert flags == set(config.Conversion.model_fields)
    assert flags <= set(inspect.signature(toolkit.export).parameters)
    page = edgekit("export", "--help", COLUMNS="200").stdout
    assert all(flag in page for flag in ("--route", "--opset", "--dynamic", "--layout", "--batch-size", "--rewrite", "--no-clean-up"))
