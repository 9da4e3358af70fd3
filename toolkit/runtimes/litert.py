"""LiteRT (TensorFlow Lite) on the CPU, through its interpreter.

The newer ``CompiledModel`` interface ends the process on a truncated file, where the interpreter raises.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from toolkit.artifact import Signature, TensorSpec
from toolkit.errors import ConfigError, InputRejected
from toolkit.mistakes import nearest
from toolkit.plugins import Arrays, Session
from toolkit.runtimes import complaints

if TYPE_CHECKING:
    from toolkit.runtimes.litert_profile import ProfiledLiteRtSession

DEFAULT_SIGNATURE = "serving_default"
# The interpreter's own kernels, as boards without XNNPACK use them, and the plain ones that define what an operator computes.
_RESOLVERS = {"without XNNPACK": "BUILTIN_WITHOUT_DEFAULT_DELEGATES", "reference kernels": "BUILTIN_REF"}
Details = Mapping[str, Mapping[str, Any]]


class LiteRt:
    """Runs ``.tflite`` files with the built-in kernels and XNNPACK."""

    name = "litert"
    version = 1
    modules: tuple[str, ...] = ("ai_edge_litert",)
    distributions: tuple[str, ...] = ("ai-edge-litert",)
    extra = "edgekit[litert]"
    formats: tuple[str, ...] = ("tflite",)
    variants: tuple[str, ...] = tuple(_RESOLVERS)

    def open(self, model: Path, *, threads: int) -> LiteRtSession:
        """Loads a model; see :meth:`toolkit.plugins.Runtime.open`.

        Raises:
            InputRejected: The file is missing, damaged, not TFLite, or has no signature that can be picked.
            StageOutOfMemory: The process may not have the memory the model needs.
        """
        return self._open(model, threads, "AUTO")

    def open_variant(self, model: Path, *, threads: int, variant: str) -> LiteRtSession:
        """Loads a model to be executed by other kernels, one of ``variants``; see :class:`toolkit.plugins.Runtime`.

        Raises:
            ConfigError: There is no such variant.
            InputRejected: As :meth:`open`.
            StageOutOfMemory: As :meth:`open`.
        """
        if variant not in _RESOLVERS:
            raise ConfigError(f"{self.name} has no variant {variant!r}", where="variant", hint=nearest(variant, list(_RESOLVERS)))
        return self._open(model, threads, _RESOLVERS[variant])

    def open_profiled(self, model: Path, *, threads: int) -> ProfiledLiteRtSession:
        """Loads a model whose operators are timed; see :class:`toolkit.plugins.Runtime`.

        Raises:
            SetupError: The installed LiteRT has another profiler than the one that is known.
            InputRejected: As :meth:`open`.
            StageOutOfMemory: As :meth:`open`.
        """
        from toolkit.runtimes import litert_profile

        return litert_profile.open_profiled(model, threads=threads)

    def open_batch(self, model: Path, *, threads: int, batch: int) -> Session:
        """Loads the signature for a batch size of a file that has one for each of several, ``batch_4`` and so on.

        Raises:
            InputRejected: There is none for that size, or as :meth:`open`.
            StageOutOfMemory: As :meth:`open`.
        """
        if batch == 1:
            return self.open(model, threads=threads)
        interpreter, name = self._interpreter(model, threads, "AUTO"), f"batch_{batch}"
        known = sorted(interpreter.get_signature_list())
        if name not in known:
            hint = "export it with that batch size"
            raise InputRejected(f"has no signature {name!r}; found {', '.join(known) or 'none'}", where=str(model), hint=hint)
        return SignatureSession(interpreter.get_signature_runner(name))

    def _open(self, model: Path, threads: int, resolver: str) -> LiteRtSession:
        interpreter = self._interpreter(model, threads, resolver)
        return LiteRtSession(interpreter, *_details(interpreter, model))

    def _interpreter(self, model: Path, threads: int, resolver: str) -> Any:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        try:
            kernels = getattr(OpResolverType, resolver)
            interpreter = Interpreter(model_path=str(model), num_threads=threads, experimental_op_resolver_type=kernels)
            interpreter.allocate_tensors()
        except (ValueError, RuntimeError, MemoryError) as error:
            raise complaints.cannot_open(model, self.name, _spoken(error)) from error
        return interpreter


class LiteRtSession:
    """A loaded TFLite model. Tensors are set and read by index, several times faster than a signature runner.

    Attributes:
        signature: Inputs and outputs of the loaded model.
    """

    def __init__(self, interpreter: Any, inputs: Details, outputs: Details) -> None:
        self.signature = Signature(
            inputs=tuple(_spec(name, details) for name, details in inputs.items()),
            outputs=tuple(_spec(name, details) for name, details in outputs.items()),
        )
        self._interpreter = interpreter
        self._set, self._invoke, self._get = interpreter.set_tensor, interpreter.invoke, interpreter.get_tensor
        self._indices = {name: int(details["index"]) for name, details in inputs.items()}
        self._count = len(self._indices)
        self._outputs = [(name, int(details["index"])) for name, details in outputs.items()]

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Runs one batch. The outputs are copies: the next run leaves them alone.

        Raises:
            InputRejected: The arrays do not fit the signature.
            StageFailed: The interpreter could not execute the model.
            StageOutOfMemory: An allocation failed.
        """
        try:
            # A missing input would silently keep the value of the run before.
            if len(inputs) != self._count:
                raise KeyError
            for name, array in inputs.items():
                self._set(self._indices[name], array)
        except (ValueError, KeyError):
            self._resize(inputs)
        try:
            self._invoke()
            found = {}
            for name, index in self._outputs:
                found[name] = self._get(index)
            return found
        except (ValueError, RuntimeError, MemoryError) as error:
            raise complaints.cannot_run(self.signature, inputs, RUNTIME.name, _spoken(error)) from error

    def run_all(self, batches: Arrays, output: str, into: np.ndarray) -> None:
        """Runs batch after batch and keeps one output; see :class:`toolkit.plugins.BulkSession`.

        Raises:
            InputRejected: As :meth:`run`.
            StageFailed: As :meth:`run`.
            StageOutOfMemory: As :meth:`run`.
        """
        inputs = {name: rows[0] for name, rows in batches.items()}
        into[0] = self.run(inputs)[output]  # complains of what does not fit, and gives free dimensions their sizes
        feed, invoke, get, source = self._set, self._invoke, self._get, dict(self._outputs)[output]
        (index, first), *others = [(self._indices[name], rows) for name, rows in batches.items()]
        try:
            for number, array in enumerate(first[1:], 1):
                feed(index, array)
                for other, rows in others:
                    feed(other, rows[number])
                invoke()
                into[number] = get(source)
        except (ValueError, RuntimeError, MemoryError) as error:
            raise complaints.cannot_run(self.signature, inputs, RUNTIME.name, _spoken(error)) from error

    def _resize(self, inputs: Arrays) -> None:
        """Gives free dimensions the sizes of ``inputs`` and feeds again; anything else that does not fit is refused."""
        problem = complaints.misfit(self.signature, inputs)
        try:
            if problem:
                raise ValueError(problem)
            for name, array in inputs.items():
                self._interpreter.resize_tensor_input(self._indices[name], list(array.shape), strict=True)
            self._interpreter.allocate_tensors()
            for name, array in inputs.items():
                self._set(self._indices[name], array)
        except (ValueError, RuntimeError, MemoryError) as error:
            raise complaints.cannot_run(self.signature, inputs, RUNTIME.name, _spoken(error)) from error


