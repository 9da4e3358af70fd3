"""ExecuTorch on the CPU, with the XNNPACK delegate and the portable kernels that its wheel carries."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from toolkit.artifact import Signature, TensorSpec
from toolkit.errors import InputRejected
from toolkit.plugins import Arrays
from toolkit.runtimes import complaints

if TYPE_CHECKING:
    from toolkit.runtimes.executorch_profile import ProfiledExecuTorchSession

METHOD = "forward"
_RUNNING = (RuntimeError, ValueError, KeyError, TypeError, MemoryError)
# Numbers of c10::ScalarType, by which a program tells the element types of its inputs and outputs.
_DTYPES = {0: "uint8", 1: "int8", 2: "int16", 3: "int32", 4: "int64", 5: "float16", 6: "float32", 7: "float64", 11: "bool"}
# A flatbuffer with the file identifier ET12 or a later one, then an extended header: magic, its length, and three sizes.
_HEADER = struct.Struct("<4s2s2s4sIQQQ")


class ExecuTorch:
    """Runs ``.pte`` files: programs that ExecuTorch's exporter wrote.

    Inputs and outputs have no names there but their places. Where a program has the constant methods ``get_input_names`` and
    ``get_output_names``, as those that Edgekit writes, they name them.
    """

    name = "executorch"
    version = 2
    modules: tuple[str, ...] = ("executorch", "torch")
    distributions: tuple[str, ...] = ("executorch", "torch")
    extra = "edgekit[executorch]"
    preload = ("torch",)
    formats: tuple[str, ...] = ("pte",)

    def open(self, model: Path, *, threads: int) -> ExecuTorchSession:
        """Loads a program; see :meth:`toolkit.plugins.Runtime.open`. The number of threads holds for the whole process.

        Raises:
            InputRejected: The file is missing, damaged, or not a program with one plain method.
            StageOutOfMemory: The process may not have the memory the program needs.
        """
        return ExecuTorchSession(load(model, threads))

    def open_profiled(self, model: Path, *, threads: int) -> ProfiledExecuTorchSession:
        """Loads a program whose operators are timed; see :class:`toolkit.plugins.Runtime`.

        Raises:
            InputRejected: As :meth:`open`.
            StageOutOfMemory: As :meth:`open`.
        """
        from toolkit.runtimes import executorch_profile

        return executorch_profile.ProfiledExecuTorchSession(load(model, threads, recording=True))


class ExecuTorchSession:
    """A loaded program.

    Attributes:
        signature: Inputs and outputs of the loaded program, by the names that it tells, else ``input_0``, ``output_0`` and so
            on. A free size that it does not tell counts as the largest one that the program was planned for.
        largest_batch: The largest first axis that memory was planned for; ``None`` where no input's is free.
    """

    def __init__(self, loaded: Loaded) -> None:
        import torch

        self.signature = loaded.signature
        free = [spec.name for spec in self.signature.inputs if any(isinstance(size, str) for size in spec.shape)]
        self._bounded = {name: loaded.largest[name] for name in free}
        batches = [loaded.largest[spec.name][0] for spec in self.signature.inputs if spec.shape and isinstance(spec.shape[0], str)]
        self.largest_batch = min(batches, default=None)
        self._module, self._from_numpy = loaded.module, torch.from_numpy
        self._inputs = [(spec.name, np.dtype(spec.dtype), len(spec.shape)) for spec in self.signature.inputs]
        self._outputs = [spec.name for spec in self.signature.outputs]

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Runs one batch. The outputs are copies: the next run leaves them alone.

        Raises:
            InputRejected: The arrays do not fit the signature.
            StageFailed: ExecuTorch could not execute the program.
            StageOutOfMemory: An allocation failed.
        """
        try:
            if len(inputs) != len(self._inputs):
                raise KeyError
            self._check_room(inputs)
            found = self._module.forward([self._tensor(inputs[name], dtype, rank) for name, dtype, rank in self._inputs])
            return {name: tensor.numpy() for name, tensor in zip(self._outputs, found, strict=True)}
        except _RUNNING as error:
            raise complaints.cannot_run(self.signature, inputs, RUNTIME.name, error) from error

    def _check_room(self, inputs: Arrays) -> None:
        """Refuses free sizes beyond the planned ones, which ExecuTorch would write past."""
        for name, largest in self._bounded.items():
            shape = inputs[name].shape
            if len(shape) == len(largest) and any(size > limit for size, limit in zip(shape, largest, strict=True)):
                raise InputRejected(
                    f"input {name!r} is {list(shape)}, the program was planned for at most {list(largest)}",
                    where=f"{RUNTIME.name} inputs",
                    hint="give smaller inputs, or convert the model with a larger bound",
                )

    def _tensor(self, array: np.ndarray, dtype: np.dtype[Any], rank: int) -> Any:
        if array.dtype != dtype or array.ndim != rank:
            raise ValueError("the array does not fit")
        # The program reads memory in order, and PyTorch warns about read-only arrays.
        return self._from_numpy(array if array.flags.writeable and array.flags.c_contiguous else array.copy(order="C"))


