"""Time of every operator in LiteRT, from its own profiler, told back in the nodes of the file.

The interpreter's Python interface has no profiler. LiteRT's C interface has one, and its ``CompiledModel`` runs the same
interpreter with the same XNNPACK kernels, so the profiled session goes through that: ``litert/c/litert_profiler.h`` and the
headers beside it, as of LiteRT 2.3. It counts whole microseconds, and XNNPACK rounds them down: kernels that take less show as
nothing, which halves the total of a model of a hundred such kernels.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from ctypes import Structure, byref, c_bool, c_char_p, c_int, c_int32, c_size_t, c_uint32, c_uint64, c_void_p
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from toolkit import plugins
from toolkit.artifact import Signature
from toolkit.errors import SetupError, StageFailed
from toolkit.plugins import Arrays, Event
from toolkit.runtimes import complaints
from toolkit.runtimes.litert import RUNTIME
from toolkit.runtimes.litert_kernels import Operator, match, read_operators

OLDEST = (2, 3)
"""The first version whose functions take the arguments that are passed here."""

_CPU, _WRITE, _READ = 1, 1, 0
_OPERATOR, _DELEGATED = 2, 8
_EVENT_TYPES = frozenset(1 << bit for bit in range(9))
# Names and texts that LiteRT's option objects are made of: litert_runtime_options.cc, litert_cpu_options.cc.
_RUNTIME_OPTIONS, _CPU_OPTIONS = b"runtime_options_string", b"xnnpack"
_KEEP = ctypes.CFUNCTYPE(None, c_void_p)(lambda _: None)
_RANK_BITS = 0x7F
_RESIZE = "LiteRtCompiledModelResizeInputTensorNonStrict"
_BUFFER_EVENTS = 2048


class Recorded(NamedTuple):
    """One event of the profiler.

    Attributes:
        tag: The operator's name, or the delegate's name for its kernel.
        type: What kind of event it is.
        us: Time spent, in whole microseconds.
        place: The node's place in the file; for a delegate's kernel, its place in the delegate.
        subgraph: The subgraph that a node belongs to.
    """

    tag: str
    type: int
    us: int
    place: int
    subgraph: int


class _Event(Structure):
    """``ProfiledEventData`` of litert_profiler_event.h, with three words of memory use before and after."""

    _fields_ = (
        ("tag", c_char_p),
        ("type", c_int),
        ("start_us", c_uint64),
        ("elapsed_us", c_uint64),
        ("memory", c_uint64 * 6),
        ("place", c_uint64),
        ("subgraph", c_uint64),
        ("source", c_int),
    )


class _TensorType(Structure):
    """``LiteRtRankedTensorType`` of litert_model_types.h; the rank is in the lowest seven bits."""

    _fields_ = (("element", c_int), ("rank", c_uint32), ("sizes", c_int32 * 8), ("strides", c_uint32 * 8))


class _Layout(Structure):
    _fields_ = (("rank", c_uint32), ("sizes", c_int32 * 8), ("strides", c_uint32 * 8))


def open_profiled(model: Path, *, threads: int) -> ProfiledLiteRtSession:
    """Loads a model with LiteRT's profiler switched on; see :class:`toolkit.plugins.ProfiledSession`.

    Raises:
        SetupError: The installed LiteRT is older than the functions that are called.
        InputRejected: The file is missing, damaged or not TFLite.
        StageOutOfMemory: The process may not have the memory the model needs.
    """
    library = _Library()
    # The interpreter refuses a damaged file, on which a compiled model would end the process.
    signature = RUNTIME.open(model, threads=threads).signature
    return ProfiledLiteRtSession(library, model, signature, threads)


class ProfiledLiteRtSession:
    """A loaded TFLite model whose operators are timed.

    Attributes:
        signature: Inputs and outputs of the loaded model.
    """

    def __init__(self, library: _Library, model: Path, signature: Signature, threads: int) -> None:
        self.signature = signature
        self._compiled = _Compiled(library, model, signature, threads)
        self._operators = read_operators(model)
        self._recorded: list[list[Recorded]] = []

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Runs one batch and records it.

        Raises:
            InputRejected: The arrays do not fit the signature.
            StageFailed: LiteRT could not execute the model, or recorded what cannot be told apart.
        """
        problem = complaints.misfit(self.signature, inputs)
        try:
            if problem:
                raise ValueError(problem)
            self._compiled.resize({name: array.shape for name, array in inputs.items()})
            for tensor in self._compiled.inputs:
                tensor.write(inputs[tensor.name])
            self._recorded.append(self._compiled.run())
        except (ValueError, RuntimeError) as error:
            raise complaints.cannot_run(self.signature, inputs, RUNTIME.name, error) from error
        return {tensor.name: tensor.read() for tensor in self._compiled.outputs}

    def events(self) -> list[list[Event]]:
        """Ends the recording and returns the events of each run.

        Raises:
            StageFailed: The model runs operators inside operators, or more of them than the profiler keeps.
        """
        return [told(recorded, self._operators) for recorded in self._recorded]


