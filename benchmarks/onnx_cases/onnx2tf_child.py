"""Runs in onnx2tf's environment: converts the cases of a folder, runs them and prints a line of JSON for each.

``python -m benchmarks.onnx_cases.onnx2tf_child FOLDER JOBS LIMIT_S``. onnx2tf gets the settings that suit it best: inputs stay as they are
in the ONNX file, operator set and IR version are brought down to the newest that its ``onnx`` knows, and it may give results with the
channels last, with axes of size 1 more or less, in another type, or under other names. Where it only works without its simplifier, or
with all inputs but the first as constants, as weights mostly are, that counts.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.onnx_cases.cases import Case, difference
from benchmarks.onnx_cases.pool import Outcome, forked

NEWEST_OPSET, NEWEST_IR = 23, 11  # of its ONNX Runtime, 1.23
SETTINGS = {"copy_onnx_input_output_names_to_tflite": True, "non_verbose": True, "verbosity": "error"}
_MOST_ORDERS = 120  # of results that have lost their names
_IMAGES = "calibration_image_sample_data_20x128x128x3_float32.npy"  # which it looks for where it runs, and downloads otherwise


def main() -> None:
    """Runs all cases of the folder."""
    folder, jobs, limit_s = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    import onnx2tf  # noqa: F401  once for all processes
    import tensorflow as tf  # noqa: F401

    folders = sorted((one for one in folder.iterdir() if one.is_dir()), key=lambda one: int(one.name))
    for one, (outcome, reason) in forked(run, folders, jobs, limit_s):
        print(json.dumps({"number": int(one.name), "outcome": outcome, "reason": reason}), flush=True)


def run(folder: Path) -> Outcome:
    """Returns what becomes of one case: ``passed``, ``refused``, ``wrong`` or ``failed``, and why."""
    case = _read(folder)
    found = ("refused", "")
    for given, simplified in ((case, True), (case, False), (_with_constants(case), True)):
        with tempfile.TemporaryDirectory() as scratch:
            found = _attempt(given, Path(scratch), simplified=simplified) if given is not None else found
        if found[0] == "passed":
            return found
    return found


def _with_constants(case: Case) -> Case | None:
    """Returns a case whose inputs but the first are constants; ``None`` where that is no other."""
    import onnx

    names = list(case.given)[1:]
    if not names:
        return None
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    model.graph.initializer.extend(onnx.numpy_helper.from_array(case.given[name], name) for name in names)
    kept = [one for one in model.graph.input if one.name not in names]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    return dataclasses.replace(case, model=model, given={name: value for name, value in case.given.items() if name not in names})


def _attempt(case: Case, scratch: Path, *, simplified: bool) -> Outcome:
    import onnx
    import onnx2tf

    os.chdir(scratch)
    np.save(_IMAGES, np.random.default_rng(0).random((20, 128, 128, 3), np.float32))
    onnx.save(case.model, "model.onnx")
    try:
        onnx2tf.convert(
            input_onnx_file_path="model.onnx",
            output_folder_path="out",
            not_use_onnxsim=not simplified,
            keep_shape_absolutely_input_names=list(case.given) or None,
            **SETTINGS,
        )
    except (Exception, SystemExit) as error:  # noqa: BLE001  it raises whatever TensorFlow raises, and leaves with an error of its own
        return "refused", f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    if not Path("out/model_float32.tflite").exists():
        return "refused", "wrote no file"
    try:
        wrong = _compared(case, Path("out/model_float32.tflite"))
    except Exception as error:  # noqa: BLE001  another attempt may do better
        return "failed", f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return ("wrong", wrong) if wrong else ("passed", "")


def _compared(case: Case, file: Path) -> str:
    """Says what is wrong with the results of a file; nothing where all are right."""
    import tensorflow as tf

    interpreter = tf.lite.Interpreter(str(file), num_threads=1)
    interpreter.allocate_tensors()
    details = {_plain(one["name"]): one for one in interpreter.get_input_details()}
    for name, detail in details.items():
        given = case.given.get(name, next(iter(case.given.values())) if len(case.given) == len(details) == 1 else None)
        if given is None:
            return f"has an input {name} that the case does not have"
        interpreter.set_tensor(detail["index"], _shaped(given, tuple(detail["shape"])).astype(detail["dtype"]))
    interpreter.invoke()
    found = {_plain(one["name"]): interpreter.get_tensor(one["index"]) for one in interpreter.get_output_details()}
    named = set(found) >= set(case.expected)
    orders = [list(case.expected)] if named else itertools.islice(itertools.permutations(found, len(case.expected)), _MOST_ORDERS)
    told = [_wrong(case, [found[name] for name in order]) for order in orders]
    return "" if "" in told else told[0] if told else f"has {len(found)} outputs instead of {len(case.expected)}"


def _wrong(case: Case, found: Sequence[np.ndarray]) -> str:
    """Says what is wrong with results that are in the order of the expected ones."""
    for got, (name, wanted) in zip(found, case.expected.items(), strict=True):
        told = [difference(one, wanted, case) for one in _meanings(got, wanted.shape)]
        if all(told):
            return f"{name}: {told[0]}"
    return ""


def _plain(name: str) -> str:
    return name.removeprefix("serving_default_").removesuffix(":0")


def _shaped(given: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Returns an input as the file takes it: as it is, with channels last, or with other sizes."""
    return next((one for one in _meanings(given, shape) if one.shape == shape), given)


def _meanings(got: np.ndarray, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """Yields what an array can mean: itself, with channels moved to either side, or merely with other sizes."""
    yield got
    rank = got.ndim
    if rank >= 3:
        yield from (np.moveaxis(got, *ends) for ends in itertools.permutations((1, rank - 1)))
    if got.size == int(np.prod(shape)):
        yield got.reshape(shape)


def _read(folder: Path) -> Case:
    import onnx

    model = onnx.load(str(folder / "model.onnx"))
    for one in model.opset_import:
        if one.domain in ("", "ai.onnx"):
            one.version = min(one.version, NEWEST_OPSET)
    model.ir_version = min(model.ir_version, NEWEST_IR)
    about = json.loads((folder / "case.json").read_text(encoding="utf-8"))
    given, expected = (_arrays(folder, part) for part in ("given", "expected"))
    return Case(about["name"], model.graph.node[0].op_type, model, given, expected, about["rtol"], about["atol"])


def _arrays(folder: Path, part: str) -> dict[str, Any]:
    names = json.loads((folder / f"{part}.json").read_text(encoding="utf-8"))
    with np.load(folder / f"{part}.npz") as stored:
        return {name: stored[f"{number}"] for number, name in enumerate(names)}


if __name__ == "__main__":
    main()
