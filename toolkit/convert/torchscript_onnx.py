"""TorchScript to ONNX through PyTorch's older exporter, the only one that takes an archive."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from toolkit import pt2, torchscripts
from toolkit.artifact import Signature
from toolkit.errors import ConfigError, StageFailed
from toolkit.factory import CODE_ERRORS, first_line
from toolkit.plugins import Route

_OPSETS = range(9, 21)
_OPSET = 18


class TorchScriptOnnx:
    """Writes one self-contained ``.onnx`` file."""

    name = "torchscript_onnx"
    version = 1
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
            InputRejected: The archive is damaged.
            StageFailed: An operator has no ONNX counterpart, or the result is not valid ONNX.
        """
        import onnx

        if opset is not None and opset not in _OPSETS:
            raise ConfigError(
                f"{self.name} writes opset {_OPSETS[0]} to {_OPSETS[-1]}, found {opset}", where="convert.opset", hint="choose one of those"
            )
        _export(torchscripts.load(program), out, signature, opset or _OPSET)
        model = onnx.load(str(out))
        _forget_origin(model)
        _check(model, signature)
        onnx.save_model(model, str(out))

    def contract_example(self, folder: Path) -> tuple[Path, Signature, dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Writes a small archive for the contract tests; see :mod:`toolkit.plugins`."""
        return torchscripts.contract_example(folder)


ROUTE: Route = TorchScriptOnnx()


def _export(module: Any, out: Path, signature: Signature, opset: int) -> None:
    import torch

    inputs = pt2.blank_inputs(signature)
    try:
        with torchscripts.quiet(), torch.no_grad():
            torch.onnx.export(
                _by_name(module, list(inputs), inputs),
                tuple(inputs.values()),
                str(out),
                dynamo=False,
                input_names=list(inputs),
                output_names=[spec.name for spec in signature.outputs],
                opset_version=opset,
                verbose=False,
            )
    except CODE_ERRORS as error:
        hint = "export the model with torch.export.save to .pt2: the exporter for that is newer"
        raise StageFailed(f"torch.onnx cannot convert the archive: {first_line(error)}", where=ROUTE.name, hint=hint) from error


def _by_name(module: Any, names: list[str], inputs: dict[str, Any]) -> Any:
    """Returns the module as it is where the signature's order is its own; a trace of a call by names otherwise."""
    import torch

    needed, optional = torchscripts.input_names(module)
    if names == (needed + optional)[: len(names)]:
        return module

    class ByName(torch.nn.Module):  # type: ignore[misc]  # torch is not followed by the type checker
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, *arrays: Any) -> Any:
            return self.module(**dict(zip(names, arrays, strict=True)))

    return torch.jit.trace(ByName().eval(), tuple(inputs.values()), strict=False)


def _forget_origin(model: Any) -> None:
    """Drops what differs between machines: the build tag of torch, and places in the sources."""
    model.producer_version = model.producer_version.partition("+")[0]
    for node in model.graph.node:
        node.ClearField("doc_string")


def _check(model: Any, signature: Signature) -> None:
    import onnx

    for kind, values, specs in (("inputs", model.graph.input, signature.inputs), ("outputs", model.graph.output, signature.outputs)):
        found, wanted = [value.name for value in values], [spec.name for spec in specs]
        if found != wanted:
            hint = "make every input count and every output a tensor of its own"
            raise StageFailed(f"the exporter wrote {kind} {found}, expected {wanted}", where=ROUTE.name, hint=hint)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as error:
        hint = "export the model with torch.export.save to .pt2"
        raise StageFailed(f"the exporter wrote invalid ONNX: {first_line(error)}", where=ROUTE.name, hint=hint) from error
