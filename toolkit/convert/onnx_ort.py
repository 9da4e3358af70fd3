"""ONNX to ORT format, which ONNX Runtime's mobile builds read: the graph as the runtime has optimised it, without a parser for ONNX.

The graph is optimised for the kind of CPU that this machine has, as ``convert_onnx_models_to_ort --target_platform`` does. On
x86-64 that includes ONNX Runtime's blocked layout (NCHWc), whose block is as wide as this CPU's vectors; on ARM it does not.
"""

from __future__ import annotations

import platform
from pathlib import Path

from toolkit import intake
from toolkit.artifact import Signature
from toolkit.errors import InputRejected, StageFailed
from toolkit.factory import first_line
from toolkit.plugins import Route

_WHERE = "onnx_ort"
# The layout that only x86-64 has; see the documentation of ONNX Runtime on graph optimizations, "layout optimizations".
_BLOCKED = "NchwcTransformer"
_X86_64 = ("x86_64", "amd64")


class OnnxOrt:
    """Writes an ``.ort`` file that computes exactly what ONNX Runtime computes of the ``.onnx`` file here."""

    name = "onnx_ort"
    version = 1
    source = "onnx"
    format = "ort"
    modules: tuple[str, ...] = ("onnxruntime",)
    distributions: tuple[str, ...] = ("onnxruntime",)
    extra = "edgekit[onnx]"
    options: tuple[str, ...] = ("dynamic",)
    trust = 0.9

    def convert(self, program: Path, out: Path, signature: Signature) -> None:
        """Converts an ``.onnx`` file.

        Args:
            program: The ONNX model.
            out: The ``.ort`` file to write.
            signature: Inputs and outputs; both formats name and size them alike.

        Raises:
            InputRejected: The file is damaged, or not ONNX.
            StageFailed: ONNX Runtime has no kernel for an operator, or writes a file with other names.
        """
        import onnxruntime

        intake.check_model(program, self.source)
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.optimized_model_filepath = str(out)
        options.log_severity_level = 3
        options.add_session_config_entry("session.save_model_format", "ORT")
        left_out = [] if blocked_layout(platform.machine()) else [_BLOCKED]
        try:
            session = onnxruntime.InferenceSession(str(program), options, providers=["CPUExecutionProvider"], disabled_optimizers=left_out)
        except _errors() as error:
            raise _explain(error, program) from error
        found = {argument.name for argument in (*session.get_inputs(), *session.get_outputs())}
        wanted = {spec.name for spec in (*signature.inputs, *signature.outputs)}
        if found != wanted:
            raise StageFailed(f"the file names {sorted(found)}, expected {sorted(wanted)}", where=_WHERE, hint="convert the model to ONNX again")


ROUTE: Route = OnnxOrt()


def blocked_layout(machine: str) -> bool:
    """Whether ONNX Runtime's blocked layout is for CPUs of a kind, named as :func:`platform.machine` does."""
    return machine.lower() in _X86_64


def _errors() -> tuple[type[Exception], ...]:
    """ONNX Runtime's own exceptions, which share no base class, and the plain ones it raises from Python."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    own = [kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    return (*own, RuntimeError, ValueError, TypeError)


def _explain(error: Exception, program: Path) -> InputRejected | StageFailed:
    reason = first_line(error)
    if type(error).__name__ in ("InvalidProtobuf", "NoSuchFile"):
        return InputRejected(f"is not a model that ONNX Runtime can load: {reason}", where=program.name, hint="export the model again")
    return StageFailed(f"ONNX Runtime cannot prepare the model: {reason}", where=_WHERE, hint="replace that operator, or export a lower opset")
