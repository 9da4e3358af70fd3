"""ONNX Runtime on the CPU, for ONNX files and for its own format of mobile builds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from toolkit import onnx_external
from toolkit.artifact import Signature, TensorSpec
from toolkit.errors import ConfigError
from toolkit.mistakes import nearest
from toolkit.plugins import Arrays
from toolkit.runtimes import complaints

if TYPE_CHECKING:
    from toolkit.runtimes.onnxruntime_profile import ProfiledOnnxSession

# ONNX Runtime's words for element types that are not NumPy's.
_DTYPES = {"float": "float32", "double": "float64", "string": "str"}
# Each level fuses less than the one after it; the default fuses all that it can.
_LEVELS = {
    "optimization=disabled": "ORT_DISABLE_ALL",
    "optimization=basic": "ORT_ENABLE_BASIC",
    "optimization=extended": "ORT_ENABLE_EXTENDED",
}


class OnnxRuntime:
    """Runs ``.onnx`` and ``.ort`` files with the default CPU kernels. The graph of an ``.ort`` file was optimised when it was made."""

    name = "onnxruntime"
    version = 2
    modules: tuple[str, ...] = ("onnxruntime",)
    distributions: tuple[str, ...] = ("onnxruntime",)
    extra = "edgekit[onnx]"
    formats: tuple[str, ...] = ("onnx", "ort")
    variants: tuple[str, ...] = tuple(_LEVELS)

    def open(self, model: Path, *, threads: int) -> OnnxSession:
        """Loads a model; see :meth:`toolkit.plugins.Runtime.open`.

        Raises:
            InputRejected: The file, or one that its weights are in, is missing or damaged, or it is not ONNX.
            StageOutOfMemory: The process may not have the memory the model needs.
        """
        return self._open(model, threads, "ORT_ENABLE_ALL")

    def open_variant(self, model: Path, *, threads: int, variant: str) -> OnnxSession:
        """Loads a model at another optimisation level, one of ``variants``; see :class:`toolkit.plugins.Runtime`.

        Raises:
            ConfigError: There is no such variant.
            InputRejected: As :meth:`open`.
            StageOutOfMemory: As :meth:`open`.
        """
        if variant not in _LEVELS:
            raise ConfigError(f"{self.name} has no variant {variant!r}", where="variant", hint=nearest(variant, list(_LEVELS)))
        return self._open(model, threads, _LEVELS[variant])

    def open_profiled(self, model: Path, *, threads: int) -> ProfiledOnnxSession:
        """Loads a model whose operators are timed; see :class:`toolkit.plugins.Runtime`.

        Raises:
            InputRejected: As :meth:`open`.
            StageOutOfMemory: As :meth:`open`.
        """
        from toolkit.runtimes import onnxruntime_profile

        return onnxruntime_profile.open_profiled(model, threads=threads)

    def peak_gmacs(self, threads: int) -> dict[str, float]:
        """Measures the runtime's own arithmetic peaks, in 10^9 multiply-accumulates a second; see :mod:`toolkit.measure.peaks`."""
        from toolkit.runtimes import onnxruntime_peak

        return onnxruntime_peak.peak_gmacs(threads)

    def _open(self, model: Path, threads: int, level: str) -> OnnxSession:
        import onnxruntime

        try:
            session = onnxruntime.InferenceSession(str(model), session_options(threads, level), providers=["CPUExecutionProvider"])
        except errors() as error:
            onnx_external.data_files(model)  # weights that are missing are told by name and size, which the library does not do
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
        self._errors = errors()

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


def session_options(threads: int, level: str = "ORT_ENABLE_ALL") -> Any:
    """Returns the options that every session is opened with."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return options


def errors() -> tuple[type[Exception], ...]:
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
