"""A repository with a model, and its checks in CI: a regression turns them red with a message that says what was lost; its revert is green.

The workflow, the pipeline, the test and the hook are those of docs/ci.md, word for word. Their shell steps run as they stand,
with a wheel of this checkout for pip to find; only steps that use other actions are left out.
"""

from __future__ import annotations

import ensurepip
import importlib.util
import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests import ci, models
from tests.unit.test_docs import blocks, read, sections

for module in ("ai_edge_litert", "ai_edge_quantizer", "hatchling", "sklearn"):
    pytest.importorskip(module)

ROOT = Path(__file__).resolve().parents[2]
MODEL, TWIN = "models/digits.static_wi8_ai8.tflite", "models/digits.float32.tflite"
PAGE = sections(read("docs/ci.md"))
TEMPLATE = ROOT / "ci" / "gitlab" / "edgekit.gitlab-ci.yml"
# Stands in for GitHub's command line: one pull request, whose comments are lines of a JSON file.
GH = """#!{python}
import json, os, pathlib, subprocess, sys
words, file = sys.argv[1:], pathlib.Path(os.environ["COMMENTS"])
comments = json.loads(file.read_text()) if file.exists() else []
if "--jq" in words:
    assert words[words.index("--paginate") + 1] == "repos/owner/phone/issues/7/comments"
    sys.exit(subprocess.run(["jq", "-r", words[words.index("--jq") + 1]], input=json.dumps(comments), text=True).returncode)
body = pathlib.Path(words[words.index("-F") + 1].removeprefix("body=@")).read_text()
place = words[words.index("--method") + 2]
if "POST" in words:
    comments.append({{"id": len(comments) + 1, "body": body}})
else:
    comments[int(place.rsplit("/", 1)[1]) - 1]["body"] = body
file.write_text(json.dumps(comments))
"""


@dataclass(frozen=True)
class Commit:
    """A working tree at one commit, and how right its model is by LiteRT alone."""

    name: str
    tree: Path
    accuracy: float
    twin: float
    samples: int
    environment: dict[str, str]


def test_the_injected_regression_is_about_five_points(commit):
    if commit.name == "red":
        assert 0.03 < commit.twin - commit.accuracy < 0.08
    else:
        assert abs(commit.twin - commit.accuracy) < 0.005


def test_pytest(commit):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-rs", "--junit-xml=tests.xml"],
        cwd=commit.tree,
        env=commit.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == (commit.name == "red"), done.stdout + done.stderr
    said = {entry.get("name"): entry.get("value") for entry in ET.parse(commit.tree / "tests.xml").iter("property")}
    assert float(said["edgekit.value"]) == pytest.approx(commit.accuracy, abs=1e-12) and said["edgekit.samples"] == str(commit.samples)
    if commit.name == "red":
        assert "1 failed" in done.stdout and "Traceback" not in done.stdout
        the_message_is_complete(done.stdout, commit)
    else:
        assert re.search(r"1 passed|1 skipped", done.stdout) and not re.search(r"max_drop (fail|inconclusive)", done.stdout)


def test_github(commit, tmp_path):
    event = {"pull_request": {"number": 7}}
    workflow = commit.tree / ".github" / "workflows" / "model.yml"
    outcome = ci.github(workflow, ROOT / "action.yml", commit.tree, tmp_path, commit.environment, event)
    assert outcome.status == ("failure" if commit.name == "red" else "success"), outcome.log
    assert outcome.ran == ["Install Edgekit", "Check", "Write the summary", "Comment on the pull request", "Verdict"]
    others = {name.partition("@")[0] for name in outcome.left_out}
    assert others == {"actions/checkout", "actions/cache", "actions/setup-python", "actions/upload-artifact"}
    assert outcome.outputs["folder"] == "edgekit-out"
    the_reports_agree(commit)
    comments = json.loads((commit.tree / "comments.json").read_text())
    report = (commit.tree / "edgekit-out" / "report.md").read_text()
    assert outcome.summary == report
    assert [one["body"] for one in comments] == ["hello", f"<!-- edgekit: edgekit -->\n{report}"]
    if commit.name == "red":
        assert outcome.outputs["verdict"] == "fail" and outcome.outputs["code"] == "1"
        (annotation,) = (line for line in outcome.log.splitlines() if line.startswith("::error"))
        the_message_is_complete(annotation, commit)
    else:
        assert outcome.outputs["verdict"] in ("pass", "inconclusive") and outcome.outputs["code"] == "0"
        assert "::error" not in outcome.log


