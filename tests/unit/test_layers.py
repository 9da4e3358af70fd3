"""The tree keeps its own rules, and the rules can be broken: each one is shown to catch a violation of it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("importlinter")
pytest.importorskip("ruff")

ROOT = Path(__file__).resolve().parents[2]
LAYERS = "one direction of flow"
PLUGINS = "plugins are reached through entry points, never by name"


def layers(folder):
    """Runs import-linter on a folder's ``toolkit`` by its ``pyproject.toml``."""
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "300"}
    return subprocess.run(
        [sys.executable, "-c", code, "--no-cache"], cwd=folder, env=environment, capture_output=True, text=True, encoding="utf-8", check=False
    )


def ruff(folder):
    """Runs ruff on a folder's ``toolkit`` by its ``pyproject.toml``."""
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format", "concise", "toolkit"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture
def copy(tmp_path):
    """A copy of the package and its project file, for breaking."""
    shutil.copytree(ROOT / "toolkit", tmp_path / "toolkit", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(ROOT / "pyproject.toml", tmp_path / "pyproject.toml")
    return tmp_path


def append(folder, module, code):
    file = folder / "toolkit" / module
    file.write_text(f"{file.read_text()}\n\n{code}")


def prepend(folder, module, code):
    """Puts an import after the future import, where a file's own imports are."""
    file = folder / "toolkit" / module
    text = file.read_text()
    mark = "from __future__ import annotations\n"
    assert text.count(mark) == 1
    file.write_text(text.replace(mark, f"{mark}\n{code}"))


def test_the_tree_keeps_its_layers():
    done = layers(ROOT)
    assert done.returncode == 0 and "Contracts: 2 kept, 0 broken." in done.stdout, done.stdout + done.stderr


def test_the_tree_keeps_its_style():
    done = ruff(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("module", "code", "contract", "names"),
    [
        ("convert/stage.py", "from toolkit.measure import parity\n", LAYERS, ("toolkit.convert", "toolkit.measure")),
        ("errors.py", "from toolkit.pipeline import run\n", LAYERS, ("toolkit.errors", "toolkit.pipeline")),
        ("contents.py", "from toolkit import evidence\n", LAYERS, ("toolkit.contents", "toolkit.evidence")),
        ("store.py", "def late() -> None:\n    from toolkit.cli import main\n\n    main()\n", LAYERS, ("toolkit.store", "toolkit.cli")),
        ("pipeline/export.py", "from toolkit.convert import torch_onnx\n", PLUGINS, ("toolkit.pipeline", "toolkit.convert.torch_onnx")),
        ("measure/parity.py", "from toolkit.runtimes import onnxruntime\n", PLUGINS, ("toolkit.measure", "toolkit.runtimes.onnxruntime")),
    ],
    ids=[
        "a stage imports another",
        "errors import the pipeline",
        "siblings",
        "inside a function",
        "the pipeline names a route",
        "measure names a runtime",
    ],
)
def test_a_forbidden_import_breaks_its_contract(copy, module, code, contract, names):
    append(copy, module, code)
    done = layers(copy)
    assert done.returncode == 1, done.stdout
    assert f"{contract} BROKEN" in done.stdout
    broken = done.stdout.partition("Broken contracts")[2]
    assert contract in broken and all(name in broken for name in names)


def test_a_module_without_a_layer_breaks_the_contract(copy):
    """A new top-level module has to be given its place."""
    (copy / "toolkit" / "helpers.py").write_text('"""Odds and ends."""\n')
    done = layers(copy)
    assert done.returncode == 1 and "toolkit.helpers" in done.stdout


@pytest.mark.parametrize(
    ("module", "code", "rule"),
    [
        ("convert/stage.py", "import torch\n", "TID253 `torch` is banned"),
        ("measure/parity.py", "import onnxruntime\n", "TID253 `onnxruntime` is banned"),
        ("report/chart.py", "from matplotlib import pyplot\n", "TID253 `matplotlib` is banned"),
        ("store.py", "from . import errors\n", "TID252"),
    ],
    ids=["torch", "onnxruntime in measure", "from matplotlib", "relative"],
)
def test_a_banned_import_breaks_the_style(copy, module, code, rule):
    prepend(copy, module, code)
    done = ruff(copy)
    assert done.returncode == 1
    assert any(line.startswith(f"toolkit/{module}") and rule in line for line in done.stdout.splitlines()), done.stdout


@pytest.mark.parametrize(
    ("code", "rule"),
    [
        ("def broad() -> None:\n    try:\n        parse()\n    except Exception:\n        return\n", "BLE001"),
        ('def loud() -> None:\n    """Prints."""\n    print(1)\n', "T201"),
        ("def untyped(x):\n    return x\n", "ANN001"),
        ("def bare(x: int) -> int:\n    return x\n", "D103"),
        ('def runs(code: str) -> None:\n    """Runs it."""\n    eval(code)\n', "S307"),
        ('def long() -> None:\n    """Is long."""\n' + "    str()\n" * 51, "PLR0915"),
    ],
    ids=["broad except", "print", "no types", "no docstring", "eval", "too long"],
)
def test_a_habit_we_gave_up_breaks_the_style(copy, code, rule):
    append(copy, "config.py", code)
    done = ruff(copy)
    assert done.returncode == 1
    assert any(line.startswith("toolkit/config.py") and rule in line for line in done.stdout.splitlines()), done.stdout


def test_no_module_is_longer_than_400_lines():
    lengths = {str(file.relative_to(ROOT)): len(file.read_text().splitlines()) for file in (ROOT / "toolkit").rglob("*.py")}
    assert len(lengths) > 50
    assert not {name: length for name, length in lengths.items() if length > 400}
