"""PyTorch to TFLite through litert-torch, without TensorFlow."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit import pt2
from toolkit.artifact import Signature
from toolkit.convert import torch_programs, torch_rewrites, torch_trial
from toolkit.convert.torch_litert_trace import Trace
from toolkit.errors import ConfigError, StageFailed
from toolkit.factory import CODE_ERRORS, first_line
from toolkit.plugins import Obstacle, Route

if TYPE_CHECKING:
    import torch

_WHERE = "torch_litert"
_DEFAULT = "serving_default"
_NO_KERNEL = "has no TFLite kernel"
_CANNOT = "litert-torch cannot convert the program"
# What has a lowering, but to operators that no TFLite kernel executes, or that the converter cannot finish.
_LOST_LATER = {"sort", "argsort", "topk", "linalg_inv_ex", "_fft_r2c", "_fft_c2r", "_fft_c2c", "multinomial"}
# Nodes that vanish while the graph is lowered.
_VANISHING = {"sym_size", "sym_numel", *torch_trial.NOTES}
_PLACE = re.compile(r"\S*\.py:\d+:\d+: ?(error: )?")


class TorchLiteRT:
    """Writes a ``.tflite`` file with the signature ``serving_default``; 64-bit integer inputs become 32-bit ones.

    With ``batch_sizes`` it has a signature for each other size as well, ``batch_4`` and so on; all share the weights. With
    ``layout="channels_last"`` every four-dimensional input is ``[n x h x w x c]`` in the file and in its signature.
    """

    name = "torch_litert"
    version = 3
    source = "pt2"
    format = "tflite"
    modules: tuple[str, ...] = ("torch", "litert_torch")
    distributions: tuple[str, ...] = ("torch", "litert-torch", "litert-converter")
    extra = "edgekit[torch,litert]"
    preload = pt2.PRELOAD
    warm = ("torch.export._trace", "litert_torch")
    options: tuple[str, ...] = ("layout", "batch_sizes", "rewrites")
    rewrites: Mapping[str, str] = torch_rewrites.OFFERED
    trust = 0.97

    def convert(
        self,
        program: Path,
        out: Path,
        signature: Signature,
        *,
        layout: str | None = None,
        batch_sizes: Sequence[int] = (),
        rewrites: Sequence[str] = (),
    ) -> torch_rewrites.Changed:
        """Converts a ``.pt2`` program.

        Args:
            program: The exported program; it takes the signature's inputs by keyword.
            out: The ``.tflite`` file to write.
            signature: Inputs and outputs; with ``batch_sizes`` their first axis may be free, all else is static.
            layout: ``channels_last`` for four-dimensional inputs ``[n x h x w x c]``.
            batch_sizes: Batch sizes to write signatures for; 1 is always there.
            rewrites: Names of the rewrites to apply; see :mod:`toolkit.convert.torch_rewrites`.

        Returns:
            The places that each rewrite changed.

        Raises:
            ConfigError: There is a layout and no input has four axes.
            InputRejected: The program is damaged.
            StageFailed: An operator has no TFLite counterpart, the program was captured in training mode or works for one batch
                size alone, or an input cannot have its channels last.
        """
        import litert_torch

        loaded, changed = torch_rewrites.apply(pt2.load(program), rewrites)
        torch_programs.refuse_training(loaded, _WHERE)
        trace = Trace(loaded, signature, channels_last=layout is not None)
        if layout is not None and not trace.images:
            raise ConfigError("no input has four axes, so there are no channels to put last", where="layout", hint="leave layout out")
        others = [size for size in dict.fromkeys(batch_sizes) if size != 1]
        for size in others:
            trace.check_batch(size)
        try:
            converter = litert_torch.signature(_DEFAULT, trace.module, sample_kwargs=trace.inputs(1))
            for size in others:
                converter = converter.signature(f"batch_{size}", trace.module, sample_kwargs=trace.inputs(size))
            converter.convert().export(str(out))
        except CODE_ERRORS as error:
            raise _explain(error, loaded) from error
        _check_file(out.read_bytes(), trace.images, loaded)
        return changed

    def preflight(self, program: Path, signature: Signature, *, rewrites: Sequence[str] = ()) -> list[Obstacle]:
        """Returns the operators that litert-torch has no lowering for, or whose lowering no TFLite kernel executes.

        Raises:
            InputRejected: The program is damaged.
            StageFailed: PyTorch cannot split the program into basic operators.
        """
        loaded, _ = torch_rewrites.apply(pt2.load(program, keep=True), rewrites)
        return torch_programs.training_obstacles(loaded) + _obstacles(loaded)


ROUTE: Route = TorchLiteRT()


def _obstacles(program: torch.export.ExportedProgram) -> list[Obstacle]:
    from litert_torch import fx_infra

    tables = (fx_infra.decomp.pre_convert_decomp(), fx_infra.decomp.pre_lower_decomp())
    volumes = torch_programs.volume_obstacles(program, _NO_KERNEL, strided=True)
    if not volumes:
        return torch_trial.obstacles(program, lambda one: _split(one, tables), {**tables[0], **tables[1]}, _has_kernel, _NO_KERNEL)
    split = _split(program, tables)
    return torch_programs.obstacles(split, _has_kernel, _NO_KERNEL) + torch_programs.volume_obstacles(split, _NO_KERNEL, strided=True)


def _split(program: torch.export.ExportedProgram, tables: Sequence[Any]) -> torch.export.ExportedProgram:
    """Splits a program's operators as litert-torch does, which prepares a graph in place: the program keeps its own."""
    from litert_torch import fx_infra

    try:
        program = program._update(copy.deepcopy(program.graph_module), program.graph_signature)
        for table in tables:
            program = fx_infra.safe_run_decompositions(program, table, can_skip=False)
    except CODE_ERRORS as error:
        raise StageFailed(
            f"PyTorch cannot split the program into basic operators: {first_line(error)}", where=_WHERE, hint="capture the model again"
        ) from error
    return program


