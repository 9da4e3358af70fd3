"""PyTorch to ExecuTorch, with everything that XNNPACK can execute given to it.

A ``.pte`` program numbers its inputs and outputs. Their names are kept as two constant methods of the program,
``get_input_names`` and ``get_output_names``, and where sizes are free a third one, ``get_input_sizes``, has one text such as
``1 sequence`` for each input: any runner can call them, ours does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit import pt2
from toolkit.artifact import Signature
from toolkit.convert import torch_programs, torch_rewrites, torch_trial
from toolkit.errors import StageFailed
from toolkit.factory import CODE_ERRORS, first_line
from toolkit.plugins import Obstacle, Route

if TYPE_CHECKING:
    import torch

_WHERE = "torch_executorch"
_NO_KERNEL = "has no ExecuTorch kernel"
_PASSED_THROUGH = "already in the inputs"
_CANNOT = "ExecuTorch cannot convert the program"


class TorchExecuTorch:
    """Writes a ``.pte`` file with one method, ``forward``; what XNNPACK does not know runs on ExecuTorch's portable kernels."""

    name = "torch_executorch"
    version = 1
    source = "pt2"
    format = "pte"
    modules: tuple[str, ...] = ("torch", "executorch")
    distributions: tuple[str, ...] = ("torch", "executorch")
    extra = "edgekit[torch,executorch]"
    preload = pt2.PRELOAD
    warm = ("torch.export._trace", "executorch.backends.xnnpack.partition.xnnpack_partitioner")
    options: tuple[str, ...] = ("dynamic", "rewrites")
    rewrites: Mapping[str, str] = torch_rewrites.OFFERED
    trust = 0.97

    def convert(self, program: Path, out: Path, signature: Signature, *, rewrites: Sequence[str] = ()) -> torch_rewrites.Changed:
        """Converts a ``.pt2`` program. Sizes that are free in it stay free, up to the largest value that it was captured for.

        Args:
            program: The exported program; it takes the signature's inputs by keyword.
            out: The ``.pte`` file to write.
            signature: Inputs and outputs; a string in a shape is a size that is free at run time.
            rewrites: Names of the rewrites to apply; see :mod:`toolkit.convert.torch_rewrites`.

        Returns:
            The places that each rewrite changed.

        Raises:
            InputRejected: The program is damaged, or its inputs and outputs are others.
            StageFailed: An operator has no kernel, a free size has no upper bound, or the program was captured in training mode.
        """
        loaded, changed = torch_rewrites.apply(pt2.load(program), rewrites)
        _plain_layouts(loaded)
        torch_programs.check_names(loaded, signature, _WHERE)
        torch_programs.refuse_training(loaded, _WHERE)
        _check_bounds(loaded, pt2.size_names(program, loaded))
        lowered = _lower(loaded, _names(loaded, signature))
        _check_kernels(lowered, loaded)
        with out.open("wb") as file:
            lowered.write_to_file(file)
        return changed

    def preflight(self, program: Path, signature: Signature, *, rewrites: Sequence[str] = ()) -> list[Obstacle]:
        """Returns the operators that neither XNNPACK nor ExecuTorch's portable kernels execute.

        Raises:
            InputRejected: The program is damaged.
            StageFailed: PyTorch cannot split the program into basic operators.
        """
        loaded, _ = torch_rewrites.apply(pt2.load(program, keep=True), rewrites)
        return torch_programs.training_obstacles(loaded) + _obstacles(loaded)


ROUTE: Route = TorchExecuTorch()


def _names(program: torch.export.ExportedProgram, signature: Signature) -> dict[str, list[str]]:
    """The constant methods that say what the numbers of a ``.pte`` program's inputs and outputs stand for."""
    inputs = torch_programs.input_names(program)
    methods = {"get_input_names": inputs, "get_output_names": torch_programs.output_names(program)}
    if any(torch_programs.free_sizes(signature)):
        shapes = {spec.name: spec.shape for spec in signature.inputs}
        methods["get_input_sizes"] = [" ".join(map(str, shapes[name])) for name in inputs]
    return methods


def _plain_layouts(program: torch.export.ExportedProgram) -> None:
    """Takes wishes for another order of axes in memory out of a program: they change no value, and ExecuTorch fails on them when run."""
    import torch

    for node in program.graph.nodes:
        if node.kwargs.get("memory_format") not in (None, torch.contiguous_format):
            node.kwargs = {**node.kwargs, "memory_format": torch.contiguous_format}
    program.graph_module.recompile()


def _check_bounds(program: torch.export.ExportedProgram, names: Mapping[str, str]) -> None:
    """Memory is planned for the largest sizes, so each must have one."""
    open_ended = [str(symbol) for symbol, limits in program.range_constraints.items() if not limits.upper < pt2.UNBOUNDED]
    if open_ended:
        size = names.get(open_ended[0], open_ended[0])
        raise StageFailed(
            f"ExecuTorch plans memory for the largest sizes, and the free size {size!r} has no upper bound",
            where=_WHERE,
            hint=f"give it one, such as {size}<=8; in a .pt2 of your own by torch.export.Dim(name, max=...)",
        )