class SignatureSession:
    """One of several signatures of a file, in a subgraph of its own: only its runner reaches that.

    Attributes:
        signature: Its inputs and outputs.
    """

    def __init__(self, runner: Any) -> None:
        self.signature = Signature(
            inputs=tuple(_spec(name, details) for name, details in runner.get_input_details().items()),
            outputs=tuple(_spec(name, details) for name, details in runner.get_output_details().items()),
        )
        self._run = runner

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Runs one batch.

        Raises:
            InputRejected: The arrays do not fit the signature.
            StageFailed: The interpreter could not execute the model.
            StageOutOfMemory: An allocation failed.
        """
        try:
            if problem := complaints.misfit(self.signature, inputs):
                raise ValueError(problem)
            found = self._run(**inputs)
        except (ValueError, RuntimeError, MemoryError) as error:
            raise complaints.cannot_run(self.signature, inputs, RUNTIME.name, _spoken(error)) from error
        return {name: np.array(array) for name, array in found.items()}


def _details(interpreter: Any, model: Path) -> tuple[Details, Details]:
    """Returns input and output details by name: the signature's names, or the tensors' own in a file without signatures."""
    keys = list(interpreter.get_signature_list())
    if not keys:
        return _by_tensor_name(interpreter.get_input_details()), _by_tensor_name(interpreter.get_output_details())
    key = DEFAULT_SIGNATURE if DEFAULT_SIGNATURE in keys else keys[0]
    if key != DEFAULT_SIGNATURE and len(keys) > 1:
        raise InputRejected(
            f"has the signatures {', '.join(sorted(keys))}, expected one, or one called {DEFAULT_SIGNATURE!r}",
            where=str(model),
            hint="export one signature per file",
        )
    runner = interpreter.get_signature_runner(key)
    inputs, outputs = runner.get_input_details(), runner.get_output_details()
    if {d["index"] for d in inputs.values()} != {d["index"] for d in interpreter.get_input_details()}:
        raise InputRejected(f"keeps signature {key!r} outside its first subgraph", where=str(model), hint="export one signature per file")
    return inputs, outputs


def _spoken(error: Exception) -> Exception:
    """Puts a name to the one failure LiteRT has no words for: it could not allocate its tensors."""
    silent = isinstance(error, RuntimeError) and not str(error)
    return MemoryError("its tensors could not be allocated") if silent else error


def _by_tensor_name(details: list[dict[str, Any]]) -> Details:
    return {str(one["name"]): one for one in details}


def _spec(name: str, details: Mapping[str, Any]) -> TensorSpec:
    shape = details.get("shape_signature", details["shape"])
    sizes = tuple(int(size) if size >= 0 else f"d{axis}" for axis, size in enumerate(shape))
    return TensorSpec(name=name, dtype=np.dtype(details["dtype"]).name, shape=sizes)


RUNTIME = LiteRt()
