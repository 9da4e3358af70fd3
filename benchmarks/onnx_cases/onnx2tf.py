"""The same cases through onnx2tf, in an environment of its own: it pins the versions of everything it uses."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import ROOT
from benchmarks.onnx_cases.cases import Case
from benchmarks.onnx_cases.pool import Outcome

KNOWN = ROOT / "benchmarks" / "results" / "onnx_cases_onnx2tf.json"
_ASK = "import importlib.metadata as m, json; print(json.dumps({n: m.version(n) for n in ('onnx2tf', 'tensorflow')}))"


def versions(python: Path) -> dict[str, str]:
    """Returns the versions of onnx2tf and TensorFlow in an environment."""
    said = subprocess.run([str(python), "-c", _ASK], check=True, capture_output=True, text=True).stdout
    return dict(json.loads(said))


def run(expressible: Sequence[Case], python: Path, jobs: int, limit_s: float) -> Iterator[tuple[str, Outcome]]:
    """Yields what onnx2tf makes of each case; what an earlier run with the same version found is read, as this takes long."""
    used = versions(python)
    known = _known(used)
    yield from ((case.name, known[case.name]) for case in expressible if case.name in known)
    left = [case for case in expressible if case.name not in known]
    if not left:
        return
    with tempfile.TemporaryDirectory() as scratch:
        for number, case in enumerate(left):
            _save(case, Path(scratch) / str(number))
        command = [str(python), "-m", "benchmarks.onnx_cases.onnx2tf_child", scratch, str(jobs), str(limit_s)]
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", "TF_NUM_INTRAOP_THREADS": "1"}
        with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            for line in child.stdout:
                if not line.startswith("{"):
                    continue
                said = json.loads(line)
                name = left[said["number"]].name
                known[name] = (said["outcome"], said["reason"])
                KNOWN.write_text(json.dumps({"versions": used, "cases": known}, indent=1) + "\n", encoding="utf-8")
                yield name, known[name]


def _known(used: dict[str, str]) -> dict[str, Outcome]:
    if not KNOWN.exists():
        return {}
    content = json.loads(KNOWN.read_text(encoding="utf-8"))
    return {name: (outcome, reason) for name, (outcome, reason) in content["cases"].items()} if content["versions"] == used else {}


def _save(case: Case, folder: Path) -> None:
    """Writes a case for a process that has neither this package's ``onnx`` nor its NumPy."""
    import onnx

    folder.mkdir()
    onnx.save(case.model, str(folder / "model.onnx"))
    for part, values in (("given", case.given), ("expected", case.expected)):
        arrays = {name: _plain(value) for name, value in values.items()}
        np.savez(folder / f"{part}.npz", **{f"{number}": array for number, array in enumerate(arrays.values())})  # type: ignore[arg-type]
        (folder / f"{part}.json").write_text(json.dumps(list(arrays)), encoding="utf-8")
    (folder / "case.json").write_text(json.dumps({"name": case.name, "rtol": case.rtol, "atol": case.atol}), encoding="utf-8")


def _plain(value: Any) -> np.ndarray:
    """Numbers of types that NumPy itself does not know are saved as ones that it does."""
    array = np.asarray(value)
    if array.dtype.kind != "V" and array.dtype.name not in ("int4", "uint4", "int2"):
        return array.astype(str) if array.dtype == object else array
    return array.astype(np.float32)
