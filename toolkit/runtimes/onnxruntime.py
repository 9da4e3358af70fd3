"""ONNX Runtime on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from toolkit.artifact import Signature, TensorSpec
from toolkit.plugins import Arrays
from toolkit.runtimes import complaints

# ONNX Runtime's words for element types that are not NumPy's.
_DTYPES = {"float": "float32", "double": "float64", "string": "str"}


class OnnxRuntime:
    """Runs ``.onnx`` files with the default CPU kernels."""

    name = "onnxruntime"
    version = 1
    modules: tuple[str, ...] = ("onnxruntime",)
    distributions: tuple[str, ...] = ("onnxruntime",)
    extra = "edgekit[onnx]"
    formats: tuple[str, ...] = ("onnx",)

    def open(self, model: Path, *, threads: int) -> OnnxSession:
        """Loads a model; see :meth:`toolkit.plugins.Runtime.open`.

        Raises:
            InputRejected: The file is missing, damaged or not ONNX.
            StageOutOfMemory: The process may not have the memory the model needs.
        """
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        except _errors() as error:
            raise complaints.cannot_open(model, self.name, error) from error
        return OnnxSession(session)


class OnnxSession:
    """A loaded ONNX model.

    Attributes:
        signature: Inputs and outputs of the loaded model.
    """

    def __init__(self, session: Any) -> None:
        self.signature = Signature(
            inputs=tuple(_spec(argument) for argument in session.get_inputs()),
            outputs=tuple(_spec(argument) for argument in session.get_outputs()),
        )
        self._run = session.run
        self._outputs = [spec.name for spec in self.signature.outputs]
        self._errors = _errors()

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Runs one batch.

        Raises:
            InputRejected: The arrays do not fit the signature.
            StageFailed: ONNX Runtime could not execute the model.
            StageOutOfMemory: An allocation failed.
        """
        try:
            return dict(zip(self._outputs, self._run(self._outputs, inputs), strict=True))
        except self._errors as error:
            raise complaints.cannot_run(self.signature, inputs, RUNTIME.name, error) from error


def _errors() -> tuple[type[Exception], ...]:
    """ONNX Runtime's own exceptions, which share no base class, and the plain ones it raises from Python."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    own = [kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    return (*own, RuntimeError, ValueError, TypeError, MemoryError)


def _spec(argument: Any) -> TensorSpec:
    """Reads a node argument; an unnamed free dimension is called after its position."""
    element = argument.type.removeprefix("tensor(").removesuffix(")")
    shape = tuple(size if isinstance(size, int) else str(size or f"d{axis}") for axis, size in enumerate(argument.shape))
    return TensorSpec(name=argument.name, dtype=_DTYPES.get(element, element), shape=shape)


RUNTIME = OnnxRuntime()