def test_gitlab(commit):
    outcome = ci.gitlab(commit.tree / ".gitlab-ci.yml", TEMPLATE, commit.tree, commit.environment, "bash" if commit.name == "red" else "sh")
    artifacts = outcome.left_out["artifacts"]
    assert artifacts["when"] == "always" and (commit.tree / artifacts["paths"][0]).is_dir()
    cases = ET.parse(commit.tree / artifacts["reports"]["junit"]).iter("testcase")
    failures = [
        f"{case.get('classname')} {case.get('name')} {case.find('failure').get('message')}" for case in cases if case.find("failure") is not None
    ]
    the_reports_agree(commit)
    if commit.name == "red":
        assert outcome.status == "failure" and outcome.outputs["code"] == "1", outcome.log
        the_message_is_complete(outcome.log, commit)
        assert len(failures) == 1
        the_message_is_complete(failures[0], commit)
    else:
        assert outcome.status in ("success", "warning"), outcome.log
        assert not failures


def test_the_hook_measures_the_files_that_a_commit_would_add(commit):
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    (used,) = yaml.safe_load((commit.tree / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert used["id"] == hook["id"] == "edgekit-size" and hook["language"] == "python"
    tracked = git("ls-files", cwd=commit.tree).split()
    files = [name for name in tracked if re.search(hook["files"], name)]
    assert sorted(files) == [TWIN, MODEL]
    command = [sys.executable, "-m", "toolkit", *hook["entry"].split()[1:]]
    for arguments, code in ((used["args"], 0), (["--max-size-bytes=5000"], 1)):
        done = subprocess.run([*command, *arguments, *files], cwd=commit.tree, env=commit.environment, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stdout + done.stderr
    assert TWIN in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("old", "new", "ran", "code"),
    [
        ("model: ", "project: .\n          model: ", ["Check"], ""),
        ("data: eval.npz", "data: none.npz", ["Check", "Write the summary", "Verdict"], "3"),
        ("--max-drop 1pp", "--max-drop 1pp$(touch${IFS}injected);touch injected", ["Check", "Write the summary", "Verdict"], "2"),
        ("--max-drop 1pp", "--max-drop 1pp --help", ["Check", "Write the summary", "Verdict"], "2"),
        (f"model: {MODEL}", "model: --help", ["Check", "Write the summary", "Verdict"], "2"),
        ("comment: true", 'output: "out\\nverdict=pass"', ["Check"], ""),
    ],
    ids=["two subjects", "no samples", "a shell's words", "only help is asked for", "a file called help", "an output of two lines"],
)
def test_what_the_action_cannot_judge_is_red_too(repository, tmp_path, old, new, ran, code):
    tree, variables = repository
    text = (tree / ".github" / "workflows" / "model.yml").read_text()
    assert old in text and "comment:" in text
    changed = tmp_path / "model.yml"
    changed.write_text(text.replace(old, new).replace("args:", 'install: ""\n          args:'))
    (tree / "edgekit-out").mkdir(exist_ok=True)
    (tree / "edgekit-out" / "report.json").write_text('{"verdict": "pass", "rows": []}')
    outcome = ci.github(changed, ROOT / "action.yml", tree, tmp_path, variables, {})
    assert (outcome.status, outcome.ran, outcome.outputs["code"]) == ("failure", ran, code), outcome.log
    assert outcome.outputs["verdict"] == ("error" if code else "")
    assert ("before anything was judged" in outcome.summary) == bool(code)
    assert not (tree / "injected").exists()


@pytest.mark.parametrize("variable", ["EDGEKIT_MODEL", "EDGEKIT_ARGS"])
def test_a_job_that_judges_nothing_is_red_on_gitlab_too(repository, tmp_path, variable):
    tree, variables = repository
    pipeline = yaml.safe_load((tree / ".gitlab-ci.yml").read_text())
    pipeline["model"]["variables"] |= {variable: "--help", "EDGEKIT_INSTALL": ""}
    changed = tmp_path / "pipeline.yml"
    changed.write_text(yaml.safe_dump(pipeline))
    (tree / "edgekit-out").mkdir(exist_ok=True)
    (tree / "edgekit-out" / "report.json").write_text('{"verdict": "pass", "rows": []}')
    outcome = ci.gitlab(changed, TEMPLATE, tree, variables, "sh")
    assert (outcome.status, outcome.outputs["code"]) == ("failure", "2"), outcome.log


def test_no_expression_stands_inside_a_script():
    """It would be replaced before the shell reads it, and so be run as part of the script."""
    steps = yaml.safe_load((ROOT / "action.yml").read_text())["runs"]["steps"]
    scripts = [step for step in steps if "run" in step]
    assert len(scripts) == 5
    for step in scripts:
        assert "${{" not in step["run"] and step["shell"] == "bash" and step["run"].startswith("set -euo pipefail\n"), step["name"]


def the_message_is_complete(text: str, commit: Commit) -> None:
    """Model, target, metric, samples, interval and limit in one line or, in pytest's message, in one block."""
    assert Path(MODEL).name in text and "android-midrange-litert" in text
    assert re.search(rf"accuracy fell by \d\.\d\d pp \[-\d\.\d\d, -\d\.\d\d\] on {commit.samples:,} samples; allowed 1\.00 pp", text), text


def the_reports_agree(commit: Commit) -> None:
    out = commit.tree / "edgekit-out"
    assert {"report.json", "report.md", "report.html", "report.sarif", "junit.xml"} <= {file.name for file in out.iterdir()}
    (row,) = json.loads((out / "report.json").read_text())["rows"]
    assert row["metric"]["value"] == pytest.approx(commit.accuracy, abs=1e-12) and row["metric"]["n"] == commit.samples
    assert row["change"]["value"] == pytest.approx(commit.accuracy - commit.twin, abs=1e-12)
    verdicts = {one["budget"]: one["verdict"] for one in row["findings"]}
    assert verdicts["max_drop"] == ("fail" if commit.name == "red" else "pass") and verdicts["max_size_ratio"] == "pass"


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """The repository after three commits, model, regression and revert, and the environment of its jobs."""
    tree = tmp_path_factory.mktemp("phone")
    write_files(tree)
    train_and_quantize(tree)
    git("init", "-q", "-b", "main", cwd=tree)
    commit_all(tree, "A quantized digit classifier and its checks")
    damage(tree)
    commit_all(tree, "Export the model again")
    git("revert", "--no-edit", "HEAD", cwd=tree)
    assert not git("diff", "HEAD~2", "HEAD", cwd=tree)
    # All jobs share a cache, as the pages have the two servers' do.
    return tree, environment(tmp_path_factory.mktemp("machine")) | {
        "EDGEKIT_CACHE": str(tree / ".edgekit-cache"),
        "COMMENTS": str(tree / "comments.json"),
    }


@pytest.fixture(scope="module", params=["red", "green"])
def commit(request, repository) -> Commit:
    tree, variables = repository
    git("checkout", "-q", {"red": "main~1", "green": "main"}[request.param], cwd=tree)
    (tree / "comments.json").write_text(json.dumps([{"id": 1, "body": "hello"}]))
    accuracy, twin = (right(tree / name, tree / "eval.npz") for name in (MODEL, TWIN))
    return Commit(request.param, tree, accuracy.mean(), twin.mean(), len(accuracy), variables)


def write_files(tree: Path) -> None:
    """Writes what docs/ci.md shows."""
    written = {
        "test_phone.py": blocks(PAGE["pytest"], "python")[0],
        "pytest.ini": blocks(PAGE["pytest"], "ini")[0],
        ".github/workflows/model.yml": blocks(PAGE["GitHub Actions"], "yaml")[0],
        ".gitlab-ci.yml": blocks(PAGE["GitLab"], "yaml")[0],
        ".pre-commit-config.yaml": blocks(PAGE["pre-commit: size of model files"], "yaml")[0],
        ".gitignore": ".edgekit-cache/\nedgekit-out/\n__pycache__/\n.pytest_cache/\ntests.xml\ncomments.json\n",
    }
    for name, text in written.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)


def train_and_quantize(tree: Path) -> None:
    """Trains 64 -> 32 -> 10 on scikit-learn's digits, writes it as TFLite from its parts, and quantizes that."""
    from ai_edge_litert.schema_py_generated import ActivationFunctionType, BuiltinOperator, FullyConnectedOptionsT
    from sklearn.datasets import load_digits
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    import toolkit

    image, label = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(image))
    image, label = (image[order] / 16).astype(np.float32), label[order]
    train, held_out = slice(0, 697), slice(697, None)
    network = MLPClassifier((32,), max_iter=60, random_state=0, learning_rate_init=0.01)
    with pytest.warns(ConvergenceWarning):
        network.fit(image[train], label[train])
    (w0, w1), (b0, b1) = ([one.astype(np.float32) for one in parts] for parts in (network.coefs_, network.intercepts_))
    shapes = [("image", [1, 64], None), ("w0", [32, 64], w0.T), ("b0", [32], b0), ("hidden", [1, 32], None)]
    shapes += [("w1", [10, 32], w1.T), ("b1", [10], b1), ("logits", [1, 10], None)]
    relu = FullyConnectedOptionsT(fusedActivationFunction=ActivationFunctionType.RELU)
    layers = [(BuiltinOperator.FULLY_CONNECTED, [0, 1, 2], [3], relu), (BuiltinOperator.FULLY_CONNECTED, [3, 4, 5], [6], FullyConnectedOptionsT())]
    (tree / "models").mkdir()
    models._write_tflite(tree / TWIN, shapes, layers, ("image", 0), ("logits", 6))
    np.savez(tree / "eval.npz", image=image[held_out], label=label[held_out])
    store = toolkit.Store(tree / ".edgekit-cache")
    toolkit.quantize(tree / TWIN, scheme="static_wi8_ai8", calibration={"image": image[train][:128]}, output=tree / MODEL, store=store)


