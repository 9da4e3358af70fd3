"""One real run of the digits example, shared by every end-to-end test."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Outcome:
    """What a command returned and printed."""

    code: int
    stdout: str
    stderr: str

    def json(self) -> Any:
        return json.loads(self.stdout)


@dataclass(frozen=True)
class Shell:
    """Runs ``edgekit`` in a process of its own, with a cache of its own."""

    cache: Path
    path: tuple[Path, ...] = ()
    prelude: str = ""

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "EDGEKIT_CACHE": str(self.cache), "PYTHONPATH": os.pathsep.join(map(str, (*self.path, ROOT))), "COLUMNS": "200"}

    def arguments(self, *words: object) -> list[str]:
        code = f"{self.prelude}\nfrom toolkit.cli import main\nmain()"
        return [sys.executable, "-c", code, *map(str, words)]

    def __call__(self, *words: object, cwd: Path | None = None) -> Outcome:
        done = subprocess.run(self.arguments(*words), capture_output=True, text=True, env=self.environment, cwd=cwd or ROOT, timeout=900)
        assert "Traceback" not in done.stderr, done.stderr
        return Outcome(done.returncode, done.stdout, done.stderr)


@dataclass(frozen=True)
class Digits:
    """The example, run once."""

    shell: Shell
    project: Path
    out: Path
    outcome: Outcome
    report: dict[str, Any]

    def model(self, format: str, scheme: str = "float32") -> Path:
        return self.out / "models" / f"digits.{scheme}.{format}"


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> Digits:
    for module in ("torch", "onnx", "onnxruntime", "ai_edge_litert", "litert_torch", "sklearn"):
        pytest.importorskip(module) if module in ("onnx", "sklearn") else _need(module)
    folder = tmp_path_factory.mktemp("digits")
    project = folder / "project"
    shutil.copytree(ROOT / "examples" / "digits", project, ignore=shutil.ignore_patterns("edgekit-out", "__pycache__"))
    shell = Shell(folder / "cache")
    out = folder / "out"
    outcome = shell("run", project, "--output", out)
    assert outcome.code == 0, outcome.stderr + outcome.stdout
    return Digits(shell, project, out, outcome, json.loads((out / "report.json").read_text()))


def _need(module: str) -> None:
    from importlib.util import find_spec

    if find_spec(module) is None:
        pytest.skip(f"{module} is not installed")


@pytest.fixture
def variant(digits, tmp_path):
    """Makes a changed copy of the example; whatever the change leaves alone comes from the shared cache."""

    def make(*changes: tuple[str, str]) -> Path:
        project = tmp_path / "variant"
        shutil.copytree(digits.project, project, dirs_exist_ok=True)
        text = (project / "edgekit.toml").read_text()
        for old, new in changes:
            assert old in text, f"{old!r} is not in the example any more"
            text = text.replace(old, new)
        (project / "edgekit.toml").write_text(text)
        return project

    return make
