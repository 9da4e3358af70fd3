"""What is shipped: both archives are built without a network from a clean copy, unpacked, and used away from the checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path, PurePosixPath

import pytest

from tests import models
from toolkit import plugins

pytest.importorskip("hatchling")
pytest.importorskip("build")

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SHIPPED = {kind: sorted(file.name for file in (ROOT / kind).glob("*.toml")) for kind in ("targets", "calibration")}
PROBE = """
import toolkit
from pathlib import Path
from toolkit import resources
print(Path(toolkit.__file__).resolve().parent)
print(*[target.name for target in toolkit.targets()])
print(*resources.recipe_names())
"""


def run(*words, cwd, path=()):
    """Runs this interpreter with nothing of the checkout on its path but what is given."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path)), "EDGEKIT_CACHE": str(cwd / "cache"), "COLUMNS": "200"}
    done = subprocess.run([sys.executable, *map(str, words)], cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def files_of_the_project():
    """The files that git tracks or would track; in an unpacked archive, where there is no git, all of them."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        return [file.relative_to(ROOT) for file in ROOT.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    return [Path(name) for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A clean copy of the project, and the names of its two archives' members: the wheel is built from the sdist."""
    folder = tmp_path_factory.mktemp("packaging")
    for file in files_of_the_project():
        (folder / "copy" / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / file, folder / "copy" / file)
    run("-m", "build", "--no-isolation", "--skip-dependency-check", "--outdir", folder / "dist", folder / "copy", cwd=folder)
    return folder


@pytest.fixture(scope="module")
def wheel(built):
    """The wheel's members, unpacked beside it into ``site``."""
    (file,) = (built / "dist").glob("*.whl")
    with zipfile.ZipFile(file) as archive:
        archive.extractall(built / "site")
        return [name for name in archive.namelist() if not name.endswith("/")]


def test_the_wheel_has_the_package_with_its_data_and_nothing_else(wheel):
    assert {name.partition("/")[0] for name in wheel} == {"toolkit", f"edgekit-{PROJECT['project']['version']}.dist-info"}
    for kind, names in SHIPPED.items():
        assert names
        assert sorted(name.removeprefix(f"toolkit/_data/{kind}/") for name in wheel if name.startswith(f"toolkit/_data/{kind}/")) == names
    assert {"toolkit/py.typed", "toolkit/templates/edgekit.toml", "toolkit/worker_child.py"} <= set(wheel)
    assert not [name for name in wheel if name.startswith("toolkit/_data/") and not name.endswith(".toml")]
    assert not [name for name in wheel if "test" in PurePosixPath(name).stem.split("_") or "tests" in PurePosixPath(name).parts]
    assert not [name for name in wheel if "__pycache__" in name or name.endswith((".pyc", ".onnx", ".tflite", ".pt2"))]


def test_the_wheel_has_every_module_of_the_package(wheel):
    modules = {str(PurePosixPath(file)) for file in files_of_the_project() if file.parts[0] == "toolkit" and file.suffix == ".py"}
    assert len(modules) > 50
    assert {name for name in wheel if name.endswith(".py")} == modules


def test_the_wheel_declares_what_the_project_file_declares(wheel, built):
    (information,) = (built / "site").glob("*.dist-info")
    points = (information / "entry_points.txt").read_text()
    for group, declared in PROJECT["project"]["entry-points"].items():
        assert f"[{group}]" in points
        assert all(f"{name} = {value}" in points for name, value in declared.items())
    assert "edgekit = toolkit.cli:main" in points
    metadata = (information / "METADATA").read_text()
    assert all(f"Provides-Extra: {extra}\n" in metadata for extra in PROJECT["project"]["optional-dependencies"])
    assert list(information.rglob("LICENSE"))


def test_the_wheel_works_away_from_the_checkout(wheel, built, tmp_path):
    package, targets, recipes = run("-c", PROBE, cwd=tmp_path, path=[built / "site"]).splitlines()
    assert Path(package) == (built / "site" / "toolkit").resolve()
    assert targets.split() == [name.removesuffix(".toml") for name in SHIPPED["targets"]]
    assert recipes.split() == [name.removesuffix(".toml") for name in SHIPPED["calibration"]]
    assert f"edgekit {PROJECT['project']['version']}" in run("-m", "toolkit", "--version", cwd=tmp_path, path=[built / "site"])
    run("-m", "toolkit", "init", "mine", cwd=tmp_path, path=[built / "site"])
    template = (ROOT / "toolkit" / "templates" / "edgekit.toml").read_text()
    assert (tmp_path / "mine" / "edgekit.toml").read_text() == template.replace("@NAME@", "mine")


def test_the_wheel_runs_stages_in_their_own_process(wheel, built, tmp_path):
    pytest.importorskip("onnx")
    models.tiny_onnx(tmp_path / "tiny.onnx")
    printed = run("-m", "toolkit", "inspect", "tiny.onnx", "--format", "json", cwd=tmp_path, path=[built / "site"])
    assert json.loads(printed)["operators"] == {"Gemm": 1, "Tanh": 1}


def test_the_wheel_finds_its_plugins_by_its_own_entry_points(wheel, built, tmp_path):
    assert not (built / "site" / "pyproject.toml").exists()
    code = "from toolkit import plugins; print(*[name for group in plugins.GROUPS for name in plugins.discover(group)])"
    declared = [name for group in plugins.GROUPS for name in sorted(PROJECT["project"]["entry-points"][f"edgekit.{group}"])]
    assert run("-c", code, cwd=tmp_path, path=[built / "site"]).split() == declared


def test_a_bare_checkout_works_from_anywhere(tmp_path):
    printed = run("-m", "toolkit", "targets", cwd=tmp_path, path=[ROOT])
    assert all(name.removesuffix(".toml") in printed for name in SHIPPED["targets"])


def test_the_source_archive_has_every_folder_that_it_names(built):
    (file,) = (built / "dist").glob("*.tar.gz")
    with tarfile.open(file) as archive:
        names = [PurePosixPath(member.name).relative_to(f"edgekit-{PROJECT['project']['version']}") for member in archive if member.isfile()]
    named = PROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["only-include"]
    assert {name.parts[0] for name in names} == {*named, "pyproject.toml", ".gitignore", "PKG-INFO"}
    tracked = {PurePosixPath(file) for file in files_of_the_project() if file.parts[0] in named}
    assert tracked <= set(names)
    assert not [name for name in names if "__pycache__" in name.parts or name.parts[0].startswith(".venv")]
