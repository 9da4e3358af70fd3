"""PyTorch to ONNX through ``torch.onnx.export(dynamo=True)``, the exporter that takes an exported program as it is."""

from __future__ import annotations

import ast
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from toolkit import onnx_files, pt2
from toolkit.artifact import Signature
from toolkit.convert import torch_onnx_opset, torch_programs
from toolkit.errors import StageFailed
from toolkit.factory import CODE_ERRORS, first_line
from toolkit.plugins import Obstacle, Route

if TYPE_CHECKING:
    import torch

_WHERE = "torch_onnx"
_NO_COUNTERPART = "has no ONNX counterpart"
# The exporter's note of the modules around a node, outermost first, and of the operator itself: a list, as Python writes it.
_SCOPES = "pkg.torch.onnx.name_scopes"
# Above, the exporter calls a converter of its own, which takes ten times as long as ONNX's.
_ALSO = (18, 19)
_OPTIMIZER = "onnxscript"


class TorchOnnx:
    """Writes one self-contained ``.onnx`` file whose bytes depend on the program, the options and the versions alone."""

    name = "torch_onnx"
    version = 3
    source = "pt2"
    format = "onnx"
    modules: tuple[str, ...] = ("torch", "onnx", "onnxscript", "onnxruntime", "onnxslim")
    distributions: tuple[str, ...] = ("torch", "onnx", "onnxscript", "onnxruntime", "onnxslim")
    extra = "edgekit[torch,onnx]"
    preload = pt2.PRELOAD
    options: tuple[str, ...] = ("dynamic", "opset", "clean_up")
    trust = 0.98

    def convert(self, program: Path, out: Path, signature: Signature, *, opset: int | None = None, clean_up: bool = True) -> None:
        """Converts a ``.pt2`` program.

        The graph is simplified by onnxscript's optimizer where that changes no output; the model's metadata says under
        ``edgekit.clean_up`` what was done.

        Args:
            program: The exported program; it takes the signature's inputs by keyword.
            out: The ``.onnx`` file to write.
            signature: Inputs and outputs; a string in a shape is a size that is free at run time, and called so in the file.
            opset: Version of the standard operator set; the exporter's own by default.
            clean_up: Whether the graph is simplified.

        Raises:
            InputRejected: The program is damaged, or its weights are more than one ONNX file holds.
            StageFailed: The program works as in training, an operator has no ONNX counterpart or none in that operator set, or the
                result is not valid ONNX with the signature's names and sizes.
        """
        loaded = pt2.load(program)
        torch_programs.refuse_training(loaded, _WHERE)
        onnx_files.check_size(_weight_bytes(loaded), program.name)
        probe = onnx_files.random_inputs(signature, pt2.free_sizes(signature, loaded))
        model, done = _export(loaded, signature, optimize=clean_up, opset=opset), _OPTIMIZER if clean_up else onnx_files.UNTOUCHED
        _write(model, done, signature, out)
        if clean_up and not _agrees(loaded, out, probe):
            model, done = _guarded(loaded, model, signature, probe)
            _write(model, done, signature, out)
        if opset is not None:
            model, done = torch_onnx_opset.convert(model, done, opset, loaded, signature, probe)
            _write(model, done, signature, out)

    def preflight(self, program: Path, signature: Signature) -> list[Obstacle]:
        """Returns the operators that the exporter has no translation for, and those that work as in training.

        Raises:
            InputRejected: The program is damaged.
        """
        loaded = pt2.load(program, keep=True)
        return torch_programs.training_obstacles(loaded) + _untranslated(loaded)


ROUTE: Route = TorchOnnx()


def _write(model: Any, done: str, signature: Signature, out: Path) -> None:
    onnx_files.forget_origin(model)
    onnx_files.rename_sizes(model, _size_names(model, signature))
    onnx_files.note(model, onnx_files.CLEAN_UP, done)
    onnx_files.check(model, signature, _WHERE)
    onnx_files.save(model, out)


def _agrees(program: torch.export.ExportedProgram, file: Path, probe: Mapping[str, np.ndarray]) -> bool:
    """Whether the optimized file computes what the program computes: then the graph as exported need not be made and run, too."""
    found, reference = _outputs(file, probe), _program_outputs(program, probe)
    return found is not None and reference is not None and onnx_files.is_close(reference, found)


