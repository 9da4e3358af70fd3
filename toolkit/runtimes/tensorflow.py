"""TensorFlow's own executor for SavedModels: the reference that converted models are compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from toolkit import savedmodels
from toolkit.errors import InputRejected
from toolkit.factory import CODE_ERRORS
from toolkit.plugins import Arrays
from toolkit.runtimes import complaints


class TensorFlowRuntime:
    """Runs SavedModel folders: the signature ``serving_default``, or the only one, with its variables as constants."""

    name = "tensorflow"
    version = 1
    modules: tuple[str, ...] = ("tensorflow",)
    distributions: tuple[str, ...] = ("tensorflow",)
    extra = "edgekit[tensorflow]"
    preload = savedmodels.PRELOAD
    formats: tuple[str, ...] = ("savedmodel",)

    def open(self, model: Path, *, threads: int) -> TensorFlowSession:
        """Loads a model; see :meth:`toolkit.plugins.Runtime.open`. The threads are this session's own.

        Raises:
            InputRejected: The folder is missing, damaged, could run code, or has no signature that can be picked.
            StageOutOfMemory: The process may not have the memory the model needs.
        """
        savedmodels.quiet()
        import tensorflow as tf

        frozen = savedmodels.load(model)
        try:
            return TensorFlowSession(frozen, threads)
        except (*CODE_ERRORS, MemoryError, tf.errors.OpError) as error:
            raise complaints.cannot_open(model, self.name, error) from error

    def contract_example(self, folder: Path) -> Path:
        """Writes a small model for ``tests/contract``."""
        return savedmodels.example(folder)[0]


class TensorFlowSession:
    """A loaded model. A session of its own has its own threads, where eager TensorFlow has one pool for the whole process.

    Attributes:
        signature: Inputs and outputs of the loaded model.
    """

    def __init__(self, frozen: savedmodels.Frozen, threads: int) -> None:
        import tensorflow as tf

        self.signature = savedmodels.signature_of(frozen)
        config = tf.compat.v1.ConfigProto(
            device_count={"GPU": 0}, intra_op_parallelism_threads=threads, inter_op_parallelism_threads=1, use_per_session_threads=True
        )
        self._names, self._outputs = list(frozen.inputs), list(frozen.outputs)
        self._errors = (*CODE_ERRORS, MemoryError, tf.errors.OpError)
        with tf.Graph().as_default() as graph:
            tf.import_graph_def(frozen.graph, name="")
            self._session = tf.compat.v1.Session(graph=graph, config=config)
            self._call = self._session.make_callable(list(frozen.outputs.values()), list(frozen.inputs.values()))

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Runs one batch.

        Raises:
            InputRejected: The arrays do not fit the signature.
            StageFailed: TensorFlow could not execute the model.
            StageOutOfMemory: An allocation failed.
        """
        problem = complaints.misfit(self.signature, inputs)  # TensorFlow itself takes an array of another type as zeros, or crashes
        if problem:
            raise InputRejected(problem, where=f"{RUNTIME.name} inputs", hint=f"give {', '.join(map(str, self.signature.inputs))}")
        try:
            found: list[Any] = self._call(*[inputs[name] for name in self._names])
            return {name: np.array(array) for name, array in zip(self._outputs, found, strict=True)}
        except self._errors as error:
            raise complaints.cannot_run(self.signature, inputs, RUNTIME.name, error) from error


RUNTIME = TensorFlowRuntime()