def damage(tree: Path) -> None:
    """Adds noise to the stored int8 weights, as much as costs about five points."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    (tree / MODEL).with_name(Path(MODEL).name + ".manifest.json").unlink(missing_ok=True)
    whole = (tree / MODEL).read_bytes()
    sound = right(tree / MODEL, tree / "eval.npz").mean()
    for strength in range(8, 80, 4):
        model = schema.ModelT.InitFromPackedBuf(whole)
        noise = np.random.default_rng(0)
        for tensor in model.subgraphs[0].tensors:
            stored = model.buffers[tensor.buffer].data
            if tensor.type == schema.TensorType.INT8 and stored is not None and len(stored):
                changed = np.asarray(stored, np.uint8).view(np.int8) + noise.normal(scale=strength, size=len(stored))
                model.buffers[tensor.buffer].data = np.clip(changed.round(), -127, 127).astype(np.int8).view(np.uint8)
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), b"TFL3")
        (tree / MODEL).write_bytes(bytes(builder.Output()))
        if sound - right(tree / MODEL, tree / "eval.npz").mean() > 0.04:
            return


def right(model: Path, data: Path) -> np.ndarray:
    """Tells which samples a model gets right, with LiteRT alone: ``[n] bool``."""
    from ai_edge_litert.interpreter import Interpreter

    run = Interpreter(str(model)).get_signature_runner()
    with np.load(data) as columns:
        image, label = columns["image"], columns["label"]
    return np.array([run(image=one[None])["logits"].argmax() for one in image]) == label


def environment(machine: Path) -> dict[str, str]:
    """A machine without Edgekit and without a network: pip finds a wheel of this checkout, and the jobs what pip installs."""
    wheels, site, programs = (machine / name for name in ("wheels", "site", "bin"))
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(wheels)], cwd=ROOT, check=True, capture_output=True)
    programs.mkdir()
    (programs / "gh").write_text(GH.format(python=sys.executable))
    (programs / "gh").chmod(0o755)
    (programs / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (programs / "python").chmod(0o755)
    own = ci.plain_environment()
    path = os.pathsep.join(map(str, (programs, site / "bin", own["PATH"])))
    pip = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels), "PIP_NO_DEPS": "1", "PIP_TARGET": str(site), "PIP_UPGRADE": "1"}
    # Compiling the frameworks anew in each of dozens of processes would take longer than all that is measured.
    bytecode = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(machine / "bytecode")}
    variables = {
        **own,
        **pip,
        **bytecode,
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "200",
        "PATH": path,
        "PYTHONPATH": os.pathsep.join(map(str, (site, *pip_wheel()))),
        "EDGEKIT_CACHE": str(machine / "cache"),
    }
    subprocess.run(["python", "-m", "pip", "install", "-q", "edgekit"], env=variables, check=True)
    return variables


def pip_wheel() -> list[Path]:
    """Finds the pip that Python brings for new environments, where this one has none."""
    if importlib.util.find_spec("pip"):
        return []
    found = list(Path(ensurepip.__file__).parent.glob("_bundled/pip-*.whl"))
    return found or pytest.skip("there is no pip")


def commit_all(tree: Path, message: str) -> None:
    git("add", "-A", cwd=tree)
    git("commit", "-q", "-m", message, cwd=tree)


def git(*words: str, cwd: Path) -> str:
    identity = {f"GIT_{who}_{what}": "phone@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    alone = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    return subprocess.run(["git", *words], cwd=cwd, env={**os.environ, **identity, **alone}, check=True, capture_output=True, text=True).stdout
