"""TorchScript to ONNX through PyTorch's older exporter, the only one that takes an archive."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from toolkit import onnx_files, pt2, torchscripts
from toolkit.artifact import Signature
from toolkit.errors import ConfigError, StageFailed
from toolkit.factory import CODE_ERRORS, first_line
from toolkit.plugins import Route

_OPSETS = range(9, 21)
_OPSET = 18


class TorchScriptOnnx:
    """Writes one self-contained ``.onnx`` file."""

    name = "torchscript_onnx"
    version = 2
    source = torchscripts.FORMAT
    format = "onnx"
    modules: tuple[str, ...] = ("torch", "onnx")
    distributions: tuple[str, ...] = ("torch", "onnx")
    extra = "edgekit[torch,onnx]"
    preload = torchscripts.PRELOAD
    options: tuple[str, ...] = ("opset",)

    def convert(self, program: Path, out: Path, signature: Signature, *, opset: int | None = None) -> None:
        """Converts an archive.

        Args:
            program: What ``torch.jit.save`` wrote.
            out: The ``.onnx`` file to write.
            signature: Inputs and outputs, with static shapes.
            opset: ONNX operator set, 9 to 20; 18 by default.

        Raises:
            ConfigError: The exporter does not write that operator set.
            InputRejected: The archive is damaged, or its weights are more than one ONNX file holds.
            StageFailed: An operator has no ONNX counterpart, or the result is not valid ONNX.
        """
        import onnx

        if opset is not None and opset not in _OPSETS:
            raise ConfigError(
                f"{self.name} writes opset {_OPSETS[0]} to {_OPSETS[-1]}, found {opset}", where="convert.opset", hint="choose one of those"
            )
        _export(torchscripts.load(program), out, signature, opset or _OPSET)
        model = onnx.load(str(out))
        onnx_files.forget_origin(model)
        onnx_files.check(model, signature, self.name)
        onnx_files.save(model, out)

    def contract_example(self, folder: Path) -> tuple[Path, Signature, dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Writes a small archive for the contract tests; see :mod:`toolkit.plugins`."""
        return torchscripts.contract_example(folder)


ROUTE: Route = TorchScriptOnnx()


def _export(module: Any, out: Path, signature: Signature, opset: int) -> None:
    import torch

    inputs, outputs = pt2.blank_inputs(signature), [spec.name for spec in signature.outputs]
    try:
        with torchscripts.quiet(), torch.no_grad():
            torch.onnx.export(
                module if _is_plain(module, list(inputs)) else torchscripts.plain(module, inputs, outputs),
                tuple(inputs.values()),
                str(out),
                dynamo=False,
                input_names=list(inputs),
                output_names=outputs,
                opset_version=opset,
                verbose=False,
            )
    except CODE_ERRORS as error:
        hint = "export the model with torch.export.save to .pt2: the exporter for that is newer"
        raise StageFailed(f"torch.onnx cannot convert the archive: {first_line(error)}", where=ROUTE.name, hint=hint) from error


def _is_plain(module: Any, names: list[str]) -> bool:
    """Whether the exporter understands the module as it is, and the signature's order is its own."""
    needed, optional = torchscripts.input_names(module)
    return names == needed + optional and torchscripts.returns_plainly(module)
