"""``edgekit size``: limits from the command line and from a baseline, and what starting it costs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import toolkit
from toolkit.checks.baseline import Baseline, Entry, Tolerances
from toolkit.errors import ConfigError, InputRejected
from toolkit.pipeline import baseline as baselines
from toolkit.pipeline.size import check_sizes, parse_size

ROOT = Path(__file__).parents[2]


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(bytes(1000))
    return path


@pytest.fixture
def recorded(tmp_path):
    """A baseline file with the sizes of some artifacts."""

    def write(*entries: Entry, **tolerances: object) -> Path:
        path = tmp_path / "edgekit-baseline.json"
        path.write_text(baselines.render(Baseline(schema=1, tolerances=Tolerances(**tolerances), rows=entries)))
        return path

    return write


@pytest.mark.parametrize(
    ("text", "size"),
    [("5000", 5000), (5000, 5000), ("5MB", 5_000_000), ("5 mb", 5_000_000), ("1.5kB", 1500), ("2MiB", 2 << 20), ("1GiB", 1 << 30), ("7B", 7)],
)
def test_sizes_are_read_as_people_write_them(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "-5", "5 apples", "MB", "1.5", "1e6", "5MBB", "0MB", "٥MB5"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ConfigError, match="is no size"):
        parse_size(text)


@pytest.mark.parametrize(("limit", "holds"), [(1000, True), (999, False), ("1kB", True), (None, True)])
def test_a_file_may_be_as_large_as_its_limit(model, limit, holds):
    (check,) = check_sizes([model], max_size_bytes=limit)
    assert (check.file, check.size_bytes, check.holds) == (str(model), 1000, holds)


def test_a_baseline_limits_files_of_its_names_with_its_tolerance(model, recorded):
    other = model.with_name("other.onnx")
    other.write_bytes(bytes(5))
    for size, tolerances, limit in ((1000, {}, 1010), (990, {"size": "2%"}, 1009), (990, {"size": 0.01}, 999)):
        path = recorded(Entry(artifact="m.onnx", target="t", size_bytes=size), **tolerances)
        limited, free = check_sizes([model, other], baseline=path)
        assert (limited.limit_bytes, limited.limit_from, free.limit_bytes) == (limit, "edgekit-baseline.json", None)
        assert limited.holds is (limit >= 1000)


def test_the_lowest_of_all_limits_counts(model, recorded):
    path = recorded(
        Entry(artifact="m.onnx", target="a", size_bytes=900, tolerances=Tolerances(size="10%")),
        Entry(artifact="m.onnx", target="b", size_bytes=2000),
        Entry(artifact="m.onnx", target="c"),
    )
    assert check_sizes([model], baseline=path)[0].limit_bytes == 990
    assert check_sizes([model], baseline=path, max_size_bytes=500)[0].limit_from == "--max-size-bytes"


@pytest.mark.parametrize("tolerance", ["1000%", -0.5, 1e999, True, "x", None])
def test_a_tolerance_that_a_baseline_refuses_is_refused_here_too(model, tmp_path, tolerance):
    path = tmp_path / "b.json"
    path.write_text(json.dumps({"tolerances": {"size": tolerance}, "rows": [{"artifact": "m.onnx", "target": "t", "size_bytes": 900}]}))
    with pytest.raises(ConfigError, match="is not a baseline"):
        check_sizes([model], baseline=path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"rows": 3}',
        "[" * 200_000,
        '{"schema": 2, "rows": []}',
        '{"rows": [{"artifact": "m.onnx", "size_bytes": 1e999}]}',
        '{"rows": [{"size_bytes": "x", "artifact": "m.onnx"}]}',
        '{"rows": [3]}',
    ],
)
def test_what_is_no_baseline_is_refused(model, tmp_path, text):
    path = tmp_path / "b.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match="is not a baseline"):
        check_sizes([model], baseline=path)


def test_a_missing_file_is_no_small_one(model, tmp_path):
    with pytest.raises(InputRejected, match="does not exist"):
        check_sizes([model, tmp_path / "none.onnx"], max_size_bytes=5)
    with pytest.raises(InputRejected, match="is not a file"):
        check_sizes([tmp_path])
    with pytest.raises(ConfigError, match="baseline file does not exist"):
        check_sizes([model], baseline=tmp_path / "none.json")


def test_the_verb_prints_every_file_and_exits_1_when_one_is_larger(model, tmp_path):
    small = tmp_path / "small.tflite"
    small.write_bytes(bytes(10))

    def run(*words: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "toolkit", "size", *map(str, words)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)

    done = run(small, model, "--max-size-bytes", "500B")
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.splitlines() == [
        f"pass  {small}: 10 bytes, at most 500 (--max-size-bytes)",
        f"FAIL  {model}: 1,000 bytes, at most 500 (--max-size-bytes)",
    ]
    listed = run(small, model, "--max-size-bytes", "1kB", "--format", "json")
    assert listed.returncode == 0
    assert [one["holds"] for one in json.loads(listed.stdout)] == [True, True]
    assert run(small).returncode == 0
    assert run(small, "--max-size-bytes", "much").returncode == 2


def test_checking_sizes_imports_nothing_heavy(model):
    """Counted in modules, not in seconds, so that a slow machine says the same."""
    code = f"import sys, toolkit; toolkit.check_sizes([{str(model)!r}], max_size_bytes=5); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {"numpy", "pydantic", "typer", "rich", "scipy", "toolkit.config"}


def test_the_result_is_shown_in_a_notebook(model):
    assert "1000" in toolkit.check_sizes([model], max_size_bytes=5)[0]._repr_html_()
