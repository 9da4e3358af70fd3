"""Keras to whatever PyTorch and JAX lead to: the file is loaded on that backend of Keras and goes on as its program.

On the torch backend recurrent layers are unrolled, one copy of their operators for each step, and PyTorch's layout costs
transposes; so where another way leads to the same format, it comes first.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from toolkit import keras_models
from toolkit.artifact import Signature
from toolkit.convert import jax_litert, torch_executorch, torch_litert, torch_onnx, torch_openvino
from toolkit.plugins import Obstacle, Route

_SAVERS: dict[str, Callable[[Path, Path, Signature], Path]] = {"pt2": keras_models.save_torch_program, "jax": keras_models.save_jax_program}


class KerasBackend:
    """Writes what a route out of another framework writes of the model as that framework's program.

    Args:
        source: ``keras`` or ``h5``.
        inner: The route that goes on from the program.
        trust: See :class:`toolkit.plugins.Route`.
    """

    version = 1

    def __init__(self, source: str, inner: Route, trust: float) -> None:
        self.name, self.source, self.format = f"{source}_{inner.name}", source, inner.format
        self.modules = ("keras", *inner.modules)
        self.distributions = ("keras", *inner.distributions)
        self.extra = inner.extra.replace("[", "[tensorflow,", 1)
        self.trust = trust
        self._inner = inner
        if hasattr(inner, "preload"):
            self.preload = inner.preload

    def convert(self, program: Path, out: Path, signature: Signature) -> None:
        """Converts a Keras file.

        Args:
            program: The ``.keras`` or ``.h5`` file.
            out: The file or folder to write.
            signature: Inputs and outputs, with static shapes.

        Raises:
            InputRejected: The file is damaged, or its inputs and outputs are others.
            SetupError: Keras already runs on another backend in this process.
            StageFailed: The backend cannot capture the model, or an operator has no counterpart in the format.
        """
        with tempfile.TemporaryDirectory(prefix="edgekit-keras-") as scratch:
            self._inner.convert(self._captured(program, Path(scratch), signature), out, signature)

    def preflight(self, program: Path, signature: Signature) -> list[Obstacle]:
        """Returns what the inner route finds in the captured program.

        Raises:
            InputRejected: As :meth:`convert`.
            SetupError: As :meth:`convert`.
            StageFailed: The backend cannot capture the model.
        """
        look = getattr(self._inner, "preflight", None)
        if look is None:
            return []
        with tempfile.TemporaryDirectory(prefix="edgekit-keras-") as scratch:
            found: list[Obstacle] = look(self._captured(program, Path(scratch), signature), signature)
            return found

    def _captured(self, program: Path, scratch: Path, signature: Signature) -> Path:
        between = self._inner.source
        return _SAVERS[between](program, scratch / f"model.{between}", signature)


TORCH_ONNX: Route = KerasBackend("keras", torch_onnx.ROUTE, 0.6)
TORCH_ONNX_H5: Route = KerasBackend("h5", torch_onnx.ROUTE, 0.6)
TORCH_LITERT: Route = KerasBackend("keras", torch_litert.ROUTE, 0.4)
TORCH_LITERT_H5: Route = KerasBackend("h5", torch_litert.ROUTE, 0.4)
TORCH_EXECUTORCH: Route = KerasBackend("keras", torch_executorch.ROUTE, 0.83)
TORCH_EXECUTORCH_H5: Route = KerasBackend("h5", torch_executorch.ROUTE, 0.83)
TORCH_OPENVINO: Route = KerasBackend("keras", torch_openvino.ROUTE, 0.6)
TORCH_OPENVINO_H5: Route = KerasBackend("h5", torch_openvino.ROUTE, 0.6)
JAX_LITERT: Route = KerasBackend("keras", jax_litert.ROUTE, 0.7)
JAX_LITERT_H5: Route = KerasBackend("h5", jax_litert.ROUTE, 0.7)
