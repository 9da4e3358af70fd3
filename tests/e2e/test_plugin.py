"""Somebody else's plugin, in a wheel of its own: found, listed, used from end to end, and held to the contract tests."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests import models

pytest.importorskip("hatchling")
pytest.importorskip("build")
pytest.importorskip("onnx")

ROOT = Path(__file__).resolve().parents[2]
MODULE = "edgekit_npz_plugin.py"
RNG = np.random.default_rng(11)
FIRST, SECOND, BIAS = (RNG.normal(size=shape).astype(np.float32) for shape in ((4, 6), (6, 3), (3,)))


def scores(x):
    """What the model computes: ``[n x 4] -> [n x 3]``, in float64."""
    return np.maximum(x.astype(np.float64) @ FIRST, 0) @ SECOND + BIAS


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    """The folder that the plugin's wheel unpacks to, built without a network and beside no other file of ours."""
    folder = tmp_path_factory.mktemp("plugin")
    shutil.copytree(ROOT / "tests" / "plugin_example", folder / "source", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "build", "--no-isolation", "--skip-dependency-check", "--wheel", "--outdir", str(folder), str(folder / "source")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert [name for name in archive.namelist() if ".dist-info/" not in name] == [MODULE]
        archive.extractall(folder / "site")
    return folder / "site"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with an ONNX model, labelled samples and a target; commands run there, with a cache of its own."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    folder = tmp_path_factory.mktemp("place")
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "first"], ["hidden"]),
            helper.make_node("Relu", ["hidden"], ["bent"]),
            helper.make_node("Gemm", ["bent", "second", "bias"], ["logits"]),
        ],
        "model",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 3])],
        [numpy_helper.from_array(array, name) for name, array in (("first", FIRST), ("second", SECOND), ("bias", BIAS))],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(folder / "model.onnx"))
    x = models.samples(40, seed=3)
    np.savez(folder / "x.npz", x=x)
    label = scores(x).argmax(axis=1)
    label[:10] = (label[:10] + 1) % 3  # ten wrong answers: 75 % must come out
    np.savez(folder / "labelled.npz", x=x, label=label)
    (folder / "numpy.toml").write_text('schema = 1\nruntime = "nplin"\nstand_in = "this very machine"\nschemes = ["float32"]\n')
    return folder


def python(*words, path, cwd, cache=None):
    places = os.pathsep.join(map(str, (*path, ROOT)))
    environment = {**os.environ, "PYTHONPATH": places, "EDGEKIT_CACHE": str(cache or cwd / "cache"), "COLUMNS": "200"}
    return subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, env=environment, cwd=cwd, check=False, timeout=300)


def edgekit(*words, path, cwd, cache=None):
    return python("-m", "toolkit", *words, path=path, cwd=cwd, cache=cache)


@pytest.fixture(scope="module")
def exported(plugin, place):
    """The model, converted by the plugin's route."""
    pytest.importorskip("onnxruntime")
    done = edgekit("export", "model.onnx", "--format", "nplin", "--samples", "x.npz", path=[plugin], cwd=place)
    assert done.returncode == 0, done.stderr
    return place / "model.float32.nplin", done.stdout


def test_it_is_found_and_listed_beside_our_own(plugin, place):
    code = "from toolkit import plugins; print(*plugins.discover('routes'), *plugins.discover('runtimes'))"
    done = python("-c", code, path=[plugin], cwd=place)
    assert {"onnx_nplin", "nplin", "torch_onnx", "onnxruntime"} <= set(done.stdout.split()), done.stderr
    done = edgekit("doctor", "--format", "json", path=[plugin], cwd=place)
    assert done.returncode == 0, done.stderr
    listed = {(one["group"], one["name"]): one for one in json.loads(done.stdout)["plugins"]}
    assert listed["routes", "onnx_nplin"]["does"] == "onnx -> nplin"
    runs = {"group": "runtimes", "name": "nplin", "does": "runs nplin", "ready": True, "install": "", "trust": None, "rewrites": {}}
    assert listed["runtimes", "nplin"] == runs