def told(recorded: Sequence[Recorded], operators: Sequence[Operator]) -> list[Event]:
    """Turns what was recorded of one inference into the file's own terms."""
    if len(recorded) >= _BUFFER_EVENTS:
        raise StageFailed(f"LiteRT's profiler keeps {_BUFFER_EVENTS} events of an inference; this model has more", hint="profile a part of it")
    timed = [one for one in recorded if one.type in (_OPERATOR, _DELEGATED)]
    if any(one.type == _OPERATOR and one.subgraph for one in timed):
        raise StageFailed("the model runs operators inside operators, whose times LiteRT mixes", hint="profile a model without control flow")
    own = {one.place for one in timed if one.type == _OPERATOR}
    kernels = [one.tag for one in timed if one.type == _DELEGATED]
    matches = iter(match(kernels, operators, own))
    events = []
    for one in timed:
        if one.type == _OPERATOR:
            operator = operators[one.place] if one.place < len(operators) else None
            events.append(Event(one.tag, operator.kind if operator else one.tag, "built-in", one.us * 1e-3, operator.outputs[:1] if operator else ()))
        else:
            operator = next(matches)
            events.append(
                Event(
                    name=one.tag.split(" (")[0],
                    operator=operator.kind if operator else one.tag.split(" (")[0],
                    kernel=f"XNNPACK {one.tag}",
                    ms=one.us * 1e-3,
                    nodes=operator.outputs[:1] if operator else (),
                )
            )
    return events


class _Library:
    """LiteRT's C functions. Each returns a status, of which all but zero are errors."""

    def __init__(self) -> None:
        import ai_edge_litert

        version = plugins.distribution_version("ai-edge-litert")
        if tuple(int(part) for part in version.split(".")[:2] if part.isdecimal()) < OLDEST:
            wanted = ".".join(map(str, OLDEST))
            hint = f'run: pip install "ai-edge-litert>={wanted}"'
            raise SetupError(f"profiling needs ai-edge-litert {wanted} or later, found {version}", hint=hint)
        self._library = ctypes.CDLL(str(Path(ai_edge_litert.__file__).parent / "libLiteRt.so"))

    def call(self, name: str, *arguments: Any) -> None:
        """Calls a function.

        Raises:
            RuntimeError: It reported an error.
        """
        status = getattr(self._library, name)(*arguments)
        if status:
            raise RuntimeError(f"{name} failed with status {status}")

    def get(self, kind: Callable[[], Any], name: str, *arguments: Any) -> Any:
        """Calls a function that fills in its last argument, and returns what it filled in."""
        value = kind()
        self.call(name, *arguments, byref(value))
        return value

    def free(self, name: str, handle: c_void_p) -> None:
        """Calls a function that gives something back and reports nothing."""
        getattr(self._library, name)(handle)


