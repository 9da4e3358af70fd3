"""What ``import toolkit`` costs and offers. Counted in modules, not in seconds, so that a slow machine says the same."""

import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import toolkit

ROOT = Path(__file__).resolve().parents[2]
FRAMEWORKS = {
    "ai_edge_litert",
    "ai_edge_quantizer",
    "executorch",
    "jax",
    "keras",
    "litert_torch",
    "matplotlib",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "openvino",
    "safetensors",
    "scipy",
    "sklearn",
    "tensorflow",
    "torch",
    "torchvision",
    "transformers",
}
HELP = """
import contextlib, io, runpy, sys
sys.argv = ["toolkit", *{words!r}]
with contextlib.redirect_stdout(io.StringIO()) as printed:
    try:
        runpy.run_module("toolkit", run_name="__main__")
    except SystemExit as exit:
        assert not exit.code, exit.code
assert "Usage" in printed.getvalue()
"""


def imported_by(code):
    """Returns the top-level modules that a fresh interpreter has after running some code."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*{{name.partition('.')[0] for name in sys.modules}})"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_the_probe_sees_an_import():
    assert "numpy" in imported_by("import numpy") and "numpy" not in imported_by("import json")


def test_importing_the_package_imports_nothing_heavy():
    found = imported_by("import toolkit")
    assert "toolkit" in found
    assert not found & (FRAMEWORKS | {"numpy", "pydantic", "typer", "rich"})


def test_help_imports_nothing_heavy():
    assert not imported_by(HELP.format(words=["--help"])) & (FRAMEWORKS | {"numpy", "pydantic"})


@pytest.mark.parametrize("verb", ["run", "export", "doctor"])
def test_help_of_a_verb_imports_nothing_heavy(verb):
    """Typer itself may import Pydantic to describe a verb's options."""
    assert not imported_by(HELP.format(words=[verb, "--help"])) & (FRAMEWORKS | {"numpy"})


def test_resolving_every_public_name_imports_no_framework():
    assert not imported_by("import toolkit\nfor name in toolkit.__all__: getattr(toolkit, name)") & FRAMEWORKS


def test_listing_every_plugin_imports_no_framework():
    found = imported_by("from toolkit import plugins\nfor group in plugins.GROUPS: assert plugins.discover(group)")
    assert not found & FRAMEWORKS


def test_every_public_name_resolves_and_dir_lists_them():
    assert dir(toolkit) == sorted(toolkit.__all__)
    assert len(set(toolkit.__all__)) == len(toolkit.__all__)
    for name in toolkit.__all__:
        assert callable(getattr(toolkit, name)), name
        assert getattr(toolkit, name).__module__.startswith("toolkit."), name
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = toolkit.no_such_name
    with pytest.raises(AttributeError, match="plan_project"):  # the home's own name is not another public one
        _ = toolkit.plan_project


def test_no_submodule_has_a_public_name():
    """A submodule is set as an attribute of its package when it is imported, and would take the function's place."""
    submodules = {module.name for module in pkgutil.iter_modules(toolkit.__path__)}
    assert {"quantization", "errors"} <= submodules
    assert not submodules & set(toolkit.__all__)


def test_importing_every_submodule_shadows_no_public_function():
    code = """
import importlib, pkgutil, types, toolkit
for module in pkgutil.walk_packages(toolkit.__path__, "toolkit."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
wrong = [name for name in toolkit.__all__ if isinstance(getattr(toolkit, name), types.ModuleType)]
assert not wrong, wrong
from toolkit.pipeline.quantize import quantize
assert toolkit.quantize is quantize
"""
    assert not imported_by(code) & FRAMEWORKS
