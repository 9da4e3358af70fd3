"""ONNX in another operator set than the exporter's own, for runtimes that know no newer one.

PyTorch's exporter writes sets 18 and later. Older ones are tried by ONNX's version converter first, which keeps the graph, and
then by PyTorch's older exporter, which traces the program. What comes out is read back, run, and held against the program.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

from toolkit import onnx_files, pt2
from toolkit.artifact import Signature
from toolkit.errors import StageFailed
from toolkit.factory import CODE_ERRORS, first_line

if TYPE_CHECKING:
    import torch

_WHERE = "torch_onnx"
_TRACED = range(9, 21)  # what the older exporter writes
_LIKELY = range(13, 27)  # sets to try when the wanted one fails, so that the message can name those that work
_PROGRAM = "program"


def convert(
    model: Any,
    done: str,
    opset: int,
    program: torch.export.ExportedProgram,
    signature: Signature,
    probe: Mapping[str, np.ndarray],
) -> tuple[Any, str]:
    """Returns a model in the operator set ``opset``, and what was done to clean it up.

    Args:
        model: The model as exported; nodes that have a layer's name keep it.
        done: What was done to clean that up. A traced graph, which is verbose, is simplified unless that is ``UNTOUCHED``.
        opset: The version that is asked for.
        program: What was exported.
        signature: Inputs and outputs.
        probe: Inputs on which both must agree.

    Raises:
        StageFailed: The program cannot be had in that set; the message says in which it can.
    """
    changed = onnx_files.with_opset(model, opset, probe)
    if changed is not None:
        return changed, done
    traced, reason = _trace(program, signature, opset) if opset in _TRACED else (None, "no exporter writes it")
    if traced is None:
        raise _refusal(model, opset, probe, reason)
    gap = _gap(model, traced, probe)
    if gap or onnx_files.opset(traced) != opset:
        raise _refusal(model, opset, probe, gap or f"the exporter wrote opset {onnx_files.opset(traced)} instead")
    if done != onnx_files.UNTOUCHED:
        traced, done = onnx_files.guarded(traced, onnx_files.slim, probe, "onnxslim")
    _name_after_weights(traced.graph)
    return traced, done


def _refusal(model: Any, opset: int, probe: Mapping[str, np.ndarray], reason: str) -> StageFailed:
    others = [version for version in _LIKELY if version != opset and onnx_files.with_opset(model, version, probe) is not None]
    return StageFailed(
        f"the program cannot be had in ONNX opset {opset}: {reason}; it can in {', '.join(map(str, others))}",
        where=_WHERE,
        hint="ask for one of those opsets, or for none",
    )


def _gap(model: Any, traced: Any, probe: Mapping[str, np.ndarray]) -> str:
    """Says in which way a traced model computes something else; empty when it does not."""
    try:
        distance = onnx_files.distance(onnx_files.run(model, probe), onnx_files.run(traced, probe))
    except StageFailed as error:
        return error.message
    return "" if distance <= onnx_files.TOLERANCE else f"tracing changes an output by {distance:.3g} of its largest value"


def _trace(program: torch.export.ExportedProgram, signature: Signature, opset: int) -> tuple[Any | None, str]:
    """Exports by tracing; returns no model but the reason where that fails, as it does for every free size."""
    import onnx
    import torch

    if any(isinstance(size, str) for spec in signature.inputs for size in spec.shape):
        return None, "PyTorch's older exporter takes no free sizes"
    inputs = pt2.blank_inputs(signature, program)
    outputs = [spec.name for spec in signature.outputs]
    written = BytesIO()
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it is the older exporter, and that sizes become constants
            torch.onnx.export(
                _positional(program, list(inputs), outputs),
                tuple(inputs.values()),
                written,
                dynamo=False,
                opset_version=opset,
                input_names=list(inputs),
                output_names=outputs,
            )
        return onnx.load_from_string(written.getvalue()), ""
    except CODE_ERRORS as error:
        return None, first_line(error).rstrip(".")


def _positional(program: torch.export.ExportedProgram, inputs: list[str], outputs: list[str]) -> torch.nn.Module:
    """The program as the older exporter wants it: inputs by position, a tuple of outputs, and a switch for training."""
    import torch

    captured = program.module(check_guards=False)
    captured.train = lambda mode=True: captured  # a program cannot change its mode, and says so by an exception

    class Positional(torch.nn.Module):  # type: ignore[misc]  # torch is not followed by the type checker
        def __init__(self) -> None:
            super().__init__()
            setattr(self, _PROGRAM, captured)
            self.training = False

        def forward(self, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
            found = captured(**dict(zip(inputs, values, strict=True)))
            return tuple(found[name] for name in outputs)

    return Positional()


def _name_after_weights(graph: Any) -> None:
    """Calls every node that has weights after the layer whose they are: a trace knows no other layers."""
    weights = {tensor.name for tensor in graph.initializer}
    used: Counter[str] = Counter()
    for node in graph.node:
        own = next((name for name in node.input if name in weights and name.startswith(f"{_PROGRAM}.")), None)
        if own:
            name = f"{own.removeprefix(f'{_PROGRAM}.').rpartition('.')[0]}/{node.op_type}"
            used[name] += 1
            node.name = name if used[name] == 1 else f"{name}_{used[name]}"
