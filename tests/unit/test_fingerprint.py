"""What decides the key of a user's files: everything that can change a result, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from toolkit.errors import ConfigError, InputRejected
from toolkit.pipeline import deliver
from toolkit.pipeline.fingerprint import fingerprint, fingerprint_project


@pytest.fixture
def project(tmp_path):
    folder = tmp_path / "project"
    (folder / "images").mkdir(parents=True)
    (folder / "code.py").write_text("import numpy\nfrom pathlib import Path\n")
    (folder / "images" / "a.png").write_bytes(b"picture")
    (folder / "edgekit.toml").write_text("schema = 1\n")
    (folder / "train.npz").write_bytes(b"data")
    return folder


@pytest.mark.parametrize("name", ["code.py", "images/a.png", "images/b.png", "deep/er/new.csv", "train.npz", "NOTES.md", ".secret", ".hidden/x"])
def test_every_file_that_a_factory_may_read_counts(project, name):
    before = fingerprint_project(project)
    file = project / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"something else")
    assert fingerprint_project(project) != before


@pytest.mark.parametrize("name", ["edgekit.toml", "README.md", ".git/HEAD", "__pycache__/code.pyc", ".venv/x.py"])
def test_what_cannot_change_a_result_does_not(project, name):
    before = fingerprint_project(project)
    file = project / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"something else")
    assert fingerprint_project(project) == before


def test_our_own_results_inside_a_project_do_not_count(project):
    before = fingerprint_project(project)
    deliver.mark_output(project / "any-name", "name")
    (project / "any-name" / "report.json").write_text("{}")
    (project / "any-name" / "models").mkdir()
    (project / "any-name" / "models" / "m.onnx").write_bytes(b"model")
    (project / "m.onnx").write_bytes(b"model")
    deliver.manifest_path(project / "m.onnx").write_text("{}")
    assert fingerprint_project(project) == before
    (project / "other.onnx").write_bytes(b"a model of the user's own")
    assert fingerprint_project(project) != before


def test_named_data_is_followed_by_the_steps_that_read_it(project):
    before = fingerprint_project(project, [project / "train.npz", project / "images"])
    (project / "train.npz").write_bytes(b"other data")
    (project / "images" / "a.png").write_bytes(b"other picture")
    assert fingerprint_project(project, [project / "train.npz", project / "images"]) == before


def test_versions_of_imported_libraries_count(project):
    assert fingerprint_project(project)["versions"] == {"numpy": np.__version__}


def test_the_place_of_a_project_does_not_count(project, tmp_path):
    before = fingerprint_project(project)
    project.rename(tmp_path / "elsewhere")
    assert fingerprint_project(tmp_path / "elsewhere") == before


def test_folders_and_files(tmp_path):
    (tmp_path / "a").write_text("1")
    first = fingerprint(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    assert fingerprint(tmp_path) != first
    assert fingerprint(tmp_path / "b") == fingerprint(tmp_path / "b")
    with pytest.raises(InputRejected, match="does not exist"):
        fingerprint(tmp_path / "absent")


def test_a_marked_project_folder_still_counts(project):
    """A mark at the top must not hide the whole project: two projects would share one key."""
    deliver.mark_output(project, "name")
    before = fingerprint_project(project)
    assert before["files"]
    (project / "code.py").write_text("changed = True")
    assert fingerprint_project(project) != before


def test_linked_folders_count_and_broken_or_circular_links_do_no_harm(project, tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "x.csv").write_text("1")
    (project / "data").symlink_to(tmp_path / "outside")
    (project / "again").symlink_to(project)
    (project / "broken").symlink_to(tmp_path / "absent")
    before = fingerprint_project(project)
    assert "data/x.csv" in before["files"]
    (tmp_path / "outside" / "x.csv").write_text("2")
    assert fingerprint_project(project) != before


def test_results_go_to_folders_of_their_own(project, tmp_path):
    for place in (project, project / "code.py", project / "images"):
        with pytest.raises(ConfigError):
            deliver.check_output(place, project)
    deliver.check_output(tmp_path, project)
    deliver.check_output(project / "new", project)
    deliver.mark_output(project / "new", "name", ["a.onnx"])
    deliver.check_output(project / "new", project)
    assert deliver.mark_output(project / "new", "other", ["b.onnx"]) == set()
    assert deliver.mark_output(project / "new", "name", ["c.onnx"]) == {"a.onnx"}
