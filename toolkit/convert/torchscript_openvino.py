"""TorchScript to OpenVINO IR through OpenVINO's own frontend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from toolkit import openvino_ir, pt2, torchscripts
from toolkit.artifact import Signature
from toolkit.errors import StageFailed
from toolkit.plugins import Route


class TorchScriptOpenVino:
    """Writes a folder with ``model.xml`` and ``model.bin``."""

    name = "torchscript_openvino"
    version = 2
    source = torchscripts.FORMAT
    format = "openvino"
    modules: tuple[str, ...] = ("torch", "openvino")
    distributions: tuple[str, ...] = ("torch", "openvino")
    extra = "edgekit[torch,openvino]"
    preload = torchscripts.PRELOAD

    def convert(self, program: Path, out: Path, signature: Signature) -> None:
        """Converts an archive.

        Args:
            program: What ``torch.jit.save`` wrote.
            out: The folder to write.
            signature: Inputs and outputs, with static shapes.

        Raises:
            InputRejected: The archive is damaged.
            StageFailed: An operator has no OpenVINO counterpart.
        """
        module = torchscripts.load(program)
        needed, optional = torchscripts.input_names(module)
        blank = pt2.blank_inputs(signature)
        inputs = {name: blank[name] for name in needed + optional if name in blank}
        outputs = [spec.name for spec in signature.outputs]
        model = _convert(module, inputs, outputs)
        openvino_ir.rename(model, list(inputs), outputs)
        openvino_ir.fix_sizes(model, signature)
        openvino_ir.write(model, out)

    def contract_example(self, folder: Path) -> tuple[Path, Signature, dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Writes a small archive for the contract tests; see :mod:`toolkit.plugins`."""
        return torchscripts.contract_example(folder)


ROUTE: Route = TorchScriptOpenVino()


def _convert(module: Any, inputs: dict[str, Any], outputs: list[str]) -> Any:
    import torch

    openvino = openvino_ir.library()
    try:
        with torchscripts.quiet(), torch.no_grad():
            # Frozen, a dictionary that is made and read again is gone, and so is what depends on inputs that were left out.
            frozen = torch.jit.freeze(torchscripts.plain(module, inputs, outputs), optimize_numerics=False)
            return openvino.convert_model(frozen, example_input=tuple(inputs.values()))
    except openvino_ir.errors() as error:
        hint = "export the model with torch.export.save to .pt2, and replace that operator"
        raise StageFailed(f"OpenVINO cannot convert the archive: {openvino_ir.reason(error)}", where=ROUTE.name, hint=hint) from error
