"""PyTorch to ONNX through ``torch.onnx.export(dynamo=True)``, the exporter that takes an exported program as it is."""

from __future__ import annotations

import ast
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from toolkit import onnx_files, pt2
from toolkit.artifact import Signature
from toolkit.convert import torch_onnx_opset, torch_programs, torch_rewrites, torch_trial
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
    """Writes an ``.onnx`` file whose bytes depend on the program, the options and the versions alone.

    The file is self-contained, unless its weights exceed what it can hold: then they are in ``<file>.data`` beside it.
    """

    name = "torch_onnx"
    version = 4
    source = "pt2"
    format = "onnx"
    modules: tuple[str, ...] = ("torch", "onnx", "onnxscript", "onnxruntime", "onnxslim")
    distributions: tuple[str, ...] = ("torch", "onnx", "onnxscript", "onnxruntime", "onnxslim")
    extra = "edgekit[torch,onnx]"
    preload = pt2.PRELOAD
    warm = ("torch.export._trace", "torch.onnx._internal.exporter._core", "torch.onnx._internal.exporter._torchlib.ops")
    options: tuple[str, ...] = ("dynamic", "opset", "clean_up", "rewrites")
    rewrites: Mapping[str, str] = torch_rewrites.OFFERED
    large = True
    trust = 0.97

    def convert(
        self, program: Path, out: Path, signature: Signature, *, opset: int | None = None, clean_up: bool = True, rewrites: Sequence[str] = ()
    ) -> torch_rewrites.Changed:
        """Converts a ``.pt2`` program.

        The graph is simplified by onnxscript's optimizer where that changes no output; the model's metadata says under
        ``edgekit.clean_up`` what was done.

        Args:
            program: The exported program; it takes the signature's inputs by keyword.
            out: The ``.onnx`` file to write.
            signature: Inputs and outputs; a string in a shape is a size that is free at run time, and called so in the file.
            opset: Version of the standard operator set; the exporter's own by default.
            clean_up: Whether the graph is simplified.
            rewrites: Names of the rewrites to apply; see :mod:`toolkit.convert.torch_rewrites`.

        Returns:
            The places that each rewrite changed.

        Raises:
            InputRejected: The program is damaged.
            StageFailed: The program works as in training, an operator has no ONNX counterpart or none in that operator set, or the
                result is not valid ONNX with the signature's names and sizes.
        """
        loaded, changed = torch_rewrites.apply(pt2.load(program), rewrites)
        torch_programs.refuse_training(loaded, _WHERE)
        probe = onnx_files.random_inputs(signature, pt2.free_sizes(signature, loaded))
        model, done = _export(loaded, signature, out, optimize=clean_up, opset=opset), _OPTIMIZER if clean_up else onnx_files.UNTOUCHED
        _write(model, done, signature, out)
        if clean_up and not _agrees(loaded, out, probe):
            model, done = _guarded(loaded, model, signature, out, probe)
            _write(model, done, signature, out)
        if opset is not None:
            _check_convertible(model, opset)
            model, done = torch_onnx_opset.convert(model, done, opset, loaded, signature, probe)
            _write(model, done, signature, out)
        return changed

    def preflight(self, program: Path, signature: Signature, *, rewrites: Sequence[str] = ()) -> list[Obstacle]:
        """Returns the operators that the exporter has no translation for, and those that work as in training.

        Raises:
            InputRejected: The program is damaged.
        """
        loaded, _ = torch_rewrites.apply(pt2.load(program, keep=True), rewrites)
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


def _guarded(program: torch.export.ExportedProgram, model: Any, signature: Signature, out: Path, probe: Mapping[str, np.ndarray]) -> tuple[Any, str]:
    """Returns the optimized model where it computes what the graph as exported computes, else that graph."""
    plain = _export(program, signature, out, optimize=False)
    if onnx_files.is_apart(plain):  # its weights have taken the place of the other's
        return plain, f"kept as exported: {_OPTIMIZER} could not be held against the program"
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


def _export(program: torch.export.ExportedProgram, signature: Signature, out: Path, *, optimize: bool, opset: int | None = None) -> Any:
    """Exports in the exporter's own operator set, or in one of the few that it can write instead; others are for later.

    Weights that are too large for the file ``out`` are written beside it, straight from the program's memory.
    """
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
        if _copy_attention(program):
            return _export(program, signature, out, optimize=optimize, opset=opset)
        missing = _untranslated(program)
        if missing:
            raise torch_programs.refusal("torch.onnx cannot convert the program", missing, _WHERE) from error
        raise StageFailed(
            f"torch.onnx cannot convert the program: {_essence(error)}", where=_WHERE, hint="replace that operator in the model"
        ) from error
    onnx_files.set_apart(exported.model, out)
    model = exported.model_proto
    _name_after_layers(model.graph)
    return model


def _copy_attention(program: torch.export.ExportedProgram) -> bool:
    """Puts a copy behind every attention; returns whether one was missing. The optimizer drops the copies again.

    The exporter splits attention into operators that leave its result in another order in memory than PyTorch noted, so that a
    reshape which PyTorch had taken for a view (Swin's) is none any longer, and the export fails.
    """
    import torch

    attention, copy = torch.ops.aten.scaled_dot_product_attention.default, torch.ops.aten.clone.default
    found = [node for node in program.graph.find_nodes(op="call_function", target=attention) if any(user.target is not copy for user in node.users)]
    for node in found:
        with program.graph.inserting_after(node):
            copied = program.graph.call_function(copy, (node,), {"memory_format": torch.contiguous_format})
        copied.meta.update(node.meta)
        node.replace_all_uses_with(copied, delete_user_cb=lambda user, copied=copied: user is not copied)
    program.graph_module.recompile()
    return bool(found)


def _essence(error: BaseException) -> str:
    """The exporter wraps its reason in pages of advice; the innermost exception is the reason."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)


def _untranslated(program: torch.export.ExportedProgram) -> list[Obstacle]:
    """Asks the exporter's registry for every operator, of the program split as the exporter splits it where that matters.

    The registry has no public door. Should a later PyTorch keep it elsewhere, nothing is reported, and the export itself tells.
    """
    try:
        from torch.onnx._internal.exporter import _decomp, _registration

        registry = _registration.ONNXRegistry.from_torchlib()
        known = set(_decomp.get_onnx_implemented_overloads(registry))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            table = _decomp.create_onnx_friendly_decomposition_table(known)

            def has_counterpart(operator: Any) -> bool:
                return bool(registry.is_registered(operator)) or _asserts(operator)

            return torch_trial.obstacles(program, lambda one: one.run_decompositions(table), table, has_counterpart, _NO_COUNTERPART, whole=known)
    except CODE_ERRORS:
        return []


def _asserts(operator: Any) -> bool:
    """Whether an operator only checks something: the exporter leaves those out."""
    return torch_programs.base_name(operator).startswith(("_assert_", "sym_constrain_range"))


def _check_convertible(model: Any, opset: int) -> None:
    """No converter of operator sets takes a graph whose weights are in another file."""
    if onnx_files.is_apart(model) and onnx_files.opset(model) != opset:
        known = ", ".join(map(str, sorted({*_ALSO, onnx_files.opset(model)})))
        what = f"a model whose weights are in a file of their own can be had in the ONNX opsets {known}, not in {opset}"
        raise StageFailed(what, where=_WHERE, hint="ask for one of those opsets, or for none")


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
