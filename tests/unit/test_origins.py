"""Names of models: what is one, what is a file, and what the source step is asked for."""

from __future__ import annotations

import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

from toolkit import config, errors, plugins
from toolkit.config import Conversion, Parity
from toolkit.pipeline import origins
from toolkit.pipeline.plan import make_plan
from toolkit.pipeline.steps import PARITY


def plugin(name: str, **more) -> SimpleNamespace:
    return SimpleNamespace(**{"name": name, "version": 1, "modules": (), "distributions": (), "extra": "", **more})


@pytest.fixture(autouse=True)
def installed(monkeypatch):
    """Two collections, and sources of two frameworks of which one knows free sizes."""
    collections = {name: plugin(name, framework="torch") for name in ("torchvision", "transformers")}
    sources = {"torch": plugin("torch", framework="torch", format="pt2", options=("dynamic",)), "old": plugin("old", framework="old", format="o")}
    found = {"collections": collections, "sources": sources}
    real = plugins.discover
    monkeypatch.setattr(plugins, "discover", lambda group: found.get(group) or real(group))


@pytest.fixture
def saved(tmp_path):
    folder = tmp_path / "Mini LM_v2"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


def test_a_name_is_what_stands_after_a_collections_colon():
    found = origins.find_named("torchvision:mobilenet_v2")
    assert (found.collection, found.model, found.folder, found.title) == ("torchvision", "mobilenet_v2", None, "mobilenet_v2")
    assert origins.find_named("transformers:org/name").title == "name"
    for text in ("mobilenet_v2", "torchvison:mobilenet_v2", "C:model.onnx", "torchvision:", "model.onnx"):
        assert origins.find_named(text) is None, text


def test_what_exists_is_no_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("torchvision:mobilenet_v2").write_text("a file of that very name")
    assert origins.find_named("torchvision:mobilenet_v2") is None


def test_a_folder_that_transformers_saved_is_one_of_its_models(saved):
    found = origins.find_named(str(saved))
    assert (found.collection, found.model, found.folder) == ("transformers", "", saved)
    assert found.title == "Mini-LM_v2"
    named = origins.find_named(f"transformers:{saved}")
    assert (named.model, named.folder) == ("", saved)
    assert origins.find_named(saved.name, saved.parent).folder == saved
    (saved / "edgekit.toml").write_text("")
    assert origins.find_named(str(saved)) is None, "a project may keep a config.json of its own"


def test_a_part_of_a_model_is_named_after_a_hash(saved):
    for text in (f"{saved}#encoder", f"transformers:{saved}#encoder"):
        found = origins.find_named(text)
        assert (found.collection, found.model, found.folder) == ("transformers", "#encoder", saved)
        assert found.title.endswith("-encoder")
    assert origins.find_named("transformers:openai/whisper-tiny#encoder").model == "openai/whisper-tiny#encoder"
    assert origins.find_named("#encoder") is None


def test_an_unknown_collection_gets_the_nearest_known(tmp_path):
    with pytest.raises(errors.ConfigError) as caught:
        origins.named("torchvison:mobilenet_v2", tmp_path)
    assert caught.value.hint == "did you mean 'torchvision'?"
    with pytest.raises(errors.ConfigError, match="no model of a collection"):
        origins.named("mobilenet_v2", tmp_path)


def test_the_step_has_the_name_or_the_folder_and_weights_as_file_or_name(saved, tmp_path):
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(b"x")
    by_name = origins.Named("torchvision", "resnet18", weights=origins.weights_of("DEFAULT", tmp_path), task="image-classification")
    step = origins.from_name(by_name, Parity(samples=7), Conversion(), None, ("scores",))
    asked = {
        "collection": "torchvision",
        "model": "resnet18",
        "weights": "DEFAULT",
        "task": "image-classification",
        "outputs": ["scores"],
        "samples": 7,
    }
    assert step.options == asked and step.files == {} and step.needs == {}
    assert [one.name for one in step.plugins] == ["torchvision", "torch"]
    by_folder = origins.Named("transformers", "", saved, weights=origins.weights_of("w.safetensors", tmp_path))
    step = origins.from_name(by_folder, Parity(), Conversion(), PARITY)
    assert step.files == {"model": saved, "weights": weights} and step.options["weights"] is None and step.options["model"] == ""
    assert step.needs == {"data": PARITY}


def test_free_sizes_are_an_option_only_where_the_source_knows_them():
    free = Conversion(dynamic={"x": {0: "batch"}})
    step = origins.from_name(origins.Named("torchvision", "resnet18"), Parity(), free, None)
    assert step.options["dynamic"] == {"x": {"0": "batch"}}
    assert "dynamic" not in origins.from_name(origins.Named("torchvision", "resnet18"), Parity(), Conversion(), None).options
    with pytest.raises(errors.ConfigError, match="source 'old' does not know free sizes"):
        origins.check_dynamic(plugins.discover("sources")["old"], free)


PROJECT = """
schema = 1
name = "x"
task = "image-classification"
targets = ["desktop-ort"]
schemes = ["float32"]
data = { eval = "e.npz" }
"""


def project(tmp_path, rest: str) -> config.Project:
    (tmp_path / "e.npz").write_bytes(b"x")
    return config.Project.model_validate(tomllib.loads(PROJECT + rest))


def source_of(tmp_path, rest: str):
    plan = make_plan(project(tmp_path, rest), tmp_path)
    return plan, next(step for step in plan.steps if step.id == "source")


def test_a_project_may_name_its_model(tmp_path):
    plan, source = source_of(tmp_path, '[model]\nname = "torchvision:resnet18"\nweights = "DEFAULT"\n[convert]\ndynamic = { x = { 0 = "batch" } }\n')
    assert plan.source_format == "pt2"
    assert (source.options["model"], source.options["weights"], source.options["task"]) == ("resnet18", "DEFAULT", "image-classification")
    assert source.options["dynamic"] == {"x": {"0": "batch"}} and source.needs == {"data": PARITY}


def test_a_factorys_framework_decides_the_format_before_its_code_runs(tmp_path, monkeypatch):
    _, source = source_of(tmp_path, '[model]\nfactory = "m:build"\n')
    assert source.options["framework"] == "torch" and source.plugins[0].name == "torch"
    with pytest.raises(errors.ConfigError, match="no source captures models of 'kers'"):
        source_of(tmp_path, '[model]\nfactory = "m:build"\nframework = "kers"\n')


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ('name = "torchvision:resnet18"\nframework = "torch"', "framework goes with factory"),
        ('file = "m.pt2"\n[finetune]', "finetune needs model.name, or model.factory of a PyTorch or Keras model"),
        ('factory = "m:build"\nframework = "jax"\n[finetune]', "finetune needs model.name, or model.factory of a PyTorch or Keras model"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path, model, says):
    with pytest.raises(ValueError, match=says):
        project(tmp_path, f"[model]\n{model}\n")
