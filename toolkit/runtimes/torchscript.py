"""TorchScript's own executor: the reference for archives that users bring."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from toolkit import torchscripts
from toolkit.artifact import Signature, TensorSpec
from toolkit.errors import InputRejected
from toolkit.plugins import Arrays
from toolkit.runtimes import complaints

_RUNNING = (RuntimeError, ValueError, KeyError, TypeError, AttributeError, MemoryError)


class TorchScriptRuntime:
    """Runs what ``torch.jit.save`` wrote."""

    name = "torchscript"
    version = 1
    modules: tuple[str, ...] = ("torch",)
    distributions: tuple[str, ...] = ("torch",)
    extra = "edgekit[torch]"
    preload = torchscripts.PRELOAD
    formats: tuple[str, ...] = (torchscripts.FORMAT,)

    def open(self, model: Path, *, threads: int) -> TorchScriptSession:
        """Loads a traced model; see :meth:`toolkit.plugins.Runtime.open`. The number of threads holds for the whole process.

        Raises:
            InputRejected: The file is missing, damaged or could touch files, or it does not say what shapes it takes.
            StageOutOfMemory: The process may not have the memory the model needs.
        """
        return self.open_with(model, threads=threads, examples=None)

    def contract_example(self, folder: Path) -> Path:
        """Writes a small archive for the contract tests; see :mod:`toolkit.plugins`."""
        return torchscripts.contract_example(folder)[0]

    def open_with(self, model: Path, *, threads: int, examples: Arrays | None) -> TorchScriptSession:
        """Loads a model that takes inputs like ``examples``, one sample by name; a traced one says itself what it takes.

        Raises:
            InputRejected: As :meth:`open`, or the examples have other names than the inputs.
            StageFailed: The model does not run on the examples.
            StageOutOfMemory: As :meth:`open`.
        """
        import torch

        torch.set_num_threads(threads)
        module = torchscripts.load(model)
        needed, optional = torchscripts.input_names(module)
        given = examples if examples is not None else torchscripts.traced_inputs(model, needed)
        if given is None:
            hint = "give it with samples, as edgekit export does; or trace it with torch.jit.trace"
            raise InputRejected("was not traced, so that nothing tells the shapes of its inputs", where=model.name, hint=hint)
        unknown, missing = [name for name in given if name not in needed + optional], [name for name in needed if name not in given]
        if unknown or missing:
            what = f"takes the inputs {', '.join(needed + optional)}, found {', '.join(given)}"
            raise InputRejected(what, where=model.name, hint="name the arrays like the inputs")
        return TorchScriptSession(module, given)


class TorchScriptSession:
    """A loaded archive.

    Attributes:
        signature: Inputs of the shapes of the examples, and the outputs that they lead to.
    """

    def __init__(self, module: Any, examples: Arrays) -> None:
        import torch

        self._module, self._torch = module, torch
        inputs = _specs(examples)
        self.signature = Signature(inputs=inputs, outputs=())
        self.signature = Signature(inputs=inputs, outputs=_specs(self.run(examples)))

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Runs one batch.

        Raises:
            InputRejected: The arrays do not fit the signature, or the model returns something else than tensors.
            StageFailed: PyTorch could not execute the model.
            StageOutOfMemory: An allocation failed.
        """
        torch = self._torch
        problem = complaints.misfit(self.signature, inputs)
        try:
            if problem:
                raise ValueError(problem)
            # Optimized execution compiles kernels after the first runs, and these round otherwise than the first.
            with torch.inference_mode(), torchscripts.quiet(), torch.jit.optimized_execution(False):
                found = self._module(**{name: torch.from_numpy(np.array(array)) for name, array in inputs.items()})
            return {name: np.array(value.numpy()) for name, value in torchscripts.named_outputs(found).items()}
        except _RUNNING as error:
            raise complaints.cannot_run(self.signature, inputs, RUNTIME.name, error) from error


def _specs(arrays: Arrays) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name=name, dtype=array.dtype.name, shape=array.shape) for name, array in arrays.items())


RUNTIME = TorchScriptRuntime()
