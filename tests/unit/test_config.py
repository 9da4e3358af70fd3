"""Configuration: what is accepted, and what each mistake is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from toolkit import resources
from toolkit.config import Project, Target, load_project, make_budgets, parse
from toolkit.errors import ConfigError
from toolkit.limits import Budgets
from toolkit.metrics import TASKS

ROOT = Path(__file__).parents[2]
GOOD = """
schema = 1
name = "digits"
task = "image-classification"
targets = ["desktop-ort"]
[data]
factory = "digits:load"
[model]
factory = "digits:build"
"""


def test_defaults():
    project = parse(Project, GOOD, "edgekit.toml")
    assert project.schemes == ("float32", "static_wi8_ai8")
    assert project.finetune is None
    assert project.budgets == Budgets()


@pytest.mark.parametrize(("written", "read"), [('"1pp"', 0.01), ('"0.5 pp"', 0.005), ('"2%"', 0.02), ("0.03", 0.03)])
def test_fractions(written, read):
    project = parse(Project, GOOD + f"[budgets]\nmax_drop = {written}\n", "edgekit.toml")
    assert project.budgets.max_drop == pytest.approx(read)


@pytest.mark.parametrize(
    ("change", "message", "hint"),
    [
        (("[model]", "[model]\nfactori = 'x:y'"), "unknown key 'model.factori'", "did you mean 'factory'?"),
        (("[data]", "[finetune]\nepohcs = 3\n[data]"), "unknown key 'finetune.epohcs'", "did you mean 'epochs'?"),
        (("name =", "nmae ="), "unknown key 'nmae'", "did you mean 'name'?"),
        (('targets = ["desktop-ort"]', ""), "key 'targets' is missing", "edgekit init"),
        (('targets = ["desktop-ort"]', "targets = []"), "targets: Tuple should have at least 1 item", "docs/configuration.md"),
        (("schema = 1", "schema = 2"), "schema: Input should be 1, found 2", "docs/configuration.md"),
        (("task = ", "task = 7 #"), "task: Input should be", "docs/configuration.md"),
        (("[data]", "[finetune]\nepochs = 0\n[data]"), "finetune.epochs: Input should be greater than 0, found 0", ""),
        (("[data]", "[budgets]\nmax_drop = '1 percent'\n[data]"), "budgets.max_drop: write a fraction", ""),
        (("[data]", "[budgets]\nmax_drop = 1.5\n[data]"), "budgets.max_drop: Input should be less than 1, found 1.5", ""),
        (("[data]", "[budgets]\nmax_drop = 1\n[data]"), 'write "1pp" or 0.01', ""),
        (("[data]", "[budgets]\nmin_accuracy = true\n[data]"), "budgets.min_accuracy: Input should be a valid number, found True", ""),
        (("[data]", "[parity]\nmin_sqnr_db = nan\n[data]"), "parity.min_sqnr_db: Input should be a finite number", ""),
        (("[data]", "[finetune]\nlearning_rate = inf\n[data]"), "finetune.learning_rate: Input should be a finite number", ""),
        (("[data]", "[finetune]\nepochs = '10'\n[data]"), "finetune.epochs: Input should be a valid integer, found '10'", ""),
        (("[data]", "schemes = []\n[data]"), "schemes: Tuple should have at least 1 item", ""),
        (("[model]\nfactory", "[model]\nfile = 'm.onnx'\nfactory"), "give one of factory, name and file", ""),
        (('factory = "digits:load"', 'eval = "e.npz"'), "need data.train", ""),
        (('factory = "digits:build"', 'factory = "digits.py"'), "model.factory: write module:function", ""),
        (("[data]", "[data"), "is not valid TOML", "mend"),
    ],
)
def test_mistakes(change, message, hint):
    text = GOOD.replace(*change)
    assert text != GOOD
    with pytest.raises(ConfigError) as caught:
        parse(Project, text, "edgekit.toml")
    assert message in str(caught.value)
    assert str(caught.value).startswith("edgekit.toml: ")
    assert hint in caught.value.hint
    assert caught.value.exit_code == 2


def test_a_missing_project_says_what_to_do(tmp_path):
    with pytest.raises(ConfigError, match="does not exist") as caught:
        load_project(tmp_path)
    assert "edgekit init" in caught.value.hint


def test_shipped_targets_and_recipes_are_read():
    required = {f"{place}-{engine}" for place in ("desktop", "android-midrange", "raspberry-pi-5") for engine in ("ort", "litert")}
    assert required <= set(resources.target_names())
    for name in resources.target_names():
        assert resources.load_target(name).stand_in == "host cpu"
    tasks = {resources.load_recipe(name).task for name in resources.recipe_names()}
    assert tasks == set(TASKS)


def test_a_target_by_path_and_an_unknown_one(tmp_path):
    (tmp_path / "mine.toml").write_text('schema = 1\nruntime = "litert"\nthreads = 3\n')
    target = resources.load_target("mine.toml", tmp_path)
    assert (target.name, target.threads, target.stand_in) == ("mine", 3, "host cpu")
    with pytest.raises(ConfigError, match="unknown target 'desktop-otr'") as caught:
        resources.load_target("desktop-otr")
    assert "'desktop-ort'" in caught.value.hint
    (tmp_path / "bad.toml").write_text('schema = 1\nruntime = "litert"\nthread = 3\n')
    with pytest.raises(ConfigError, match="unknown key 'thread'"):
        resources.load_target("bad.toml", tmp_path)


def test_budgets_of_a_project_come_before_those_of_a_target():
    project = Budgets(max_drop=0.01)
    target = Target(name="t", runtime="litert", budgets=Budgets(max_drop=0.05, max_size_bytes=1000))
    assert project.over(target.budgets) == Budgets(max_drop=0.01, max_size_bytes=1000)


def test_single_limits_of_a_metric_come_before_those_of_a_target():
    project = Budgets(metrics={"roc_auc": {"min": 0.9}})
    target = Budgets(metrics={"roc_auc": {"min": 0.5, "max_drop": 0.1}, "macro_f1": {"min": 0.8}})
    assert project.over(target) == Budgets(metrics={"roc_auc": {"min": 0.9, "max_drop": 0.1}, "macro_f1": {"min": 0.8}})


def test_budgets_of_a_command_line():
    assert make_budgets({"max_drop": "1pp", "min_accuracy": "0.9"}) == Budgets(max_drop=0.01, min_accuracy=0.9)
    for wrong in ("95", "1.2.3", ".", "abc"):
        with pytest.raises(ConfigError, match="min_accuracy"):
            make_budgets({"min_accuracy": wrong})


def test_no_code_and_no_pickles_among_the_shipped_data():
    for folder in ("targets", "calibration"):
        assert {file.suffix for file in (ROOT / folder).iterdir()} == {".toml"}
