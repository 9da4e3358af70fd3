"""``--route auto`` from end to end, on a plugin whose routes fail in every way."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import toolkit
from tests.e2e import race_plugin
from tests.e2e.conftest import Shell
from tests.e2e.race_plugin import WEIGHTS, Linear
from toolkit import errors, plugins

X = np.random.default_rng(1).random((20, 4), np.float32)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with the plugin as an installed distribution."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copyfile(race_plugin.__file__, folder / "edgekit_race_plugin.py")
    information = folder / "edgekit_race_plugin-1.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: edgekit-race-plugin\nVersion: 1\n")
    points = {
        "runtimes": ["RUNTIME", "MIXES", "WALLS"],
        "sources": ["SOURCE"],
        "collections": ["COLLECTION"],
        "routes": [name.upper() for name in race_plugin.ROUTES],
    }
    lines = [f"[edgekit.{group}]\n" + "\n".join(f"{name.lower()} = edgekit_race_plugin:{name}" for name in names) for group, names in points.items()]
    (information / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def place(site, tmp_path, monkeypatch):
    """An empty folder to work in, with the plugin found by this process and its children."""
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", str(site))
    monkeypatch.setenv("RACE_LOG", str(tmp_path / "race.log"))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    plugins.discover.cache_clear()
    yield work
    plugins.discover.cache_clear()


@pytest.fixture
def convert(place, tmp_path):
    """Exports the live model, or another, with a store of its own."""

    def run(model=None, samples=None, **options):
        model = Linear(WEIGHTS) if model is None else model
        given = {"x": X} if samples is None and isinstance(model, Linear) else samples
        return toolkit.export(model, given, store=toolkit.Store(tmp_path / "store"), **options)

    return run


def log(tmp_path) -> list[str]:
    file = tmp_path / "race.log"
    return file.read_text().splitlines() if file.exists() else []


def test_the_first_route_that_passes_parity_wins_and_the_others_are_told(convert, place, tmp_path):
    made = convert(format="mixed")
    assert made.manifest.made_by == "mixed_right"
    np.testing.assert_array_equal(race_plugin.read(made.path)["w"], WEIGHTS)
    attempts = {one["route"]: one for one in json.loads(made.manifest.model_dump_json())["evidence"]["attempts"]}
    assert {name: (one["outcome"], one["code"]) for name, one in attempts.items()} == {
        "mixed_absent": ("passed over", "missing-extra"),
        "mixed_walled": ("passed over", "unsupported-operator"),
        "mixed_raises": ("failed", "stage-failed"),
        "mixed_crashes": ("failed", "stage-crashed"),
        "mixed_wrong": ("failed", "parity"),
        "mixed_right": ("taken", ""),
        "mixed_spare": ("passed over", "not-needed"),
    }
    assert attempts["mixed_walled"]["reason"] == "operator Erfc in layer 'head.gate' has no kernel in mixed"
    assert "SIGSEGV" in attempts["mixed_crashes"]["reason"] and "SQNR" in attempts["mixed_wrong"]["reason"]
    ran = ["preflight mixed_walled", "convert mixed_raises", "convert mixed_crashes", "convert mixed_wrong", "convert mixed_right"]
    assert log(tmp_path) == ran
    assert made.manifest.evidence["checks"]["parity"]["outputs"]["y"]["sqnr_db"] > 100
    again = convert(format="mixed")
    assert again.cached and again.manifest == made.manifest


def test_a_named_route_is_tried_alone(convert, place, tmp_path):
    with pytest.raises(errors.ParityFailed, match="SQNR"):
        convert(format="mixed", route="mixed_wrong")
    assert convert(format="mixed", route="mixed_spare").manifest.made_by == "mixed_spare"
    assert log(tmp_path) == ["convert mixed_wrong", "convert mixed_spare"]
    with pytest.raises(errors.MissingExtra, match="no_such_framework"):
        convert(format="mixed", route="mixed_absent")


def test_when_all_fall_one_error_names_each_and_nothing_is_written(convert, place):
    with pytest.raises(errors.StageError) as caught:
        convert(format="lost")
    lines = str(caught.value).splitlines()
    assert "2 of 2 were tried" in lines[0]
    assert "lost_raises failed: layer foo: cannot convert operator Foo" in lines[1]
    assert "lost_wrong failed: " in lines[2] and "SQNR" in lines[2]
    assert caught.value.hint == "leave Foo out" and caught.value.exit_code == 5
    assert list(place.iterdir()) == []


def test_obstacles_on_every_route_are_told_before_any_conversion(convert, place, tmp_path):
    with pytest.raises(errors.NoRoute) as caught:
        convert(format="walled")
    assert str(caught.value).count("operator Erfc in layer 'head.gate' has no kernel in walled") == 2
    assert caught.value.hint == "declare the rewrite erf"
    assert log(tmp_path) == ["preflight walled_one", "preflight walled_two"]
    assert list(place.iterdir()) == []


def test_a_declared_rewrite_opens_the_way(convert, tmp_path):
    made = convert(format="walled", rewrites=["erf"])
    assert made.manifest.made_by == "walled_one"
    assert made.manifest.evidence["conversion"] == {"rewrites": ["erf"]}
    with pytest.raises(errors.NoRoute, match="does not know the rewrite gelu"):
        convert(format="walled", rewrites=["gelu"])


def test_options_reach_the_route_that_knows_them_and_are_part_of_the_key(convert):
    plain = convert(format="opted")
    assert plain.manifest.made_by == "opted_plain" and "conversion" not in plain.manifest.evidence
    made = convert(format="opted", opset=17)
    assert made.manifest.made_by == "opted_knows"
    assert json.loads(made.path.read_text())["options"] == {"opset": 17}
    assert made.manifest.evidence["attempts"][0]["reason"] == "does not know the option opset"
    other = convert(format="opted", opset=18, clean_up=False)
    assert json.loads(other.path.read_text())["options"] == {"opset": 18, "clean_up": False} and not other.cached


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"opset": 3}, "opset: Input should be greater than or equal to 7"),
        ({"layout": "channels_first"}, "layout"),
        ({"batch_sizes": [0]}, "batch_sizes"),
        ({"dynamic": {"x": {0: "batch"}}}, "source 'linear' does not know free sizes"),
        ({"weights": "DEFAULT"}, "weights and task go with the name of a collection's model"),
    ],
)
def test_what_cannot_be_meant_is_a_configuration_error(convert, place, options, says):
    with pytest.raises(errors.ConfigError) as caught:
        convert(format="good", **options)
    assert says in str(caught.value) and caught.value.hint
    assert list(place.iterdir()) == []


def test_a_format_that_nothing_runs_is_delivered_and_labelled(convert, site, place, tmp_path):
    made = convert(format="held")
    checks = made.manifest.evidence["checks"]
    assert checks["parity"] == {"not_done": "no runtime executes held on this machine"}
    assert checks["audit"] == {"not_done": "no reader for held"}
    assert made.signature.inputs[0].name == "x"
    shell = Shell(tmp_path / "cache", (site,))
    write_lin(place / "m.lin")
    np.savez(place / "x.npz", x=X, label=np.arange(20) % 3)
    done = shell("export", "m.lin", "--format", "held", "--samples", "x.npz", cwd=place)
    assert done.code == 0 and "not executed here: no runtime executes held on this machine" in done.stdout
    done = shell("evaluate", "m.float32.held", "--data", "x.npz", "--target", "desktop-ort", cwd=place)
    assert done.code == 5 and "no runtime executes held" in done.stderr


def write_lin(path: Path) -> None:
    race_plugin.write(path, WEIGHTS)


def test_the_command_line_tells_the_same(site, place, tmp_path):
    write_lin(place / "m.lin")
    np.savez(place / "x.npz", x=X)
    shell = Shell(tmp_path / "cache", (site,))
    done = shell("export", "m.lin", "-f", "mixed", "--samples", "x.npz", cwd=place)
    assert done.code == 0 and "mixed_right" in done.stdout
    assert "failed: layer foo: cannot convert operator Foo" in done.stdout and "passed over: operator Erfc in layer 'head.gate'" in done.stdout
    assert "mixed_spare" not in done.stdout
    done = shell("export", "m.lin", "-f", "walled", "--samples", "x.npz", cwd=place)
    assert done.code == 5 and "head.gate" in done.stderr and "-> declare the rewrite erf" in done.stderr
    words = ("export", "m.lin", "-f", "opted", "--samples", "x.npz", "--opset", "17", "--batch-size", "1", "--batch-size", "4", "--no-clean-up")
    done = shell(*words, "--route", "opted_knows", "-f", "json", cwd=place)
    assert done.code == 0
    assert done.json()["manifest"]["evidence"]["conversion"] == {"opset": 17, "batch_sizes": [1, 4], "clean_up": False}
    done = shell("export", "m.lin", "-f", "good", "--dynamic", "x0=batch", cwd=place)
    assert done.code == 2 and "INPUT:AXIS=NAME" in done.stderr
    listed = shell("doctor", cwd=place)
    assert "lin -> mixed, trust 0.95" in listed.stdout and "lines:NAME" in listed.stdout and "replaces Erfc by 1 - Erf" in listed.stdout


def test_a_model_of_a_collection_is_built_by_its_name(convert, tmp_path):
    made = convert("lines:straight", format="good")
    assert made.path.name == "straight.float32.good" and made.manifest.name == "straight"
    np.testing.assert_array_equal(race_plugin.read(made.path)["w"], WEIGHTS)
    evidence = made.manifest.evidence
    assert evidence["parity_inputs"] == "made-up samples" and evidence["checks"]["parity"]["n"] == 5
    assert (evidence["task"], evidence["labels"]) == ("regression", ["a", "b", "c"])
    weights = tmp_path / "own.safetensors"
    race_plugin.write(weights, 2 * WEIGHTS)
    options = {"weights": weights, "task": "ranking", "output_names": ("score",), "name": "twice"}
    own = convert("lines:straight", {"x": X}, format="held", **options)
    np.testing.assert_array_equal(race_plugin.read(own.path)["w"], 2 * WEIGHTS)
    assert own.manifest.evidence["parity_inputs"] == "real samples" and own.manifest.evidence["output"] == "score"
    built = [line for line in log(tmp_path) if line.startswith("build")]
    assert built == ["build straight weights=None task=None", "build straight weights=own.safetensors task=ranking"]
    race_plugin.write(weights, 3 * WEIGHTS)
    assert race_plugin.read(convert("lines:straight", {"x": X}, format="held", **options).path)["w"][0, 0] == 3 * WEIGHTS[0, 0]


PROJECT = """
schema = 1
name = "line"
task = "image-classification"
targets = ["./line.toml"]
schemes = ["float32"]
data = { eval = "eval.npz" }
timing = { seconds = 0.05 }