def _lower(program: torch.export.ExportedProgram, constants: dict[str, list[str]], *, copies: bool = True) -> Any:
    from executorch.exir import to_edge_transform_and_lower
    from executorch.exir.error import ExportError, InternalError
    from torch._export.verifier import SpecViolationError

    errors = (*CODE_ERRORS, ExportError, InternalError, SpecViolationError)
    try:
        return to_edge_transform_and_lower(program, partitioner=[_partitioner(copies)], constant_methods=constants).to_executorch()
    except errors as error:
        if copies and _PASSED_THROUGH in str(error):
            return _lower(program, constants, copies=False)
        raise _explain(error, program) from error


def _partitioner(copies: bool) -> Any:
    """XNNPACK's partitioner; without copies where an output is one of another output, which the delegate refuses."""
    from executorch.backends.xnnpack.partition.config import ALL_PARTITIONER_CONFIGS
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

    return XnnpackPartitioner(configs=[config for config in ALL_PARTITIONER_CONFIGS if copies or "clone" not in config.target_name])


def _explain(error: BaseException, program: torch.export.ExportedProgram) -> StageFailed:
    found = _obstacles(program)
    if found:
        return torch_programs.refusal(_CANNOT, found, _WHERE)
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), first_line(error))[:300]
    layers = torch_programs.layers_of(program, reason)
    hint = torch_programs.hint(torch_programs.complex_operators(program))
    return StageFailed(f"{_CANNOT}: {reason}{layers}", where=_WHERE, hint=hint)


def _obstacles(program: torch.export.ExportedProgram) -> list[Obstacle]:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir.tracer import _default_decomposition_table

    whole, _ = XnnpackPartitioner().ops_to_not_decompose(program)
    table = {operator: rule for operator, rule in _default_decomposition_table().items() if operator not in whole}
    volumes, has_kernel = torch_programs.volume_obstacles(program, _NO_KERNEL, strided=False), _has_kernel()
    if not volumes:
        return torch_trial.obstacles(program, lambda one: _split(one, table), table, has_kernel, _NO_KERNEL, whole=whole)
    split = _split(program, table)
    return torch_programs.obstacles(split, has_kernel, _NO_KERNEL) + torch_programs.volume_obstacles(split, _NO_KERNEL, strided=False)


def _split(program: torch.export.ExportedProgram, table: Mapping[Any, Any]) -> torch.export.ExportedProgram:
    """Splits a program's operators as ExecuTorch does, but for those that XNNPACK takes whole."""
    try:
        return program.run_decompositions(table)
    except CODE_ERRORS as error:
        raise StageFailed(
            f"PyTorch cannot split the program into basic operators: {first_line(error)}", where=_WHERE, hint="capture the model again"
        ) from error


def _has_kernel() -> Any:
    """Returns a function that says whether XNNPACK or a portable kernel of the installed runtime executes an operator."""
    from executorch.backends.xnnpack.partition.config import ALL_PARTITIONER_CONFIGS
    from executorch.extension.pybindings import portable_lib

    portable = {name.partition("::")[2].partition(".")[0] for name in portable_lib._get_operator_names()}
    delegated = {config.target_name.partition(".")[0] for config in ALL_PARTITIONER_CONFIGS}
    # Copies and views that memory planning and ExecuTorch's own passes put in place of these.
    rewritten = {"_to_copy", "view", "clone", "alias", "detach", "lift_fresh_copy", "sym_size", "sym_numel", "sym_stride", *torch_trial.NOTES}
    known = portable | {f"{name.removesuffix('_copy')}" for name in portable} | delegated | rewritten
    return lambda operator: torch_programs.base_name(operator) in known


def _check_kernels(lowered: Any, program: torch.export.ExportedProgram) -> None:
    """Refuses programs whose operators nobody executes: such a one can be written, and fails on the device.

    Raises:
        StageFailed: There is one.
    """
    from executorch.extension.pybindings import portable_lib

    found = torch_programs.volume_obstacles(program, _NO_KERNEL, strided=False)
    if found:
        raise torch_programs.refusal(_CANNOT, found, _WHERE)
    present = set(portable_lib._get_operator_names())
    called = [one for plan in lowered.executorch_program.execution_plan for one in plan.operators]
    missing = sorted({f"{one.name}.{one.overload}" if one.overload else one.name for one in called} - present)
    if missing and (found := _obstacles(program)):
        raise torch_programs.refusal(_CANNOT, found, _WHERE)
    if missing:
        layers = torch_programs.layers_of(program, missing[0].partition("::")[2].partition(".")[0])
        raise StageFailed(
            f"the program calls {', '.join(missing)}{layers}, which {_NO_KERNEL} here", where=_WHERE, hint="replace that operator in the model"
        )