class Loaded(NamedTuple):
    """A program in memory.

    Attributes:
        module: ExecuTorch's own object.
        signature: Its inputs and outputs.
        largest: The largest sizes of each input that memory was planned for.
    """

    module: Any
    signature: Signature
    largest: dict[str, tuple[int, ...]]


def load(model: Path, threads: int, *, recording: bool = False) -> Loaded:
    """Loads a program with ExecuTorch's Python module.

    Raises:
        InputRejected: The file is missing, damaged, or not a program with one plain method.
        StageOutOfMemory: The process may not have the memory the program needs.
    """
    from executorch.extension.pybindings import portable_lib

    _check(model)
    try:
        portable_lib._unsafe_reset_threadpool(threads)
        verification = portable_lib.Verification.InternalConsistency
        module = portable_lib._load_for_executorch(str(model), program_verification=verification)
        if METHOD not in module.method_names():
            raise ValueError(f"it has the methods {', '.join(module.method_names())}, expected {METHOD!r}")
        signature = _signature(module)
        method = module.method_meta(METHOD)
        largest = {spec.name: tuple(method.input_tensor_meta(index).sizes()) for index, spec in enumerate(signature.inputs)}
        if recording:  # anew, so that the calls that told the names are no part of the record
            module = portable_lib._load_for_executorch(str(model), enable_etdump=True, program_verification=verification)
        return Loaded(module, signature, largest)
    except _RUNNING as error:
        raise complaints.cannot_open(model, RUNTIME.name, error) from error


def _check(model: Path) -> None:
    """Refuses a file that is not a program or is cut short, on which ExecuTorch may end the process."""
    try:
        with model.open("rb") as file:
            head, size = file.read(_HEADER.size), model.stat().st_size
    except OSError as error:
        raise complaints.cannot_open(model, RUNTIME.name, error) from error
    problem = ""
    if len(head) < _HEADER.size or head[4:6] != b"ET":
        problem = "it lacks the mark ET12 at byte 4"
    elif head[8:12] == b"eh00":
        *_, program, segments, data = _HEADER.unpack(head)
        wanted = segments + data if segments else program
        problem = f"it has {size:,} bytes, its header says {wanted:,}" if size < wanted else ""
    if problem:
        raise complaints.cannot_open(model, RUNTIME.name, ValueError(problem))


def _signature(module: Any) -> Signature:
    method = module.method_meta(METHOD)
    inputs, outputs = range(method.num_inputs()), range(method.num_outputs())
    sizes = _told(module, "get_input_sizes", len(inputs))
    input_names = _told(module, "get_input_names", len(inputs)) or [f"input_{index}" for index in inputs]
    output_names = _told(module, "get_output_names", len(outputs)) or [f"output_{index}" for index in outputs]
    return Signature(
        inputs=tuple(_spec(input_names[index], method.input_tensor_meta(index), sizes[index] if sizes else "") for index in inputs),
        outputs=tuple(_spec(output_names[index], method.output_tensor_meta(index)) for index in outputs),
    )


def _told(module: Any, constant: str, count: int) -> list[str]:
    """Returns the texts of a constant method, one for each input or output; none where the program has no such method."""
    if constant not in module.method_names():
        return []
    found = [str(text) for text in module.run_method(constant, [])]
    if len(found) != count or (constant.endswith("names") and len(set(found)) != count):
        raise ValueError(f"its method {constant!r} gives {found}, expected {count} different texts")
    return found


def _spec(name: str, tensor: Any, told: str = "") -> TensorSpec:
    dtype = _DTYPES.get(tensor.dtype())
    if dtype is None:
        raise InputRejected(f"{name!r} has an element type that NumPy lacks", hint="export the program with float32 or integer inputs and outputs")
    shape: tuple[int | str, ...] = tuple(int(size) for size in tensor.sizes())
    if told:  # a free size is told by its name; all others must be what was planned
        named = told.split()
        if len(named) != len(shape) or any(text.isdigit() and int(text) != size for text, size in zip(named, shape, strict=True)):
            raise ValueError(f"its method 'get_input_sizes' says {told!r} of {name!r}, which was planned for {list(shape)}")
        shape = tuple(int(text) if text.isdigit() else text for text in named)
    return TensorSpec(name=name, dtype=dtype, shape=shape)


RUNTIME = ExecuTorch()