def _has_kernel(operator: Any) -> bool:
    from litert_torch.backend import lowerings

    name = torch_programs.base_name(operator)
    return name in _VANISHING or (name not in _LOST_LATER and lowerings.lookup(operator) is not None)


def _explain(error: BaseException, program: torch.export.ExportedProgram) -> StageFailed:
    """Says in one sentence what the converter says in pages, and whose fault it is where the program tells."""
    found = _obstacles(program)
    if found:
        return torch_programs.refusal(_CANNOT, found, _WHERE)
    lines = [_PLACE.sub("", line).strip() for line in str(error).splitlines()]
    reason = next((line for line in lines if line), type(error).__name__).partition(": %")[0][:300]
    return StageFailed(f"{_CANNOT}: {reason}{torch_programs.layers_of(program, reason)}", where=_WHERE, hint="replace that operator in the model")


def _check_file(data: bytes, images: Sequence[str], program: torch.export.ExportedProgram) -> None:
    """Refuses what the converter writes without a word: operators that no kernel executes, and transposed inputs.

    Raises:
        StageFailed: There is one.
    """
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))
    names = {number: name for name, number in vars(schema.BuiltinOperator).items() if isinstance(number, int)}
    for graph in model.subgraphs:
        for operator in graph.operators:
            code = model.operatorCodes[operator.opcodeIndex]
            name = names[max(code.builtinCode, code.deprecatedBuiltinCode)]
            if name == "CUSTOM" or name.startswith("STABLEHLO_"):
                found = _obstacles(program)
                raise torch_programs.refusal(_CANNOT, found, _WHERE) if found else _left(graph, operator, name)
    for signature in model.signatureDefs:
        _check_images(model, signature, names, images)


def _left(graph: Any, operator: Any, name: str) -> StageFailed:
    written = graph.tensors[operator.outputs[0]].name or b""
    layer = re.search(r"layer:([\w.]+\.[\w.]+);", written.decode(errors="replace"))
    place = f" (layer {torch_programs.without_wrapper(layer[1])})" if layer else ""
    return StageFailed(
        f"litert-torch left {name}{place} in the file, which {_NO_KERNEL}", where=_WHERE, hint="keep that step outside of the graph, or replace it"
    )


def _check_images(model: Any, signature: Any, names: dict[int, str], images: Sequence[str]) -> None:
    graph = model.subgraphs[signature.subgraphIndex]
    entries = {one.tensorIndex: one.name.decode() for one in signature.inputs if one.name.decode() in images}
    for operator, index in _first_readers(graph, set(entries)):
        code = model.operatorCodes[operator.opcodeIndex]
        if names[max(code.builtinCode, code.deprecatedBuiltinCode)] == "TRANSPOSE":
            raise StageFailed(
                f"input {entries[index]!r} would be transposed back first: the first layer needs its channels before height and width",
                where=_WHERE,
                hint="leave layout out, or start the model with a convolution or a pooling",
            )


def _first_readers(graph: Any, inputs: set[int]) -> Iterator[tuple[Any, int]]:
    for operator in graph.operators:
        for index in operator.inputs:
            if int(index) in inputs:
                yield operator, int(index)
