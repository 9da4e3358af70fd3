"""What becomes of a case with our compiler."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.onnx_cases.cases import Case, difference
from benchmarks.onnx_cases.pool import Outcome


def load() -> None:
    """Imports what every case needs, so that the processes that are forked after it have it."""
    import ai_edge_litert.interpreter
    import onnx

    from toolkit.convert import onnx_litert

    assert ai_edge_litert.interpreter and onnx and onnx_litert


def run(case: Case) -> Outcome:
    """Converts a case and runs it on LiteRT: ``passed``, ``refused`` or ``wrong``, and why; whatever is raised is a failure."""
    import onnx

    from toolkit.artifact import Signature, TensorSpec
    from toolkit.convert import onnx_litert
    from toolkit.errors import ToolkitError

    def specs(arrays: dict[str, Any]) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(name=name, dtype=array.dtype.name, shape=array.shape) for name, array in arrays.items())

    if not all(isinstance(value, np.ndarray) and value.dtype != object for value in (*case.given.values(), *case.expected.values())):
        return "refused", "an input or an output is text, or no tensor"
    with tempfile.TemporaryDirectory() as scratch:
        source, out = Path(scratch) / "model.onnx", Path(scratch) / "model.tflite"
        onnx.save(case.model, str(source))
        try:
            onnx_litert.ROUTE.convert(source, out, Signature(inputs=specs(case.given), outputs=specs(case.expected)))
        except ToolkitError as error:
            return "refused", error.message
        found = _execute(out, case.given)
    for name, wanted in case.expected.items():
        if wrong := difference(found[name], wanted, case):
            return "wrong", f"{name}: {wrong}"
    return "passed", ""


def _execute(model: Path, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(model), num_threads=1)
    runner = interpreter.get_signature_runner()
    details = runner.get_input_details()
    return dict(runner(**{name: array.astype(details[name]["dtype"]) for name, array in given.items() if name in details}))