class _Tensor:
    """One input or output with the buffer that it is passed in."""

    def __init__(self, library: _Library, name: str, type: _TensorType, dtype: str) -> None:
        self.name, self.type, self.buffer = name, type, c_void_p()
        self._library, self._dtype = library, np.dtype(dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes as the buffer has them; negative ones are free."""
        return tuple(self.type.sizes[: self.type.rank & _RANK_BITS])

    def reshape(self, shape: Sequence[int]) -> None:
        """Takes another shape of the same rank; a new buffer must follow."""
        self.type.sizes[: len(shape)] = list(shape)

    def write(self, array: np.ndarray) -> None:
        """Copies an array into the buffer."""
        dense = np.ascontiguousarray(array)
        ctypes.memmove(self._locked(_WRITE), dense.ctypes.data, dense.nbytes)
        self._library.call("LiteRtUnlockTensorBuffer", self.buffer)

    def read(self) -> np.ndarray:
        """Returns a copy of what is in the buffer."""
        array = np.empty(self.shape, self._dtype)
        ctypes.memmove(array.ctypes.data, self._locked(_READ), array.nbytes)
        self._library.call("LiteRtUnlockTensorBuffer", self.buffer)
        return array

    def _locked(self, mode: int) -> c_void_p:
        address = c_void_p()
        self._library.call("LiteRtLockTensorBuffer", self.buffer, byref(address), c_int(mode))
        return address


class _Compiled:
    """A compiled model with its profiler. It lives as long as the process: a profile is a stage's last work."""

    def __init__(self, library: _Library, model: Path, signature: Signature, threads: int) -> None:
        self._library, self._signature = library, signature
        self._environment = library.get(c_void_p, "LiteRtCreateEnvironment", c_int(0), c_void_p())
        self._model = library.get(c_void_p, "LiteRtCreateModelFromFile", self._environment, c_char_p(bytes(model)))
        options = library.get(c_void_p, "LiteRtCreateOptions")
        library.call("LiteRtSetOptionsHardwareAccelerators", options, c_int(_CPU))
        self._texts = [
            self._add(options, _RUNTIME_OPTIONS, "enable_profiling = true\n"),
            self._add(options, _CPU_OPTIONS, f"num_threads = {threads}\n"),
        ]
        self._compiled = library.get(c_void_p, "LiteRtCreateCompiledModel", self._environment, self._model, options)
        self._profiler = library.get(c_void_p, "LiteRtCompiledModelGetProfiler", self._compiled)
        self.inputs, self.outputs = self._tensors("Input"), self._tensors("Output")
        self._shapes: list[tuple[int, ...]] = []

    def resize(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Gives the inputs the shapes that are fed, and every tensor a buffer that fits."""
        wanted = [shapes[tensor.name] for tensor in self.inputs]
        if wanted == self._shapes:
            return
        for index, tensor in enumerate(self.inputs):
            if tensor.shape != wanted[index]:
                sizes = (c_int * len(wanted[index]))(*wanted[index])
                self._library.call(_RESIZE, self._compiled, c_size_t(0), c_size_t(index), sizes, c_size_t(len(sizes)))
                tensor.reshape(wanted[index])
        layouts = (_Layout * len(self.outputs))()
        name = "LiteRtGetCompiledModelOutputTensorLayouts"
        self._library.call(name, self._compiled, c_size_t(0), c_size_t(len(self.outputs)), layouts, c_bool(True))
        for tensor, layout in zip(self.outputs, layouts, strict=True):
            tensor.reshape(layout.sizes[: layout.rank & _RANK_BITS])
        for side, tensors in (("Input", self.inputs), ("Output", self.outputs)):
            for index, tensor in enumerate(tensors):
                self._allocate(side, index, tensor)
        self._shapes = wanted

    def run(self) -> list[Recorded]:
        """Runs the model on what is in its buffers and returns what was recorded."""
        call = self._library.call
        sides = [(c_size_t(len(side)), (c_void_p * len(side))(*(tensor.buffer.value for tensor in side))) for side in (self.inputs, self.outputs)]
        call("LiteRtResetProfiler", self._profiler)
        call("LiteRtStartProfiler", self._profiler)
        call("LiteRtRunCompiledModel", self._compiled, c_size_t(0), *sides[0], *sides[1])
        call("LiteRtStopProfiler", self._profiler)
        count = self._library.get(c_int, "LiteRtGetNumProfilerEvents", self._profiler).value
        events = (_Event * (2 * count + 1))()  # room for a later version's longer records, which are then refused
        if count:
            call("LiteRtGetProfilerEvents", self._profiler, c_int(count), events)
        if any(event.type not in _EVENT_TYPES for event in events[:count]):
            raise RuntimeError("its profiler writes records of an unknown layout")
        return [Recorded(event.tag.decode(), event.type, event.elapsed_us, event.place, event.subgraph) for event in events[:count]]

    def _add(self, options: c_void_p, name: bytes, text: str) -> Any:
        """Adds one of LiteRT's option objects, which are texts in TOML. The text must outlive the model."""
        buffer = ctypes.create_string_buffer(text.encode())
        added = self._library.get(c_void_p, "LiteRtCreateOpaqueOptions", c_char_p(name), buffer, _KEEP)
        self._library.call("LiteRtAddOpaqueOptions", options, added)
        return buffer

    def _tensors(self, side: str) -> list[_Tensor]:
        library, specs = self._library, self._signature.inputs if side == "Input" else self._signature.outputs
        dtypes = {spec.name: spec.dtype for spec in specs}
        signature = library.get(c_void_p, "LiteRtGetModelSignature", self._model, c_size_t(0))
        tensors = []
        for index in range(library.get(c_size_t, f"LiteRtGetNumSignature{side}s", signature).value):
            name = library.get(c_char_p, f"LiteRtGetSignature{side}Name", signature, c_size_t(index)).value.decode()
            tensor = library.get(c_void_p, f"LiteRtGetSignature{side}TensorByIndex", signature, c_size_t(index))
            tensors.append(_Tensor(library, name, library.get(_TensorType, "LiteRtGetRankedTensorType", tensor), dtypes[name]))
        return tensors

    def _allocate(self, side: str, index: int, tensor: _Tensor) -> None:
        name = f"LiteRtGetCompiledModel{side}BufferRequirements"
        needs = self._library.get(c_void_p, name, self._compiled, c_size_t(0), c_size_t(index))
        create = "LiteRtCreateManagedTensorBufferFromRequirements"
        if tensor.buffer:
            self._library.free("LiteRtDestroyTensorBuffer", tensor.buffer)
        tensor.buffer = self._library.get(c_void_p, create, self._environment, byref(tensor.type), needs)
