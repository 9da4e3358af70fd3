"""JAX's own executor for captured programs: the reference that converted models are compared with."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from toolkit import jax_programs
from toolkit.factory import CODE_ERRORS
from toolkit.plugins import Arrays
from toolkit.runtimes import complaints

_RUNNING = (*CODE_ERRORS, MemoryError)


class JaxRuntime:
    """Runs ``.jax`` files: functions written by ``jax.export``."""

    name = "jax"
    version = 1
    modules: tuple[str, ...] = ("jax",)
    distributions: tuple[str, ...] = ("jax", "jaxlib")
    extra = "edgekit[jax]"
    preload = jax_programs.PRELOAD
    formats: tuple[str, ...] = ("jax",)

    def open(self, model: Path, *, threads: int) -> JaxSession:
        """Loads and compiles a program; see :meth:`toolkit.plugins.Runtime.open`.

        The pool of threads is made once in a process: the number given first holds.

        Raises:
            InputRejected: The file is missing, damaged, not a program, or calls code that is not JAX's own.
            StageOutOfMemory: The process may not have the memory the model needs.
        """
        os.environ.setdefault("NPROC", str(threads))  # read when JAX makes its CPU device
        program = jax_programs.load(model)
        try:
            return JaxSession(program, threads)
        except _RUNNING as error:
            raise complaints.cannot_open(model, self.name, error) from error

    def contract_example(self, folder: Path) -> Path:
        """Writes a small model that takes any floats."""
        import jax
        from jax import export, numpy

        exported = export.export(jax.jit(lambda x: (numpy.tanh(x @ numpy.eye(4)[:, :3]),)), platforms=("cpu",))(
            jax.ShapeDtypeStruct((1, 4), "float32")
        )
        jax_programs.save(jax_programs.Program(exported, ("x",), ("logits",)), folder / "tiny.jax")
        return folder / "tiny.jax"


class JaxSession:
    """A loaded program, compiled for the shapes it was captured with, or, with free sizes, for each shape it meets.

    Attributes:
        signature: Inputs and outputs of the loaded program.
    """

    def __init__(self, program: jax_programs.Program, threads: int) -> None:
        import jax

        self.signature = program.signature
        self._device = jax.devices("cpu")[0]
        self._put, self._wide = jax.device_put, program.wide
        self._inputs = [spec.name for spec in self.signature.inputs]
        self._dtypes = [(spec.name, np.dtype(spec.dtype)) for spec in self.signature.inputs]
        self._outputs = [spec.name for spec in self.signature.outputs]
        alone = {"xla_cpu_multi_thread_eigen": False} if threads == 1 else None
        self._call: Any = jax.jit(program.exported.call, compiler_options=alone)
        if not any(isinstance(size, str) for spec in self.signature.inputs for size in spec.shape):
            with self._wide(), jax.default_device(self._device):
                self._call = self._call.lower(*program.exported.in_avals).compile()

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Runs one batch.

        Raises:
            InputRejected: The arrays do not fit the signature.
            StageFailed: JAX could not execute the program.
            StageOutOfMemory: An allocation failed.
        """
        try:
            # JAX would cut 64-bit numbers down to 32 bits without a word.
            if len(inputs) != len(self._inputs) or any(inputs[name].dtype != dtype for name, dtype in self._dtypes):
                raise KeyError
            with self._wide():
                arrays = [self._put(inputs[name], self._device) for name in self._inputs]
                # A copy: what JAX gives out is a read-only view of its own buffer.
                return {name: np.array(found) for name, found in zip(self._outputs, self._call(*arrays), strict=True)}
        except _RUNNING as error:
            raise complaints.cannot_run(self.signature, inputs, RUNTIME.name, error) from error


RUNTIME = JaxRuntime()