def test_export_measures_parity_and_says_that_nobody_audited(exported):
    file, printed = exported
    manifest = json.loads((file.parent / f"{file.name}.manifest.json").read_text())
    assert (manifest["format"], manifest["scheme"], manifest["made_by"]) == ("nplin", "float32", "onnx_nplin")
    parity = manifest["evidence"]["checks"]["parity"]
    assert parity["n"] == 40 and parity["outputs"]["logits"]["sqnr_db"] > 100
    assert manifest["evidence"]["checks"]["audit"]["not_done"] == "no reader for nplin"
    assert "not done: no reader for nplin" in printed
    assert manifest["signature"]["outputs"] == [{"name": "logits", "dtype": "float32", "shape": [1, 3]}]


@pytest.mark.parametrize("history", ["with its manifest", "without"])
def test_evaluate_and_benchmark_run_on_a_target_of_the_plugin(exported, plugin, place, tmp_path, history):
    file = tmp_path / "model.nplin"
    for name in ("", ".manifest.json") if history == "with its manifest" else ("",):
        shutil.copyfile(f"{exported[0]}{name}", f"{file}{name}")
    done = edgekit("evaluate", file, "--data", "labelled.npz", "--target", "./numpy.toml", "--format", "json", path=[plugin], cwd=place)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["runtime"], found["target"], found["stand_in"]) == ("nplin", "numpy", "this very machine")
    assert (found["metric"]["value"], found["metric"]["n"]) == (0.75, 40)


def test_inspect_states_the_signature_and_nothing_that_it_does_not_know(exported, plugin, place):
    done = edgekit("inspect", exported[0], "--format", "json", path=[plugin], cwd=place)
    assert done.returncode == 0, done.stderr
    contents = json.loads(done.stdout)
    assert contents["signature"]["inputs"] == [{"name": "x", "dtype": "float32", "shape": [1, 4]}]
    assert (contents["operators"], contents["layers"], contents["details"]) == ({}, [], {"not_done": "no reader for nplin"})


def test_its_suffix_is_known_only_while_it_is_installed(exported, plugin, place, tmp_path):
    file = tmp_path / "model.nplin"
    shutil.copyfile(exported[0], file)
    done = edgekit("inspect", file, path=[], cwd=place)
    assert done.returncode == 3 and "unknown suffix '.nplin'" in done.stderr
    shutil.copyfile(exported[0], tmp_path / "model.other")
    done = edgekit("inspect", tmp_path / "model.other", path=[plugin], cwd=place)
    assert done.returncode == 3 and "unknown suffix '.other'" in done.stderr
    file.write_bytes(file.read_bytes()[:-30])
    done = edgekit("inspect", file, path=[plugin], cwd=place)
    assert done.returncode == 3 and "not a usable .nplin file" in done.stderr


def test_an_operator_that_it_lacks_is_named(plugin, place, tmp_path):
    models.tiny_onnx(tmp_path / "tiny.onnx")
    done = edgekit("export", tmp_path / "tiny.onnx", "--format", "nplin", "--samples", "x.npz", path=[plugin], cwd=place)
    assert done.returncode == 5
    assert "cannot convert operator Tanh; known: Add, Gemm, MatMul, Relu" in done.stderr and "'tanh'" in done.stderr
    assert not list(place.glob("tiny*"))


def test_a_broken_plugin_is_named_and_ends_the_command(plugin, place, tmp_path):
    shutil.copytree(plugin, tmp_path / "site", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "site" / MODULE).write_text("import no_such_framework\n")
    done = edgekit("inspect", "model.onnx", path=[tmp_path / "site"], cwd=place)
    assert done.returncode == 4
    assert "plugin nplin (edgekit_npz_plugin:RUNTIME): cannot be loaded" in done.stderr and "no_such_framework" in done.stderr
    doctor = edgekit("doctor", path=[tmp_path / "site"], cwd=place)
    assert doctor.returncode == 0
    assert "no_such_framework" in doctor.stdout