def _guarded(program: torch.export.ExportedProgram, model: Any, signature: Signature, probe: Mapping[str, np.ndarray]) -> tuple[Any, str]:
    """Returns the optimized model where it computes what the graph as exported computes, else that graph."""
    plain = _export(program, signature, optimize=False)
    found, before = _outputs(model, probe), _outputs(plain, probe)
    if before is None or (found is not None and onnx_files.is_close(before, found)):
        return model, _OPTIMIZER
    gap = f"changed an output by {onnx_files.distance(before, found):.3g} of its largest value" if found is not None else "made a graph that fails"
    return plain, f"kept as exported: {_OPTIMIZER} {gap}"


def _outputs(model: Any | Path, probe: Mapping[str, np.ndarray]) -> dict[str, np.ndarray] | None:
    try:
        return onnx_files.run(model, probe)
    except StageFailed:
        return None  # random inputs may be none that the model takes; parity on real samples decides then


def _program_outputs(program: torch.export.ExportedProgram, probe: Mapping[str, np.ndarray]) -> dict[str, np.ndarray] | None:
    import torch

    try:
        with torch.inference_mode():
            found = program.module()(**{name: torch.from_numpy(value) for name, value in probe.items()})
        return {name: value.numpy() for name, value in found.items()}
    except CODE_ERRORS:
        return None


def _export(program: torch.export.ExportedProgram, signature: Signature, *, optimize: bool, opset: int | None = None) -> Any:
    """Exports in the exporter's own operator set, or in one of the few that it can write instead; others are for later."""
    import torch

    inputs = pt2.blank_inputs(signature, program)
    try:
        exported = torch.onnx.export(
            program,
            (),
            kwargs=inputs,
            input_names=list(inputs),
            output_names=[spec.name for spec in signature.outputs],
            dynamo=True,
            verbose=False,
            optimize=optimize,
            opset_version=opset if opset in _ALSO else None,
        )
    except CODE_ERRORS as error:  # every exporter error is a RuntimeError
        missing = _untranslated(program)
        if missing:
            raise torch_programs.refusal("torch.onnx cannot convert the program", missing, _WHERE) from error
        raise StageFailed(
            f"torch.onnx cannot convert the program: {_essence(error)}", where=_WHERE, hint="replace that operator in the model"
        ) from error
    model = exported.model_proto
    _name_after_layers(model.graph)
    return model


def _essence(error: BaseException) -> str:
    """The exporter wraps its reason in pages of advice; the innermost exception is the reason."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)


def _untranslated(program: torch.export.ExportedProgram) -> list[Obstacle]:
    """Splits the program as the exporter does, and asks the exporter's registry for every operator that is left.

    The registry has no public door. Should a later PyTorch keep it elsewhere, nothing is reported, and the export itself tells.
    """
    try:
        from torch.onnx._internal.exporter import _decomp, _registration

        registry = _registration.ONNXRegistry.from_torchlib()
        known = set(_decomp.get_onnx_implemented_overloads(registry))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            split = program.run_decompositions(_decomp.create_onnx_friendly_decomposition_table(known))
        return torch_programs.obstacles(split, lambda operator: registry.is_registered(operator) or _asserts(operator), _NO_COUNTERPART)
    except CODE_ERRORS:
        return []


def _asserts(operator: Any) -> bool:
    """Whether an operator only checks something: the exporter leaves those out."""
    return torch_programs.base_name(operator).startswith(("_assert_", "sym_constrain_range"))


def _weight_bytes(program: torch.export.ExportedProgram) -> int:
    stored = [*program.state_dict.values(), *program.constants.values()]
    return sum({tensor.data_ptr(): int(tensor.nbytes) for tensor in stored if hasattr(tensor, "nbytes") and tensor.nbytes}.values())


def _size_names(model: Any, signature: Signature) -> dict[str, str]:
    """Returns what PyTorch's symbols of free sizes are called in the signature."""
    names: dict[str, str] = {}
    for value, spec in zip(model.graph.input, signature.inputs, strict=False):
        for size, name in zip(value.type.tensor_type.shape.dim, spec.shape, strict=False):
            if size.dim_param and isinstance(name, str):
                names[size.dim_param] = name
    return names


def _name_after_layers(graph: Any) -> None:
    """Calls every node after its layer, as in ``features.0.0/Conv``: what later tools keep of a node is its name."""
    used: Counter[str] = Counter()
    for node in graph.node:
        scopes: list[str] = next((ast.literal_eval(entry.value) for entry in node.metadata_props if entry.key == _SCOPES), [])
        if len(scopes) > 1 and scopes[-2]:
            name = f"{scopes[-2]}/{node.op_type}"
            used[name] += 1
            node.name = name if used[name] == 1 else f"{name}_{used[name]}"
