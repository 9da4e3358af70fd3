"""The cases that the ``onnx`` package ships, and what one of them comes to."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

OLDEST_OPSET = 13
# Their first input is data and the others are settings, which exporters write as constants.
SETTINGS = {
    "Clip", "Pad", "Resize", "Upsample", "Dropout", "TopK", "CumSum", "Trilu", "OneHot", "NonMaxSuppression", "ReverseSequence", "CenterCropPad",
    "Col2Im", "Split", "STFT", "DFT", "QuantizeLinear", "DequantizeLinear", "QLinearMatMul",
}  # fmt: skip
INDICES = {"Gather", "GatherElements", "GatherND", "ScatterElements", "ScatterND", "Where", "Equal", "Less", "Greater", "Mod", "Compress"}
ALL_CONSTANT = {"ConstantOfShape", "Range", "EyeLike", "HannWindow", "HammingWindow", "BlackmanWindow", "MelWeightMatrix"}
DTYPES = {"float32", "float64", "float16", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool"}


@dataclass(frozen=True)
class Case:
    """One case: a model of one operator, what it is given and what it shall give."""

    name: str
    kind: str
    model: Any
    given: dict[str, np.ndarray]
    expected: dict[str, np.ndarray]
    rtol: float
    atol: float


def cases(kinds: set[str] | None = None) -> Iterator[Case]:
    """Yields the cases of operator set 13 and newer whose tensors NumPy knows; settings are constants of the model."""
    from onnx import numpy_helper
    from onnx.backend.test.case.node import collect_testcases

    for case in collect_testcases(None):
        if case.model is None or not case.data_sets or case.name.endswith("_expanded") or "_expanded_ver" in case.name:
            continue
        opset = next((one.version for one in case.model.opset_import if one.domain in ("", "ai.onnx")), 1)
        kind = case.model.graph.node[0].op_type
        given, expected = case.data_sets[0]
        if opset < OLDEST_OPSET or (kinds and kind not in kinds) or not _plain([*given, *expected]):
            continue
        arrays = dict(zip([value.name for value in case.model.graph.input], map(np.asarray, given), strict=False))
        fixed = {name: array for place, (name, array) in enumerate(arrays.items()) if _is_setting(kind, place, array)}
        case.model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in fixed.items())
        free = {name: array for name, array in arrays.items() if name not in fixed}
        wanted = dict(zip([value.name for value in case.model.graph.output], map(np.asarray, expected), strict=False))
        yield Case(case.name, kind, case.model, free, wanted, case.rtol, case.atol)


def _plain(arrays: list[Any]) -> bool:
    return all(isinstance(array, np.ndarray | np.generic) and np.asarray(array).dtype.name in DTYPES for array in arrays)


def _is_setting(kind: str, place: int, array: np.ndarray) -> bool:
    if kind in ALL_CONSTANT:
        return True
    return place > 0 and (kind in SETTINGS or (array.dtype == np.int64 and array.ndim <= 1 and kind not in INDICES))


def run(case: Case) -> tuple[str, str]:
    """Converts and runs a case in a process of its own: ``passed``, ``refused``, ``wrong``, ``failed`` or ``crashed``, and why."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        try:
            found = _run(case)
        except BaseException as error:  # noqa: BLE001  whatever comes is the result
            found = ("failed", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
        os.write(writing, json.dumps(found).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        said = stream.read()
    _, status = os.waitpid(child, 0)
    if not said:
        return "crashed", f"ended with {os.waitstatus_to_exitcode(status)}"
    outcome, reason = json.loads(said)
    return outcome, reason


def _run(case: Case) -> tuple[str, str]:
    import onnx

    from toolkit.artifact import Signature, TensorSpec
    from toolkit.convert import onnx_litert
    from toolkit.errors import ToolkitError

    def specs(arrays: dict[str, np.ndarray]) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(name=name, dtype=array.dtype.name, shape=array.shape) for name, array in arrays.items())

    with tempfile.TemporaryDirectory() as scratch:
        source, out = Path(scratch) / "model.onnx", Path(scratch) / "model.tflite"
        onnx.save(case.model, str(source))
        try:
            onnx_litert.ROUTE.convert(source, out, Signature(inputs=specs(case.given), outputs=specs(case.expected)))
        except ToolkitError as error:
            return "refused", error.message
        found = _execute(out, case.given)
    for name, wanted in case.expected.items():
        got = found[name].astype(wanted.dtype).reshape(wanted.shape) if found[name].size == wanted.size else found[name]
        try:
            np.testing.assert_allclose(got, wanted, rtol=case.rtol, atol=max(case.atol, 1e-7))
        except AssertionError as error:
            return "wrong", f"{name}: {' '.join(str(error).split())[:300]}"
    return "passed", ""


def _execute(model: Path, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(model), num_threads=1)
    runner = interpreter.get_signature_runner()
    details = runner.get_input_details()
    return dict(runner(**{name: array.astype(details[name]["dtype"]) for name, array in given.items() if name in details}))