[model]
file = "m.lin"

[convert]
rewrites = []
"""


def test_a_project_races_too_and_its_report_says_so(site, place, tmp_path):
    write_lin(place / "m.lin")
    np.savez(place / "eval.npz", x=X, label=(X @ WEIGHTS).argmax(1))
    (place / "edgekit.toml").write_text(PROJECT)
    (place / "line.toml").write_text('schema = 1\nruntime = "mixes"\nschemes = ["float32"]\n')
    out = tmp_path / "out"
    done = toolkit.run(place, output=out, store=toolkit.Store(tmp_path / "store"))
    (row,) = done.report.rows
    assert row.verdict == "pass" and row.artifact == "line.float32.mixed"
    (stage,) = (stage for stage in done.report.stages if stage.step == "convert:mixed")
    assert [one.outcome for one in stage.attempts].count("failed") == 3
    written = json.loads((out / "report.json").read_text())
    assert next(one["attempts"] for one in written["stages"] if one["step"] == "convert:mixed")[-2]["outcome"] == "taken"
    (place / "edgekit.toml").write_text(PROJECT.replace('file = "m.lin"', 'name = "lines:straight"'))
    named = toolkit.export(place, format="mixed", route="mixed_spare", store=toolkit.Store(tmp_path / "store"))
    assert named.manifest.made_by == "mixed_spare" and named.manifest.evidence["task"] == "image-classification"
    for name in ("report.md", "report.html"):
        assert "has no kernel in mixed" in (out / name).read_text(), name
