"""Keras' own execution of its files: the reference that converted models are compared with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from toolkit import keras_models
from toolkit.artifact import Signature
from toolkit.plugins import Arrays
from toolkit.runtimes import complaints

_RUNNING = (RuntimeError, ValueError, KeyError, TypeError, AttributeError, AssertionError, MemoryError, NotImplementedError)


class KerasRuntime:
    """Runs ``.keras`` and ``.h5`` files in inference mode, on the first backend that is installed or the one in use."""

    name = "keras"
    version = 1
    modules: tuple[str, ...] = ("keras",)
    distributions: tuple[str, ...] = ("keras",)
    extra = "edgekit[tensorflow]"
    formats: tuple[str, ...] = ("keras", "h5")

    def open(self, model: Path, *, threads: int) -> KerasSession:
        """Loads a model for one sample at a time; see :meth:`toolkit.plugins.Runtime.open`.

        Only PyTorch can change its number of threads later on; the other backends take it from the first model of a process.

        Raises:
            InputRejected: The file is missing, damaged, not a whole model, or needs code that is not Keras' own.
            MissingExtra: No backend of Keras is installed.
            StageOutOfMemory: The process may not have the memory the model needs.
        """
        keras = keras_models.use()
        backend = keras.backend.backend()
        _limit_threads(backend, threads)
        loaded = keras_models.load(model)
        signature = keras_models.signature(loaded)
        return KerasSession(signature, _runner(backend, loaded, signature))

    def contract_example(self, folder: Path) -> Path:
        """Writes a small model that takes any floats, for ``tests/contract``."""
        keras = keras_models.use()
        keras.utils.set_random_seed(1)
        picture = keras.Input((6, 6, 2), name="picture")
        seen = keras.layers.Conv2D(3, 3, activation="relu")(picture)
        model = keras.Model(picture, keras.layers.Dense(4, name="scores")(keras.layers.Flatten()(seen)))
        model.save(folder / "tiny.keras")
        return folder / "tiny.keras"


class KerasSession:
    """A loaded model.

    Attributes:
        signature: Inputs and outputs of the loaded model.
    """

    def __init__(self, signature: Signature, runner: Callable[[Arrays], dict[str, np.ndarray]]) -> None:
        self.signature = signature
        self._runner = runner

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Runs one sample.

        Raises:
            InputRejected: The arrays do not fit the signature.
            StageFailed: Keras could not execute the model.
            StageOutOfMemory: An allocation failed.
        """
        problem = complaints.misfit(self.signature, inputs)
        try:
            if problem:
                raise ValueError(problem)  # Keras itself would cast and broadcast without a word
            found = self._runner(inputs)
        except _RUNNING as error:
            raise complaints.cannot_run(self.signature, inputs, RUNTIME.name, error) from error
        return {spec.name: found[spec.name] for spec in self.signature.outputs}


RUNTIME = KerasRuntime()


def _runner(backend: str, model: Any, signature: Signature) -> Callable[[Arrays], dict[str, np.ndarray]]:
    if backend == "tensorflow":
        function = keras_models.concrete_function(model, signature)
        return lambda inputs: {name: value.numpy() for name, value in function(**_tensors(inputs)).items()}
    if backend == "torch":
        return lambda inputs: _run_torch(model, inputs)
    return _compiled_by_jax(model)


def _tensors(inputs: Arrays) -> dict[str, Any]:
    import tensorflow as tf

    return {name: tf.constant(array) for name, array in inputs.items()}


def _compiled_by_jax(model: Any) -> Callable[[Arrays], dict[str, np.ndarray]]:
    import jax

    function = jax.jit(lambda inputs: keras_models.call(model, inputs))
    return lambda inputs: {name: np.array(value) for name, value in function(inputs).items()}


def _run_torch(model: Any, inputs: Arrays) -> dict[str, np.ndarray]:
    import torch

    # PyTorch has no read-only tensors and warns about the memory-mapped arrays of a data set.
    with torch.inference_mode():
        found = keras_models.call(model, {name: torch.from_numpy(np.array(array)) for name, array in inputs.items()})
    return {name: value.numpy() for name, value in found.items()}


def _limit_threads(backend: str, threads: int) -> None:
    if backend == "torch":
        import torch

        torch.set_num_threads(threads)
    elif backend == "tensorflow":
        import tensorflow as tf

        try:
            tf.config.threading.set_intra_op_parallelism_threads(threads)
            tf.config.threading.set_inter_op_parallelism_threads(1)
        except RuntimeError:
            pass  # TensorFlow has started: it keeps the number that it started with