def test_the_example_in_the_documentation_works(place, tmp_path):
    """Its two code blocks are installed as they are printed, and convert what they claim to."""
    pytest.importorskip("onnxruntime")
    page = (ROOT / "docs" / "plugins.md").read_text().partition("## A whole plugin")[2]
    project = tomllib.loads(re.search(r"```toml\n(.*?)```", page, re.DOTALL)[1])
    points = project["project"]["entry-points"]
    information = tmp_path / "site" / "edgekit_npz_plugin-0.1.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: edgekit-npz-plugin\nVersion: 0.1.0\n")
    lines = [f"[{group}]\n" + "\n".join(f"{name} = {value}" for name, value in named.items()) for group, named in points.items()]
    (information / "entry_points.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "site" / MODULE).write_text(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1])
    product_onnx(tmp_path / "product.onnx")
    words = ("export", tmp_path / "product.onnx", "--format", "nplin", "--samples", "x.npz", "--output", tmp_path / "product.nplin")
    own = {"path": [tmp_path / "site"], "cwd": place, "cache": tmp_path / "cache"}  # one name and version: one cache would mix the two up
    done = edgekit(*words, **own)
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "product.nplin") as archive:
        np.testing.assert_array_equal(archive["w0"], FIRST)
        np.testing.assert_array_equal(archive["w1"], SECOND)
    done = edgekit("export", place / "model.onnx", "--format", "nplin", "--samples", "x.npz", **own)
    assert done.returncode == 5 and "cannot convert operator Relu" in done.stderr


def product_onnx(path):
    """Writes ``logits = x @ FIRST @ SECOND`` as ONNX."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "first"], ["hidden"]), helper.make_node("MatMul", ["hidden", "second"], ["logits"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 3])],
        [numpy_helper.from_array(FIRST, "first"), numpy_helper.from_array(SECOND, "second")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))


def contract(path, cwd):
    """Runs the contract tests that have a plugin's name in their id."""
    words = (
        "-m",
        "pytest",
        ROOT / "tests" / "contract",
        "-k",
        "nplin",
        "-v",
        "--rootdir",
        ROOT,
        "-c",
        ROOT / "pyproject.toml",
        "-p",
        "no:cacheprovider",
    )
    return python(*words, path=path, cwd=cwd)


def test_it_passes_the_contract_tests(plugin, tmp_path):
    done = contract([plugin], tmp_path)
    assert done.returncode == 0, done.stdout
    passed = {line.partition("::")[2].partition(" PASSED")[0] for line in done.stdout.splitlines() if " PASSED" in line}
    assert {
        "test_route[onnx_nplin]",
        "test_outputs_have_the_declared_names_types_and_shapes[nplin]",
        "test_it_says_what_it_is[routes-onnx_nplin]",
    } <= passed
    assert len(passed) >= 15


SABOTAGE = {
    "a runtime that answers in float64": (
        "spec.name: values[spec.name] for",
        "spec.name: values[spec.name].astype(np.float64) for",
        "test_outputs_have_the_declared_names_types_and_shapes[nplin]",
    ),
    "a runtime that lets damaged files through": (
        "except DAMAGED as error",
        "except MemoryError as error",
        "test_damaged_files_are_refused_without_a_crash[nplin]",
    ),
    "a runtime that takes any input": (
        "if found != wanted",
        "if not found",
        "test_inputs_that_do_not_fit_are_refused_by_name[another type-nplin]",
    ),
    "a runtime that writes to its inputs": (
        "lambda x: np.maximum(x, 0)",
        "lambda x: np.maximum(x, 0, out=x)",
        "test_inputs_are_not_written_to[nplin]",
    ),
    "a route that swaps signs": (": onnx.numpy_helper.to_array", ": -onnx.numpy_helper.to_array", "test_route[onnx_nplin]"),
    "a route whose files differ from call to call": (
        "json.dumps(program)",
        "json.dumps(program | {'at': __import__('time').time_ns()})",
        "test_route[onnx_nplin]",
    ),
    "a module that imports its framework": (
        "import numpy as np\n",
        "import numpy as np\nimport onnx\n",
        "test_its_module_does_not_import_its_framework[routes-onnx_nplin]",
    ),
}


@pytest.mark.parametrize("kind", SABOTAGE)
def test_the_contract_tests_catch(kind, plugin, tmp_path):
    right, wrong, caught_by = SABOTAGE[kind]
    site = tmp_path / "site"
    shutil.copytree(plugin, site, ignore=shutil.ignore_patterns("__pycache__"))
    text = (site / MODULE).read_text()
    assert text.count(right) == 1
    (site / MODULE).write_text(text.replace(right, wrong))
    done = contract([site], tmp_path)
    failed = [line.removeprefix("FAILED ") for line in done.stdout.splitlines() if line.startswith("FAILED ")]
    assert done.returncode == 1 and any(f"::{caught_by}" in line for line in failed), done.stdout
