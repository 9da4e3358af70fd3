"""The stage at the entrance: which source takes a model, and what is said when none does."""

import numpy as np
import pytest

from toolkit.errors import ConfigError
from toolkit.job import Job
from toolkit.sources import stage

pytest.importorskip("torch")
FACTORY = """
import torch

def build():
    return torch.nn.Linear(3, 2).eval()

def number():
    return 7
"""


@pytest.fixture
def run(tmp_path):
    project = tmp_path / "project"
    project.mkdir()
    (project / "stage_example.py").write_text(FACTORY)
    np.savez(tmp_path / "data.npz", x=np.eye(3, dtype=np.float32))

    def call(name, **options):
        out = tmp_path / "out"
        out.mkdir()
        inputs = {"project": project, "data": tmp_path / "data.npz"}
        return stage.run(Job(inputs, {"factory": f"stage_example:{name}", "samples": 2, **options}, out))

    return call


def test_the_named_framework_takes_the_model(run, tmp_path):
    facts = run("build", framework="torch", outputs=["y"])
    assert (facts["format"], facts["output"]) == ("pt2", "y")
    assert np.load(tmp_path / "out" / "expected" / "inputs" / "x.npy").shape == (2, 3)
    assert np.load(tmp_path / "out" / "expected" / "outputs" / "y.npy").shape == (2, 2)


@pytest.mark.parametrize(
    ("framework", "what"), [("torch", "no model of torch"), (None, "which no source captures"), ("torhc", "no source captures models of")]
)
def test_what_no_source_takes_is_named(run, framework, what):
    with pytest.raises(ConfigError, match=what) as caught:
        run("number", framework=framework)
    assert caught.value.hint


@pytest.mark.parametrize(("dynamic", "what"), [({"z": {"0": "batch"}}, "no input 'z'"), ({"x": {"5": "batch"}}, "axis 5")])
def test_free_sizes_of_what_is_not_there(run, dynamic, what):
    with pytest.raises(ConfigError, match=what):
        run("build", dynamic=dynamic)
