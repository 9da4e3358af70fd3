"""OpenVINO on the CPU.

Left to itself OpenVINO computes in bfloat16 where the CPU can, 31 to 41 dB away from the model; here it computes in float32.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from toolkit import intake, openvino_ir
from toolkit.artifact import Signature, TensorSpec
from toolkit.errors import InputRejected
from toolkit.plugins import Arrays
from toolkit.runtimes import complaints

_RUNNING = (RuntimeError, ValueError, KeyError, TypeError, MemoryError)
_HEAD_BYTES = 4096


class OpenVino:
    """Runs OpenVINO IR: folders with ``model.xml`` and ``model.bin``."""

    name = "openvino"
    version = 1
    modules: tuple[str, ...] = ("openvino",)
    distributions: tuple[str, ...] = ("openvino",)
    extra = "edgekit[openvino]"
    formats: tuple[str, ...] = ("openvino",)

    def open(self, model: Path, *, threads: int) -> OpenVinoSession:
        """Loads a model; see :meth:`toolkit.plugins.Runtime.open`.

        Raises:
            InputRejected: The folder is missing or damaged, or an input or output has a type or a number of axes that is not fixed.
            StageOutOfMemory: The process may not have the memory the model needs.
        """
        _check(model)
        openvino = openvino_ir.library()
        # Pinned by OpenVINO, threads would leave the CPUs that the caller has chosen.
        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "ENABLE_CPU_PINNING": False}
        try:
            core = openvino.Core()
            read = core.read_model(str(model / openvino_ir.XML), str(model / openvino_ir.BIN))
            signature = _signature(read)
            compiled = core.compile_model(read, "CPU", settings)
            return OpenVinoSession(signature, compiled.create_infer_request())
        except _RUNNING as error:
            raise complaints.cannot_open(model, self.name, _spoken(error)) from error


class OpenVinoSession:
    """A loaded model. Inputs of fixed size are copied into OpenVINO's own memory, others are handed over as copies.

    Attributes:
        signature: Inputs and outputs of the loaded model; a free size is called ``d0``, ``d1`` and so on, after its axis.
    """

    def __init__(self, signature: Signature, request: Any) -> None:
        self.signature = signature
        self._request, self._infer, self._get = request, request.infer, request.get_output_tensor
        self._tensor = openvino_ir.library().Tensor
        self._inputs = [
            (place, spec.name, np.dtype(spec.dtype), spec.shape, request.get_input_tensor(place).data if _is_fixed(spec) else None)
            for place, spec in enumerate(signature.inputs)
        ]
        self._outputs = [(spec.name, place) for place, spec in enumerate(signature.outputs)]

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Runs one batch. The outputs are copies: the next run leaves them alone.

        Raises:
            InputRejected: The arrays do not fit the signature.
            StageFailed: OpenVINO could not execute the model.
            StageOutOfMemory: An allocation failed.
        """
        try:
            if len(inputs) != len(self._inputs):
                raise KeyError
            for place, name, dtype, shape, memory in self._inputs:
                array = inputs[name]
                # OpenVINO would convert another type without a word, and NumPy stretch another shape.
                if array.dtype != dtype or (memory is not None and array.shape != shape):
                    raise ValueError
                if memory is None:
                    self._hand_over(place, array)
                else:
                    memory[...] = array
            self._infer()
            return {name: self._get(place).data.copy() for name, place in self._outputs}
        except _RUNNING as error:
            raise complaints.cannot_run(self.signature, inputs, RUNTIME.name, _spoken(error)) from error

    def _hand_over(self, place: int, array: np.ndarray) -> None:
        problem = complaints.misfit(Signature(inputs=(self.signature.inputs[place],), outputs=()), {self.signature.inputs[place].name: array})
        if problem:
            raise ValueError(problem)
        self._request.set_input_tensor(place, self._tensor(array.copy(order="C"), shared_memory=False))


def _check(model: Path) -> None:
    """Refuses what is not IR: OpenVINO offers such a file to its other frontends, which look for other formats in it."""
    intake.check_model(model, RUNTIME.formats[0])
    try:
        with (model / openvino_ir.XML).open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError as error:
        raise complaints.cannot_open(model, RUNTIME.name, error) from error
    if b"<net" not in head:
        raise complaints.cannot_open(model, RUNTIME.name, ValueError(f"{openvino_ir.XML} does not begin with a <net> element"))
    if not (model / openvino_ir.BIN).is_file():
        raise complaints.cannot_open(model, RUNTIME.name, ValueError(f"it has no {openvino_ir.BIN}"))


def _signature(read: Any) -> Signature:
    outputs = [openvino_ir.name_of_output(port) for port in read.outputs]
    return Signature(
        inputs=tuple(_spec(openvino_ir.name_of_input(port, outputs), port) for port in read.inputs),
        outputs=tuple(_spec(name, port) for name, port in zip(outputs, read.outputs, strict=True)),
    )


def _spec(name: str, port: Any) -> TensorSpec:
    dtype, shape = openvino_ir.DTYPES.get(port.get_element_type().get_type_name()), port.get_partial_shape()
    if dtype is None:
        raise InputRejected(f"{name!r} has an element type that NumPy lacks", hint="convert the model with float32 or integer inputs and outputs")
    if shape.rank.is_dynamic:
        raise InputRejected(f"{name!r} may have any number of axes", hint="convert the model with a fixed number of axes")
    return TensorSpec(name=name, dtype=dtype, shape=openvino_ir.free_shape(shape))


def _is_fixed(spec: TensorSpec) -> bool:
    return all(isinstance(size, int) for size in spec.shape)


def _spoken(error: BaseException) -> BaseException:
    return RuntimeError(openvino_ir.reason(error)) if isinstance(error, RuntimeError) else error


RUNTIME = OpenVino()
