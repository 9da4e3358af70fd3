"""TensorFlow SavedModel to OpenVINO IR through OpenVINO's TensorFlow frontend, which reads the folder itself: TensorFlow is not imported."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from toolkit import intake, openvino_ir, savedmodels
from toolkit.artifact import Signature
from toolkit.errors import StageFailed
from toolkit.plugins import Route


class SavedModelOpenVino:
    """Writes a folder with ``model.xml`` and ``model.bin``; operators keep the names of TensorFlow's nodes."""

    name = "savedmodel_openvino"
    version = 1
    source = "savedmodel"
    format = "openvino"
    modules: tuple[str, ...] = ("openvino",)
    distributions: tuple[str, ...] = ("openvino",)
    extra = "edgekit[openvino]"
    options: tuple[str, ...] = ("dynamic",)
    trust = 0.8

    def convert(self, program: Path, out: Path, signature: Signature) -> None:
        """Converts the function ``serving_default`` of a SavedModel.

        Args:
            program: The folder.
            out: The folder to write.
            signature: Inputs and outputs; where it has a size that is free in the model, the size becomes fixed.

        Raises:
            InputRejected: The folder is no SavedModel.
            StageFailed: An operator has no OpenVINO counterpart, or the model has other inputs and outputs.
        """
        intake.check_model(program, self.source)
        model = openvino_ir.convert(str(program), self.name)
        model = _in_order(model, signature)
        openvino_ir.rename(model, [spec.name for spec in signature.inputs], [spec.name for spec in signature.outputs])
        openvino_ir.fix_sizes(model, signature)
        openvino_ir.write(model, out)

    def contract_example(self, folder: Path) -> tuple[Path, Signature, dict[str, Any], dict[str, Any]]:
        """Writes a small model for ``tests/contract``."""
        return savedmodels.example(folder)


class FrozenSavedModelOpenVino(SavedModelOpenVino):
    """Lets TensorFlow turn variables into constants first: OpenVINO's frontend does not find all of them in the folder of a large Keras model."""

    name = "savedmodel_frozen_openvino"
    modules: tuple[str, ...] = ("tensorflow", "openvino")
    distributions: tuple[str, ...] = ("tensorflow", "openvino")
    extra = "edgekit[tensorflow,openvino]"
    trust = 0.7

    def convert(self, program: Path, out: Path, signature: Signature) -> None:
        """Converts the function ``serving_default`` of a SavedModel, or its only one.

        Args:
            program: The folder.
            out: The folder to write.
            signature: As of :class:`SavedModelOpenVino`.

        Raises:
            InputRejected: The folder is damaged, could run code, or does not fit the signature.
            StageFailed: An operator has no OpenVINO counterpart.
        """
        with tempfile.TemporaryDirectory(prefix="edgekit-savedmodel-") as scratch:
            between = Path(scratch) / "model.savedmodel"
            savedmodels.write(savedmodels.pinned(savedmodels.load(program), signature), between)
            super().convert(between, out, signature)


ROUTE: Route = SavedModelOpenVino()
FROZEN: Route = FrozenSavedModelOpenVino()


def _in_order(model: Any, signature: Signature) -> Any:
    """Returns the same model with inputs and outputs in the signature's order; the frontend sorts them.

    Raises:
        StageFailed: The names are others.
    """
    inputs = {name: port for port in model.inputs for name in port.get_names()}
    outputs = {name: port for port in model.outputs for name in port.get_names()}
    for kind, found, ports, specs in (("inputs", inputs, model.inputs, signature.inputs), ("outputs", outputs, model.outputs, signature.outputs)):
        if len(ports) != len(specs) or any(spec.name not in found for spec in specs):
            told = ", ".join(spec.name for spec in specs)
            hint = "export the model with one signature called serving_default, whose arguments and results have these names"
            raise StageFailed(f"the SavedModel has {kind} {', '.join(found)}, expected {told}", where=ROUTE.name, hint=hint)
    results = [outputs[spec.name].get_node() for spec in signature.outputs]
    parameters = [inputs[spec.name].get_node() for spec in signature.inputs]
    return openvino_ir.library().Model(results, model.get_sinks(), parameters, "model")
