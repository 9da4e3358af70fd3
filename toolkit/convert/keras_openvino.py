"""Keras to OpenVINO IR through TensorFlow: OpenVINO's frontend keeps loops, so recurrent layers stay small."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from toolkit import keras_models, savedmodels
from toolkit.artifact import Signature
from toolkit.convert import savedmodel_openvino
from toolkit.plugins import Route


class KerasOpenVino:
    """Writes what :mod:`toolkit.convert.savedmodel_openvino` writes of the model's frozen graph.

    Args:
        name: The route's name.
        source: ``keras`` or ``h5``.
    """

    version = 1
    format = "openvino"
    modules: tuple[str, ...] = ("keras", "tensorflow", *savedmodel_openvino.ROUTE.modules)
    distributions: tuple[str, ...] = ("keras", "tensorflow", *savedmodel_openvino.ROUTE.distributions)
    extra = "edgekit[tensorflow,openvino]"
    trust = 0.67  # a recurrent model went by way of PyTorch

    def __init__(self, name: str, source: str) -> None:
        self.name, self.source = name, source

    def convert(self, program: Path, out: Path, signature: Signature) -> None:
        """Converts a Keras file.

        Args:
            program: The ``.keras`` or ``.h5`` file.
            out: The folder to write.
            signature: Inputs and outputs, with static shapes.

        Raises:
            InputRejected: The file is damaged, or its inputs and outputs are others.
            SetupError: Keras already runs on another backend in this process.
            StageFailed: An operator has no OpenVINO counterpart.
        """
        with tempfile.TemporaryDirectory(prefix="edgekit-keras-") as scratch:
            between = Path(scratch) / "model.savedmodel"
            savedmodels.write(keras_models.frozen(program, signature), between)
            savedmodel_openvino.ROUTE.convert(between, out, signature)

    def contract_example(self, folder: Path) -> Any:
        """Writes a small model; see :func:`toolkit.keras_models.write_example`."""
        return keras_models.write_example(folder, self.source)


ROUTE: Route = KerasOpenVino("keras_openvino", "keras")
ROUTE_H5: Route = KerasOpenVino("h5_openvino", "h5")
